"""torch-sim: its own checks, batches, charges, reuse of the neighbour list, dynamics."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from support.helpers import make_potential

from tensormd.calculators import PotentialCalculator
from tensormd.models import EnergyReadout, Potential, TensorNet

REASON = "torch-sim is not installed (extra 'torchsim', which needs Python 3.12)"
ts = pytest.importorskip("torch_sim", reason=f"{REASON}; this is Python {sys.version[:4]}")
torch_sim_testing = pytest.importorskip("torch_sim.testing")

from torch_sim.models.interface import validate_model_outputs  # noqa: E402

from tensormd.calculators.torchsim import TensormdModel  # noqa: E402

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def all_elements() -> Potential:
    torch.manual_seed(0)
    network = TensorNet(
        channels=16, layers=2, radial_functions=8, cutoff=4.5, max_number=93
    )  # fmt: skip
    return Potential(network.double(), EnergyReadout(16).double(), elements=range(1, 93))


class WithoutVolume(PotentialCalculator):
    """Gives molecules the zero stress that torch-sim expects of them."""

    def get_stress(self, atoms: Atoms) -> Any:
        return super().get_stress(atoms) if atoms.pbc.any() else np.zeros(6)


@pytest.mark.parametrize("state_dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_their_validation(backend: str, state_dtype: torch.dtype, all_elements: Potential) -> None:
    validate_model_outputs(TensormdModel(all_elements, backend=backend), CPU, state_dtype)


@pytest.mark.parametrize("name", torch_sim_testing.SIMSTATE_GENERATORS)
@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_their_consistency(name: str, backend: str, all_elements: Potential) -> None:
    options = {"backend": backend, "dtype": "float64"}
    state = torch_sim_testing.SIMSTATE_GENERATORS[name](CPU, torch.float64)
    torch_sim_testing.assert_model_calculator_consistency(
        TensormdModel(all_elements, **options), WithoutVolume(all_elements, **options), state,
        energy_rtol=1e-12, force_atol=1e-10, stress_atol=1e-12,
    )  # fmt: skip


def structures() -> list[Atoms]:
    cells = [bulk("C", "diamond", a=3.6, cubic=True), bulk("C", "diamond", a=3.5) * (2, 1, 3)]
    for k, atoms in enumerate(cells):
        atoms.rattle(0.1, seed=k)
    return cells


@pytest.mark.parametrize("backend", ["fused", "reference"])
def test_batches_with_charges(backend: str) -> None:
    potential = make_potential()
    model = TensormdModel(potential, backend=backend, dtype="float64")
    state = ts.initialize_state(structures(), CPU, model.dtype)
    state.system_extras["charge"] = torch.tensor([1.0, -1.0], dtype=torch.float64)
    with pytest.warns(UserWarning, match="the charge is"):
        found = model(state)
    for k, (atoms, charge) in enumerate(zip(structures(), (1, -1), strict=True)):
        calculator = PotentialCalculator(
            potential, backend=backend, dtype="float64", charge=charge
        )
        with pytest.warns(UserWarning, match="the charge is"):
            expected = calculator.evaluate([atoms])[0]
        assert abs(expected["stress"]).max() > 1e-3
        assert float(found["energy"][k]) == pytest.approx(expected["energy"], abs=1e-10)
        mine = (state.system_idx == k).numpy()
        np.testing.assert_allclose(found["forces"][mine], expected["forces"], atol=1e-10)
        voigt = torch_sim_testing.full_3x3_to_voigt_6_stress(found["stress"][[k]])[0]
        np.testing.assert_allclose(voigt, expected["stress"], atol=1e-12)
    neutral = TensormdModel(potential, backend=backend, dtype="float64", charge=0)(state)
    assert abs(float(neutral["energy"][0] - found["energy"][0])) > 1e-3


def test_the_neighbour_list_follows_the_state() -> None:
    model = TensormdModel(make_potential(), dtype="float64")
    state = ts.initialize_state(structures(), CPU, model.dtype)
    model(state)
    first = model._list
    generator = torch.Generator().manual_seed(0)

    def moved(by: float) -> Any:
        new = state.clone()
        noise = torch.rand(new.positions.shape, generator=generator, dtype=torch.float64)
        new.positions = new.positions + by * (noise - 0.5)
        return new

    wider = state.clone()
    wider.cell = wider.cell * 1.02
    cases = [(moved(0.3), True), (moved(3.0), False), (wider, False), (state[1], False)]
    for new, reused in cases:
        found = model(new)
        expected = TensormdModel(make_potential(), dtype="float64")(new)
        for name in found:
            torch.testing.assert_close(found[name], expected[name], rtol=0, atol=1e-10)
        assert (model._list is first) == reused
        model._list = first


def test_results_that_are_asked_for() -> None:
    state = ts.initialize_state(structures(), CPU, torch.float32)
    model = TensormdModel(make_potential(), compute_forces=False, compute_stress=False)
    assert set(model(state)) == {"energy"}
    model.compute_forces = model.compute_stress = True
    found = model(state)
    assert set(found) == {"energy", "forces", "stress"}
    assert {value.dtype for value in found.values()} == {torch.float32}
    molecules = ts.initialize_state([molecule("CH4"), molecule("H2O")], CPU, torch.float64)
    assert not model(molecules)["stress"].any()
    with pytest.raises(ValueError, match="unknown option 'volume'"):
        model(state, volume=1)
    with pytest.raises(ValueError, match="does not know Cu"):
        model(torch_sim_testing.make_cu_sim_state(CPU, torch.float64))


def test_a_committee() -> None:
    from tensormd.models import Committee

    potentials = [make_potential(k) for k in range(3)]
    state = ts.initialize_state(structures(), CPU, torch.float64)
    found = TensormdModel(Committee(potentials))(state)
    expected = PotentialCalculator(Committee(potentials)).evaluate(structures())
    np.testing.assert_allclose(found["energy_std"], [each["energy_std"] for each in expected])
    stacked = np.concatenate([each["forces_std"] for each in expected])
    np.testing.assert_allclose(found["forces_std"], stacked)
    assert stacked.max() > 0.1


def test_energy_is_conserved() -> None:
    model = TensormdModel("ethanol")
    atoms = [molecule("CH3CH2OH") for _ in range(3)]
    for k, one in enumerate(atoms):
        one.rattle(0.02, seed=k)
    energies = []

    def keep(state: Any, _: Any = None) -> Any:
        kinetic = ts.calc_kinetic_energy(
            masses=state.masses, momenta=state.momenta, system_idx=state.system_idx
        )
        energies.append((state.energy + kinetic).tolist())

    kt = 300 * ts.units.MetalUnits.temperature
    state = ts.nve_init(ts.initialize_state(atoms, CPU, model.dtype), model, kT=kt)
    start = state.positions.clone()
    for _ in range(200):
        state = ts.nve_step(state, model, dt=5e-4 * ts.units.MetalUnits.time)
        keep(state)
    assert (state.positions - start).abs().max() > 0.1
    drift = np.ptp(np.array(energies), axis=0)
    assert (drift > 0).all()
    assert drift.max() < 0.02
