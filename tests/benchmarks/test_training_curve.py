"""benchmarks/training_curve.py: both programs train, watch and test the same frames."""

from __future__ import annotations

import importlib
import json
from pathlib import Path
from types import ModuleType

import pytest


def test_both_curves(
    accuracy: ModuleType,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pytest.importorskip("torchmdnet", reason="torchmd-net is not installed")
    pytest.importorskip("lightning", reason="torchmd-net's training needs lightning")
    from torchmdnet.models import tensornet

    monkeypatch.setattr(tensornet, "OPT", False)  # its kernels would compile for a minute
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3"):
        monkeypatch.setattr(tensornet, name, getattr(tensornet, f"_{name}"))
    module = importlib.import_module("training_curve")
    monkeypatch.setattr(module, "EVERY", 1)
    monkeypatch.setattr(module.torch, "set_num_threads", lambda n: None)
    file = data / "curve.json"
    module.main(["ethanol", "--data", str(data), "--epochs", "2", "--json", str(file)])
    content = json.loads(file.read_text())
    curves = content["curves"]
    assert list(curves) == ["tensormd", "torchmd-train"]
    for points, test in curves.values():
        assert points[-1][1] >= 1
        assert points[-1][0] <= test[0] + 1e-9
        assert all(0 < value < 1e6 for value in test)
    shown = capsys.readouterr().out
    for name, (_, test) in curves.items():
        assert f"| {name}, test frames | " in shown
        assert f"| {test[2]:.2f} | {test[3]:.2f} |" in shown
