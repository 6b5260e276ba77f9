"""`tensormd train`, `evaluate` and `md` with a TensorNet2: new, and from an AceFF-like file."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read
from support.checkpoint_helpers import make_model, plain_operators, reference, save
from support.md_runs import ethanol, run
from support.tensornet2 import make_tensornet2
from support.train_runs import configuration, log_of, write_frames

from tensormd.calculators import PotentialCalculator
from tensormd.models import load_potential, save_potential
from tensormd.models.checkpoint import describe

pytestmark = [
    pytest.mark.filterwarnings("ignore:the charge is"),
    pytest.mark.filterwarnings("ignore:.*does not state its units"),
    pytest.mark.filterwarnings("ignore:.*(Skipping gradients|Old-format checkpoint)"),
]
SMALL = {"channels": 8, "layers": 1, "charge_channels": 2, "radial_functions": 6}
NETWORK = {"architecture": "tensornet2", "tensornet": None, "tensornet2": SMALL | {"cutoff": 4.0}}


def labelled(teacher: Any, count: int = 8) -> list[Atoms]:
    """Ethanols of charge -1, 0 and 1 with a potential's energies, forces and charges."""
    calculator = PotentialCalculator(teacher, dtype="float64")
    structures = [ethanol(seed) for seed in range(count)]
    for k, atoms in enumerate(structures):
        atoms.rattle(0.05, seed=k)
        atoms.info["charge"] = k % 3 - 1
    for atoms, result in zip(structures, calculator.evaluate(structures), strict=True):
        atoms.calc = SinglePointCalculator(
            atoms, energy=result["energy"], forces=result["forces"], charges=result["charges"]
        )
    return structures


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    teacher = make_tensornet2(channels=8, layers=1, coulomb=float("inf"))
    save_potential(teacher, tmp_path / "teacher.safetensors")
    write_frames(tmp_path / "frames.extxyz", labelled(teacher))
    return tmp_path


TRAINING = {"epochs": 6, "batch": 3, "validate_every": 2, "charges_weight": 20.0}


def test_a_new_one_learns_energies_forces_and_charges(here: Path) -> None:
    configuration(
        here / "c.yaml",
        data={"split": [6, 2]},
        model=NETWORK | {"coulomb_weights": [0.5, 1.0], "properties": ["charges"]},
        training=TRAINING,
        output={"torchmdnet_ckpt": True},
    )
    assert run("train", "c.yaml", "-o", "out") == 0
    log = log_of(here / "out")
    assert log["charges_mae_me"][-1] < log["charges_mae_me"][0]
    assert log["loss"][-1] < log["loss"][0]
    trained = load_potential("out/last.safetensors")
    described = describe(trained)
    assert described["architecture"] == "TensorNet2"
    assert described["cutoff_angstrom"] is None
    assert described["coulomb"]["weights"] == [0.5, 1.0]
    assert described["metadata"]["trained_with_charge"] is True
    # What torchmd-net would read is the same potential; its scale is in the last layer.
    theirs = load_potential("out/last.ckpt")
    frame = read("frames.extxyz", 0)
    found = [
        PotentialCalculator(each, dtype="float64").evaluate([frame])[0]
        for each in (trained, theirs)
    ]
    np.testing.assert_allclose(found[0]["forces"], found[1]["forces"], rtol=0, atol=1e-9)

    arguments = ["out/last.safetensors", "frames.extxyz", "-o", "errors", "--json", "all.json"]
    assert run("evaluate", *arguments, "--data-units", "charges=e") == 0
    errors = json.loads((here / "all.json").read_text())["errors"]
    assert {"energy", "forces", "charges"} <= errors.keys()
    assert errors["charges"]["unit"] == "me"


def test_fine_tuning_from_an_aceff_like_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A .ckpt of torchmd-net with Coulomb energy in the old layout, as that of AceFF-2."""
    plain_operators(monkeypatch)
    model, arguments = make_model(
        model="tensornet2", output_model="ScalarPlusWeightedCoulomb", q_weights=[0.0, 0.0, 1.0]
    )
    save(here / "aceff.ckpt", model, arguments, old_layout=True)
    content = torch.load("aceff.ckpt", weights_only=True)
    content["hyper_parameters"]["model"] = "tensornetv2_alt"
    torch.save(content, "aceff.ckpt")
    configuration(
        here / "c.yaml",
        data={"split": [6, 2]},
        model={
            "architecture": None,
            "tensornet": None,
            "start_from": "aceff.ckpt",
            "start_from_units": ["angstrom", "ev"],
            "refit": "all",
        },
        training=TRAINING | {"epochs": 1, "validate_every": 1, "learning_rate": 1e-9},
        output={"torchmdnet_ckpt": True},
    )
    assert run("train", "c.yaml", "-o", "out") == 0
    before, after = load_potential("aceff.ckpt"), load_potential("out/last.safetensors")
    frame = read("frames.extxyz", 0)
    found = [
        PotentialCalculator(each, dtype="float64").evaluate([frame])[0] for each in (before, after)
    ]
    size = np.abs(found[0]["forces"]).max()  # of a random network: hundreds of eV/A
    np.testing.assert_allclose(found[0]["forces"], found[1]["forces"], rtol=0, atol=1e-5 * size)
    # The way back: torchmd-net's own forces of the file that was written.
    from torchmdnet.models.model import load_model

    theirs = load_model("out/last.ckpt", derivative=True)
    _, forces = reference(theirs, frame.numbers, frame.positions, frame.info["charge"])
    np.testing.assert_allclose(found[1]["forces"], forces, rtol=0, atol=1e-9 * size)


@pytest.mark.parametrize("engine", ["ase", "openmm"])
def test_frames_of_a_run_have_the_charges(engine: str, here: Path) -> None:
    if engine == "openmm":
        pytest.importorskip("openmm", reason="openmm is not installed (extra 'openmm')")
    arguments = ["--steps", "6", "--interval", "3", "--charge", "-1", "--seed", "1", "-o", "run"]
    more = ["--engine", "openmm", "--engine-force", "python"] if engine == "openmm" else []
    model = ["-m", "teacher.safetensors", "--coulomb-cutoff", "inf"]
    assert run("md", "frames.extxyz@0", *model, *arguments, *more) == 0
    frames: Any = read("run/trajectory.extxyz", ":")
    assert len(frames) == 3
    calculator = PotentialCalculator("teacher.safetensors", charge=-1)
    for frame in frames:
        charges = frame.get_charges()
        assert charges.sum() == pytest.approx(-1.0, abs=1e-3)
        expected = calculator.evaluate([frame])[0]["charges"]
        np.testing.assert_allclose(charges, expected, rtol=0, atol=1e-4)
    config = json.loads((here / "run" / "config.json").read_text())
    assert config["model_settings"]["coulomb_cutoff"] == "inf"
    if engine == "ase":
        assert run("md", "--resume", "run", "--steps", "9", "--coulomb-cutoff", "inf") == 0


def test_periodic_structures_need_the_option(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    box = ethanol()
    box.set_cell([12.0, 12.0, 12.0])
    box.pbc = True
    write_frames(here / "box.extxyz", [box])
    arguments = ["relax", "box.extxyz", "-m", "teacher.safetensors", "--steps", "1"]
    assert run(*arguments, "-o", "a.extxyz") != 0
    assert "--coulomb-cutoff 12" in capsys.readouterr().err
    run(*arguments, "-o", "b.extxyz", "--coulomb-cutoff", "6")
    assert (here / "b.extxyz").exists()


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (NETWORK | {"coulomb_weights": [1.0]}, "model.coulomb_weights.*predicts 2 of 2"),
        (NETWORK | {"coulomb_weights": [1.0, -1.0]}, "model.coulomb_weights.*not zero"),
        (NETWORK | {"coulomb_cutoff": 5.0}, "coulomb_cutoff is given, but there is no Coulomb"),
        ({"coulomb_weights": [1.0, 1.0]}, "coulomb_weights: a TensorNet predicts no charges"),
        ({"properties": ["charges"]}, "TensorNet predicts no charges"),
    ],
)
def test_options_that_cannot_be(
    model: dict[str, Any], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = {"charges_weight": 1.0} if "properties" in model else {}
    configuration(here / "c.yaml", data={"split": [6, 2]}, model=model, training=weights)
    assert run("train", "c.yaml", "-o", "out") == 2
    assert re.search(message, capsys.readouterr().err.replace("\n", " "))
