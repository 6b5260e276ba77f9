"""`tensormd data`, trainings from packed files, and weights of files in a configuration."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.md_runs import run, write_tiny_potential
from support.train_runs import assert_same_run, configuration, labelled, log_of, write_frames

from tensormd.md_runs.runs.schema import read_config
from tensormd.md_runs.train.config import TrainConfig
from tensormd.md_runs.train.run import plan_training
from tensormd.models.training import threads_of_process

ATOMS = {"batch": None, "batch_atoms": 30}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with 16 labelled ethanols, as extended XYZ and packed by the command."""
    folder = tmp_path_factory.mktemp("packed")
    write_tiny_potential(folder / "tiny.safetensors")
    write_frames(folder / "frames.extxyz", labelled(16, folder / "tiny.safetensors"))
    for name, options in (("bare", ()), ("lists", ("--cutoff", "4"))):
        source, out = str(folder / "frames.extxyz"), str(folder / f"{name}.packed")
        assert run("data", "pack", source, "-o", out, *options) == 0
    return folder


@pytest.fixture
def here(made: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(made)
    return made


def fails(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    [said] = capsys.readouterr().err.strip().splitlines()
    return said


def test_a_packed_training_is_the_same_run(here: Path, tmp_path: Path) -> None:
    """The same bits, steps by atoms; and a run that began with one file resumes with another."""
    data = {"data": {"train": "frames.extxyz"}, "training": ATOMS}
    for name in ("frames.extxyz", "bare.packed", "lists.packed"):
        data["data"]["train"] = name
        configuration(tmp_path / "c.yaml", **data)
        assert run("train", tmp_path / "c.yaml", "-o", tmp_path / name) == 0
    assert_same_run(tmp_path / "frames.extxyz", tmp_path / "bare.packed")
    assert_same_run(tmp_path / "frames.extxyz", tmp_path / "lists.packed")
    assert log_of(tmp_path / "bare.packed")["step"][-1] == 6 * 3
    digests = {
        json.loads((tmp_path / name / "config.json").read_text())["data"]["sha256"]
        for name in ("frames.extxyz", "bare.packed", "lists.packed")
    }
    assert len(digests) == 1


def test_info_and_evaluate(here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    capsys.readouterr()
    assert run("data", "info", "lists.packed", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["frames"], found["atoms"], found["cutoff_angstrom"]) == (16, 144, 4.0)
    assert found["elements"] == ["H", "C", "O"]
    assert found["labels"] == {"energy": 16, "forces": 16}
    assert run("data", "info", "bare.packed") == 0
    summaries = []
    for name in ("frames.extxyz", "bare.packed"):
        out = tmp_path / name
        assert run("evaluate", "tiny.safetensors", name, "-o", out, "--json", f"{out}.json") == 0
        summaries.append(json.loads(Path(f"{out}.json").read_text())["errors"])
    assert summaries[0] == summaries[1]


def test_mistakes(here: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    pack = ("data", "pack")
    assert "bare.packed exists" in fails(capsys, *pack, "frames.extxyz", "-o", "bare.packed")
    assert "no folder" in fails(capsys, *pack, "frames.extxyz", "-o", "none/a.packed")
    assert "no such file" in fails(capsys, *pack, "none.extxyz", "-o", "a.packed")
    assert "REF" in fails(
        capsys, *pack, "frames.extxyz", "-o", "a.packed", "--label", "energy=REF"
    )
    (tmp_path / "cut.packed").write_bytes(Path("bare.packed").read_bytes()[:-9])
    assert "copy it again" in fails(capsys, "data", "info", tmp_path / "cut.packed")
    assert "no packed file" in fails(capsys, "data", "info", "frames.extxyz")
    assert not list(here.glob("*a.packed*"))
    configuration(here / "c.yaml", data={"train": str(tmp_path / "cut.packed")})
    assert "c.yaml, line" in fails(capsys, "train", "c.yaml", "-o", "out")
    configuration(here / "c.yaml", training={"batch": None, "batch_atoms": 8})
    said = fails(capsys, "train", "c.yaml", "-o", "out")
    assert "training frame 0 has 9 atoms, but batch_atoms is 8" in said
    assert "c.yaml, line" in said


def configured(path: Path, train: Any) -> TrainConfig:
    configuration(path, data={"train": train})
    return read_config(TrainConfig, path)


def test_weights_of_files(here: Path, tmp_path: Path) -> None:
    file = tmp_path / "c.yaml"
    train = [{"file": "frames.extxyz", "weight": 3}, {"file": "bare.packed"}, "lists.packed"]
    plan = plan_training(configured(file, train))
    found = sorted(set(plan.parts.training.weights))
    assert found == [1.0, 3.0]
    assert not plan_training(configured(file, "frames.extxyz")).parts.training.weighted
    configuration(file, data={"train": train})
    assert run("train", file, "-o", tmp_path / "out", "--set", "training.epochs=2") == 0
    saved = yaml.safe_load((tmp_path / "out" / "config.yaml").read_text())["data"]["train"]
    assert saved[0] == {"file": str(here / "frames.extxyz"), "weight": 3.0}
    assert run("train", "--resume", tmp_path / "out") == 0
    for entry, match in (
        ({"file": "a", "weigth": 2}, "data.train has the key weigth in"),
        ({"weight": 2}, "data.train has no file in"),
        ({"file": "a", "weight": 0}, "data.train has the weight 0.* of a: expected above 0"),
        ({"file": "a", "weight": "two"}, "data.train has the weight two"),
    ):
        with pytest.raises(ValueError, match=match):
            configured(file, [entry])


def test_the_digest_knows_weights(here: Path, tmp_path: Path) -> None:
    plain = ["frames.extxyz", "bare.packed"]
    weighted = ["frames.extxyz", {"file": "bare.packed", "weight": 2}]
    digests = [
        plan_training(configured(tmp_path / "c.yaml", t)).parts.digest() for t in (plain, weighted)
    ]
    assert digests[0] != digests[1]


def test_threads_of_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    assert threads_of_process() is None
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(8)))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as torchrun sets it
    assert threads_of_process() == 2
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "20")
    assert threads_of_process() == 1
    monkeypatch.setenv("OMP_NUM_THREADS", "4")
    assert threads_of_process() is None
