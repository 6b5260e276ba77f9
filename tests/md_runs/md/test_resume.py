"""A stopped, killed or extended run gives the same numbers as an uninterrupted one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.md_runs import Springs, ethanol, wait_for_lines, waters, write_tiny_potential

from tensormd.md_runs.md.launch import launch_md, relaunch_md
from tensormd.md_runs.md.loop import start_md
from tensormd.md_runs.runs.errors import Interrupted
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings, ModelSettings

ENSEMBLES = {
    "nve": {"ensemble": "nve"},
    "langevin": {"ensemble": "nvt", "thermostat": "langevin"},
    "bussi": {"ensemble": "nvt", "thermostat": "bussi"},
    "npt-langevin": {"ensemble": "npt", "thermostat": "langevin"},
    "npt-bussi": {"ensemble": "npt", "thermostat": "bussi", "compressibility": 1e-3},
}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inputs")
    write_tiny_potential(folder / "tiny.safetensors")
    write_tiny_potential(folder / "other.safetensors", seed=1)
    ethanol().write(folder / "ethanol.xyz")
    waters().write(folder / "waters.xyz")
    return folder


def start(files: Path, out: Path, steps: int, name: str = "langevin", **keywords) -> None:
    structure = "waters.xyz" if name.startswith("npt") else "ethanol.xyz"
    settings = MDSettings(**ENSEMBLES[name], steps=steps, seed=5, interval=4, timestep=0.5)
    model = ModelSettings((str(files / "tiny.safetensors"),))
    launch_md(str(files / structure), model, settings, out, **keywords)


def assert_same_run(a: Path, b: Path) -> None:
    one, two = RunFolder.open(a).read_restart(), RunFolder.open(b).read_restart()
    assert one.state == two.state
    for name, array in one.arrays.items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, two.arrays[name], err_msg=name)
    for file in ("log.csv", "trajectory.extxyz"):
        assert (a / file).read_bytes() == (b / file).read_bytes(), file


@pytest.mark.parametrize("name", ENSEMBLES)
def test_extended_run_equals_one_in_a_single_go(name: str, files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "whole", 60, name)
    start(files, tmp_path / "parts", 26, name)
    relaunch_md(tmp_path / "parts", {"steps": 41})
    relaunch_md(tmp_path / "parts", {"steps": 60})
    assert_same_run(tmp_path / "whole", tmp_path / "parts")
    moved = RunFolder.open(tmp_path / "whole").read_restart().arrays["positions"]
    began = RunFolder.open(tmp_path / "whole").start().positions
    assert np.abs(moved - began).max() > 0.01


class DiedError(Exception):
    pass


@pytest.mark.parametrize("name", ["nve", "npt-bussi"])
def test_steps_after_the_last_restart_are_done_again(
    name: str, files: Path, tmp_path: Path
) -> None:
    def die(step: int, row: object) -> None:
        if step == 33:
            raise DiedError

    start(files, tmp_path / "whole", 50, name)
    with pytest.raises(DiedError):
        start(files, tmp_path / "cut", 50, name, observer=die, save_every=1e9)
    assert RunFolder.open(tmp_path / "cut").read_restart().state["step"] == 0
    assert len(RunFolder.open(tmp_path / "cut").read_log()["step"]) > 5
    relaunch_md(tmp_path / "cut", {})
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_killed_before_the_first_restart(files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "whole", 20)
    start(files, tmp_path / "cut", 20)
    for file in ("restart.npz", "log.csv"):
        (tmp_path / "cut" / file).unlink()
    (tmp_path / "cut" / "trajectory.extxyz").write_text("9\nhalf a fra")
    relaunch_md(tmp_path / "cut", {})
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def command(files: Path, out: Path, steps: int, *more: str) -> list[str]:
    return [
        sys.executable,
        "-m",
        "tensormd.md_runs.command.main",
        "md",
        str(files / "ethanol.xyz"),
        "-m",
        str(files / "tiny.safetensors"),
        *("--steps", str(steps), "--seed", "5", "--interval", "4", "-o", str(out)),
        *more,
    ]


@pytest.mark.parametrize("name", ["nve", "langevin"])
def test_kill_9_then_resume(name: str, files: Path, tmp_path: Path) -> None:
    out, steps = tmp_path / "killed", 2000
    options = ["--save-every", "0.01", "--ensemble", ENSEMBLES[name]["ensemble"]]
    process = subprocess.Popen(
        command(files, out, steps, *options), stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(process, out / "log.csv", 60)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = RunFolder.open(out).read_restart().state["step"]
    assert 0 < done < steps
    relaunch_md(out, {})
    start(files, tmp_path / "whole", steps, name)
    assert_same_run(tmp_path / "whole", out)


@pytest.mark.skipif(os.name == "nt", reason="POSIX signals")
def test_sigterm_finishes_the_step_and_saves(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(files, out, 10**6), stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    wait_for_lines(process, out / "log.csv", 10)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    done = RunFolder.open(out).read_restart().state["step"]
    assert done > 0
    assert f"stopped at step {done}" in errors
    assert f"tensormd md --resume {out}" in errors
    assert "Traceback" not in errors


def test_ctrl_c_in_process(files: Path, tmp_path: Path) -> None:
    def press(step: int, row: object) -> None:
        if step == 10:
            signal.raise_signal(signal.SIGINT)

    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(Interrupted) as stopped:
        start(files, tmp_path / "run", 30, observer=press)
    assert stopped.value.exit_code == 130
    assert signal.getsignal(signal.SIGINT) is before
    start(files, tmp_path / "whole", 30)
    relaunch_md(tmp_path / "run", {})
    assert_same_run(tmp_path / "whole", tmp_path / "run")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"temperature": 310.0}, "--temperature is 310.0, but the run was started with 300.0"),
        ({"seed": 6}, "--seed is 6"),
        ({"dtype": "float64"}, "--dtype is float64"),
        ({"threads": 7}, "--threads is 7"),
        ({"out": Path("x")}, "--out cannot be given with --resume"),
        ({"steps": 3}, "--steps is 3, but the run has done 8 already"),
    ],
)
def test_only_steps_may_change(
    given: dict[str, object], message: str, files: Path, tmp_path: Path
) -> None:
    start(files, tmp_path / "run", 8)
    with pytest.raises(ValueError, match=message):
        relaunch_md(tmp_path / "run", given)
    relaunch_md(tmp_path / "run", {"steps": 12, "seed": 5, "temperature": 300.0})


def test_other_weights_are_refused_and_moved_ones_taken(files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "run", 8)
    with pytest.raises(ValueError, match="are not those that the run began with"):
        relaunch_md(tmp_path / "run", {"model": [str(files / "other.safetensors")]})
    copy = tmp_path / "moved.safetensors"
    copy.write_bytes((files / "tiny.safetensors").read_bytes())
    relaunch_md(tmp_path / "run", {"model": [str(copy)], "steps": 10})


def test_two_processes_in_one_folder(files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "run", 8)
    holder = RunFolder.open(tmp_path / "run")
    holder.lock()
    with pytest.raises(ValueError, match="is in use: another process"):
        relaunch_md(tmp_path / "run", {"steps": 12})
    holder.close()
    relaunch_md(tmp_path / "run", {"steps": 12})


def test_a_run_from_python_is_resumed_from_python(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    start_md(atoms, MDSettings(steps=2), tmp_path / "run")
    with pytest.raises(ValueError, match="was started from Python"):
        relaunch_md(tmp_path / "run", {})
    config = tmp_path / "run" / "config.json"
    config.write_text('{"format": 1}')
    with pytest.raises(ValueError, match="is damaged: it has no 'kind'"):
        relaunch_md(tmp_path / "run", {})


def test_damaged_restart_is_reported(files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "run", 8)
    restart = tmp_path / "run" / "restart.npz"
    whole = restart.read_bytes()
    for broken in (b"", whole[: len(whole) // 2], b"not a restart"):
        restart.write_bytes(broken)
        with pytest.raises(ValueError, match="is not the restart of a run"):
            relaunch_md(tmp_path / "run", {"steps": 12})
