"""A killed, stopped or distributed training gives the numbers of an uninterrupted one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.md_runs import run, wait_for_lines, write_tiny_potential
from support.train_runs import (
    assert_same_run,
    configuration,
    labelled,
    log_of,
    start,
    write_frames,
)

from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.schema import read_config
from tensormd.md_runs.train.config import TrainConfig
from tensormd.md_runs.train.log import steps_in
from tensormd.md_runs.train.run import start_training
from tensormd.models import load_potential
from tensormd.models.training import Progress

EPOCHS = 36


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a configuration, and a run of it that nobody interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    write_tiny_potential(folder / "tiny.safetensors")
    frames = labelled(16, folder / "tiny.safetensors")
    data = {"train": str(write_frames(folder / "frames.extxyz", frames))}
    configuration(folder / "c.yaml", data=data, training={"epochs": EPOCHS, "validate_every": 3})
    assert run("train", folder / "c.yaml", "-o", folder / "out") == 0
    return folder


def began(folder: Path, whole: Path, *options: str) -> subprocess.Popen[str]:
    """The same run in a process of its own, once it has three rows of its log."""
    process = start(whole / "c.yaml", "-o", folder, *options, cwd=folder.parent)
    try:
        wait_for_lines(process, folder / "log.csv", 3)
    except BaseException:
        process.kill()
        raise
    return process


def test_kill_9_then_resume(whole: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = began(out, whole)
    process.kill()
    process.communicate()
    rows = len(log_of(out)["epoch"])
    assert 3 <= rows < EPOCHS // 3
    assert run("train", "--resume", out) == 0
    assert_same_run(whole / "out", out)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_saves_at_the_next_step(
    number: int, code: int, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    process = began(out, whole)
    process.send_signal(number)
    said = process.communicate(timeout=60)[1]
    assert process.returncode == code
    assert "Traceback" not in said
    assert f"resume with: tensormd train --resume {out}" in said
    steps = steps_in(out / "state.pt")
    assert steps >= log_of(out)["step"][-1] >= 9
    assert steps < 2 * EPOCHS
    assert run("train", "--resume", out) == 0
    assert_same_run(whole / "out", out)


class DiedError(Exception):
    pass


class Killer:
    """A watcher that ends everything after the third validation, whose row is in the log."""

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        assert step <= steps == 2 * EPOCHS

    def validated(self, progress: Progress) -> None:
        if progress.epoch == 9:
            raise DiedError


def died(folder: Path, whole: Path) -> Path:
    config = read_config(TrainConfig, whole / "c.yaml")
    with pytest.raises(DiedError):
        start_training(config, folder / "out", Killer())
    return folder / "out"


def test_a_kill_between_the_log_and_the_state(whole: Path, tmp_path: Path) -> None:
    """The log is a row ahead of the state, and a last line was cut short."""
    out = died(tmp_path, whole)
    assert log_of(out)["epoch"] == [3, 6, 9]
    assert steps_in(out / "state.pt") == 12
    with (out / "log.csv").open("a") as stream:
        stream.write("12,24,1.")
    assert run("train", "--resume", out) == 0
    assert_same_run(whole / "out", out)


def test_a_kill_before_the_first_state(whole: Path, tmp_path: Path) -> None:
    out = died(tmp_path, whole)
    for name in ("state.pt", "config.yaml", "last.safetensors", "best.safetensors"):
        (out / name).unlink()
    assert run("train", "--resume", out) == 0
    assert_same_run(whole / "out", out)


def test_a_finished_run_has_nothing_left_to_do(whole: Path) -> None:
    before = (whole / "out" / "log.csv").read_bytes()
    weights = (whole / "out" / "last.safetensors").read_bytes()
    assert run("train", "--resume", whole / "out") == 0
    assert (whole / "out" / "log.csv").read_bytes() == before
    assert (whole / "out" / "last.safetensors").read_bytes() == weights


def test_one_process_at_a_time(whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = RunFolder.open(whole / "out")
    folder.lock()
    with folder:
        assert run("train", "--resume", whole / "out") == 2
    assert "another process is running in it" in capsys.readouterr().err


def free_port() -> int:
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])


@pytest.mark.skipif(not torch.distributed.is_available(), reason="torch without distributed")
def test_two_processes_give_what_one_gives(tmp_path: Path) -> None:
    write_tiny_potential(tmp_path / "tiny.safetensors")
    frames = labelled(16, tmp_path / "tiny.safetensors")
    for k, name in ((1, "energy"), (4, "energy"), (6, "energy"), (2, "forces"), (7, "forces")):
        del frames[k].calc.results[name]  # a process may have none of a batch
    write_frames(tmp_path / "frames.extxyz", frames)
    configuration(tmp_path / "c.yaml", training={"epochs": 4})
    assert run("train", tmp_path / "c.yaml", "-o", tmp_path / "one",
               "--set", f"data.train={tmp_path / 'frames.extxyz'}") == 0  # fmt: skip
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"),
            *("--master-port", str(free_port()), "-m", "tensormd.md_runs.command.main", "train"),
            *("c.yaml", "-o", "two"),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    one, two = log_of(tmp_path / "one"), log_of(tmp_path / "two")
    for name in ("epoch", "step"):
        assert one[name] == two[name]
    for name in ("loss", "validation_loss"):
        assert two[name] == pytest.approx(one[name], rel=1e-9)
    assert done.stderr.count("epoch 2 ") == 1  # one of them speaks
    a, b = (load_potential(tmp_path / name / "last.safetensors") for name in ("one", "two"))
    for key, tensor in a.state_dict().items():
        torch.testing.assert_close(b.state_dict()[key], tensor, rtol=1e-7, atol=1e-9)
