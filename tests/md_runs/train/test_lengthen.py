"""A resumed training of another length; signals before the first step."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import yaml
from support.md_runs import run, write_tiny_potential
from support.train_runs import assert_same_run, configuration, labelled, log_of, write_frames

from tensormd.md_runs.runs.signals import StopRequest
from tensormd.models.training.state import Run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, a configuration, a run of six epochs and one of three."""
    folder = tmp_path_factory.mktemp("whole")
    write_tiny_potential(folder / "tiny.safetensors")
    frames = labelled(16, folder / "tiny.safetensors")
    data = {"train": str(write_frames(folder / "frames.extxyz", frames))}
    training = {"schedule": "constant", "validate_every": 0.5}
    configuration(folder / "c.yaml", data=data, training=training)
    assert run("train", folder / "c.yaml", "-o", folder / "six") == 0
    change = ("--set", "training.epochs=3")
    assert run("train", folder / "c.yaml", "-o", folder / "three", *change) == 0
    return folder


@pytest.fixture
def three(whole: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(whole / "three", tmp_path / "three"))


def test_a_lengthened_run_is_the_long_run(whole: Path, three: Path) -> None:
    assert run("train", "--resume", three, "--set", "training.epochs=6") == 0
    assert_same_run(whole / "six", three)
    assert log_of(three)["epoch"] == [0.5 * k for k in range(1, 13)]
    config = json.loads((three / "config.json").read_text())
    assert (config["settings"]["training"]["epochs"], config["model"]["steps"]) == (6, 12)
    assert yaml.safe_load((three / "config.yaml").read_text())["training"]["epochs"] == 6
    assert run("train", "--resume", three) == 0  # nothing is left to do, at the new length
    assert_same_run(whole / "six", three)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.epochs=2", "epochs is 2, but 3 have begun: expected 3 or more"),
        ("training.epochs=two", "training.epochs is 'two': expected a whole number"),
        ("training.learning_rate=1e-4", "the run keeps its configuration, but for training.ep"),
        ("epochs=6", "--set epochs=6 cannot be given with --resume: the run"),
    ],
)
def test_what_may_not_change(
    change: str, message: str, three: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in three.rglob("*") if path.is_file()}
    assert run("train", "--resume", three, "--set", change) == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert message in said[0]
    assert before == {path: path.read_bytes() for path in three.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_while_a_step_is_compiled(
    number: int,
    code: int,
    whole: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The process ends at once, and what was written resumes."""

    def compiling(*_: object) -> None:
        os.kill(os.getpid(), number)
        pytest.fail("the compilation went on")

    handler = signal.getsignal(number)
    monkeypatch.setattr(Run, "rehearse", compiling)
    out = tmp_path / "out"
    assert run("train", whole / "c.yaml", "-o", out) == code
    assert f"go on with: tensormd train --resume {out}" in capsys.readouterr().err
    assert signal.getsignal(number) is handler
    assert {path.name for path in out.iterdir()} == {"config.json", "config.yaml", "lock"}
    monkeypatch.undo()
    assert run("train", "--resume", out) == 0
    assert_same_run(whole / "six", out)


def test_a_signal_is_remembered_from_the_first_step_on() -> None:
    with StopRequest(at_once=True) as stop:
        stop.wait_for_steps()
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked()
    with pytest.raises(KeyboardInterrupt), StopRequest(at_once=True) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
    assert stop.asked()
