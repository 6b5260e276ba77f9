"""Well-tempered metadynamics along the phi dihedral of alanine dipeptide, with ML forces.

python metadynamics_dihedral.py alanine_dipeptide.pdb --model mine.ckpt --steps 100000
"""

import argparse
import math

from tensormd.calculators import create_force  # imports torch, which must precede openmm

import openmm  # isort: skip
from openmm import app, unit  # isort: skip

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("peptide", help="PDB file of alanine dipeptide")
parser.add_argument("--model", required=True, help="checkpoint or registry name")
parser.add_argument("--steps", type=int, default=100000, help="steps of 0.5 fs")
arguments = parser.parse_args()

pdb = app.PDBFile(arguments.peptide)
system = openmm.System()
for atom in pdb.topology.atoms():
    system.addParticle(atom.element.mass)
system.addForce(create_force(arguments.model, pdb.topology, periodic=False))

index = {(atom.residue.name, atom.name): atom.index for atom in pdb.topology.atoms()}
phi = openmm.CustomTorsionForce("theta")
phi.addTorsion(index["ACE", "C"], index["ALA", "N"], index["ALA", "CA"], index["ALA", "C"], [])
variable = app.BiasVariable(phi, -math.pi, math.pi, 0.35, periodic=True)
metadynamics = app.Metadynamics(
    system,
    [variable],
    temperature=300 * unit.kelvin,
    biasFactor=8,
    height=1.0 * unit.kilojoule_per_mole,
    frequency=min(100, max(arguments.steps // 5, 1)),
)

integrator = openmm.LangevinMiddleIntegrator(
    300 * unit.kelvin, 1 / unit.picosecond, 0.5 * unit.femtosecond
)
simulation = app.Simulation(pdb.topology, system, integrator)
simulation.context.setPositions(pdb.positions)
simulation.minimizeEnergy(maxIterations=50)
simulation.context.setVelocitiesToTemperature(300 * unit.kelvin, 1)
metadynamics.step(simulation, arguments.steps)

energies = metadynamics.getFreeEnergy().value_in_unit(unit.kilojoule_per_mole)
for k in range(0, len(energies), max(len(energies) // 12, 1)):
    angle = -180 + 360 * k / (len(energies) - 1)
    print(f"phi {angle:7.1f} deg   F {energies[k] - energies.min():6.2f} kJ/mol")
