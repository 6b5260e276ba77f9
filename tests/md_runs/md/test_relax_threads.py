"""Several relaxations side by side: the files of one after another, errors and Ctrl-C."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from ase.build import molecule
from ase.io import write
from support.md_runs import ethanol, write_tiny_potential

from tensormd.md_runs.md.relax import RelaxResult, StepObserver, Task, relax_files
from tensormd.md_runs.runs.errors import Interrupted
from tensormd.md_runs.runs.settings import ModelSettings, RelaxSettings
from tensormd.models.inference import threads

SETTINGS = RelaxSettings(steps=5, fmax=1e-6)


@pytest.fixture
def two_threads(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(threads, "usable_cores", lambda: 2)
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def sources(tmp_path: Path) -> list[str]:
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write(tmp_path / "some.extxyz", [ethanol(k) for k in range(4)])
    write(tmp_path / "ring.xyz", molecule("C6H6"))
    return [str(tmp_path / "some.extxyz"), str(tmp_path / "ring.xyz")]


def relax_all(sources: list[str], out: Path, **options: Any) -> list[RelaxResult]:
    model = ModelSettings((str(Path(sources[0]).parent / "tiny.safetensors"),))
    return relax_files(sources, model, SETTINGS, out, **options)


def test_the_same_files_as_one_after_another(
    sources: list[str], tmp_path: Path, two_threads: None
) -> None:
    names = set()

    def observer(task: Task) -> StepObserver:
        names.add(threading.current_thread().name)
        return lambda step, energy, fmax: None

    told: list[RelaxResult] = []
    found = relax_all(sources, tmp_path / "two", observer=observer, done=told.append)
    assert found == told
    assert [Path(result.folder).name for result in found] == [
        "some-1", "some-2", "some-3", "some-4", "ring"
    ]  # fmt: skip
    assert len(names) == 2
    assert torch.get_num_threads() == 2
    torch.set_num_threads(1)
    for result in relax_all(sources, tmp_path / "one"):
        for name in ("log.csv", "trajectory.extxyz", "relaxed.extxyz"):
            one = Path(result.folder) / name
            two = tmp_path / "two" / one.parent.name / name
            assert one.read_bytes() == two.read_bytes(), one


def test_the_others_go_on_where_one_fails(
    sources: list[str], tmp_path: Path, two_threads: None
) -> None:
    (tmp_path / "xenon.xyz").write_text("1\n\nXe 0 0 0\n")
    failures = []
    found = relax_all(
        [*sources, str(tmp_path / "xenon.xyz")],
        tmp_path / "out",
        failed=lambda name, error: failures.append((name, str(error))),
    )
    assert len(found) == 5
    ((name, reason),) = failures
    assert name.endswith("xenon.xyz")
    assert "does not know Xe" in reason


def test_ctrl_c_stops_all(sources: list[str], tmp_path: Path, two_threads: None) -> None:
    once = iter([True])  # a second Ctrl-C would end the process

    def observer(task: Task) -> StepObserver:
        def press(step: int, energy: float, fmax: float) -> None:
            if step == 2 and next(once, False):
                os.kill(os.getpid(), signal.SIGINT)  # the main thread gets it

        return press

    with pytest.raises(Interrupted, match="stopped at step") as stopped:
        relax_all(sources, tmp_path / "out", observer=observer)
    assert stopped.value.exit_code == 130
    begun = list((tmp_path / "out").iterdir())
    assert 1 <= len(begun) <= 2
    for folder in begun:
        assert (folder / "relaxed.extxyz").exists()
