"""Infrared spectra from the dipoles along a run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms, units
from ase.io import read
from numpy.typing import NDArray
from support.md_runs import Springs, ethanol
from support.property_models import add_heads, bare

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.md.loop import resume_md, start_md
from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.reports.spectrum import Spectrum, infrared_spectrum, spectrum_of
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings

LIGHT_CM_PER_FS = 2.99792458e-5
KM_PER_MOL = 42.25613  # of (D/A)^2/u, as ASE's Infrared has it
DEBYE = 0.20819433  # e A


def oscillating(
    wavenumbers: tuple[float, ...], amplitudes: tuple[float, ...], interval: float, frames: int
) -> NDArray[np.float64]:
    """Dipoles that oscillate along x, y, z in turn."""
    time = interval * np.arange(frames)
    dipoles = np.zeros((frames, 3))
    for k, (nu, amplitude) in enumerate(zip(wavenumbers, amplitudes, strict=True)):
        dipoles[:, k % 3] += amplitude * np.cos(2 * np.pi * LIGHT_CM_PER_FS * nu * time + k)
    return dipoles


def peaks(spectrum: Spectrum) -> NDArray[np.float64]:
    """Wavenumbers of the maxima of at least a hundredth of the highest."""
    y = spectrum.absorption
    top = (y[1:-1] > y[:-2]) & (y[1:-1] >= y[2:]) & (y[1:-1] > 0.01 * y.max())
    return spectrum.wavenumbers[1:-1][top]


def area(spectrum: Spectrum, around: float) -> float:
    near = np.abs(spectrum.wavenumbers - around) < 60
    return float(spectrum.absorption[near].sum() * spectrum.wavenumbers[1])


def test_two_frequencies() -> None:
    """Peaks where they are, with the intensities of harmonic modes at that temperature."""
    wavenumbers, amplitudes, kelvin = (1000.0, 3000.0), (0.02, 0.01), 250.0
    dipoles = 0.4 + oscillating(wavenumbers, amplitudes, 2.0, 8000)
    spectrum = infrared_spectrum(dipoles, 2.0, kelvin)
    assert peaks(spectrum) == pytest.approx(wavenumbers, abs=1.0)
    assert spectrum.resolution == pytest.approx(10, rel=0.01)
    assert spectrum.nyquist == pytest.approx(1 / (2 * 2.0 * LIGHT_CM_PER_FS))
    assert spectrum.absorption.min() >= 0
    for nu, amplitude in zip(wavenumbers, amplitudes, strict=True):
        # A mode Q with <Qdot^2> = kT has <mudot^2> = (dmu/dQ)^2 kT.
        omega = 2 * np.pi * LIGHT_CM_PER_FS * nu / units.fs
        derivative = amplitude**2 * omega**2 / 2 / (units.kB * kelvin) / DEBYE**2
        assert area(spectrum, nu) == pytest.approx(KM_PER_MOL * derivative, rel=0.01)


def test_the_width_of_a_line_is_the_resolution() -> None:
    spectrum = infrared_spectrum(oscillating((1500.0,), (1.0,), 1.0, 20000), 1.0, 300.0, 25.0)
    above = spectrum.wavenumbers[spectrum.absorption > spectrum.absorption.max() / 2]
    assert np.ptp(above) == pytest.approx(spectrum.resolution, rel=0.15)
    assert spectrum.resolution == pytest.approx(25.0, rel=0.01)


def test_beyond_the_nyquist_limit_lines_are_mirrored() -> None:
    spectrum = infrared_spectrum(oscillating((3700.0,), (1.0,), 5.0, 4000), 5.0, 300.0)
    assert spectrum.nyquist == pytest.approx(3335.6, abs=0.1)
    assert spectrum.folds
    assert peaks(spectrum) == pytest.approx([2 * spectrum.nyquist - 3700.0], abs=1.0)
    assert not infrared_spectrum(np.zeros((10, 3)), 4.0, 300.0).folds


@pytest.mark.parametrize("frames", [2, 3, 60])
def test_too_short(frames: int) -> None:
    spectrum = infrared_spectrum(oscillating((1000.0,), (1.0,), 5.0, frames), 5.0, 300.0)
    assert len(spectrum.wavenumbers) == len(spectrum.absorption) == 0
    assert spectrum.resolution > 100
    longer = infrared_spectrum(oscillating((1000.0,), (1.0,), 5.0, 120), 5.0, 300.0)
    assert len(longer.wavenumbers)
    assert longer.resolution < 100


# Runs


class ChargedSprings(Springs):
    """Springs whose atoms carry charges: the lines are those of the springs."""

    implemented_properties = [*Springs.implemented_properties, "dipole"]  # noqa: RUF012

    def calculate(self, atoms: Any = None, *others: Any) -> None:
        super().calculate(atoms, *others)
        charges = 0.3 * (np.arange(len(self.atoms)) - 0.5)
        self.results["dipole"] = charges @ self.atoms.positions


def test_report_of_a_run(tmp_path: Path) -> None:
    atoms = Atoms("ClC", [[0.0, 0.0, 0.0], [3.0, 0.0, 0.0]])
    atoms.calc = ChargedSprings(atoms.positions, k=5.0)
    settings = MDSettings(steps=4000, interval=4, timestep=0.5, temperature=400, seed=1)
    start_md(atoms, settings, tmp_path / "run")
    folder = RunFolder.open(tmp_path / "run")
    page, numbers = write_report(folder.path)
    assert (folder.path / "figures" / "infrared.png").stat().st_size > 8000
    html = page.read_text()
    assert "harmonic quantum correction" in html
    assert "Nyquist" in html
    assert "(--interval)" not in html
    assert numbers["infrared_nyquist_inv_cm"] == pytest.approx(8339.1, abs=0.1)
    assert numbers["infrared_resolution_inv_cm"] == pytest.approx(24.0, abs=0.1)
    spectrum = spectrum_of(folder, 0.5, 300.0)
    assert spectrum is not None
    expected = np.sqrt(5.0 / atoms.get_masses()) / (2 * np.pi * LIGHT_CM_PER_FS / units.fs)
    assert peaks(spectrum) == pytest.approx(expected, rel=5e-3)


def test_short_runs_say_so(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = ChargedSprings(atoms.positions)
    start_md(atoms, MDSettings(steps=100, seed=1), tmp_path / "run")
    page, numbers = write_report(tmp_path / "run")
    assert not (tmp_path / "run" / "figures" / "infrared.png").exists()
    assert "too coarse, the run is too short to show one" in page.read_text()
    assert numbers["infrared_resolution_inv_cm"] > 900


def test_frames_that_are_not_equally_spaced(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = ChargedSprings(atoms.positions)
    start_md(atoms, MDSettings(steps=40, interval=10), tmp_path / "run")
    file = tmp_path / "run" / "trajectory.extxyz"
    file.write_text(file.read_text().replace("step=30 ", "step=29 "))
    with pytest.raises(ValueError, match=r"frames \[9, 10, 11\] steps apart"):
        spectrum_of(RunFolder.open(tmp_path / "run"), 0.5, 300.0)


def test_runs_without_dipoles_have_no_spectrum(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    start_md(atoms, MDSettings(steps=20), tmp_path / "run")
    assert spectrum_of(RunFolder.open(tmp_path / "run"), 0.5, 300.0) is None
    assert "infrared_nyquist_inv_cm" not in write_report(tmp_path / "run")[1]


def calculator() -> PotentialCalculator:
    return PotentialCalculator(add_heads(bare("TensorNet")), dtype="float64", backend="reference")


def test_frames_hold_the_dipole_of_the_model(tmp_path: Path) -> None:
    """Before a kill and after it, and the run is the same as without a head."""
    whole = ethanol()
    whole.calc = calculator()
    settings = MDSettings(steps=20, interval=5, timestep=0.1, seed=3)
    start_md(whole, settings, tmp_path / "whole")
    plain = ethanol()
    plain.calc = PotentialCalculator(bare("TensorNet"), dtype="float64", backend="reference")
    start_md(plain, settings, tmp_path / "plain")
    assert np.array_equal(plain.positions, whole.positions)
    parts = ethanol()
    parts.calc = calculator()
    start_md(parts, MDSettings(steps=10, interval=5, timestep=0.1, seed=3), tmp_path / "parts")
    resume_md(RunFolder.open(tmp_path / "parts"), calculator(), steps=20)
    name = "trajectory.extxyz"
    assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    for frame in read(tmp_path / "whole" / name, index=":"):
        stored = frame.get_dipole_moment()
        frame.calc = calculator()
        # Positions of a trajectory have eight digits.
        assert frame.get_dipole_moment() == pytest.approx(stored, abs=1e-6)
        assert np.abs(stored).max() > 1e-3


def test_openmm_stores_dipoles_too(tmp_path: Path) -> None:
    from tensormd.calculators.openmm_versions import python_problem

    if python_problem() is not None:
        pytest.skip(f"needs OpenMM: {python_problem()}")
    atoms = ethanol()
    atoms.calc = calculator()
    settings = MDSettings(
        engine="openmm", steps=4, interval=2, timestep=0.1, seed=3, platform="Reference"
    )
    start_md(atoms, settings, tmp_path / "run")
    frames = read(tmp_path / "run" / "trajectory.extxyz", index=":")
    assert len(frames) == 3
    for frame in frames:
        stored = frame.get_dipole_moment()
        frame.calc = calculator()
        assert frame.get_dipole_moment() == pytest.approx(stored, abs=1e-6)
