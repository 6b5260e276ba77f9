"""`tensormd irreps`: its files, the checkpoint without an order, shipped checkpoints, errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from matplotlib.image import imread
from support.data import data_file
from support.md_runs import ethanol, run, write_tiny_potential

from tensormd.calculators import PotentialCalculator
from tensormd.models import (
    TDN,
    EnergyReadout,
    Potential,
    ScalarReadout,
    TensorNet,
    load_potential,
    save_potential,
)

MATGL = "matgl/TensorNet-MatPES-PBE-v2025.1-PES"
REFERENCE = "reference/matgl-TensorNet-MatPES-PBE-v2025.1.json"
ETHANOL = "rmd17/rmd17_ethanol_test_01.npz"


def label(checkpoint: str, structures: list[Atoms], noise: float) -> list[Atoms]:
    """The structures with a checkpoint's energies and forces and some noise."""
    rng = np.random.default_rng(4)
    results = PotentialCalculator(checkpoint, dtype="float64").evaluate(structures)
    for atoms, result in zip(structures, results, strict=True):
        forces = result["forces"] + noise * rng.normal(size=(len(atoms), 3))
        energy = result["energy"] + noise * rng.normal()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return structures


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write("frames.extxyz", label("tiny.safetensors", [ethanol(k) for k in range(10)], 0.02))
    return tmp_path


def test_files_and_numbers(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("irreps", "tiny.safetensors", "frames.extxyz", "--limit", "6", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    folder = Path("frames_irreps")
    assert found == json.loads((folder / "irreps.json").read_text())
    assert (found["frames"], found["atoms"]) == (6, 54)
    assert found["layers"] == ["embedding", "layer 1"]
    assert found["orders"] == ["I", "A", "S"]
    assert len(found["by_layer"]) == 6
    for layer in found["layers"]:
        rows = [row for row in found["by_layer"] if row["layer"] == layer]
        for key in ("norm_share", "norm_share_per_component", "energy_share"):
            assert sum(row[key] for row in rows) == pytest.approx(1)
        forces = sum(row["force_share"] for row in rows)
        assert forces + found["force_share_of_later_edges"][layer] == pytest.approx(1)
    options = ["--dtype", "float64", "--limit", "6", "-o", "errors", "--json", "-"]
    assert run("evaluate", "tiny.safetensors", "frames.extxyz", *options) == 0
    errors = json.loads(capsys.readouterr().out)
    for key, name in (("energy_mae_mev", "energy_mev"),
                      ("force_mae_mev_per_angstrom", "force_mev_per_angstrom")):  # fmt: skip
        assert found["whole"][key] == pytest.approx(errors[name]["mae"], rel=1e-6)
    for name in ("orders.png", "maps.png"):
        assert imread(folder / name).std() > 0.05
    page = (folder / "irreps.html").read_text()
    assert found["recommendation"]["text"].replace("'", "&#x27;") in page
    assert page.count("data:image/png;base64") == 2
    assert "<th scope='col'>norm</th>" in page
    tables = (folder / "irreps.md").read_text()
    assert tables.count("| embedding |") == 3
    assert found["recommendation"]["text"] in tables
    assert {path.name for path in folder.iterdir()} == {
        "irreps.json", "irreps.html", "irreps.md", "orders.png", "maps.png"
    }  # fmt: skip


def test_tables_for_people(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["-o", "out", "--color", "forces"]
    assert run("irreps", "tiny.safetensors", "frames.extxyz", *options) == 0
    shown = capsys.readouterr().out
    for text in ("embedding", "layer 1", "whole", "nothing", "Prune", "multiplications"):
        assert text in shown
    assert "out/irreps.html" in shown


@pytest.mark.parametrize("order", ["A", "S", "l=1", "l=2"])
def test_pruned_checkpoint_has_the_predicted_error(
    order: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "tiny"
    if order.startswith("l="):
        name = "tdn"
        torch.manual_seed(3)
        network = TDN(channels=8, layers=2, lmax=2, heads=2, radial_functions=8,
                      radial_widths=(8,), cutoff=4.0, max_number=10)  # fmt: skip
        metadata = {"name": "tdn", "energy_mae_mev": 1.0, "licence": "MIT"}
        potential = Potential(
            network, ScalarReadout(8), elements=[1, 6, 8], scale=3.0, metadata=metadata
        )
        save_potential(potential, "tdn.safetensors")
        write("frames.extxyz", label("tdn.safetensors", [ethanol(k) for k in range(10)], 0.02))
    options = ["--prune", order, "-o", "out", "--json"]
    assert run("irreps", f"{name}.safetensors", "frames.extxyz", *options) == 0
    found = json.loads(capsys.readouterr().out)
    predicted, got = found["pruned"]["predicted"], found["pruned"]["found"]
    assert predicted == found["without_everywhere"][order]
    # Weights are float32: what pruning folds into others is rounded once.
    assert got == pytest.approx(predicted, rel=1e-5)
    assert predicted["force_change_mev_per_angstrom"] > 1
    file = found["files"]["pruned_checkpoint"]
    assert Path(file).name == f"{name}-without-{order.replace('=', '')}.safetensors"
    whole, smaller = load_potential(f"{name}.safetensors"), load_potential(file)
    assert sum(p.numel() for p in smaller.parameters()) <= sum(
        p.numel() for p in whole.parameters()
    )
    record = smaller.metadata["pruned"]
    assert (record["order"], record["from"], record["frames"]) == (order, name, 10)
    assert record["from_sha256"] == found["model"]["sha256"]
    assert record["predicted"] == pytest.approx(predicted)
    assert record["found"] == pytest.approx(got, rel=1e-5)
    assert "energy_mae_mev" not in smaller.metadata
    # By another way: `evaluate` on the new file.
    options = ["--dtype", "float64", "-o", "errors", "--json", "-"]
    assert run("evaluate", file, "frames.extxyz", *options) == 0
    errors = json.loads(capsys.readouterr().out)
    assert errors["force_mev_per_angstrom"]["mae"] == pytest.approx(
        predicted["force_mae_mev_per_angstrom"], rel=1e-5
    )
    assert errors["energy_mev"]["mae"] == pytest.approx(predicted["energy_mae_mev"], rel=1e-5)


def test_fine_tuned_and_pruned(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--limit", "4", "--fine-tune", "20", "--prune", "A", "-o", "out", "--json"]
    assert run("irreps", "tiny.safetensors", "frames.extxyz", *options) == 0
    found = json.loads(capsys.readouterr().out)
    tuning = found["fine_tuning"]
    assert (tuning["epochs"], tuning["frames"]) == (20, 6)
    assert set(tuning["errors"]) == {"whole", "A", "S"}
    key = "force_mae_mev_per_angstrom"
    assert tuning["errors"]["A"][key] < found["without_everywhere"]["A"][key]
    assert found["pruned"]["predicted"] == tuning["errors"]["A"]
    assert found["pruned"]["found"] == pytest.approx(tuning["errors"]["A"], rel=1e-5)
    smaller = load_potential(found["files"]["pruned_checkpoint"])
    assert smaller.metadata["pruned"]["fine_tuning_epochs"] == 20
    assert "fine-tuned, meV/A" in Path("out/irreps.html").read_text()


def test_s_trained_away_is_recognised(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same short training with and without a penalty on S: the control must differ."""
    frames: Any = read("frames.extxyz", ":")
    for name, penalty in (("used", 0.0), ("unused", 3.0)):
        torch.manual_seed(0)
        network = TensorNet(channels=8, layers=1, radial_functions=8, cutoff=4.0, max_number=10)
        potential = Potential(network, EnergyReadout(8), elements=[1, 6, 8], scale=3.0)
        train_with_penalty(potential, frames, penalty)
        save_potential(potential, f"{name}.safetensors")
        write(f"{name}.extxyz", label(f"{name}.safetensors", frames, 0.02))
    found = {}
    for name in ("used", "unused"):
        assert run("irreps", f"{name}.safetensors", f"{name}.extxyz", "--json") == 0
        found[name] = json.loads(capsys.readouterr().out)
    assert found["unused"]["recommendation"]["order"] == "S"
    assert found["used"]["recommendation"]["order"] != "S"
    share = {
        name: max(row["norm_share"] for row in each["by_layer"] if row["order"] == "S")
        for name, each in found.items()
    }
    assert share["unused"] < 1e-4 < 0.1 < share["used"]


def train_with_penalty(potential: Potential, frames: list[Atoms], penalty: float) -> None:
    """Adam on forces, and on the share of S in the squared norm of the features."""
    from tensormd.models.analysis import changed
    from tensormd.models.training import read_extxyz

    batch = read_extxyz("frames.extxyz", potential.cutoff).batch(range(len(frames)))
    optimizer = torch.optim.Adam(potential.parameters(), lr=1e-2)
    potential.train()
    assert batch.labels.forces is not None
    for _ in range(150):
        shares = []

        def watch(k: int, x: torch.Tensor, shares: list[torch.Tensor] = shares) -> torch.Tensor:
            shares.append(x[4:].square().sum() / x.square().sum())
            return x

        with changed(potential, watch):
            forces = potential(batch.graph).forces
        loss = (forces - batch.labels.forces).abs().mean()
        # The logarithm goes on pushing where the share itself is small already.
        loss = loss + penalty * sum((share + 1e-8).log() for share in shares)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    potential.eval()


@pytest.mark.parametrize("name", ["ethanol", "ethanol-tdn"])
def test_what_ships_uses_all_its_orders(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data = data_file(ETHANOL)
    monkeypatch.chdir(tmp_path)
    assert run("irreps", name, data, "--limit", "16", "-o", "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["recommendation"]["order"] is None
    assert found["whole"]["force_mae_mev_per_angstrom"] < 20
    for without in found["without_everywhere"].values():
        assert without["force_mae_mev_per_angstrom"] > 100


def test_universal_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    folder, reference = data_file(MATGL), data_file(REFERENCE)
    monkeypatch.chdir(tmp_path)
    names = ("MgO_primitive", "water_molecule", "acetamide_molecule")
    write_reference(reference, Path("reference.extxyz"), names)
    options = ["-o", "out", "--json", "--color", "atoms"]
    assert run("irreps", folder, "reference.extxyz", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["frames"] == 3
    # float64 against matgl's own float32.
    assert found["whole"]["force_mae_mev_per_angstrom"] < 0.1
    assert found["recommendation"]["order"] is None
    assert len(found["by_layer"]) == 9


def write_reference(source: Path, target: Path, names: tuple[str, ...] | None = None) -> None:
    """Structures of the universal model with matgl's energies and forces."""
    structures = []
    for name, each in json.loads(source.read_text()).items():
        if names is None or name in names:
            pbc = all(each["pbc"])  # matgl's own reading of an open direction
            atoms = Atoms(each["numbers"], each["positions"], cell=each["cell"], pbc=pbc)
            atoms.calc = SinglePointCalculator(
                atoms, energy=each["energy"], forces=np.array(each["forces"])
            )
            structures.append(atoms)
    write(target, structures)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prune", "I"], "I is the scalars, which the energy is made of"),
        (["--prune", "l=2"], "the network has no order l=2: those to remove are A, S"),
        (["--prune", "B"], "the network has no order B"),
        (["--limit", "0"], "--limit is 0: expected 1 or more"),
        (["--fine-tune", "-1"], "--fine-tune is -1"),
        (["--fine-tune", "2"], "frames.extxyz has 10 frames, all of which are analysed"),
        (["--color", "mass"], "--color is 'mass': expected one of energy, atoms, forces"),
        (["--threads", "0"], "--threads is 0"),
        (["-o", "full"], "full exists already"),
    ],
)
def test_bad_options(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/notes").touch()
    before = sorted(here.iterdir())
    assert run("irreps", "tiny.safetensors", "frames.extxyz", *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert sorted(here.iterdir()) == before, "a mistake must leave nothing behind"


def test_bad_models_and_data(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_potential(here / "second.safetensors", seed=1)
    whole = load_potential("tiny.safetensors")
    from tensormd.models import Committee

    save_potential(Committee([whole, load_potential("second.safetensors")]), "both.zip")
    assert run("irreps", "both.zip", "frames.extxyz") == 2
    assert "a Committee has no orders to measure" in capsys.readouterr().err
    write("bare.extxyz", ethanol())
    assert run("irreps", "tiny.safetensors", "bare.extxyz") == 2
    assert "bare.extxyz" in capsys.readouterr().err
    nitrogen = Atoms("N2", [[0, 0, 0], [0, 0, 1.1]])
    nitrogen.calc = SinglePointCalculator(nitrogen, energy=0.0, forces=np.zeros((2, 3)))
    write("nitrogen.extxyz", nitrogen)
    assert run("irreps", "tiny.safetensors", "nitrogen.extxyz") == 2
    assert "does not know N" in capsys.readouterr().err
