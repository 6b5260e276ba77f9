# %% [markdown]
# # Your own molecule
#
# Any neutral molecule of H, C, N, O, F, S and Cl runs without a checkpoint. Here it is
# paracetamol; put your own file in its place. Cells that begin with `%%bash` are commands for a
# terminal.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
from ase.io import read
from ase.visualize.plot import plot_atoms

# %% [markdown]
# ## A file
#
# Hydrogens have to be in it; the geometry may be rough, such as a drawing program or a force
# field gives it.

# %%
_ = Path("molecule.xyz").write_text("""20
paracetamol
C -3.790  0.097 -0.368
C -2.407 -0.376 -0.091
O -2.201 -1.562  0.185
N -1.326  0.518 -0.155
C  0.064  0.300  0.085
C  0.952  1.372 -0.053
C  2.318  1.214  0.174
C  2.808 -0.035  0.546
O  4.145 -0.209  0.772
C  1.932 -1.110  0.687
C  0.565 -0.949  0.459
H -4.164  0.723  0.470
H -3.796  0.695 -1.303
H -4.468 -0.774 -0.486
H -1.557  1.502 -0.425
H  0.573  2.347 -0.344
H  2.987  2.059  0.060
H  4.746  0.555  0.667
H  2.310 -2.083  0.977
H -0.088 -1.808  0.576
""")
# %% [markdown]
# ## Relax it

# %% language="bash"
# tensormd relax molecule.xyz 2>&1

# %%
trajectory = read("molecule_relaxed/trajectory.extxyz", ":")
relaxed = read("molecule_relaxed/relaxed.extxyz")

figure, (left, right) = plt.subplots(1, 2, figsize=(8, 3), layout="constrained")
energies = [frame.get_potential_energy() for frame in trajectory]
left.plot([energy - energies[-1] for energy in energies], "o-")
left.set(xlabel="step", ylabel="energy above the last / eV")
plot_atoms(relaxed, right)
right.set_axis_off()

# %% [markdown]
# ## Simulate it
#
# A quarter of a picosecond at 300 K; take `--steps 20000` for ten picoseconds.

# %% language="bash"
# tensormd md molecule_relaxed/relaxed.extxyz --ensemble nvt --thermostat bussi \
#     --steps 500 --seed 1 -o run 2>&1

# %% language="bash"
# tensormd report run

# %% [markdown]
# `run/report.html` shows curves and the moving molecule. `tensormd md --resume run --steps 20000`
# makes the run longer.
#
# ## A molecule that it is not for
#
# `organic` was not trained on ions, and says so before it computes anything:

# %% language="bash"
# tensormd relax molecule.xyz --charge 1 -o cation 2>&1 || true

# %% [markdown]
# [Choosing a potential](../guide/choosing.md) has the alternatives.
