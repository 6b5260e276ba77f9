# %% [markdown]
# # An infrared spectrum
#
# Two ways to the spectrum of methanol: sticks at the harmonic frequencies of the minimum, and the
# bands of a run, which have widths.
#
# Intensities need the dipole. A model with a dipole head predicts it, stores it in every frame,
# and `tensormd report` draws the spectrum by itself
# ([properties](../reference/properties.md#infrared-spectra)). `organic` has none, so the dipole
# here is that of fixed charges (OPLS-AA): positions of bands come from the potential, their
# heights are rough.

# %%
import matplotlib.pyplot as plt
import numpy as np
from ase.build import molecule
from ase.io import read
from ase.optimize import BFGS
from ase.vibrations import VibrationsData

from tensormd.calculators import TensorNetCalculator
from tensormd.md_runs.md.loop import start_md
from tensormd.md_runs.reports.spectrum import infrared_spectrum
from tensormd.md_runs.runs.settings import MDSettings

atoms = molecule("CH3OH")
charges = np.array([0.145 if s == "C" else -0.683 if s == "O" else 0.04 for s in atoms.symbols])
hydroxyl = next(k for k in range(2, 6) if atoms.get_distance(1, k) < 1.1)
charges[hydroxyl] = 0.418
print(*[f"{s} {q:+.3f}" for s, q in zip(atoms.symbols, charges)], "e")

# %% [markdown]
# ## Harmonic
#
# Minimum, Hessian, normal modes. The intensity of a mode is the square of the dipole's derivative
# along it.

# %%
atoms.calc = TensorNetCalculator(dtype="float64")
BFGS(atoms, logfile=None).run(fmax=1e-4)
vibrations = VibrationsData.from_2d(atoms, atoms.calc.get_hessian(atoms))
wavenumbers = vibrations.get_frequencies().real[6:]
modes = vibrations.get_modes(all_atoms=True)[6:]
intensities = [np.square((charges[:, None] * mode).sum(0)).sum() for mode in modes]
for wavenumber, intensity in zip(wavenumbers, intensities):
    print(f"{wavenumber:5.0f} 1/cm  {'#' * round(40 * intensity / max(intensities))}")

# %% [markdown]
# ## From dynamics
#
# First 1 ps with a thermostat, then 5 ps of NVE, a frame every 2 fs: so that O-H at 3700 cm⁻¹ is
# resolved, and lines are as narrow as 10 cm⁻¹. Longer runs give smoother bands.

# %%
atoms.calc = TensorNetCalculator()
start_md(atoms, MDSettings(ensemble="nvt", thermostat="bussi", steps=2000, seed=1), "warm")
warm = read("warm/trajectory.extxyz", "-1")
warm.calc = atoms.calc
start_md(warm, MDSettings(steps=10000, interval=4, keep_velocities=True, seed=1), "free")

frames = read("free/trajectory.extxyz", ":")
dipoles = np.array([charges @ frame.positions for frame in frames])  # e A, neutral: no origin
temperature = np.mean([frame.get_kinetic_energy() for frame in frames]) / (1.5 * 6 * 8.617e-5)
spectrum = infrared_spectrum(dipoles, interval=2.0, temperature=temperature)
print(f"{len(frames)} frames, {temperature:.0f} K, resolution {spectrum.resolution:.0f} 1/cm")
band = (spectrum.wavenumbers > 3500) & (spectrum.wavenumbers < 4100)
center = np.average(spectrum.wavenumbers[band], weights=spectrum.absorption[band])
print(f"O-H: harmonic {wavenumbers[-1]:.0f}, dynamics {center:.0f} 1/cm")

# %%
figure, axes = plt.subplots(figsize=(9, 3.2), layout="constrained")
axes.plot(spectrum.wavenumbers, spectrum.absorption, label="dynamics")
top = spectrum.absorption[spectrum.wavenumbers < 4200].max()
axes.vlines(wavenumbers, 0, top * np.array(intensities) / max(intensities), "C1", label="harmonic")
for band, name in ((1033, "C-O"), (2844, "C-H"), (3681, "O-H")):
    axes.axvline(band, color="0.8", zorder=0)
    axes.text(band, top, f" {name}, measured", rotation=90, va="top", fontsize=8, color="0.4")
axes.set(xlim=(0, 4200), xlabel="wavenumber / cm$^{-1}$", ylabel="absorption / km mol$^{-1}$ cm")
_ = axes.legend(loc="upper center")

# %% [markdown]
# The bands lie where the sticks are, and O-H a little above: velocity Verlet with a step Δt
# raises a frequency by (ωΔt)²/24, 20 cm⁻¹ for O-H at 0.5 fs, which is most of the difference
# (take 0.25 fs where that matters). Both lie above the measured positions: nuclei are quantum,
# and their zero-point motion feels the anharmonic walls, which classical nuclei at a few hundred
# K do not. That is why harmonic frequencies are usually multiplied by about 0.96. Rotation
# widens the bands of a free molecule.
