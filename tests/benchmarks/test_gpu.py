"""benchmarks/gpu.py on a CPU: its parts run, and a part that fails is counted."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from support.paths import ROOT

pytest.importorskip("numba", reason="numba is not installed")


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    module = importlib.import_module("gpu")
    monkeypatch.setattr(module, "tests", lambda: {"summary": "3 passed"})
    return module


def test_its_parts_on_a_cpu(
    gpu: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[Any] = []

    def run_benchmark(settings: Any, say: Any) -> dict[str, Any]:
        seen.append(settings)
        raise MemoryError("too large")

    monkeypatch.setattr(gpu, "run_benchmark", run_benchmark)
    file = tmp_path / "gpu.json"
    options = ["--device", "cpu", "--picoseconds", "0.2", "--sizes", "192,2187"]
    assert gpu.main([*options, "--json", str(file)]) == 1
    found = json.loads(file.read_text())
    assert found["failed"] == {"speed": "MemoryError: too large"}
    assert (seen[0].sizes, seen[0].device) == ((192, 2187), "cpu")
    assert found["tests"] == {"summary": "3 passed"}
    assert "of the network itself" in found["self-check"]["detail"]
    assert found["drift"]["engine"] == "fused CPU kernels"
    assert 0 < found["drift"]["fluctuation_mev_per_atom"] < 5


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_without_a_device(gpu: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert gpu.main([]) == 0
    assert "no CUDA device: only the tests run" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        gpu.main(["--device", "cuda"])
    assert "finds no CUDA device" in capsys.readouterr().err
