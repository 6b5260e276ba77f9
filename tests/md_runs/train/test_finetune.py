"""Training that starts from a checkpoint of any program; outputs other than energies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from support.checkpoint_files import make_state
from support.checkpoint_helpers import make_model, save
from support.data import data_file
from support.md_runs import run, write_tiny_potential
from support.tdn_release_model import ReleasedTDN
from support.train_runs import configuration, labelled, log_of, write_frames

from tensormd.calculators import PotentialCalculator
from tensormd.models import Potential, load_potential

OFFSETS = {"H": 0.7, "C": -2.0, "O": 5.0}
"""Energies of elements, eV, by which the data differ from the potential."""
NONE = {"architecture": None, "tensornet": None}


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A potential, and frames that have its forces, and its energies up to `OFFSETS`."""
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write_frames(tmp_path / "frames.extxyz", labelled(16, "tiny.safetensors", OFFSETS))
    return tmp_path


def fine_tune(folder: Path, start_from: str, out: str = "out", **changes: Any) -> int:
    """One step so small that it changes nothing."""
    training = {"epochs": 1, "batch": 8, "validate_every": 1, "learning_rate": 1e-9}
    model = {**NONE, "start_from": start_from, **changes.pop("model", {})}
    configuration(folder / "c.yaml", model=model, training=training, **changes)
    return run("train", "c.yaml", "-o", out)


def energy_error(out: str) -> float:
    """Mean absolute, meV, on the validation frames."""
    return log_of(Path(out))["energy_mae_mev"][-1]


def test_energies_of_elements_are_refitted(here: Path) -> None:
    # All frames are ethanol: only the sum of the offsets can be found, and is.
    assert fine_tune(here, "tiny.safetensors", "none") == 0
    assert energy_error("none") == pytest.approx(1e3 * (6 * 0.7 - 2 * 2.0 + 5.0), abs=1)
    assert fine_tune(here, "tiny.safetensors", "all", model={"refit": "all"}) == 0
    assert energy_error("all") < 1e-3
    assert fine_tune(here, "tiny.safetensors", "some", model={"refit": ["O"]}) == 0
    assert energy_error("some") < 1e-3
    before = load_potential("tiny.safetensors").atomic_scale.references
    after = load_potential("some/last.safetensors").atomic_scale.references
    assert torch.equal(before[[1, 6]], after[[1, 6]])
    assert after[8] - before[8] == pytest.approx(6 * 0.7 - 2 * 2.0 + 5.0, abs=1e-6)
    assert load_potential("some/last.safetensors").metadata["training"]["started_from"] == {
        "checkpoint": str(here / "tiny.safetensors"),
        "metadata": {"name": "tiny"},
    }


def test_each_element_of_several_molecules_is_found(here: Path) -> None:
    frames = labelled(12, "tiny.safetensors", OFFSETS)
    calculator = PotentialCalculator("tiny.safetensors", dtype="float64", backend="reference")
    for k, atoms in enumerate(frames):
        del atoms[[0, 3, 5][: k % 4]]  # other compositions
        result = calculator.evaluate([atoms])[0]
        energy = result["energy"] + sum(OFFSETS[s] for s in atoms.symbols)
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=result["forces"])
    write_frames(here / "frames.extxyz", frames)
    data = {"split": [10, 2]}
    assert fine_tune(here, "tiny.safetensors", model={"refit": "all"}, data=data) == 0
    assert energy_error("out") < 1e-3


def test_an_element_is_added(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = labelled(16, "tiny.safetensors", OFFSETS)
    for atoms in frames:
        result = atoms.calc.results
        atoms.numbers[8] = 9
        energy = result["energy"] - 20.0
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=result["forces"])
    write_frames(here / "frames.extxyz", frames)
    assert fine_tune(here, "tiny.safetensors") == 2
    said = capsys.readouterr().err
    assert "training frame 0 holds F, which the model does not know (it has H, C, O)" in said
    model = {"elements": ["H", "C", "O", "F"]}
    assert fine_tune(here, "tiny.safetensors", model=model) == 0
    found = load_potential("out/last.safetensors")
    assert found.elements == [1, 6, 8, 9]
    assert found.atomic_scale.references[9] < -10
    assert not found.atomic_scale.references[[1, 6, 8]].any()
    model = {"elements": ["H", "C", "O", "F", "N"]}
    assert fine_tune(here, "tiny.safetensors", "out2", model=model) == 2
    assert "has N, which no training frame holds" in capsys.readouterr().err
    model = {"elements": ["H", "C", "O", "F", "Cl"]}
    assert fine_tune(here, "tiny.safetensors", "out2", model=model) == 2
    assert "a place for those below 10: train a new one" in capsys.readouterr().err


def write_checkpoint(kind: str) -> str:
    if kind == "torchmd-net":
        return str(save(Path("theirs.ckpt"), *make_model()))
    if kind == "modelforge":
        torch.save(make_state(), "modelforge.pt")
        return "modelforge.pt"
    torch.save(ReleasedTDN(blocks=1).state(), "tdn_best_model.pth")
    return "tdn_best_model.pth"


@pytest.mark.parametrize("kind", ["torchmd-net", "modelforge", "released TDN"])
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_checkpoints_of_other_programs(kind: str, here: Path) -> None:
    checkpoint = write_checkpoint(kind)
    before: Any = load_potential(checkpoint)
    model = {"refit": "all", "start_from_units": ["angstrom", "kcal/mol"]}
    if kind != "torchmd-net":
        del model["start_from_units"]
    # So far from these data that one tiny step is all that is asked of it.
    assert fine_tune(here, checkpoint, model=model) == 0
    after: Any = load_potential("out/last.safetensors")
    assert isinstance(after, Potential)
    assert after.energy_unit == ("kcal/mol" if kind == "torchmd-net" else before.energy_unit)
    assert after.representation.config == before.representation.config
    state = before.state_dict()
    changed = [
        name
        for name, tensor in after.state_dict().items()
        if "references" not in name and not torch.allclose(tensor, state[name].double(), atol=1e-6)
    ]
    assert not changed
    log = log_of(here / "out")
    assert np.isfinite(log["loss"]).all()


def test_a_universal_potential_of_matgl(here: Path) -> None:
    folder = data_file("matgl/TensorNet-MatPES-PBE-v2025.1-PES")
    data = {"split": [8, 2]}
    assert fine_tune(here, str(folder), model={"refit": "all"}, data=data) == 0
    after: Any = load_potential("out/last.safetensors")
    assert len(after.elements) == 89
    assert after.readout.config["head"] == "gated"
    # Its energies of H, C and O are those of the data now, the other elements' its own.
    before: Any = load_potential(folder)
    changed = after.atomic_scale.references != before.atomic_scale.references
    assert torch.nonzero(changed).flatten().tolist() == [1, 6, 8]
    assert energy_error("out") < 1000


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_what_cannot_be_trained_further(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save(Path("et.ckpt"), *make_model(model="equivariant-transformer"))
    assert fine_tune(here, "et.ckpt") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "runs as torchmd-net's own module and is not trained here" in said
    assert "expected a TensorNet, a TensorNet2 or a TDN" in said
    from tensormd.models import Committee, save_potential

    members = [load_potential("tiny.safetensors") for _ in range(2)]
    save_potential(Committee(members), "two.zip")
    assert fine_tune(here, "two.zip") == 2
    assert "a committee: give one of its members" in capsys.readouterr().err
    assert fine_tune(here, "nowhere.ckpt") == 2
    assert "no such file: nowhere.ckpt" in capsys.readouterr().err
    assert not (here / "out").exists()


def test_another_checkpoint_under_its_name_is_noticed(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert fine_tune(here, "tiny.safetensors") == 0
    write_tiny_potential(here / "tiny.safetensors", seed=5)
    assert run("train", "--resume", "out") == 2
    assert "is not the checkpoint that the run began with" in capsys.readouterr().err


def test_a_checkpoint_for_torchmdnet_is_left(here: Path) -> None:
    configuration(here / "c.yaml", output={"torchmdnet_ckpt": True}, training={"epochs": 2})
    assert run("train", "c.yaml", "-o", "out") == 0
    ours, theirs = (load_potential(f"out/last.{s}") for s in ("safetensors", "ckpt"))
    for name, tensor in theirs.state_dict().items():
        if "references" not in name:
            assert torch.equal(tensor, ours.state_dict()[name]), name
    assert theirs.elements == [1, 6, 8]
    assert theirs.metadata["training"]["test_errors"]


def test_dipoles_are_learnt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames: Any = read("frames.extxyz", ":")
    charges = np.array([{1: 0.2, 6: -0.2, 8: -0.8}[z] for z in frames[0].numbers])
    for atoms in frames:
        results = {"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()}
        arms = atoms.positions - atoms.get_center_of_mass()
        atoms.calc = SinglePointCalculator(atoms, **results, dipole=charges @ arms)
    write("frames.extxyz", frames)
    training = {"dipole_weight": 1.0, "epochs": 40, "validate_every": 10}
    configuration(here / "c.yaml", model={"properties": ["dipole"]}, training=training)
    assert run("train", "c.yaml", "-o", "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    log = log_of(here / "out")
    column = next(name for name in log if name.startswith("dipole_mae_"))
    assert log[column][-1] < 0.5 * log[column][0]
    assert found["test"]["dipole"]["unit"]
    potential = load_potential("out/last.safetensors")
    assert potential.metadata["trained_on"] == ["energy", "forces", "dipole"]
    atoms = frames[0].copy()
    atoms.calc = PotentialCalculator("out/last.safetensors")
    assert np.abs(atoms.get_dipole_moment() - frames[0].get_dipole_moment()).max() < 0.5
    configuration(
        here / "d.yaml",
        model={"properties": ["dipole"]},
        training=training,
        output={"torchmdnet_ckpt": True},
    )
    assert run("train", "d.yaml", "-o", "out2") == 2
    assert "beside the energy it would lose dipole" in capsys.readouterr().err


def test_frozen_parts_keep_their_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts = ["representation.embedding", "readout.norm.weight"]
    training = {"epochs": 2, "validate_every": 1}
    configuration(
        here / "c.yaml",
        model={**NONE, "start_from": "tiny.safetensors", "freeze": parts},
        training=training,
    )
    assert run("train", "c.yaml", "-o", "out", "--set", "training.epochs=1") == 0
    assert run("train", "--resume", "out", "--set", "training.epochs=2") == 0
    before = load_potential("tiny.safetensors").state_dict()
    potential = load_potential("out/last.safetensors")
    for name, value in potential.named_parameters():
        frozen = name.startswith("representation.embedding.") or name == parts[1]
        assert torch.equal(value, before[name].double()) == frozen, name
    plan = json.loads((here / "out" / "config.json").read_text())["model"]
    count = sum(p.numel() for p in potential.parameters())
    assert plan["parameters"] + plan["frozen_parameters"] == count
    assert plan["frozen_parameters"] > 100


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"freeze": ["embedding"]}, "model.freeze has 'embedding': expected of representation, "),
        ({"freeze": ["representation", "readout"]}, "which leaves nothing to train"),
        (
            {"freeze": ["readout"], "start_from": None, "tensornet": {"channels": 4}},
            "freeze is of start_from, which is not given",
        ),
    ],
)
def test_what_cannot_be_frozen(
    model: dict[str, Any], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    changes = {**NONE, "start_from": "tiny.safetensors", **model}
    configuration(here / "c.yaml", model=changes)
    assert run("train", "c.yaml", "-o", "out") == 2
    assert message in capsys.readouterr().err
    assert not (here / "out").exists()
