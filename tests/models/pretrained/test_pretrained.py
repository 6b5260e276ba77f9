"""The shipped checkpoint: its errors, and that it conserves energy."""

from __future__ import annotations

import numpy as np
import pytest
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet
from ase.optimize import BFGS
from support.pretrained import FOLDER, drift_of, errors_on_test_frames

from tensormd.calculators import TensorNetCalculator, create_force
from tensormd.calculators.openmm_versions import torchforce_problem
from tensormd.md_runs.md.velocities import thermalize
from tensormd.models import load_potential
from tensormd.models.units import kj_per_mol_in_ev, nm_in_angstrom

FILE = FOLDER / "tensornet-ethanol.safetensors"


def test_it_is_small_and_says_what_it_is() -> None:
    assert FILE.stat().st_size <= 5e6
    potential = load_potential("ethanol")
    assert potential.elements == [1, 6, 8]
    for key in ("training_data", "energy_mae_mev", "force_mae_mev_per_angstrom", "licence"):
        assert key in potential.metadata


def test_errors_on_the_test_frames() -> None:
    energy_mae, force_mae = errors_on_test_frames(TensorNetCalculator("ethanol"))
    assert energy_mae <= 1.5
    assert force_mae <= 6.0
    stated = load_potential("ethanol").metadata
    assert stated["energy_mae_mev"] == pytest.approx(energy_mae, abs=0.02)
    assert stated["force_mae_mev_per_angstrom"] == pytest.approx(force_mae, abs=0.02)


def relaxed(dtype: str = "float32") -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.calc = TensorNetCalculator("ethanol", dtype=dtype)
    BFGS(atoms, logfile=None).run(fmax=0.005, steps=200)
    return atoms


def ase_drift(steps: int) -> float:
    atoms = relaxed()
    thermalize(atoms, 300, np.random.default_rng(0), rigid=False)
    times, energies = [], []
    dynamics = VelocityVerlet(atoms, 0.5 * units.fs)
    for step in range(0, steps, 10):
        times.append(step * 0.5e-3)
        energies.append(atoms.get_total_energy())
        dynamics.run(10)
    return drift_of(times, energies, len(atoms))


def test_a_relaxed_molecule_is_a_minimum() -> None:
    atoms = relaxed("float64")
    assert np.abs(atoms.get_forces()).max() < 0.01
    eigenvalues = np.linalg.eigvalsh(atoms.calc.get_hessian(atoms))
    # Six rigid motions cost nothing; everything else is uphill (eV/A^2; the softest, the
    # rotation of the methyl group, is about 0.05).
    assert eigenvalues[0] > -0.02
    assert eigenvalues[6] > 0.02


def test_energy_is_conserved_for_a_picosecond() -> None:
    # The oscillation of Verlet's energy leaves a slope of some 0.1 meV/atom/ps in so short a run.
    assert abs(ase_drift(2000)) < 1.0


@pytest.mark.slow
def test_drift_over_20_ps_with_ase() -> None:
    drift = ase_drift(40_000)
    print(f"\nASE, NVE, 20 ps at 0.5 fs, float32: {drift:+.4f} meV/atom/ps")
    assert abs(drift) <= 0.02


@pytest.mark.slow
@pytest.mark.skipif(torchforce_problem() is not None, reason=str(torchforce_problem()))
def test_drift_of_10000_steps_with_torchforce() -> None:
    import openmm

    atoms = relaxed()
    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(create_force("ethanol", atoms.numbers, engine="torchforce"))
    context = openmm.Context(
        system, openmm.VerletIntegrator(5e-4), openmm.Platform.getPlatformByName("Reference")
    )
    context.setPositions(atoms.positions / nm_in_angstrom)
    context.setVelocitiesToTemperature(300, 1)
    times, energies = [], []
    for step in range(0, 10_000, 10):
        state = context.getState(getEnergy=True)
        times.append(step * 0.5e-3)
        total = state.getPotentialEnergy() + state.getKineticEnergy()
        energies.append(total._value * kj_per_mol_in_ev)
        context.getIntegrator().step(10)
    drift = drift_of(times, energies, len(atoms))
    print(f"\nTorchForce, NVE, 5 ps at 0.5 fs, float32: {drift:+.4f} meV/atom/ps")
    assert abs(drift) <= 0.02
