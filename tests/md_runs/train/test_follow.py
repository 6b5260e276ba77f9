"""Following a training: lines with speed and time left, a live report, loggers, a rate search."""

from __future__ import annotations

import importlib.util
import json
import sys
import types
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from support.md_runs import run, write_tiny_potential
from support.train_runs import configuration, labelled, log_of, write_frames

from tensormd.md_runs.command.progress import Rate, duration
from tensormd.md_runs.train import run as training
from tensormd.md_runs.train.loggers import make_logger
from tensormd.models.training.rate_search import search_learning_rate

RELOAD = '<meta http-equiv="refresh" content="10">'


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with 12 labelled ethanols and a configuration for them."""
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write_frames(tmp_path / "frames.extxyz", labelled(12, "tiny.safetensors"))
    configuration(tmp_path / "c.yaml", training={"epochs": 4})
    return tmp_path


def test_speed_and_time_left() -> None:
    clock = [100.0]
    rate = Rate(lambda: clock[0])
    assert rate.text(0, 1000) == ""
    clock[0] = 160.0  # a minute of compiling before the first step
    rate.stepped(1)
    assert rate.text(1, 1000) == ""
    clock[0] = 170.0
    rate.stepped(101)
    assert rate.text(101, 1000) == "10 steps/s  90 s left"
    clock[0] = 180.0
    assert rate.text(151, 1000).startswith("5 steps/s")
    assert [duration(s) for s in (45.4, 89.0, 600, 3600 * 3 + 300, 3600 * 55)] == [
        "45 s", "89 s", "10 min", "3 h 05 min", "2 d 7 h"
    ]  # fmt: skip


def test_lines_of_a_training(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Errors of energies also per atom, in lines, log, results and report."""
    monkeypatch.setattr("tensormd.md_runs.command.progress.SECONDS_BETWEEN_LINES", 0.0)
    monkeypatch.setattr("tensormd.md_runs.command.progress.Pace.__call__", lambda _: True)
    data = {"train": "frames.extxyz", "split": [8, 2]}
    configuration(here / "c.yaml", data=data, training={"epochs": 4, "validate_every": 0.5})
    assert run("train", "c.yaml", "-o", "out") == 0
    said = capsys.readouterr().err.splitlines()
    [line] = [line for line in said if line.startswith("epoch 2  step 4 of 8  loss ")]
    assert "steps/s" in line
    assert line.endswith("s left")
    [line] = [line for line in said if line.startswith("epoch 1.5  ")]
    assert " per atom)" in line
    log = log_of(here / "out")
    assert log["epoch"] == [0.5 * k for k in range(1, 9)]
    for kind in ("mae", "rmse"):
        whole, share = (log[f"energy_{kind}_mev{end}"] for end in ("", "_per_atom"))
        assert [9 * each for each in share] == pytest.approx(whole)  # ethanol has nine atoms
    results = json.loads((here / "out" / "results.json").read_text())
    for part in ("validation", "test"):
        energy = results[part]["energy"]
        assert energy["mae_per_atom"] == pytest.approx(energy["mae"] / 9)
        assert "mae_per_atom" not in results[part]["forces"]
    assert "meV per atom" in (here / "out" / "report.html").read_text()
    assert f"({results['test']['energy']['mae_per_atom']:.3g} per atom)" in said[-1]
    capsys.readouterr()
    assert run("report", "out", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["test_energy_mae_mev_per_atom"] == results["test"]["energy"]["mae_per_atom"]


class StopError(Exception):
    pass


def test_a_report_that_reloads_itself(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pages: list[str] = []
    write = training.write_report

    def writing(path: Path, reload: int | None = None) -> Any:
        found = write(path, reload)
        pages.append(found[0].read_text())
        return found

    monkeypatch.setattr(training, "write_report", writing)
    assert run("train", "c.yaml", "-o", "out", "--watch") == 0
    assert [RELOAD in page for page in pages] == [True, True, False]
    assert ["not finished" in page for page in pages] == [True, True, False]
    said = capsys.readouterr().err
    assert f"see {Path('out') / 'report.html'} in a browser" in said
    pages.clear()
    assert run("train", "c.yaml", "-o", "other") == 0
    assert [RELOAD in page for page in pages] == [False]


def test_the_page_of_a_run_that_stopped_reloads_no_more(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training.StopRequest, "asked", lambda _: (here / "out/log.csv").exists())
    assert run("train", "c.yaml", "-o", "out", "--watch") == 143
    page = (here / "out" / "report.html").read_text()
    assert RELOAD not in page
    assert "not finished" in page
    monkeypatch.undo()
    monkeypatch.chdir(here)
    assert run("train", "--resume", "out", "--watch") == 0


# Loggers


class Recorder:
    """What stands for a package: it keeps what it is called with."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        return lambda *a, **k: self.calls.append((name, a, k))


@pytest.fixture
def wandb(monkeypatch: pytest.MonkeyPatch) -> list[Recorder]:
    """A package in place of wandb, and the runs that it began."""
    runs: list[Recorder] = []

    def init(**options: Any) -> Recorder:
        runs.append(Recorder())
        runs[-1].calls.append(("init", (), options))
        return runs[-1]

    module = types.ModuleType("wandb")
    module.init = init  # type: ignore[attr-defined]
    module.__spec__ = importlib.util.spec_from_loader("wandb", None)
    monkeypatch.setitem(sys.modules, "wandb", module)
    return runs


def test_wandb_gets_every_row_and_resumes(here: Path, wandb: list[Recorder]) -> None:
    change = ("--set", "output.logger=wandb")
    assert run("train", "c.yaml", "-o", "out", *change) == 0
    assert run("train", "--resume", "out", "--set", "training.epochs=6") == 0
    log = log_of(here / "out")
    rows = [call for each in wandb for call in each.calls if call[0] == "log"]
    assert [row[2] for row in rows] == [{"step": step} for step in (4, 8, 12)]
    assert [row[1][0]["forces_mae_mev_per_a"] for row in rows] == log["forces_mae_mev_per_a"]
    assert [each.calls[-1][0] for each in wandb] == ["finish", "finish"]
    first, second = (each.calls[0][2] for each in wandb)
    assert first["id"] == second["id"]
    assert first["resume"] == "allow"
    assert (first["name"], first["config"]["training"]["epochs"]) == ("out", 4)
    assert second["config"]["training"]["epochs"] == 6


@pytest.mark.skipif(
    importlib.util.find_spec("tensorboard") is None, reason="tensorboard is not installed"
)
def test_tensorboard_gets_every_row(here: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert run("train", "c.yaml", "-o", "out", "--set", "output.logger=tensorboard") == 0
    assert run("train", "--resume", "out", "--set", "training.epochs=6") == 0
    events = EventAccumulator(str(here / "out" / "tensorboard"))
    events.Reload()
    log = log_of(here / "out")
    for name in ("loss", "validation_loss", "energy_mae_mev"):
        found = events.Scalars(name)
        assert [each.step for each in found] == log["step"]
        assert [each.value for each in found] == pytest.approx(log[name], rel=1e-6)


def test_tensorboard_is_told_of_the_steps_done(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With something in place of the package: what a killed run logged later is dropped."""
    made: list[tuple[Any, Recorder]] = []

    def writer(folder: str, purge_step: int) -> Recorder:
        made.append(((folder, purge_step), Recorder()))
        return made[-1][1]

    module = types.ModuleType("torch.utils.tensorboard")
    module.SummaryWriter = writer  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", module)
    logger = make_logger("tensorboard", here, {}, 12)
    assert logger is not None
    logger.add({"epoch": 2, "step": 14, "loss": 0.5})
    logger.close()
    [((folder, purge), recorder)] = made
    assert (folder, purge) == (str(here / "tensorboard"), 13)
    assert recorder.calls == [
        ("add_scalar", ("epoch", 2, 14), {}),
        ("add_scalar", ("loss", 0.5, 14), {}),
        ("flush", (), {}),
        ("close", (), {}),
    ]


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_logger_that_is_not_installed(
    name: str, here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda n: None if n == name else find(n))
    assert run("train", "c.yaml", "-o", "out", "--set", f"output.logger={name}") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert f"pip install 'tensormd[{name}]', or leave output.logger out" in said[0]
    assert not (here / "out").exists()


# The learning-rate search


def test_a_search_of_the_learning_rate(
    here: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    few = partial(search_learning_rate, steps=24)
    monkeypatch.setattr("tensormd.md_runs.command.train.search_learning_rate", few)
    before = sorted(here.iterdir())
    assert run("train", "c.yaml", "--find-lr", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["rates"]) == len(found["losses"]) > 10
    assert run("train", "c.yaml", "--find-lr") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[-1] == f"suggestion: --set training.learning_rate={found['suggestion']:g}"
    assert "####" in said[1]
    assert sorted(here.iterdir()) == before
