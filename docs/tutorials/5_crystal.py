# %% [markdown]
# # A universal potential on a crystal
#
# Lattice constant and bulk modulus of three crystals, with a published TensorNet for 89 elements.
# Its weights do not ship: the name downloads them once (a few MB) and checks their digest. Where
# there is no network, set `TENSORMD_UNIVERSAL` to a file or folder of any universal potential;
# otherwise the cells below say that they are skipped.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from ase.build import bulk
from ase.eos import EquationOfState
from ase.filters import FrechetCellFilter
from ase.optimize import BFGS
from ase.units import GPa

from tensormd.calculators import TensorNetCalculator

name = os.environ.get("TENSORMD_UNIVERSAL", "TensorNet-PES-MatPES-PBE-2025.2")
try:
    calculator = TensorNetCalculator(name)
except (ValueError, OSError) as error:
    calculator = None
    print("SKIPPED, no weights:", error)

# %% [markdown]
# ## Relax atoms and cell
#
# The stress is the exact derivative of the energy by the strain, so cells relax like atoms do.

# %%
crystals = {
    "Si": (bulk("Si", "diamond", a=5.3), 5.469, 89),
    "MgO": (bulk("MgO", "rocksalt", a=4.1), 4.256, 149),
    "Cu": (bulk("Cu", "fcc", a=3.5), 3.631, 137),
}  # start, and PBE's lattice constant (A) and bulk modulus (GPa) as published
if calculator:
    for crystal, (atoms, published, _) in crystals.items():
        atoms.calc = calculator
        BFGS(FrechetCellFilter(atoms), logfile=None).run(fmax=0.002)
        constant = (4 * atoms.get_volume()) ** (1 / 3)
        print(f"{crystal:3s}  a = {constant:.3f} A   (PBE {published} A)")

# %% [markdown]
# ## Energy against volume
#
# The curvature at the minimum is the bulk modulus.

# %%
if calculator:
    figure, axes = plt.subplots(1, 3, figsize=(10, 2.8), layout="constrained")
    for panel, (crystal, (atoms, _, published)) in zip(axes, crystals.items()):
        volumes, energies = [], []
        for scale in np.linspace(0.97, 1.03, 9):
            strained = atoms.copy()
            strained.set_cell(atoms.cell * scale, scale_atoms=True)
            strained.calc = calculator
            volumes.append(strained.get_volume())
            energies.append(strained.get_potential_energy())
        _, lowest, modulus = EquationOfState(volumes, energies).fit()
        panel.plot(volumes, 1e3 * (np.array(energies) - lowest), "o-")
        panel.set(title=crystal, xlabel="volume / Å$^3$", ylabel="energy / meV")
        print(f"{crystal:3s}  bulk modulus {modulus / GPa:.0f} GPa   (PBE {published} GPa)")

# %% [markdown]
# Lattice constants agree to a few mÅ; MgO comes out too soft, as universal potentials often do.
# They are a start: check quantities that you know, as here, before you trust it on what you do
# not ([which universal potential](../reference/checkpoints.md#which-universal-potential)). In a
# terminal: `tensormd relax crystal.cif --cell -m TensorNet-PES-MatPES-PBE-2025.2`.
