"""The general organic potential against its teacher, against DFT and against experiment.

    python benchmarks/organic.py PART ... --teacher DIR [--model NAME] [--json FILE] [options]

PART is one or more of

errors       forces and energies on frames of other molecules (``--frames FILE``), by element, size
             and force
dimers       S66x8 at the level of the teacher, from the h5 file of COMP6 (``--s66x8 FILE``)
geometries   bond lengths of relaxed molecules beside the teacher's and published ones
torsions     profiles of ten bonds beside the teacher's
conformers   relative energies of conformers of ten flexible molecules
frequencies  harmonic frequencies beside the teacher's
stability    molecular dynamics of drug-like molecules: bonds broken, drift (``--smiles FILE``)
speed        time of energy and forces beside the teacher's
transfer     frames of revised MD17 (``--rmd17 DIR``), which are of another functional, PBE

The teacher is the ANI-2x ensemble: ``ani2x.py`` and ``ani2x.npz`` in DIR. Torsions, conformers and
stability need RDKit, dimers h5py. Every part prints its table and adds it to the JSON file.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.calculators.calculator import Calculator, all_changes
from ase.data import chemical_symbols
from ase.io import iread
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary
from ase.md.verlet import VelocityVerlet
from ase.optimize import LBFGS
from ase.vibrations import VibrationsData
from numpy.typing import NDArray
from rmd17 import MOLECULES, data_files

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.benchmark.machine import describe_machine
from tensormd.md_runs.md.torsion import torsion_profile
from tensormd.models.data.structures.bonds import bonds_of
from tensormd.models.files import write_atomically

Array = NDArray[np.float64]
Found = dict[str, Any]
KCAL = units.kcal / units.mol

# Molecules of ASE's G2 set, two bonded elements, and the published length, Angstrom (microwave or
# electron diffraction; r0, rs, rg or re as tabulated, which differ by up to 0.01).
LENGTHS = [
    ("CH4", "C", "H", 1.087), ("C2H6", "C", "C", 1.536), ("C2H4", "C", "C", 1.339),
    ("C2H2", "C", "C", 1.203), ("C6H6", "C", "C", 1.397), ("H2O", "H", "O", 0.958),
    ("NH3", "H", "N", 1.012), ("CH3OH", "C", "O", 1.427), ("CH3OCH3", "C", "O", 1.415),
    ("H2CO", "C", "O", 1.205), ("HCOOH", "C", "O", 1.202), ("CH3CN", "C", "N", 1.157),
    ("HCN", "C", "N", 1.153), ("CH3SH", "C", "S", 1.819), ("SH2", "H", "S", 1.336),
    ("CH3Cl", "C", "Cl", 1.781), ("CH3NO2", "N", "O", 1.224), ("C3H6_D3h", "C", "C", 1.501),
    ("C4H4S", "C", "S", 1.714), ("HCl", "Cl", "H", 1.275),
]  # fmt: skip
# SMILES and the torsion, as atoms of the SMILES with hydrogens added behind them.
TORSIONS = {
    "butane": ("CCCC", (0, 1, 2, 3)),
    "1,2-difluoroethane": ("FCCF", (0, 1, 2, 3)),
    "butadiene": ("C=CC=C", (0, 1, 2, 3)),
    "biphenyl": ("c1ccccc1-c1ccccc1", (0, 5, 6, 7)),
    "methyl acetate": ("CC(=O)OC", (0, 1, 3, 4)),
    "N-methylacetamide": ("CC(=O)NC", (0, 1, 3, 4)),
    "ethyl methyl sulfide": ("CCSC", (0, 1, 2, 3)),
    "anisole": ("COc1ccccc1", (0, 1, 2, 3)),
    "aspirin, ester": ("CC(=O)Oc1ccccc1C(=O)O", (1, 3, 4, 5)),
    "benzamide": ("NC(=O)c1ccccc1", (0, 1, 3, 4)),
}
FLEXIBLE = {
    "hexane": "CCCCCC",
    "ethylene glycol": "OCCO",
    "glycerol": "OCC(O)CO",
    "alanine": "CC(N)C(=O)O",
    "alanine dipeptide": "CC(=O)NC(C)C(=O)NC",
    "dopamine": "NCCc1ccc(O)c(O)c1",
    "ibuprofen": "CC(C)Cc1ccc(cc1)C(C)C(=O)O",
    "paracetamol": "CC(=O)Nc1ccc(O)cc1",
    "lidocaine": "CCN(CC)CC(=O)Nc1c(C)cccc1C",
    "methionine": "CSCCC(N)C(=O)O",
}
VIBRATING = ("CH3OH", "CH3CH2OH", "CH3COOH", "CH3CN", "CH3NO2", "C6H6", "C4H4S", "CH3SH", "CH3Cl")


class Teacher(Calculator):
    """The ensemble as an ASE calculator."""

    implemented_properties = ("energy", "forces")

    def __init__(self, folder: Path) -> None:
        super().__init__()
        sys.path.insert(0, str(folder))
        from ani2x import ANI2x  # the teacher's own folder

        self.ensemble = ANI2x()

    def calculate(
        self,
        atoms: Atoms | None = None,
        properties: Sequence[str] = ("energy",),
        system_changes: Sequence[str] = tuple(all_changes),
    ) -> None:
        """Energy, eV, and forces, eV/A."""
        super().calculate(atoms, properties, system_changes)
        energy, forces, _, _ = self.ensemble(
            self.atoms.numbers[None], self.atoms.positions[None], spread=False
        )
        self.results = {"energy": float(energy[0]), "forces": np.asarray(forces[0], dtype=float)}


def mae(values: Array) -> float:
    """Mean absolute value, three digits."""
    return float(f"{np.abs(values).mean():.3g}")


def evaluated(model: PotentialCalculator, frames: Sequence[Atoms]) -> tuple[Array, list[Array]]:
    """Energies and forces of many structures, in batches."""
    results: list[dict[str, Any]] = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # of structures unlike its data
        for first in range(0, len(frames), 16):
            results += model.evaluate(frames[first : first + 16])
    return np.array([r["energy"] for r in results]), [r["forces"] for r in results]


def errors(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """Mean absolute errors on labelled frames, meV and meV/A."""
    frames = list(iread(options.frames))
    energies, forces = evaluated(model, frames)
    sizes = np.array([len(f) for f in frames])
    off = 1e3 * (energies - np.array([f.get_potential_energy() for f in frames])) / sizes
    wanted = np.concatenate([f.get_forces() for f in frames])
    apart = 1e3 * (np.concatenate(forces) - wanted)
    numbers = np.concatenate([f.numbers for f in frames])
    strength = np.linalg.norm(wanted, axis=1)
    of_frame = np.repeat(np.arange(len(frames)), sizes)
    complexes = np.array(["+" in str(f.info.get("mol", "")) for f in frames])
    found: Found = {
        "frames": len(frames),
        "forces": mae(apart),
        "forces_rms": float(f"{np.sqrt((apart**2).mean()):.3g}"),
        "energy_per_atom": mae(off),
        "energy_per_atom_after_one_shift": mae(off - np.median(off)),
    }
    for z in np.unique(numbers):
        found[f"forces, {chemical_symbols[z]}"] = mae(apart[numbers == z])
    for low, high in ((0, 15), (15, 30), (30, 1000)):
        chosen = (sizes > low) & (sizes <= high)
        if chosen.any():
            name = f"{low + 1} to {min(high, sizes.max())} atoms"
            found[f"forces, {name}"] = mae(apart[chosen[of_frame]])
            found[f"energy_per_atom, {name}"] = mae(off[chosen])
    for low, high in ((0, 0.5), (0.5, 2), (2, 5), (5, 100)):
        chosen = (strength >= low) & (strength < high)
        if chosen.any():
            found[f"forces, of {low} to {high} eV/A"] = mae(apart[chosen])
    if complexes.any():
        found["forces, complexes"] = mae(apart[complexes[of_frame]])
        found["forces, single molecules"] = mae(apart[~complexes[of_frame]])
    return found


def dimers(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """S66x8 against DFT: forces meV/A, energies kcal/mol."""
    import h5py

    relative: dict[str, list[Array]] = {"model": [], "teacher": []}
    interaction: dict[str, list[float]] = {"model": [], "teacher": []}
    forces: dict[str, list[Array]] = {"model": [], "teacher": []}
    teacher = Teacher(options.teacher)
    with h5py.File(options.s66x8) as file:
        for group in file["s66x8"].values():
            symbols = [s.decode() if isinstance(s, bytes) else str(s) for s in group["species"][:]]
            exact = group["energies"][:] * units.Hartree / KCAL
            gradient = group["forces"][:] * units.Hartree * 1e3
            frames = [Atoms(symbols, x) for x in group["coordinates"][:]]
            for name, calculator in (("model", model), ("teacher", teacher)):
                if name == "model":
                    energy, found = evaluated(model, frames)
                else:
                    both = [_single(frame, calculator) for frame in frames]
                    energy, found = np.array([b[0] for b in both]), [b[1] for b in both]
                off = energy / KCAL - exact
                relative[name].append(off - off.mean())
                interaction[name].append(off[2] - off[7])
                forces[name].append(1e3 * np.array(found) + gradient)
    return {
        name: {
            "forces": mae(np.concatenate([f.ravel() for f in forces[name]])),
            "energies_relative_to_the_dimers_mean": mae(np.concatenate(relative[name])),
            "interaction_at_equilibrium": mae(np.array(interaction[name])),
        }
        for name in relative
    }


def _single(atoms: Atoms, calculator: Calculator) -> tuple[float, Array]:
    atoms = atoms.copy()
    atoms.calc = calculator
    return atoms.get_potential_energy(), atoms.get_forces()


def relaxed(atoms: Atoms, calculator: Calculator, fmax: float = 0.005) -> Atoms:
    """The nearest minimum."""
    atoms = atoms.copy()
    atoms.calc = calculator
    LBFGS(atoms, logfile=None).run(fmax, 500)
    return atoms


def geometries(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """Shortest bond of two elements in relaxed molecules, Angstrom."""
    teacher, found, off = Teacher(options.teacher), {}, []
    for name, one, other, published in LENGTHS:
        lengths, all_bonds = [], []
        for calculator in (model, teacher):
            atoms = relaxed(molecule(name), calculator)
            bonds = bonds_of(atoms)
            symbols = np.array(atoms.get_chemical_symbols())
            kind = (symbols[bonds.i] == one) & (symbols[bonds.j] == other)
            lengths.append(float(bonds.lengths[kind].min()))
            all_bonds.append(np.sort(bonds.lengths))
        if len(all_bonds[0]) == len(all_bonds[1]):
            off.append(all_bonds[0] - all_bonds[1])
        found[f"{name}, {one}-{other}"] = [round(x, 4) for x in (*lengths, published)]
    table = np.array(list(found.values()))
    return {
        "model, teacher, published": found,
        "bonds_against_the_teacher": mae(np.concatenate(off)),
        "model_against_published": mae(table[:, 0] - table[:, 2]),
        "teacher_against_published": mae(table[:, 1] - table[:, 2]),
    }


def conformers_of(smiles: str, most: int = 1) -> list[Atoms]:
    """Conformers from RDKit, relaxed with its force field; heavy atoms in the SMILES' order."""
    from rdkit import Chem
    from rdkit.Chem import AllChem

    made = Chem.AddHs(Chem.MolFromSmiles(smiles))
    AllChem.EmbedMultipleConfs(made, most, randomSeed=1)
    AllChem.MMFFOptimizeMoleculeConfs(made)
    numbers = [a.GetAtomicNum() for a in made.GetAtoms()]
    return [Atoms(numbers, c.GetPositions()) for c in made.GetConformers()]


def torsions(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """Relaxed profiles, kcal/mol: barrier of both, mean absolute difference."""
    teacher, found = Teacher(options.teacher), {}
    for name, (smiles, torsion) in TORSIONS.items():
        [start] = conformers_of(smiles)
        profiles = []
        for calculator in (model, teacher):
            atoms = relaxed(start, calculator, 0.02)
            profiles.append(torsion_profile(atoms, torsion, points=12, fmax=0.03, steps=60))
        ours, theirs = profiles
        there = np.interp(ours.degrees, theirs.degrees, theirs.energies_ev, period=360)
        found[name] = {
            "barrier": round(ours.barrier_ev / KCAL, 2),
            "barrier_of_the_teacher": round(theirs.barrier_ev / KCAL, 2),
            "difference": mae((ours.energies_ev - there) / KCAL),
        }
    found["mean difference"] = mae(np.array([f["difference"] for f in found.values()]))
    return found


def conformers(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """Relative energies of minima of the model, kcal/mol, and whether their order is right."""
    teacher, found = Teacher(options.teacher), {}
    for name, smiles in FLEXIBLE.items():
        minima = [relaxed(c, model, 0.02) for c in conformers_of(smiles, 8)]
        ours = np.array([m.get_potential_energy() for m in minima]) / KCAL
        theirs = np.array([_single(m, teacher)[0] for m in minima]) / KCAL
        pairs = [(a, b) for a, b in combinations(range(len(ours)), 2)]
        clear = [(a, b) for a, b in pairs if abs(theirs[a] - theirs[b]) > 0.3]
        right = [(ours[a] - ours[b]) * (theirs[a] - theirs[b]) > 0 for a, b in clear]
        found[name] = {
            "conformers": len(ours),
            "span_of_the_teacher": round(float(np.ptp(theirs)), 2),
            "difference": mae((ours - ours.mean()) - (theirs - theirs.mean())),
            "pairs_in_order": f"{sum(right)} of {len(right)}",
        }
    found["mean difference"] = mae(np.array([f["difference"] for f in found.values()]))
    return found


def frequencies(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """Harmonic frequencies of molecules, each at its own minimum, 1/cm."""
    teacher, found, off = Teacher(options.teacher), {}, []
    for name in VIBRATING:
        ours, theirs = (
            _frequencies(relaxed(molecule(name), calculator, 1e-3), hessian)
            for calculator, hessian in ((model, model.get_hessian), (teacher, _numerical_hessian))
        )
        off.append(ours - theirs)
        found[name] = {
            "difference": mae(off[-1]),
            "largest": round(float(np.abs(off[-1]).max())),
        }
    found["all"] = mae(np.concatenate(off))
    return found


def _numerical_hessian(atoms: Atoms) -> Array:
    step, rows = 0.005, []
    for k in np.ndindex(atoms.positions.shape):
        ends = []
        for sign in (1, -1):
            moved = atoms.copy()
            moved.positions[k] += sign * step
            ends.append(_single(moved, atoms.calc)[1])
        rows.append(-(ends[0] - ends[1]).ravel() / (2 * step))
    hessian = np.array(rows)
    return (hessian + hessian.T) / 2


def _frequencies(atoms: Atoms, hessian: Callable[[Atoms], Array]) -> Array:
    data = VibrationsData.from_2d(atoms, hessian(atoms))
    values = np.real(data.get_frequencies())
    return np.sort(values)[-(3 * len(atoms) - 6) :]


def stability(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """Molecules that keep their bonds at 300 and 500 K, and the drift of NVE."""
    listed = [line.split()[-1] for line in options.smiles.read_text().splitlines()]
    found: Found = {"molecules": 0, "broken at 300 K": [], "broken at 500 K": []}
    drifts, began = [], time.perf_counter()
    for smiles in listed[: options.number]:
        start = conformers_of(smiles)
        if not start:
            continue
        found["molecules"] += 1
        atoms = relaxed(start[0], model, 0.05)
        before = _bonded(atoms)
        for kelvin, picoseconds in ((300, options.picoseconds), (500, options.picoseconds / 4)):
            moved = atoms.copy()
            moved.calc = model
            rng = np.random.default_rng(kelvin)
            MaxwellBoltzmannDistribution(moved, temperature_K=kelvin, rng=rng)
            Stationary(moved)
            dynamics = Langevin(
                moved,
                0.5 * units.fs,
                temperature_K=kelvin,
                friction=0.01 / units.fs,
                fixcm=False,
                rng=rng,
            )
            dynamics.run(round(picoseconds * 2000))
            # Bonds vibrate; one that is broken stays so when the molecule is cold again.
            if _bonded(relaxed(moved, model, 0.1)) != before:
                found[f"broken at {kelvin} K"].append(smiles)
            if kelvin == 300:
                total = []
                free = VelocityVerlet(moved, 0.5 * units.fs)
                for _ in range(20):
                    free.run(100)
                    total.append(moved.get_total_energy())
                slope = np.polyfit(np.arange(20) * 0.05, total, 1)[0]
                drifts.append(1e3 * slope / len(moved))
    found["picoseconds at 300 K"] = options.picoseconds
    found["drift, meV/atom/ps"] = mae(np.array(drifts))
    found["minutes"] = round((time.perf_counter() - began) / 60, 1)
    return found


def _bonded(atoms: Atoms) -> set[tuple[int, int]]:
    bonds = bonds_of(atoms, 1.3)
    return set(zip(bonds.i.tolist(), bonds.j.tolist(), strict=True))


def speed(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """Milliseconds of energy and forces, in turns of five."""
    teacher, found = Teacher(options.teacher), {}
    for name, smiles in {"aspirin": TORSIONS["aspirin, ester"][0], **FLEXIBLE}.items():
        [start] = conformers_of(smiles)
        times: dict[str, list[float]] = {"model": [], "teacher": []}
        for turn in range(9):
            for which, calculator in (("model", model), ("teacher", teacher)):
                start.rattle(1e-3, seed=turn)
                start.calc = calculator
                start.get_forces()
                began = time.perf_counter()
                for step in range(5):
                    start.rattle(1e-3, seed=step)
                    start.get_forces()
                times[which].append((time.perf_counter() - began) / 5)
        ours, theirs = (1e3 * float(np.median(times[k])) for k in ("model", "teacher"))
        found[f"{name}, {len(start)} atoms"] = {
            "ms": round(ours, 2),
            "ms_of_the_teacher": round(theirs, 1),
            "ratio": round(theirs / ours, 1),
        }
    return found


def transfer(model: PotentialCalculator, options: argparse.Namespace) -> Found:
    """Against PBE, as is the teacher: forces meV/A, energies kcal/mol after one shift."""
    teacher, found = Teacher(options.teacher), {}
    for name in MOLECULES:
        with np.load(data_files(options.rmd17, name)[1]) as file:
            numbers, wanted = file["nuclear_charges"], KCAL * file["forces"][:100]
            exact = file["energies"][:100]
            frames = [Atoms(numbers, x) for x in file["coords"][:100]]
        both = [_single(frame, teacher) for frame in frames]
        of_teacher = np.array([b[0] for b in both]), np.array([b[1] for b in both])
        energies, forces = evaluated(model, frames)
        found[name] = {}
        for which, (energy, force) in {
            "model": (energies, np.array(forces)), "teacher": of_teacher
        }.items():  # fmt: skip
            off = energy / KCAL - exact
            found[name][which] = {
                "forces": mae(1e3 * (force - wanted)),
                "slope_of_forces": float(f"{(force * wanted).sum() / (wanted**2).sum():.4g}"),
                "energies": mae(off - np.median(off)),
            }
        found[name]["model_from_teacher"] = mae(1e3 * (np.array(forces) - of_teacher[1]))
    return found


PARTS: dict[str, Callable[[PotentialCalculator, argparse.Namespace], Found]] = {
    f.__name__: f
    for f in (
        errors, dimers, geometries, torsions, conformers, frequencies, stability, speed, transfer
    )
}  # fmt: skip


def main() -> None:
    """Run the parts, print and keep what they find."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("parts", nargs="+", choices=PARTS, metavar="PART")
    parser.add_argument("--teacher", type=Path, help="folder of ani2x.py")
    parser.add_argument("--model", default="organic")
    parser.add_argument("--frames", type=Path, help="labelled frames of other molecules")
    parser.add_argument("--s66x8", type=Path, help="h5 file")
    parser.add_argument("--rmd17", type=Path, help="folder of rmd17_MOLECULE_test_01.npz")
    parser.add_argument("--smiles", type=Path, help="molecules, one SMILES a line")
    parser.add_argument("--number", type=int, default=100, help="of molecules for stability")
    parser.add_argument("--picoseconds", type=float, default=20.0, help="for stability")
    parser.add_argument("--json", type=Path, default=None)
    options = parser.parse_args()
    needed = {
        "errors": ["frames"], "dimers": ["s66x8", "teacher"], "stability": ["smiles"],
        "transfer": ["rmd17", "teacher"],
    }  # fmt: skip
    for part in options.parts:
        for name in needed.get(part, ["teacher"]):
            if getattr(options, name) is None:
                parser.error(f"{part} needs --{name}")
    model = PotentialCalculator(options.model)
    kept = {}
    if options.json is not None and options.json.exists():
        kept = json.loads(options.json.read_text())
    for part in options.parts:
        found = PARTS[part](model, options)
        print(part, json.dumps(found, indent=1), flush=True)
        machine = describe_machine(model.device, torch.get_num_threads())
        kept |= {part: found, "machine": machine, "model": model.info()["metadata"]}
        if options.json is not None:
            write_atomically(options.json, (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
