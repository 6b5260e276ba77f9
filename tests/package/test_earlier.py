"""Checkpoints, run folders and configurations of an earlier commit; see `earlier/README.md`.

They load, resume, and give the same numbers as before. Processors round differently: numbers from
another processor are compared within tolerances, numbers computed here to the last bit.
"""

from __future__ import annotations

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.io import read
from support.md_runs import run
from support.paths import TESTS

from tensormd.calculators import PotentialCalculator
from tensormd.calculators.openmm_versions import python_problem
from tensormd.md_runs.runs.files import read_table
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.models import weights_digest
from tensormd.md_runs.runs.settings import MDSettings, RelaxSettings
from tensormd.models import Committee, load_potential, save_potential
from tensormd.models.checkpoint import describe

EARLIER = TESTS / "earlier"
ANSWERS = json.loads((EARLIER / "models" / "answers.json").read_text())
RUNS = ("nve", "langevin", "bussi", "npt", "openmm")
TRAININGS = ("tensornet", "tdn", "finetune")
QUANTITIES = ("energy", "forces", "stress", "dipole", "polarizability", "energy_std")

RELATIVE = 1e-9
"""Of the largest magnitude."""
TRAINED = 1e-4
"""The same of weights and errors after a training: Adam enlarges the rounding of small gradients
(to 1e-5 between instruction sets; a batch in another order would change 1e-2)."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy to work in, which names of files in run folders are relative to."""
    copy = tmp_path / "earlier"
    shutil.copytree(EARLIER, copy)
    monkeypatch.chdir(copy)
    return copy


def assert_near(found: Any, expected: Any, name: str, relative: float = RELATIVE) -> None:
    found, expected = np.asarray(found, dtype=float), np.asarray(expected, dtype=float)
    assert found.shape == expected.shape, name
    np.testing.assert_array_equal(np.isnan(found), np.isnan(expected), err_msg=name)
    bound = relative * np.nanmax(np.abs(expected), initial=0.0)
    np.testing.assert_allclose(found, expected, rtol=0, atol=bound, err_msg=name)


def assert_same_data(found: Any, expected: Any, name: str, relative: float = RELATIVE) -> None:
    """Numbers are near, all else is equal; keys that are new are not looked at."""
    if isinstance(expected, dict):
        for key, value in expected.items():
            assert key in found, f"{name}: {key}"
            assert_same_data(found[key], value, f"{name}.{key}", relative)
    elif isinstance(expected, float):
        assert found == pytest.approx(expected, rel=relative, abs=1e-12, nan_ok=True), name
    elif isinstance(expected, list):
        assert len(found) == len(expected), name
        for k, (one, other) in enumerate(zip(found, expected, strict=True)):
            assert_same_data(one, other, f"{name}[{k}]", relative)
    else:
        assert found == expected, name


# Models


@pytest.mark.parametrize("name", ANSWERS)
def test_models_load_and_answer_as_before(name: str, tmp_path: Path) -> None:
    expected = ANSWERS[name]
    potential = load_potential(EARLIER / "models" / name)
    assert weights_digest(potential) == expected["sha256"]
    again = tmp_path / ("again.zip" if isinstance(potential, Committee) else "again.safetensors")
    save_potential(potential, again)
    assert weights_digest(load_potential(again)) == expected["sha256"]
    assert describe(load_potential(again)) == describe(potential)
    calculator = PotentialCalculator(potential, dtype="float64", backend="reference", device="cpu")
    info = calculator.info()
    for key in ("architecture", "parameters", "elements", "cutoff_angstrom", "metadata"):
        assert info[key] == expected[key], key
    for structure in ("ethanol", "waters"):
        results = calculator.evaluate([read(EARLIER / f"{structure}.xyz")])[0]
        answers = expected[structure]
        assert {key for key in QUANTITIES if key in results} == set(answers)
        for key, value in answers.items():
            assert_near(results[key], value, f"{structure} {key}")


def test_torchscript_of_before_runs() -> None:
    module = torch.jit.load(EARLIER / "models" / "portable.pt")
    expected = ANSWERS["double.safetensors"]
    for structure in ("ethanol", "waters"):
        atoms = read(EARLIER / f"{structure}.xyz")
        energy, forces = module(
            torch.from_numpy(atoms.positions),
            torch.from_numpy(atoms.numbers),
            torch.from_numpy(atoms.cell.array),
            torch.from_numpy(atoms.pbc),
        )
        assert_near(energy.item(), expected[structure]["energy"], "energy")
        assert_near(forces.numpy(), expected[structure]["forces"], "forces")


# Molecular dynamics


def options_of(whole: Path, settings: type[MDSettings] | type[RelaxSettings]) -> list[str]:
    """The command line of a run, from its config.json."""
    config = json.loads((whole / "config.json").read_text())
    found = [config["structure"]["source"]]
    defaults = {field.name: field.default for field in dataclasses.fields(settings)}
    for key, value in {**config["settings"], **config["model_settings"]}.items():
        if value == defaults.get(key):  # the command refuses options that have no effect
            continue
        option = f"--{key.replace('_', '-')}"
        if isinstance(value, list):
            found += [text for each in value for text in (option, each)]
        elif value is not None and value is not False:
            found += [option, str(value)]
    return found


def assert_same_run(one: Path, two: Path) -> None:
    """To the last bit."""
    a, b = (RunFolder.open(path).read_restart() for path in (one, two))
    assert a.state == b.state
    for name in ("positions", "momenta", "cell"):
        np.testing.assert_array_equal(a.arrays[name], b.arrays[name], err_msg=name)
    for file in ("log.csv", "trajectory.extxyz"):
        assert (one / file).read_bytes() == (two / file).read_bytes(), file


def assert_same_numbers(one: Path, two: Path) -> None:
    """Within the tolerance, for runs that were not both computed here."""
    a, b = (RunFolder.open(path).read_restart() for path in (one, two))
    assert_same_data(a.state, b.state, "state")
    for name in ("positions", "momenta", "cell"):
        assert_near(a.arrays[name], b.arrays[name], name)
    assert_same_log(one, two)
    for found, expected in zip(*(read(p / "trajectory.extxyz", ":") for p in (one, two)),
                               strict=True):  # fmt: skip
        assert found.calc.results.keys() == expected.calc.results.keys()
        for name, value in expected.calc.results.items():
            assert_near(found.calc.results[name], value, name)


def assert_same_log(one: Path, two: Path, relative: float = RELATIVE) -> None:
    a, b = (read_table(path / "log.csv") for path in (one, two))
    assert list(a)[: len(b)] == list(b)  # columns that are new stand behind
    for name in b.keys() - {"seconds"}:
        assert_near(a[name], b[name], name, relative)


@pytest.mark.parametrize("name", RUNS)
def test_runs_go_on_as_before(name: str, folder: Path) -> None:
    if name == "openmm" and python_problem() is not None:
        pytest.skip(f"needs OpenMM: {python_problem()}")
    half, whole = (folder / "runs" / name / kind for kind in ("half", "whole"))
    shutil.copytree(half, folder / "again")
    for path in (half, folder / "again"):
        assert run("md", "--resume", path) == 0
    assert_same_run(half, folder / "again")
    assert_same_numbers(half, whole)


@pytest.mark.parametrize("name", RUNS)
def test_runs_begin_as_before_and_resume_to_the_last_bit(name: str, folder: Path) -> None:
    if name == "openmm" and python_problem() is not None:
        pytest.skip(f"needs OpenMM: {python_problem()}")
    whole = folder / "runs" / name / "whole"
    options = options_of(whole, MDSettings)
    assert run("md", *options, "-o", folder / "new") == 0
    assert_same_numbers(folder / "new", whole)
    assert run("md", *options, "--steps", "22", "-o", folder / "parts") == 0
    assert run("md", "--resume", folder / "parts", "--steps", "40") == 0
    assert_same_run(folder / "new", folder / "parts")


def test_relaxations_as_before(folder: Path) -> None:
    whole = folder / "runs" / "relax" / "whole"
    options = options_of(whole, RelaxSettings)
    assert run("relax", *options, "-o", folder / "new") == 1  # its steps do not suffice
    assert_same_log(folder / "new", whole)
    found, expected = (read(path / "relaxed.extxyz") for path in (folder / "new", whole))
    assert_near(found.positions, expected.positions, "positions")


# Trainings


def assert_same_weights(one: Path, two: Path, relative: float) -> None:
    for name in ("last.safetensors", "best.safetensors"):
        a, b = (load_potential(path / name).state_dict() for path in (one, two))
        assert a.keys() == b.keys()
        for key in a:
            assert_near(a[key], b[key], f"{name} {key}", relative)


def assert_same_training(one: Path, two: Path, relative: float) -> None:
    assert_same_log(one, two, relative)
    assert_same_weights(one, two, relative)
    a, b = (json.loads((path / "results.json").read_text()) for path in (one, two))
    assert_same_data(a, b, "results", relative)


@pytest.mark.parametrize("name", TRAININGS)
def test_trainings_go_on_as_before(name: str, folder: Path) -> None:
    half, whole = (folder / "trainings" / name / kind for kind in ("half", "whole"))
    shutil.copytree(half, folder / "again")
    for path in (half, folder / "again"):
        assert run("train", "--resume", path) == 0
    assert_same_training(half, folder / "again", 0.0)
    assert_same_training(half, whole, TRAINED)


@pytest.mark.parametrize("name", [*TRAININGS, "all_keys"])
def test_trainings_begin_as_before(name: str, folder: Path) -> None:
    whole = folder / "trainings" / name / "whole"
    assert run("train", f"trainings/{name}.yaml", "-o", folder / "new") == 0
    assert_same_training(folder / "new", whole, TRAINED)
    found = json.loads((folder / "new" / "config.json").read_text().replace(f"{folder}/", ""))
    expected = json.loads((whole / "config.json").read_text())
    del expected["versions"], expected["model"]["sha256"]  # of weights drawn on another processor
    assert_same_data(found, expected, "config")


# Reports


@pytest.mark.parametrize(
    "name", ["runs/langevin", "runs/npt", "runs/relax", "trainings/tensornet"]
)
def test_reports_of_before(name: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("report", f"{name}/whole", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert_same_data(found, json.loads((folder / name / "report.json").read_text()), "report")
    assert (folder / name / "whole" / "report.html").stat().st_size > 10_000
