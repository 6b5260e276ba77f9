"""The fused backend against the network itself, in the ASE calculator; which one runs."""

from __future__ import annotations

import copy
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.backend_cases import STRUCTURES, agree, crystal, ethanol, toy

from tensormd.calculators import PotentialCalculator, TensorNetCalculator
from tensormd.models import (
    EnergyReadout,
    Potential,
    TensorNet,
    export_torchscript,
    save_potential,
)
from tensormd.models.inference import kernels
from tensormd.models.inference.backends import compile_potential, compiling
from tensormd.models.inference.tables import tabulated

pytest.importorskip("numba", reason="numba is not installed")


@pytest.fixture(scope="module")
def potential() -> Potential:
    return toy()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", STRUCTURES)
def test_ase(kind: str, dtype: str, potential: Potential) -> None:
    atoms = STRUCTURES[kind]()
    expected = TensorNetCalculator(potential, backend="reference", dtype="float64")
    atoms.calc = TensorNetCalculator(potential, backend="fused", dtype=dtype)
    forces, reference = atoms.get_forces(), expected.evaluate([atoms])[0]
    np.testing.assert_array_equal(forces, atoms.calc.results["forces"])
    agree(atoms.calc.results, reference, dtype)
    if kind != "atom":
        assert 0.03 < np.abs(forces).max() < 50  # the bounds mean something


def test_batch(potential: Potential) -> None:
    structures = [make() for make in STRUCTURES.values()]
    calculator = TensorNetCalculator(potential, backend="fused")
    reference = TensorNetCalculator(potential, backend="reference")
    batch = calculator.evaluate(structures)
    for atoms, found, expected in zip(
        structures, batch, reference.evaluate(structures), strict=True
    ):
        agree(found, expected)
        calculator.calculate(atoms)
        alone = calculator.results
        np.testing.assert_allclose(found["forces"], alone["forces"], atol=1e-12)
        np.testing.assert_allclose(found["energy"], alone["energy"], rtol=1e-12)


@pytest.mark.parametrize("options", [{"zbl": 3.0}, {"head": "gated"}, {"head": "linear"}])
def test_other_potentials(options: dict[str, Any]) -> None:
    potential = toy(**options)
    structures = [ethanol(), crystal()]
    fused, reference = (
        TensorNetCalculator(potential, backend=backend).evaluate(structures)
        for backend in ("fused", "reference")
    )
    for found, expected in zip(fused, reference, strict=True):
        agree(found, expected)


def test_foreign_units() -> None:
    potential = toy(length_unit="bohr", energy_unit="kcal/mol", cutoff=8.5)
    expected = TensorNetCalculator(potential, backend="reference", dtype="float64")
    found = TensorNetCalculator(potential, backend="fused").evaluate([ethanol()])[0]
    agree(found, expected.evaluate([ethanol()])[0])


def test_committee(tmp_path: Path) -> None:
    paths = []
    for seed in range(2):
        paths.append(tmp_path / f"{seed}.safetensors")
        save_potential(toy(seed), paths[-1])
    atoms = ethanol()
    atoms.calc = TensorNetCalculator(paths)
    atoms.get_forces()
    assert atoms.calc.info()["engine"] == "fused CPU kernels"
    assert len(atoms.calc.info()["tables"]) == 2
    expected = TensorNetCalculator(paths, backend="reference").evaluate([atoms])[0]
    agree(atoms.calc.results, expected)
    np.testing.assert_allclose(atoms.calc.results["forces_std"], expected["forces_std"], atol=1e-4)
    assert atoms.calc.neighbors.builds == 1  # one search for both


def test_hessian_is_the_networks(potential: Potential) -> None:
    fused, reference = (
        TensorNetCalculator(potential, backend=backend).get_hessian(ethanol())
        for backend in ("fused", "reference")
    )
    np.testing.assert_array_equal(fused, reference)


# Which one runs


def test_auto(potential: Potential) -> None:
    info = TensorNetCalculator(potential).info()
    assert (info["engine"], info["why_not_fused"]) == ("fused CPU kernels", None)
    assert info["tables"][0]["error_ev_per_angstrom"] < 2e-5
    info = TensorNetCalculator(potential, dtype="float64").info()
    assert info["engine"] == "TorchScript"
    assert "float64" in info["why_not_fused"]


def test_only_the_very_classes_are_fused() -> None:
    class Other(TensorNet):
        pass

    other = Potential(Other(channels=8, max_number=10), EnergyReadout(8), elements=[1, 6, 8])
    info = PotentialCalculator(other).info()
    assert info["engine"] == "TorchScript"
    assert info["why_not_fused"] == "there are no fused kernels for Other"
    with pytest.raises(ValueError, match="no fused kernels for Other; or take backend='ref"):
        PotentialCalculator(other, backend="fused")
    with pytest.raises(ValueError, match="no fused kernels for Other"):
        compile_potential(other, "fused")


def test_a_tabulated_potential_has_no_networks_to_fuse(potential: Potential) -> None:
    info = TensorNetCalculator(tabulated(potential), dtype="float32").info()
    assert info["engine"] == "TorchScript"
    assert "has tables already" in info["why_not_fused"]


def test_without_numba(monkeypatch: pytest.MonkeyPatch, potential: Potential) -> None:
    real = kernels.importlib.util.find_spec
    monkeypatch.setattr(
        kernels.importlib.util, "find_spec", lambda name: None if name == "numba" else real(name)
    )
    calculator = TensorNetCalculator(potential)
    expected = TensorNetCalculator(potential, backend="reference").evaluate([ethanol()])[0]
    forces = calculator.evaluate([ethanol()])[0]["forces"]
    # In float32 products of matrices round by the alignment of their memory.
    np.testing.assert_allclose(forces, expected["forces"], rtol=0, atol=1e-6)
    assert calculator.info()["engine"] == "TorchScript"
    assert calculator.info()["why_not_fused"] == "numba is not installed: pip install numba"
    with pytest.raises(ValueError, match="pip install numba; or take backend='reference'") as e:
        TensorNetCalculator(potential, backend="fused")
    assert "\n" not in str(e.value)


def warns_first(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function of torch 2.10 and newer, whose warning has had two categories."""

    def deprecated(*args: Any, **kwargs: Any) -> Any:
        for category in (DeprecationWarning, FutureWarning):
            message = "`torch.jit.script` is deprecated. Please switch to `torch.compile`."
            warnings.warn(message, category, stacklevel=1)
        warnings.warn("another warning", FutureWarning, stacklevel=1)
        return function(*args, **kwargs)

    return deprecated


def test_no_warning_that_torchscript_is_deprecated(
    monkeypatch: pytest.MonkeyPatch, potential: Potential, tmp_path: Path
) -> None:
    monkeypatch.setattr(torch.jit, "script", warns_first(torch.jit.script))
    filters = list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        compile_potential(copy.deepcopy(potential).float(), "reference")
        export_torchscript(potential, tmp_path / "model.pt")
    assert caught
    assert {str(each.message) for each in caught} == {"another warning"}
    assert warnings.filters == filters
    with pytest.warns(FutureWarning, match="is deprecated"):  # the user's own call
        torch.jit.script(torch.nn.Identity())


def test_other_threads_keep_their_filters_while_one_compiles() -> None:
    with warnings.catch_warnings():
        warnings.resetwarnings()
        with compiling():
            thread = threading.Thread(target=warnings.simplefilter, args=("error", UserWarning))
            thread.start()
            thread.join()
        with pytest.raises(UserWarning, match="of the other thread"):
            warnings.warn("of the other thread", UserWarning, stacklevel=1)
        with compiling():
            warnings.resetwarnings()
        assert list(warnings.filters) == []
