"""What was compiled, and where it is kept."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest

compiled = pytest.importorskip("tensormd.models.inference.kernels.cpu.compiled")


def test_a_changed_source_is_compiled_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the kernels themselves, or of a folder whose kernels call them."""
    sources, callers = tmp_path / "cpu", tmp_path / "callers"
    for folder in (sources, callers):
        folder.mkdir()
    for file in Path(compiled.__file__).parent.glob("*.py"):
        (sources / file.name).write_bytes(file.read_bytes())
    (callers / "sums.py").write_text("# kernels\n")
    digest = compiled.sources_digest.__wrapped__
    installed = digest()
    monkeypatch.setattr(compiled, "HERE", sources)
    same, of_callers = digest(sources), digest(callers)
    assert same == installed
    assert of_callers not in (same, digest(tmp_path / "none"))
    with (callers / "sums.py").open("a") as file:
        file.write("\n# changed\n")
    assert digest(sources) == same
    assert digest(callers) != of_callers
    of_callers = digest(callers)
    with (sources / "simd.py").open("a") as file:
        file.write("\n# changed\n")
    assert digest(sources) != same
    assert digest(callers) != of_callers


def test_each_processor_has_its_own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    from llvmlite import binding

    digest = compiled.sources_digest.__wrapped__
    same = digest()
    assert same == digest()
    with monkeypatch.context() as patch:
        patch.setattr(binding, "get_host_cpu_name", lambda: "another-processor")
        other_name = digest()
    with monkeypatch.context() as patch:
        patch.setattr(binding, "get_host_cpu_features", lambda: binding.FeatureMap(sse=True))
        other_features = digest()
    with monkeypatch.context() as patch:
        patch.setattr(compiled.numba.config, "CPU_NAME", "generic")
        asked_for = digest()
    assert len({same, other_name, other_features, asked_for}) == 4
    assert digest() == same


def test_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    blocked = tmp_path / "a_file"
    blocked.write_text("not a folder")
    monkeypatch.setenv("TENSORMD_CACHE", str(blocked))
    with caplog.at_level(logging.WARNING):
        folder = compiled.folder.__wrapped__()
    assert folder.is_dir()
    assert blocked not in folder.parents
    assert f"cannot be kept in {blocked}" in caplog.text


def test_first_compilation_is_announced(tmp_path: Path) -> None:
    """In a plain script too, which has not set up logging."""
    code = """
import numba
from tensormd.models.inference.kernels.cpu.compiled import kernel
def twice(x):
    return 2 * x
print(kernel(twice)(3))
"""
    (tmp_path / "script.py").write_text(code)
    environment = {**os.environ, "TENSORMD_CACHE": str(tmp_path / "kernels")}
    errors = []
    for _ in range(2):
        done = subprocess.run(
            [sys.executable, "script.py"],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=True,
        )
        assert done.stdout == "6\n"
        errors.append(done.stderr.strip())
    assert errors[0].startswith("tensormd compiles its kernels")
    assert str(tmp_path / "kernels") in errors[0]
    assert len(errors[0].splitlines()) == 1
    assert errors[1] == ""


TOGETHER = """
import sys
import time
from pathlib import Path
import numpy as np
from tensormd.models.inference.kernels.cpu.compiled import kernel
def slow(x):
    total = 0.0
    for a in (np.sort(x), np.linalg.solve(np.outer(x, x) + np.eye(3), x)):
        total += a.sum()
    return total
Path(sys.argv[1]).touch()
while not Path(sys.argv[2]).exists():
    time.sleep(0.001)
print(kernel(slow)(np.arange(3.0)))
"""


def test_one_of_two_processes_compiles(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(TOGETHER)
    environment = {**os.environ, "TENSORMD_CACHE": str(tmp_path / "kernels")}
    started = [
        subprocess.Popen(
            [sys.executable, "script.py", *order],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for order in (("a", "b"), ("b", "a"))
    ]
    ended = [process.communicate(timeout=240) for process in started]
    assert [process.returncode for process in started] == [0, 0], ended
    assert ended[0][0] == ended[1][0] != ""
    assert sum("compiles its kernels" in errors for _, errors in ended) == 1
