# %% [markdown]
# # ML/MM: a ligand in water
#
# The potential describes the molecule that matters, a force field everything around it. Here the
# ligand is N-methylacetamide, the smallest peptide bond, for which AMBER has parameters, in TIP3P
# water; a drug in a protein is the same with a larger file and parameters of its own (for example
# from openmmforcefields).
#
# This tutorial needs `pip install 'tensormd[openmm]'`.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from ase.io import read
from openmm import Vec3, app, unit

from tensormd.md_runs.runs.folder import RunFolder

# %% [markdown]
# ## The ligand, and water around it
#
# A PDB file has what ML/MM needs: residues, and with them bonds. OpenMM's Modeller adds the
# water.

# %%
_ = Path("ligand.pdb").write_text("""\
HETATM    1  H1  ACE A   1       2.000   1.000   0.000  1.00  0.00           H
HETATM    2  CH3 ACE A   1       2.000   2.090   0.000  1.00  0.00           C
HETATM    3  H2  ACE A   1       1.486   2.454   0.890  1.00  0.00           H
HETATM    4  H3  ACE A   1       1.486   2.454  -0.890  1.00  0.00           H
HETATM    5  C   ACE A   1       3.427   2.641  -0.000  1.00  0.00           C
HETATM    6  O   ACE A   1       4.391   1.877  -0.000  1.00  0.00           O
HETATM    7  N   NME A   2       3.555   3.970  -0.000  1.00  0.00           N
HETATM    8  H   NME A   2       2.733   4.556  -0.000  1.00  0.00           H
HETATM    9  C   NME A   2       4.853   4.614  -0.000  1.00  0.00           C
HETATM   10  H1  NME A   2       5.408   4.316   0.890  1.00  0.00           H
HETATM   11  H2  NME A   2       5.408   4.316  -0.890  1.00  0.00           H
HETATM   12  H3  NME A   2       4.719   5.695  -0.000  1.00  0.00           H
END
""")
pdb = app.PDBFile("ligand.pdb")
force_field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
modeller = app.Modeller(pdb.topology, pdb.positions)
modeller.addSolvent(force_field, model="tip3p", boxSize=Vec3(2.2, 2.2, 2.2) * unit.nanometer)
with open("solvated.pdb", "w") as file:
    app.PDBFile.writeFile(modeller.topology, modeller.positions, file)
print(modeller.topology.getNumAtoms(), "atoms, 12 of them the ligand")

# %% [markdown]
# ## Run it
#
# `--ml-atoms` names the part of the potential, `--force-field` describes the rest and everything
# between the two. Half a picosecond is a demonstration; take `--steps 200000` to learn something.

# %% language="bash"
# tensormd md solvated.pdb --engine openmm --ensemble nvt --timestep 1 --steps 500 --seed 1 \
#     --ml-atoms "resname ACE,resname NME" --force-field amber14-all.xml,amber14/tip3p.xml \
#     --constraints hbonds --minimize -o run 2>&1

# %% [markdown]
# ## Look at it
#
# Hydrogen bonds of water to the carbonyl oxygen: the shortest distances from O to a hydrogen of
# water.

# %%
log = RunFolder.open("run").read_log()
frames = read("run/trajectory.extxyz", ":")
hydrogens = [k for k in range(12, len(frames[0])) if frames[0].symbols[k] == "H"]
nearest = [np.sort(frame.get_distances(5, hydrogens, mic=True))[:2] for frame in frames]

figure, (left, right) = plt.subplots(1, 2, figsize=(9, 2.8), layout="constrained")
left.plot(log["time_ps"], log["temperature_k"])
left.set(xlabel="time / ps", ylabel="temperature / K")
right.plot(log["time_ps"], nearest)
_ = right.set(xlabel="time / ps", ylabel="O···H-O / Å", title="two nearest hydrogens of water")

# %% [markdown]
# The water finds the oxygen while the box warms up from the minimum. `tensormd report run` draws
# distances and structures; `--trajectory dcd` writes a copy for VMD or MDAnalysis. How the two
# descriptions are joined, charged ligands and constraints:
# [OpenMM](../guide/openmm.md#runs-without-a-script).
