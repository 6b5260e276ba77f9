"""OpenMM runs resume exactly after being killed, and stop when they become unstable."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from support.md_runs import wait_for_lines
from support.openmm_runs import (
    assert_same_run,
    start,
    write_files,
)

from tensormd.md_runs.md.launch import relaunch_md
from tensormd.md_runs.md.loop import last_state
from tensormd.md_runs.md.openmm_engine import OpenMMEngine
from tensormd.md_runs.runs.errors import Interrupted, RunStopped
from tensormd.md_runs.runs.folder import RunFolder


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_files(tmp_path_factory.mktemp("inputs"))


# Killed, stopped, gone on


def command(files: Path, out: Path, steps: int, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "tensormd.md_runs.command.main", "md", str(files / "ethanol.xyz")),
        *("-m", str(files / "tiny.safetensors"), "--engine", "openmm", "--threads", "1"),
        *("--steps", str(steps), "--seed", "5", "--interval", "4", "-o", str(out), *more),
    ]


@pytest.mark.parametrize("ensemble", ["nve", "nvt"])
def test_kill_9_then_resume(ensemble: str, files: Path, tmp_path: Path) -> None:
    out, steps = tmp_path / "killed", 2000
    options = ("--save-every", "0.05", "--ensemble", ensemble, "--trajectory", "dcd")
    process = subprocess.Popen(
        command(files, out, steps, *options), stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(process, out / "log.csv", 20)
    for _ in range(600):
        if process.poll() is not None or RunFolder.open(out).read_restart().state["step"] > 0:
            break
        time.sleep(0.05)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    done = RunFolder.open(out).read_restart().state["step"]
    assert 0 < done < steps
    relaunch_md(out, {})
    start(files, tmp_path / "whole", steps, ensemble=ensemble)
    assert_same_run(tmp_path / "whole", out)
    moved = last_state(RunFolder.open(out)).positions - RunFolder.open(out).start().positions
    assert np.abs(moved).max() > 0.01
    assert (out / "trajectory.dcd").exists()


class DiedError(Exception):
    pass


@pytest.mark.parametrize("platform", ["Reference", "CPU"])
def test_npt_resumes_to_the_last_bit(platform: str, files: Path, tmp_path: Path) -> None:
    def die(step: int, row: object) -> None:
        if step >= 88:
            raise DiedError

    options = {"structure": "waters.xyz", "ensemble": "npt", "platform": platform}
    start(files, tmp_path / "whole", 110, **options)
    with pytest.raises(DiedError):
        start(files, tmp_path / "cut", 90, **options, observer=die, save_every=0.2)
    assert 0 <= RunFolder.open(tmp_path / "cut").read_restart().state["step"] <= 88
    relaunch_md(tmp_path / "cut", {"platform": platform.lower(), "steps": 110})
    assert_same_run(tmp_path / "whole", tmp_path / "cut")


def test_sigterm_saves(files: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    process = subprocess.Popen(
        command(files, out, 10**6, "--trajectory", "xtc"), stderr=subprocess.PIPE, text=True
    )
    wait_for_lines(process, out / "log.csv", 10)
    process.terminate()
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143
    done = RunFolder.open(out).read_restart().state["step"]
    assert done > 0
    assert f"stopped at step {done}" in errors
    assert "Traceback" not in errors
    assert (out / "trajectory.xtc").stat().st_size > 0


def test_ctrl_c(files: Path, tmp_path: Path) -> None:
    def press(step: int, row: object) -> None:
        if step == 12:
            signal.raise_signal(signal.SIGINT)

    with pytest.raises(Interrupted) as stopped:
        start(files, tmp_path / "run", 40, observer=press)
    assert stopped.value.exit_code == 130
    relaunch_md(tmp_path / "run", {})
    start(files, tmp_path / "whole", 40)
    assert_same_run(tmp_path / "whole", tmp_path / "run")


def test_a_restart_of_another_platform_is_refused(files: Path, tmp_path: Path) -> None:
    start(files, tmp_path / "run", 4)
    with pytest.raises(ValueError, match="--platform is CPU, but the run was started with Refer"):
        relaunch_md(tmp_path / "run", {"platform": "CPU"})
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace('"Reference"', '"CPU"'))
    with pytest.raises(ValueError, match="the restart is not one of OpenMM's platform CPU"):
        relaunch_md(tmp_path / "run", {"steps": 8})


@pytest.mark.parametrize("value", [np.nan, 1e4])
def test_a_run_that_breaks_down(
    value: float, files: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Velocities go wrong in step 37, in the middle of a batch of steps."""
    true_trouble = OpenMMEngine._trouble

    def trouble(engine: OpenMMEngine) -> str:
        state = engine._context.getState(getVelocities=True)
        if state.getStepCount() >= 37:
            velocities = np.array(state.getVelocities(asNumpy=True)._value)
            velocities[2] += value
            engine._context.setVelocities(velocities)
            if np.isnan(value):
                engine._context.setPositions(engine._positions() * np.nan)
        return true_trouble(engine)

    monkeypatch.setattr(OpenMMEngine, "_trouble", trouble)
    message = "a position is no number" if np.isnan(value) else "atom 2 moves"
    with pytest.raises(RunStopped, match=f"broke down at step 37: {message}"):
        start(files, tmp_path / "run", 100, interval=20, save_every=0)
    kept = RunFolder.open(tmp_path / "run").read_restart()
    assert 20 <= kept.state["step"] < 37
    assert np.isfinite(kept.arrays["positions"]).all()


def test_a_hot_structure_explodes(files: Path, tmp_path: Path) -> None:
    with pytest.raises(RunStopped, match=r"broke down at step \d+: "):
        start(files, tmp_path / "run", 500, temperature=1e7, timestep=20.0)
