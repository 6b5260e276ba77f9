"""Fused kernels are compared with the network itself before they are trusted."""

from __future__ import annotations

import importlib.util
import logging
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.build import molecule
from support.helpers import REFERENCES, make_potential

from tensormd.calculators import TensorNetCalculator
from tensormd.models import Graph, Potential, Prediction
from tensormd.models.inference import self_check
from tensormd.models.inference.backends import compile_potential
from tensormd.models.inference.kernels import fuse
from tensormd.models.inference.kernels.cpu import potential as cpu_potential
from tensormd.models.inference.kernels.cpu import tensornet_step
from tensormd.models.inference.kernels.cpu.tensornet_potential import CPUTensorNet

pytest.importorskip("numba", reason="numba is not installed")


@pytest.fixture
def potential() -> Potential:
    return make_potential(references=REFERENCES)


@pytest.fixture(autouse=True)
def untried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Path]:
    """The folder of a machine that has not tried the kernels."""
    monkeypatch.setattr(cpu_potential, "folder", lambda: tmp_path)
    monkeypatch.setattr(self_check, "_failures", {})
    self_check._warn.cache_clear()
    yield tmp_path
    self_check._warn.cache_clear()


def with_fault(monkeypatch: pytest.MonkeyPatch, change: Any) -> None:
    right = CPUTensorNet.evaluate
    monkeypatch.setattr(CPUTensorNet, "evaluate", lambda self, graph: change(right(self, graph)))


FAULTS = {
    "forces": lambda p: p._replace(forces=-p.forces),
    "energies": lambda p: p._replace(energies=p.energies + 0.5),
    "virial": lambda p: p._replace(virial=p.virial.mT.neg()),
}


@pytest.mark.parametrize("quantity", FAULTS)
@pytest.mark.parametrize("backend", ["auto", "fused"])
def test_wrong_kernels_are_not_used(
    quantity: str, backend: str, potential: Potential, untried: Path,
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    ethanol = molecule("CH3CH2OH")
    expected = TensorNetCalculator(potential, backend="reference").evaluate([ethanol])[0]
    with_fault(monkeypatch, FAULTS[quantity])
    for _ in range(2):
        calculator = TensorNetCalculator(potential, backend=backend)
        forces = calculator.evaluate([ethanol])[0]["forces"]
        np.testing.assert_allclose(forces, expected["forces"], rtol=1e-5, atol=1e-5)
        info = calculator.info()
        assert info["engine"] == "TorchScript"
        assert f"their {quantity} of 40 atoms differ from" in info["why_not_fused"]
    warnings = [r.message for r in caplog.records if r.levelno >= logging.WARNING]
    assert len(warnings) == 1
    assert "fused CPU kernels of TensorNet are not used" in warnings[0]
    assert "tensormd doctor --json" in warnings[0]
    assert not list(untried.iterdir())


WRONG_KERNEL = (
    "collect(first, last, neighbors, slots, factor, net.unit, forces, virial)",
    "collect(first, last, neighbors, slots, -factor, net.unit, forces, virial)",
)


def test_a_kernel_with_a_wrong_sign_is_not_used(
    untried: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Compiled from a copy of the sources in which one sign is changed."""
    source = Path(tensornet_step.__file__).read_text()
    assert source.count(WRONG_KERNEL[0]) == 1
    name = f"{tensornet_step.__package__}.wrong_step"
    copied = untried / "wrong_step.py"
    copied.write_text(source.replace(*WRONG_KERNEL))
    spec = importlib.util.spec_from_file_location(name, copied)
    assert spec is not None
    assert spec.loader is not None
    wrong = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, name, wrong)
    spec.loader.exec_module(wrong)
    monkeypatch.setattr(CPUTensorNet, "step", staticmethod(wrong.tensornet_step))
    small = make_potential(references=REFERENCES, irreps="IS")  # compiled sooner than all three
    ethanol = molecule("CH3CH2OH")
    expected = TensorNetCalculator(small, backend="reference").evaluate([ethanol])[0]
    for _ in range(2):
        calculator = TensorNetCalculator(small, backend="fused")
        forces = calculator.evaluate([ethanol])[0]["forces"]
        np.testing.assert_allclose(forces, expected["forces"], rtol=1e-5, atol=1e-5)
        assert "their forces of 40 atoms differ from" in calculator.info()["why_not_fused"]
    assert caplog.text.count("are not used") == 1
    assert not list(untried.glob("checked-*"))


def test_kernels_that_fail_are_not_used(
    potential: Potential, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(self: CPUTensorNet, graph: Graph) -> Prediction:
        raise RuntimeError("no such instruction\nand more")

    monkeypatch.setattr(CPUTensorNet, "evaluate", fail)
    compiled = compile_potential(potential.float(), "auto")
    assert isinstance(compiled, torch.jit.ScriptModule)
    assert "they fail with RuntimeError: no such instruction;" in caplog.text


def test_one_comparison_for_each_kind_of_network(
    potential: Potential, untried: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[Potential] = []
    real = self_check.compare

    def counting(fused: Any, of: Potential) -> self_check.Comparison:
        compared.append(of)
        return real(fused, of)

    monkeypatch.setattr(self_check, "compare", counting)
    for _ in range(2):
        compile_potential(potential, "fused")
    assert compared == [potential]
    assert [file.name.split("-")[0] for file in untried.iterdir()] == ["checked"]
    other = make_potential(references=REFERENCES, seed=1)  # other weights, the same code
    compile_potential(other, "fused")
    assert compared == [potential]
    wider = make_potential(references=REFERENCES, channels=24)
    compile_potential(wider, "fused")
    assert compared == [potential, wider]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_right_kernels_are_far_within_the_bound(dtype: torch.dtype) -> None:
    potential = make_potential(references=REFERENCES).to(dtype).train()
    found = self_check.compare(fuse(potential), potential)
    assert found.problem is None
    assert found.forces < 0.05 * found.bound
    assert potential.training


def test_the_cluster_holds_all_elements(potential: Potential) -> None:
    graph = self_check.cluster(potential)
    assert set(graph.numbers.tolist()) == set(potential.elements)
    distances = torch.pdist(graph.positions)
    assert 1.0 < float(distances.min()) < 2.0
