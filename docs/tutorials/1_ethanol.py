# %% [markdown]
# # Ten minutes with ethanol
#
# Relax a molecule, shake it, and look at what came out, with the potential that ships. In a
# terminal, `tensormd demo` does the same for aspirin.

# %%
import matplotlib.pyplot as plt
import numpy as np
from ase.build import molecule
from ase.io import read
from ase.optimize import BFGS
from ase.vibrations import VibrationsData
from ase.visualize.plot import plot_atoms

from tensormd.calculators import TensorNetCalculator
from tensormd.md_runs.md.loop import start_md
from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings

# %% [markdown]
# ## Energy and forces
#
# A calculator turns positions into energy and forces. Without a checkpoint it is `organic`. The
# first call compiles its kernels for this processor, once.

# %%
atoms = molecule("CH3CH2OH")
atoms.calc = TensorNetCalculator()
print(f"energy {atoms.get_potential_energy():.4f} eV")
print(f"largest force {np.abs(atoms.get_forces()).max():.3f} eV/A")

# %% [markdown]
# ## The minimum
#
# ASE's optimizers move the atoms until no force is larger than `fmax`, in eV/Å.

# %%
BFGS(atoms, logfile=None).run(fmax=0.001)
print(f"energy {atoms.get_potential_energy():.4f} eV")
print(f"C-O {atoms.get_distance(1, 2):.3f} A, C-C {atoms.get_distance(0, 1):.3f} A")

figure, axes = plt.subplots(figsize=(3.5, 3))
plot_atoms(atoms, axes, rotation="80x,20y")
axes.set_axis_off()

# %% [markdown]
# ## Vibrations
#
# The Hessian is the exact second derivative of the network, in float64. Its eigenvalues are the
# harmonic frequencies: O-H near 3700, C-H near 3000, C-O near 1050 cm⁻¹.

# %%
atoms.calc = TensorNetCalculator(dtype="float64")
BFGS(atoms, logfile=None).run(fmax=1e-4)
vibrations = VibrationsData.from_2d(atoms, atoms.calc.get_hessian(atoms))
frequencies = vibrations.get_frequencies().real[6:]
print(np.round(frequencies).astype(int), "1/cm")
print(f"zero-point energy {vibrations.get_zero_point_energy():.3f} eV")

# %% [markdown]
# ## Dynamics at 300 K
#
# One picosecond of NVE in a run folder. If the process is killed, the folder continues where it
# was.

# %%
atoms.calc = TensorNetCalculator()
start_md(atoms, MDSettings(steps=2000, temperature=300, seed=1), "run")
log = RunFolder.open("run").read_log()

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3), layout="constrained")
start = log["potential_ev"][0]
left.plot(log["time_ps"], log["potential_ev"] - start, label="potential")
left.plot(log["time_ps"], log["kinetic_ev"], label="kinetic")
left.plot(log["time_ps"], log["total_ev"] - start, color="black", label="total")
left.set(xlabel="time / ps", ylabel="energy / eV")
left.legend()
frames = read("run/trajectory.extxyz", ":")
right.plot(log["time_ps"], [frame.get_distance(2, 3) for frame in frames])
_ = right.set(xlabel="time / ps", ylabel="O-H / Å")
# %% [markdown]
# Kinetic and potential energy change into each other, and their sum stays. How well, in numbers:

# %%
page, numbers = write_report("run")
print(f"drift {numbers['drift_mev_per_atom_ps']:.4f} meV per atom and ps")
print(f"mean temperature {numbers['temperature_k']:.0f} K")

# %% [markdown]
# NVE from a minimum: half of the kinetic energy goes into the bonds, so the mean temperature is
# below the 300 K of the start (those velocities were drawn for). A thermostat keeps it:
# `MDSettings(ensemble="nvt", thermostat="bussi")`. The report, `run/report.html`, holds these
# figures and more, and the molecule to turn and play.
