"""ML/MM: alanine dipeptide with the potential, in TIP3P water with a force field.

python peptide_in_water_mlmm.py alanine_dipeptide.pdb --model mine.ckpt --steps 10000

The same script works for a ligand in a protein: pass the ligand's force-field parameters (for
example from openmmforcefields) to ForceField, and its atoms to createMixedSystem.
"""

import argparse
import sys

import tensormd.models  # noqa: F401  (imports torch, which must precede openmm)

from openmm import LangevinMiddleIntegrator, app, unit  # isort: skip
from openmmml import MLPotential  # isort: skip

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("peptide", help="PDB file of the part that the potential describes")
parser.add_argument("--model", required=True, help="checkpoint or registry name")
parser.add_argument("--padding", type=float, default=1.0, help="thickness of the water, nm")
parser.add_argument("--steps", type=int, default=10000, help="steps of 1 fs")
arguments = parser.parse_args()

pdb = app.PDBFile(arguments.peptide)
force_field = app.ForceField("amber14-all.xml", "amber14/tip3p.xml")
modeller = app.Modeller(pdb.topology, pdb.positions)
peptide = [atom.index for atom in modeller.topology.atoms()]
modeller.addSolvent(force_field, model="tip3p", padding=arguments.padding * unit.nanometer)
mm_system = force_field.createSystem(
    modeller.topology,
    nonbondedMethod=app.PME,
    nonbondedCutoff=min(1.0, 0.45 * modeller.topology.getUnitCellDimensions()[0]._value)
    * unit.nanometer,
    constraints=app.HBonds,
    rigidWater=True,
)
potential = MLPotential("tensormd", modelPath=arguments.model)
system = potential.createMixedSystem(modeller.topology, mm_system, peptide)

integrator = LangevinMiddleIntegrator(300 * unit.kelvin, 1 / unit.picosecond, 1 * unit.femtosecond)
simulation = app.Simulation(modeller.topology, system, integrator)
simulation.context.setPositions(modeller.positions)
simulation.minimizeEnergy(maxIterations=50)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
simulation.reporters.append(app.DCDReporter("peptide_in_water.dcd", 100))
simulation.reporters.append(
    app.StateDataReporter(
        sys.stdout,
        max(arguments.steps // 10, 1),
        step=True,
        potentialEnergy=True,
        temperature=True,
        speed=True,
    )
)
simulation.step(arguments.steps)
