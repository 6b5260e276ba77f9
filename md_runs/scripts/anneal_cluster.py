"""Find a low-lying minimum of a cluster by simulated annealing and a final relaxation.

python anneal_cluster.py --model mine.ckpt --molecule H2O --number 4 --steps 20000
"""

import argparse

import numpy as np
from ase import Atoms, units
from ase.build import molecule
from ase.constraints import Hookean
from ase.io import write
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.optimize import LBFGS

from tensormd.calculators import PotentialCalculator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", required=True, help="checkpoint or registry name")
parser.add_argument("--molecule", default="H2O", help="a molecule of ase.build.molecule")
parser.add_argument("--number", type=int, default=4, help="number of molecules")
parser.add_argument("--hot", type=float, default=500.0, help="initial temperature, K")
parser.add_argument("--steps", type=int, default=20000, help="steps of 0.5 fs")
parser.add_argument("--seed", type=int, default=1)
arguments = parser.parse_args()

generator = np.random.default_rng(arguments.seed)
cluster = Atoms()
for k in range(arguments.number):
    one = molecule(arguments.molecule)
    one.euler_rotate(*generator.uniform(0, 360, size=3), center="COM")
    one.translate([3.0 * (k % 2), 3.0 * (k // 2 % 2), 3.0 * (k // 4)])
    cluster += one
# Soft springs to the first molecule keep the others from evaporating.
size = len(molecule(arguments.molecule))
cluster.set_constraint(
    [Hookean(a1=i, a2=0, k=0.5, rt=6.0) for i in range(size, len(cluster), size)]
)

cluster.calc = PotentialCalculator(arguments.model)
MaxwellBoltzmannDistribution(cluster, temperature_K=arguments.hot, rng=generator)
dynamics = Langevin(
    cluster,
    0.5 * units.fs,
    temperature_K=arguments.hot,
    friction=0.01 / units.fs,
    rng=generator,
)
stages = 20
for stage in range(stages):
    temperature = arguments.hot * (1 - stage / stages) + 10
    dynamics.set_temperature(temperature_K=temperature)
    dynamics.run(arguments.steps // stages)
    print(f"{temperature:5.0f} K   {cluster.get_potential_energy():.4f} eV")

cluster.set_constraint()
LBFGS(cluster).run(fmax=0.02, steps=300)
print(f"minimum {cluster.get_potential_energy():.4f} eV")
write("cluster.xyz", cluster)
