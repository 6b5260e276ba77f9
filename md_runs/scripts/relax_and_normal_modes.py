"""Relax a molecule, then compute its harmonic frequencies from the analytic Hessian.

python relax_and_normal_modes.py --model ethanol
"""

import argparse

import numpy as np
from ase.build import molecule
from ase.optimize import BFGS
from ase.vibrations import VibrationsData

from tensormd.calculators import PotentialCalculator

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--model", default="ethanol", help="checkpoint or registry name")
parser.add_argument("--molecule", default="CH3CH2OH", help="a molecule of ase.build.molecule")
parser.add_argument("--steps", type=int, default=500, help="largest number of relaxation steps")
arguments = parser.parse_args()

atoms = molecule(arguments.molecule)
atoms.calc = PotentialCalculator(arguments.model, dtype="float64")
BFGS(atoms).run(fmax=1e-4, steps=arguments.steps)

hessian = atoms.calc.get_hessian(atoms)
vibrations = VibrationsData.from_2d(atoms, hessian)
frequencies = vibrations.get_frequencies()
print("cm^-1:", " ".join(f"{f.real - f.imag:.0f}" for f in frequencies))
print(f"zero-point energy {vibrations.get_zero_point_energy():.4f} eV")
print(f"six rigid modes within {np.abs(frequencies[:6]).max():.1f} cm^-1 of zero")
