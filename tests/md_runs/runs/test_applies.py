"""No option of any command is ignored: it has an effect, or it is refused."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import typer
from support.md_runs import ethanol, run, write_tiny_potential

from tensormd.md_runs.command.main import COMMANDS
from tensormd.md_runs.runs.applies import NEEDS
from tensormd.md_runs.runs.models import default_threads
from tensormd.md_runs.runs.settings import (
    MDSettings,
    ModelSettings,
    RelaxSettings,
    md_settings,
    to_json,
)

MD = ["md", "ethanol.xyz"]
OPENMM = [*MD, "--engine", "openmm"]
NVT = [*MD, "--ensemble", "nvt"]
NPT = [*OPENMM, "--ensemble", "npt"]


def test_threads_of_small_structures(monkeypatch: pytest.MonkeyPatch) -> None:
    """All for fused kernels, which choose among them; one for torch operators."""
    monkeypatch.setattr("torch.get_num_threads", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    fused, reference = ModelSettings(()), ModelSettings((), backend="reference")
    found = [default_threads(atoms, how) for how in (fused, reference) for atoms in (60, 61)]
    assert found == [8, 8, 1, 8]
    assert default_threads(9, ModelSettings((), dtype="float64")) == 1
    assert default_threads(9, ModelSettings((), dtype="float64", backend="fused")) == 8
    monkeypatch.setenv("OMP_NUM_THREADS", "8")
    assert default_threads(9, reference) == 8


def parameters(command: str) -> set[str]:
    module = importlib.import_module(f"tensormd.md_runs.command.{command}")
    alone = typer.Typer()
    alone.command(command)(getattr(module, getattr(module, "DEFAULT_ACTION", command)))
    return {str(parameter.name) for parameter in typer.main.get_command(alone).params}


def test_every_row_is_an_option() -> None:
    assert NEEDS.keys() <= COMMANDS.keys()
    for command, rows in NEEDS.items():
        assert rows.keys() <= parameters(command), command


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*NVT, "--pressure", "1000"], "--pressure is an option of --ensemble npt only"),
        ([*NVT, "--pressure", "1"], "--pressure is an option of --ensemble npt only"),
        ([*NVT, "--barostat-time", "10"], "--barostat-time is an option of --ensemble npt only"),
        ([*NVT, "--compressibility", "1e-4"], "--compressibility is an option of --ensemble npt"),
        ([*NPT, "--barostat-time", "10"], "--barostat-time is an option of --engine ase only"),
        ([*OPENMM, "--barostat", "anisotropic"], "--barostat is an option of --ensemble npt"),
        ([*MD, "--thermostat", "bussi"], "--thermostat is an option of --ensemble nvt or npt"),
        ([*MD, "--thermostat", "langevin"], "--thermostat is an option of --ensemble nvt or npt"),
        ([*MD, "--thermostat-time", "5"], "--thermostat-time is an option of --ensemble nvt or"),
        ([*MD, "--keep-velocities", "--temperature", "9"], "--temperature has no effect in nve"),
        ([*MD, "--keep-velocities", "--seed", "9"], "--seed has no effect in nve with"),
        ([*MD, "--trajectory", "extxyz"], "--trajectory is an option of --engine openmm only"),
        ([*OPENMM, "--hydrogen-mass", "3"], "--hydrogen-mass is an option of the force field"),
        ([*MD, "--resume", "x"], "STRUCTURE cannot be given with --resume"),
        (["relax", "ethanol.xyz", "--pressure", "0"], "--pressure has no effect while the cell"),
        (["train", "--example", "-o", "x"], "--out cannot be given with --example"),
        (["train", "--example", "c.yaml"], "CONFIG.yaml cannot be given with --example"),
        (["train", "--example", "--set", "a.b=1"], "--set cannot be given with --example"),
        (["train", "--resume", "x", "--dry-run"], "--dry-run cannot be given with --resume: it"),
        (["export", "m", "o", "--charge", "0"], "--charge is an option of --target openmm and"),
        (["export", "m", "o", "--no-periodic"], "--periodic is an option of --target openmm"),
        (["benchmark", "--no-peer", "--compile"], "--compile is about torchmd-net"),
        (["benchmark", "--units", "nm,ev"], "--units is for a checkpoint: give one with --model"),
        (["benchmark", "--data", "."], "--data is the folder of chignolin and dhfr"),
    ],
)
def test_an_option_without_effect(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1, said
    assert message in said[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "settings",
    [
        {"pressure": 1000.0},
        {"ensemble": "nvt", "pressure": 1000.0},
        {"thermostat": "bussi"},
        {"keep_velocities": True, "temperature": 10.0},
        {"engine": "openmm", "ensemble": "nvt", "barostat": "anisotropic"},
    ],
)
def test_settings_without_effect(settings: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"option of --ensemble|no effect"):
        MDSettings(**settings)


def test_relaxation_settings_without_effect() -> None:
    with pytest.raises(ValueError, match="--pressure has no effect while the cell is fixed"):
        RelaxSettings(pressure=3.0)
    assert RelaxSettings(pressure=3.0, cell=True).pressure == 3.0


def test_a_run_of_before_that_ignored_an_option_is_read() -> None:
    old = {**to_json(MDSettings(ensemble="nvt", steps=5, seed=7)), "pressure": 1000.0}
    assert md_settings(old) == MDSettings(ensemble="nvt", steps=5, seed=7)
    kept = {**to_json(MDSettings(keep_velocities=True, seed=7)), "temperature": 5.0}
    assert md_settings(kept) == MDSettings(keep_velocities=True, seed=7)
    npt = MDSettings(ensemble="npt", thermostat="bussi", pressure=3.0, compressibility=1e-4)
    assert md_settings(to_json(npt)) == npt
    mixed = MDSettings(engine="openmm", ml_atoms="0", force_field=("a.xml",), hydrogen_mass=3.0)
    assert md_settings(to_json(mixed)) == mixed


def test_options_that_a_resumed_run_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Of a resumed run each option is compared with the run's own, not with the defaults."""
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    ethanol().write("ethanol.xyz")
    options = ["--ensemble", "nvt", "--thermostat", "bussi", "--thermostat-time", "50"]
    assert run(*MD, "-m", "tiny.safetensors", *options, "--steps", "2", "-o", "run") == 0
    assert run("md", "--resume", "run", "--thermostat", "bussi", "--steps", "4") == 0
    capsys.readouterr()
    assert run("md", "--resume", "run", "--thermostat", "langevin") == 2
    said = capsys.readouterr().err
    assert "--thermostat is langevin, but the run was started with bussi" in said
