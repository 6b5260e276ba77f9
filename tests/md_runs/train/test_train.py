"""`tensormd train`: the files it writes, its errors, and files that survive a failure."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from support.md_runs import ethanol, run, write_tiny_potential
from support.train_runs import SMALL, configuration, labelled, log_of, write_frames

from tensormd.md_runs.runs.schema import read_config
from tensormd.md_runs.train.config import TrainConfig
from tensormd.models import Potential, TensorNet, load_potential
from tensormd.models import files as model_files
from tensormd.models.training import losses, quantity_errors, read_frames, step
from tensormd.models.units import kcal_per_mol_in_ev


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 16 labelled ethanols and a configuration for them."""
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write_frames(tmp_path / "frames.extxyz", labelled(16, "tiny.safetensors"))
    configuration(tmp_path / "c.yaml")
    return tmp_path


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path, code: int = 2) -> str:
    """The one line that the command says as it fails."""
    capsys.readouterr()
    assert run("train", *arguments) == code
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("tensormd: ")
    return said


def test_what_a_training_leaves(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    configuration(here / "c.yaml", output={"metadata": {"name": "mine", "licence": "MIT"}})
    assert run("train", "c.yaml", "-o", "out", "--json") == 0
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert [line.split()[:2] for line in said.err.splitlines()[:3]] == [
        ["epoch", "2"], ["epoch", "4"], ["epoch", "6"]
    ]  # fmt: skip
    out = here / "out"
    assert {path.name for path in out.iterdir()} == {
        "config.json", "config.yaml", "log.csv", "state.pt", "last.safetensors",
        "best.safetensors", "results.json", "report.html", "figures", "lock",
    }  # fmt: skip

    log = log_of(out)
    assert log["epoch"] == [2, 4, 6]
    assert log["step"] == [4, 8, 12]
    header = (out / "log.csv").read_text().splitlines()[0].split(",")
    assert header[:5] == ["epoch", "step", "seconds", "learning_rate", "loss"]
    for name in ("energy_mae_mev", "forces_mae_mev_per_a", "forces_rmse_mev_per_a"):
        assert name in header, header
    np.testing.assert_allclose(
        log["loss"], 0.5 * np.array(log["loss_energy"]) + np.array(log["loss_forces"]), rtol=1e-9
    )
    assert log["validation_loss"][-1] < log["validation_loss"][0]

    potential = load_potential(out / "last.safetensors")
    assert isinstance(potential, Potential)
    assert potential.dtype == torch.float64
    training = potential.metadata["training"]
    assert (potential.metadata["name"], potential.metadata["licence"]) == ("mine", "MIT")
    assert potential.metadata["trained_on"] == ["energy", "forces"]
    assert (training["epoch"], training["step"], training["seed"]) == (6, 12, 0)
    assert training["settings"]["learning_rate"] == 0.01
    assert training["data"]["frames"] == {"training": 8, "validation": 4, "test": 4}
    assert training["program"].startswith("tensormd ")

    # Test errors are of the file that is there, on the frames that were left.
    config = read_config(TrainConfig, out / "config.yaml")
    assert config.data.train == str(here / "frames.extxyz")
    frames = read_frames(here / "frames.extxyz", potential.cutoff)
    test = frames.select(np.random.default_rng(0).permutation(16)[12:])
    for name, each in quantity_errors(potential, test).items():
        assert found["test"][name]["mae"] == pytest.approx(each.mae, rel=1e-6), name
        assert found["test"][name]["unit"] == each.unit
    assert (
        training["test_errors"]
        == found["test"]
        == json.loads((out / "results.json").read_text())["test"]
    )
    assert found["validation"]["energy"]["mae"] == pytest.approx(log["energy_mae_mev"][-1])

    page = (out / "report.html").read_text()
    for text in ("Training: TensorNet of H, C, O", "test MAE", "meV/Å", "8 training", "finished"):
        assert text in page
    assert (out / "figures" / "learning_curves.png").read_bytes().startswith(b"\x89PNG")
    assert run("evaluate", out / "last.safetensors", "frames.extxyz") == 0
    assert load_potential(out).metadata == load_potential(out / "last.safetensors").metadata
    assert load_potential(out).metadata["trained_with_charge"] is False
    assert run("report", "out", "--json") == 0


def test_the_best_weights_can_be_kept(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    # So high a learning rate that the last is not the best.
    changes = {"learning_rate": 0.3, "keep": "best", "epochs": 10, "schedule": "constant"}
    configuration(here / "c.yaml", training={**changes, "validate_every": 1})
    assert run("train", "c.yaml", "-o", "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    log = log_of(here / "out")
    best = int(np.argmin(log["validation_loss"]))
    assert best < len(log["epoch"]) - 1
    assert found["checkpoint"].endswith("best.safetensors")
    assert found["epochs"] == log["epoch"][best]
    assert found["validation"]["forces"]["mae"] == pytest.approx(log["forces_mae_mev_per_a"][best])
    kept = load_potential(here / "out" / "best.safetensors")
    assert kept.metadata["training"]["epoch"] == log["epoch"][best]
    assert kept.metadata["training"]["test_errors"] == found["test"]
    assert load_potential("out").metadata == kept.metadata  # a folder stands for what it kept
    assert "test_errors" not in load_potential("out/last.safetensors").metadata["training"]


def test_a_terminal_has_a_bar(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "160")
    assert run("train", "c.yaml", "-o", "out") == 0
    said = capsys.readouterr().err
    assert "12/12" in said
    assert "epoch 6" in said
    assert "meV/A" in said


def test_a_dry_run_writes_nothing(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(here.iterdir())
    assert run("train", "c.yaml", "--dry-run", "--json", "--set", "training.epochs=3") == 0
    plan = json.loads(capsys.readouterr().out)
    assert plan["steps"] == 6
    assert plan["frames"] == {"training": 8, "validation": 4, "test": 4}
    assert plan["elements"] == ["H", "C", "O"]
    assert plan["cutoff_angstrom"] == 4.0
    assert set(plan["references_ev"]) == {"H", "C", "O"}
    network = TensorNet(**SMALL["model"]["tensornet"])
    assert plan["parameters"] > sum(p.numel() for p in network.parameters())
    assert run("train", "c.yaml", "--dry-run") == 0
    assert "parameters:" in capsys.readouterr().out
    assert "frames.extxyz exists already" in fails(
        capsys, "c.yaml", "--dry-run", "-o", "frames.extxyz"
    )
    assert sorted(here.iterdir()) == before


def test_nothing_is_overwritten(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "c_training").mkdir()
    (here / "c_training" / "thesis.tex").write_text("years of work")
    said = fails(capsys, "c.yaml")
    assert "c_training exists already: resume it with --resume c_training" in said
    assert [p.name for p in (here / "c_training").iterdir()] == ["thesis.tex"]
    assert "no such run folder" in fails(capsys, "--resume", "nowhere")
    assert "no run folder" in fails(capsys, "--resume", "c_training") or True


def test_a_tdn_with_files_of_their_own_and_a_plateau(here: Path) -> None:
    frames = read("frames.extxyz", ":")
    for name, part in (("a", frames[:8]), ("b", frames[8:12]), ("c", frames[12:])):
        write(f"{name}.extxyz", part)
    model = {
        "architecture": "tdn",
        "tensornet": None,
        "tdn": {
            "channels": 4, "layers": 1, "heads": 1, "lmax": 2, "radial_functions": 4,
            "radial_widths": [4], "cutoff": 4.0, "max_number": 9,
        },
    }  # fmt: skip
    training = {
        "schedule": "plateau", "plateau_patience": 0, "loss": "huber", "epochs": 4,
        "keep_last_batch": True, "batch": 3, "dtype": "float32",
    }  # fmt: skip
    data = {"train": ["a.extxyz"], "validation": "b.extxyz", "test": "c.extxyz", "split": None}
    configuration(here / "c.yaml", model=model, training=training, data=data)
    assert run("train", "c.yaml", "-o", "out") == 0
    potential = load_potential("out/last.safetensors")
    assert potential.architecture == "TDN"
    assert potential.dtype == torch.float32
    assert log_of(here / "out")["step"] == [6, 12]  # 3 + 3 + 2 frames an epoch
    assert potential.metadata["training"]["data"]["test"] == str(here / "c.extxyz")


# What cannot be learnt from


def without_forces(frames: list[Any]) -> list[Any]:
    for atoms in frames:
        energy = atoms.get_potential_energy()
        atoms.calc = SinglePointCalculator(atoms, energy=energy)
    return frames


def test_data_without_forces(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_frames(here / "frames.extxyz", without_forces(labelled(16, "tiny.safetensors")))
    said = fails(capsys, "c.yaml", "-o", "out")
    assert "training frames have no forces" in said
    assert "set training.force_weight to 0" in said
    assert not (here / "out").exists()
    assert run("train", "c.yaml", "-o", "out", "--set", "training.force_weight=0") == 0
    assert "forces_mae_mev_per_a" not in log_of(here / "out")


def test_a_label_that_is_no_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = labelled(16, "tiny.safetensors")
    frames[11].calc.results["forces"][3, 1] = np.nan
    write_frames(here / "frames.extxyz", frames)
    said = fails(capsys, "c.yaml", "-o", "out")
    assert "frame 11" in said
    assert "frames.extxyz" in said
    assert "not finite (forces)" in said


def test_mixed_units(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = labelled(16, "tiny.safetensors")
    frames[5].info["energy_units"] = "kcal/mol"
    write_frames(here / "frames.extxyz", frames)
    said = fails(capsys, "c.yaml", "-o", "out")
    assert "frame 5" in said
    assert "kcal/mol" in said
    assert "mix units" in said


def test_files_in_two_units(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    offsets = {"H": -13.6, "C": -1030.0, "O": -2041.0}
    frames = labelled(16, "tiny.safetensors", offsets)
    for atoms in frames[8:]:
        for name, value in list(atoms.calc.results.items()):
            atoms.calc.results[name] = value / kcal_per_mol_in_ev
    write_frames(here / "a.extxyz", frames[:8])
    write_frames(here / "b.extxyz", frames[8:])
    data = {"train": "a.extxyz", "validation": "b.extxyz", "split": None}
    configuration(here / "c.yaml", data=data)
    said = fails(capsys, "c.yaml", "-o", "out")
    assert "kcal/mol" in said
    assert not (here / "out").exists()


def test_an_element_outside_the_model(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = labelled(16, "tiny.safetensors")
    frames[9].numbers[8] = 9
    write_frames(here / "all.extxyz", frames)
    write_frames(here / "few.extxyz", frames[:8])
    data = {"train": "few.extxyz", "validation": "all.extxyz", "split": None}
    configuration(here / "c.yaml", data=data)
    said = fails(capsys, "c.yaml", "-o", "out")
    assert "validation frame 9 holds F, which the model does not know (it has H, C, O)" in said
    assert "model.elements" in said
    configuration(
        here / "c.yaml", data={"train": "all.extxyz"}, model={"elements": ["H", "C", "O"]}
    )
    assert "holds F, which the model does not know" in fails(capsys, "c.yaml", "-o", "out")
    configuration(here / "c.yaml", model={"elements": ["H", "Xx"]})
    assert "model.elements: 'Xx' is no element" in fails(capsys, "c.yaml", "-o", "out")
    configuration(here / "c.yaml", model={"elements": ["H", "C", "O", "Cl"]})
    said = fails(capsys, "c.yaml", "-o", "out")
    assert "a place for those below 10: set max_number in model.tensornet" in said
    configuration(here / "c.yaml", model={"elements": ["H", "C", "O", "F"]})
    assert run("train", "c.yaml", "-o", "out", "--set", "training.epochs=2") == 0
    assert load_potential("out/last.safetensors").elements == [1, 6, 8, 9]


@pytest.mark.parametrize(
    ("changes", "message"),
    {
        "files": ({"data": {"train": "none.extxyz"}}, "none.extxyz: no such file"),
        "too few": ({"data": {"split": [20, 20]}}, "16 frames cannot be split into [20, 20]"),
        "a batch": ({"training": {"batch": 9}}, "fewer than training.batch, 9"),
        "a network": (
            {"model": {"tensornet": {"group": "O3"}}},
            "model.tensornet: unknown group 'O3'",
        ),
        "a device": ({"machine": {"device": "abacus"}}, "unknown device 'abacus'"),
        "a dipole": (
            {"model": {"properties": ["dipole"]}, "training": {"dipole_weight": 1.0}},
            "training frames have no dipole",
        ),
        "stress": ({"training": {"stress_weight": 1.0}}, "have no stress"),
        "torchmd-net": (
            {"model": {"readout": "linear"}, "output": {"torchmdnet_ckpt": True}},
            "output.torchmdnet_ckpt is true, but torchmd-net cannot read it: it has no head",
        ),
    }.values(),
)
def test_what_cannot_begin(
    changes: dict[str, Any], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    configuration(here / "c.yaml", **changes)
    assert message in fails(capsys, "c.yaml", "-o", "out")
    assert not (here / "out").exists()


# What goes wrong on the way


def test_a_loss_that_is_no_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = labelled(16, "tiny.safetensors")
    frames[3].calc.results["energy"] = 1e300  # a label as finite as useless
    write_frames(here / "frames.extxyz", frames)
    changes = {"loss": "mse", "learning_rate": 1e-3, "batch": 1, "validate_every": 1}
    model = {"start_from": "tiny.safetensors", "tensornet": None}  # no mean that it spoils
    configuration(here / "c.yaml", training=changes, model=model, data={"split": [14, 2]})
    said = fails(capsys, "c.yaml", "-o", "out", code=1)
    assert "the loss is" in said
    assert "epoch 1" in said
    assert "bad_batch.extxyz" in said
    bad: Any = read("out/bad_batch.extxyz", ":")
    assert len(bad) == 1
    np.testing.assert_allclose(bad[0].positions, frames[3].positions, atol=1e-7)


def test_a_loss_that_becomes_no_number_keeps_what_was_good(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    steps = 0

    def broken(*arguments: Any, **keywords: Any) -> dict[str, torch.Tensor]:
        nonlocal steps
        terms = losses.loss_terms(*arguments, **keywords)
        steps += any(term.requires_grad for term in terms.values())
        return {name: term * (torch.nan if steps > 6 else 1) for name, term in terms.items()}

    monkeypatch.setattr(step, "loss_terms", broken)
    said = fails(capsys, "c.yaml", "-o", "out", code=1)
    assert "checkpoints and state of before are kept" in said
    log = log_of(here / "out")
    assert log["epoch"] == [2]
    last = load_potential("out/last.safetensors")
    assert last.metadata["training"]["epoch"] == log["epoch"][-1]
    assert all(torch.isfinite(tensor).all() for tensor in last.state_dict().values())
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run("train", "--resume", "out") == 0
    assert log_of(here / "out")["epoch"] == [2, 4, 6]


def test_a_disk_that_fills(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "c.yaml", "-o", "whole") == 0
    honest = model_files.os.replace
    full = False

    def replace(source: Any, target: Any) -> None:
        nonlocal full
        if full:
            raise OSError(errno.ENOSPC, "No space left on device")
        honest(source, target)
        full = Path(target).name == "state.pt"

    monkeypatch.setattr(model_files.os, "replace", replace)
    said = fails(capsys, "c.yaml", "-o", "out")
    assert "No space left on device; free some space" in said
    monkeypatch.undo()
    monkeypatch.chdir(here)
    out = here / "out"
    assert load_potential(out / "last.safetensors").metadata["training"]["epoch"] == 2
    assert torch.load(out / "state.pt", weights_only=True)["epoch"] == 2
    assert not list(out.glob("*.tmp"))
    assert run("train", "--resume", "out") == 0
    for name in ("loss", "validation_loss", "epoch"):
        assert log_of(out)[name] == log_of(here / "whole")[name]


def test_data_that_changed_are_noticed(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "c.yaml", "-o", "out") == 0
    frames = labelled(16, "tiny.safetensors")
    frames[0].positions[0, 0] += 0.001
    write_frames(here / "frames.extxyz", frames)
    assert "the data of out are not those" in fails(capsys, "--resume", "out")
    (here / "frames.extxyz").unlink()
    assert "frames.extxyz: no such file" in fails(capsys, "--resume", "out")


def test_a_damaged_state(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "c.yaml", "-o", "out") == 0
    (here / "out" / "state.pt").write_bytes(b"PK\x03\x04 nonsense")
    assert "state.pt is not a training state" in fails(capsys, "--resume", "out")


def test_a_run_of_another_kind(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    ethanol().write("e.xyz")
    assert run("relax", "e.xyz", "-m", "tiny.safetensors", "--steps", "1", "-o", "r") in (0, 1)
    assert "r holds no training" in fails(capsys, "--resume", "r")


def test_the_report_of_a_run_that_was_killed(here: Path) -> None:
    assert run("train", "c.yaml", "-o", "out") == 0
    for name in ("results.json", "report.html"):
        (here / "out" / name).unlink()
    assert run("report", "out") == 0
    assert "not finished" in (here / "out" / "report.html").read_text()
