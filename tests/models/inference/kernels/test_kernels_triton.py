"""The Triton kernels without a GPU: their results in the interpreter, and that they compile."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import TESTS

pytest.importorskip("triton", reason="Triton is not installed: it comes with torch's CUDA builds")


def run(arguments: list[str], cache: Path) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"TRITON_CACHE_DIR": str(cache)}
    return subprocess.run(
        [sys.executable, *arguments], cwd=TESTS, env=environment, capture_output=True, text=True
    )


def test_kernels_compute_what_the_plain_functions_do(tmp_path: Path) -> None:
    done = run(
        ["-m", "pytest", "-v", "-p", "no:cacheprovider", "support/triton_checks.py"], tmp_path
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout.splitlines()[-1]


@pytest.mark.parametrize(("capability", "channels"), [(75, 64), (90, 128)])
def test_kernels_compile_without_spilling(tmp_path: Path, capability: int, channels: int) -> None:
    done = run(["support/triton_compile.py", str(capability), str(channels)], tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    kernels = [line.split() for line in done.stdout.splitlines()]
    assert len({name for name, _, _ in kernels}) == 16
    assert len(kernels) == 19
    assert [k for k in kernels if k[2] != "0"] == []
