"""The System of a structure for OpenMM, its box and its platform.

openmm is imported by the functions that need it, after torch.
"""

from __future__ import annotations

import contextlib
import importlib.util
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from ase import Atoms
from ase.constraints import FixAtoms
from numpy.typing import NDArray

from ...calculators.checks import charge_of, check_geometry
from ...calculators.openmm import create_force
from ...calculators.openmm_topology import bonds_of_region
from ...calculators.openmm_versions import INSTALL, choose_force_class, python_problem
from ...models.data.structures import Notes, check_distances, has_alternates
from ...models.data.structures.parts import placeholder_box, set_isotopes
from ...models.units import nm_in_angstrom
from ..runs.folder import topology_suffix
from ..runs.settings import MDSettings

if TYPE_CHECKING:
    import openmm
    import openmm.app

MM_CUTOFF_NM = 1.0
CHARGE_TOLERANCE = 0.01
"""e: charges of force fields are rounded."""
NAMES = "expected atoms such as 0-21,30, or resname LIG, or chain A, separated by commas"


@dataclass
class Prepared:
    """A System with its molecules and constraints."""

    system: openmm.System
    molecules: NDArray[np.int64]
    """Molecule of each atom, (N,); molecules keep their shape when the box is scaled. Without a
    topology each atom is one."""
    constraints: int
    """Number of distance constraints."""


def require_openmm() -> None:
    """Raise a ValueError if OpenMM is not there, or too old."""
    problem = python_problem()
    if problem is not None:
        raise ValueError(f"--engine openmm: {problem}")


def reduced(atoms: Atoms) -> Atoms:
    """The structure, turned so that its box has the form that OpenMM asks for.

    Vector a along x, b in the plane of x and y, each with a positive last component, and none
    leaning over by more than half of another. The lattice, distances and angles stay the same;
    so does everything of a structure that has that form already, or is not periodic.
    """
    atoms = atoms.copy()
    if not atoms.pbc.any() or _is_reduced(atoms.cell.array):
        return atoms
    cell = atoms.cell.copy()
    if np.linalg.det(cell.array) < 0:
        cell = type(cell)(-cell.array)  # the same lattice, right-handed: no mirror image
    form, rotation = cell.standard_form()
    lower = np.tril(np.array(form))
    for row, column in ((2, 1), (2, 0), (1, 0)):
        lower[row] -= np.round(lower[row, column] / lower[column, column]) * lower[column]
    momenta = atoms.get_momenta() if atoms.has("momenta") else None
    atoms.set_cell(lower)
    atoms.arrays["positions"][:] = atoms.positions @ rotation.T
    if momenta is not None:
        atoms.arrays["momenta"] = momenta @ rotation.T
    return atoms


def _is_reduced(cell: NDArray[np.float64]) -> bool:
    lean = 0.5 * (1 + 1e-9)
    return bool(
        not np.triu(cell, 1).any()
        and (np.diag(cell) > 0).all()
        and abs(cell[1, 0]) <= lean * cell[0, 0]
        and abs(cell[2, 0]) <= lean * cell[0, 0]
        and abs(cell[2, 1]) <= lean * cell[1, 1]
    )


def check_boundaries(atoms: Atoms) -> None:
    """Raise a ValueError for a structure that is periodic in some directions only."""
    check_geometry(atoms.positions, atoms.cell.array, atoms.pbc)
    if atoms.pbc.any() and not atoms.pbc.all():
        raise ValueError(
            f"pbc is {atoms.pbc.tolist()}: OpenMM knows boxes that are periodic in all three "
            "directions or in none; use --engine ase"
        )


def read_topology(source: Path) -> tuple[openmm.app.Topology, Atoms]:
    """Topology and structure of a PDB or mmCIF file, atoms in the order of the topology.

    Raises
    ------
    FileNotFoundError, ValueError
        If there is no such file, it is of another kind or damaged, or holds several structures.
    """
    require_openmm()
    from openmm import app, unit

    if not source.exists():
        raise FileNotFoundError(f"{source}: no such file")
    suffix = topology_suffix(source)
    if not suffix:
        raise ValueError(
            f"--ml-atoms needs residues and bonds, which {source} does not hold: expected a PDB "
            "or mmCIF file (.pdb, .cif)"
        )
    try:
        file = (app.PDBFile if suffix == ".pdb" else app.PDBxFile)(str(source))
        positions = file.getPositions(asNumpy=True).value_in_unit(unit.angstrom)
    except Exception as error:  # OpenMM's readers fail in many ways
        raise ValueError(f"{source} cannot be read by OpenMM: {error}") from error
    if file.getNumFrames() > 1:
        raise ValueError(
            f"{source} holds {file.getNumFrames()} structures: expected a file of one"
        )
    topology = file.topology
    elements = [atom.element for atom in topology.atoms()]
    if None in elements:
        raise ValueError(
            f"{source}: atom {elements.index(None)} has no element (a virtual site?): only atoms "
            "can be run"
        )
    box = topology.getPeriodicBoxVectors()
    atoms = Atoms([e.atomic_number for e in elements], np.array(positions))
    if box is not None:
        cell = np.array(box.value_in_unit(unit.angstrom))
        lengths = np.linalg.norm(cell, axis=1)
        if placeholder_box(lengths, Notes(source)):
            topology.setPeriodicBoxVectors(None)
        else:
            atoms.set_cell(cell)
            atoms.pbc = True
    with contextlib.suppress(ValueError):  # what OpenMM reads and the other reader refuses
        if has_alternates(source):
            Notes(source).say(
                "alternate",
                "alternate locations: with --ml-atoms OpenMM reads the file, keeps the first "
                "location of each atom and drops the others, whatever their occupancy",
            )
    heavy = [e.mass.value_in_unit(unit.dalton) if e.symbol == "D" else None for e in elements]
    set_isotopes(atoms, heavy)
    check_distances(atoms, str(source))
    return topology, atoms


def select_atoms(text: str, topology: openmm.app.Topology) -> list[int]:
    """The atoms that ``--ml-atoms`` names, in the order of the topology.

    Parameters
    ----------
    text
        Parts separated by commas: ``30`` or ``0-21`` (counted from 0), ``resname LIG``,
        ``chain A``.

    Raises
    ------
    ValueError
        For a part that means nothing, is out of range, matches nothing, or names an atom twice.
    """
    atoms = list(topology.atoms())
    chosen: set[int] = set()
    for part in (part.strip() for part in text.split(",")):
        indices = _select_part(part, atoms)
        again = chosen.intersection(indices)
        if again:
            raise ValueError(f"--ml-atoms is {text!r}: atom {min(again)} is named twice")
        chosen.update(indices)
    return sorted(chosen)


def _select_part(part: str, atoms: list[Any]) -> list[int]:
    numbers = re.fullmatch(r"(\d+)(?:\s*-\s*(\d+))?", part)
    if numbers:
        first = int(numbers[1])
        last = int(numbers[2] or first)
        if last < first or last >= len(atoms):
            raise ValueError(
                f"--ml-atoms: {part} is out of range: the structure has the atoms 0 to "
                f"{len(atoms) - 1}"
            )
        return list(range(first, last + 1))
    words = re.fullmatch(r"(resname|chain)\s+(\S+)", part)
    if not words:
        raise ValueError(f"--ml-atoms: {part!r} means nothing: {NAMES}")
    names = [
        atom.residue.name if words[1] == "resname" else atom.residue.chain.id for atom in atoms
    ]
    found = [index for index, name in enumerate(names) if name == words[2]]
    if not found:
        raise ValueError(
            f"--ml-atoms: there is no {part}; the structure has {words[1]} "
            f"{', '.join(sorted(set(names))[:20])}"
        )
    return found


def learned_system(atoms: Atoms, calculator: Any, engine: str) -> Prepared:
    """All atoms by the potential of a calculator; those that ASE holds fixed have no mass."""
    import openmm

    masses = atoms.get_masses()
    masses[fixed_atoms(atoms)] = 0.0
    system = openmm.System()
    for mass in masses:
        system.addParticle(mass)
    if atoms.pbc.all():
        system.setDefaultPeriodicBoxVectors(*(atoms.cell.array / nm_in_angstrom))
    charge = calculator.charge
    force = create_force(
        calculator.potential,
        atoms.numbers,
        charge=charge_of(atoms) if charge is None else charge,
        engine=engine,
        periodic=bool(atoms.pbc.all()),
        device=str(calculator.device),
        dtype=str(calculator.dtype).removeprefix("torch."),
        backend=calculator.backend,
        coulomb_cutoff=_cutoff_nm(calculator),
    )
    system.addForce(force)
    return Prepared(system, np.arange(len(atoms)), 0)


def _cutoff_nm(calculator: Any) -> float | None:
    """The Coulomb cutoff that the user gave, nm; None: `create_force` chooses."""
    cutoff = calculator.coulomb_cutoff
    return None if cutoff is None else float(cutoff) / nm_in_angstrom


def fixed_atoms(atoms: Atoms) -> list[int]:
    """Atoms that ASE's FixAtoms holds; a ValueError for constraints that OpenMM has not."""
    fixed: list[int] = []
    for constraint in atoms.constraints:
        if not isinstance(constraint, FixAtoms):
            raise ValueError(
                f"the structure holds {type(constraint).__name__}: OpenMM takes over FixAtoms "
                "only; use --engine ase"
            )
        fixed += constraint.index.tolist()
    return fixed


def mixed_system(
    topology: openmm.app.Topology, atoms: Atoms, calculator: Any, settings: MDSettings, engine: str
) -> Prepared:
    """Some atoms by the potential of a calculator, all else by a force field.

    Mechanical embedding: the force field's terms among the chosen atoms are taken out, those
    between them and the rest stay.

    Raises
    ------
    ValueError
        If the force field is not found or does not know the structure, or openmm-ml is missing.
    """
    if importlib.util.find_spec("openmmml") is None:
        raise ValueError(f"--ml-atoms: openmmml is not installed: {INSTALL}")
    from openmm import app
    from openmmml import MLPotential

    assert settings.ml_atoms is not None
    chosen = select_atoms(settings.ml_atoms, topology)
    periodic = bool(atoms.pbc.all())
    if periodic:
        topology.setPeriodicBoxVectors(atoms.cell.array / nm_in_angstrom)
    rigid = settings.constraints == "hbonds"
    try:
        everything = app.ForceField(*settings.force_field).createSystem(
            topology,
            nonbondedMethod=app.PME if periodic else app.NoCutoff,
            nonbondedCutoff=MM_CUTOFF_NM,
            constraints=app.HBonds if rigid else None,
            rigidWater=rigid,
            hydrogenMass=settings.hydrogen_mass,
            removeCMMotion=False,
        )
    except Exception as error:  # a file that is no XML, a residue without a template, ...
        raise ValueError(f"--force-field {' '.join(settings.force_field)}: {error}") from error
    bonds_of_region(topology, chosen)  # refuses cut bonds: there are no link atoms in runs
    charge = region_charge(everything, chosen, calculator.charge)
    cutoff = _cutoff_nm(calculator)
    coulomb = {} if cutoff is None else {"coulomb_cutoff": cutoff, "useCoulombCutoff": True}
    system = MLPotential("tensormd", modelPath=calculator.potential).createMixedSystem(
        topology,
        everything,
        chosen,
        **coulomb,
        charge=charge,
        engine=engine,
        device=str(calculator.device),
        dtype=str(calculator.dtype).removeprefix("torch."),
        backend=calculator.backend,
    )
    molecules = _molecules(topology, system)
    return Prepared(system, molecules, system.getNumConstraints())


def region_charge(system: openmm.System, chosen: Sequence[int], given: int | None) -> int:
    """Total charge of the atoms that the potential describes, e: ``given``, or the force field's.

    Raises
    ------
    ValueError
        If none is given, and the force field's charges add up to no whole number.
    """
    import openmm

    total = 0.0
    for force in system.getForces():
        if isinstance(force, openmm.NonbondedForce):
            total += sum(force.getParticleParameters(atom)[0]._value for atom in chosen)
    whole = round(total)
    if given is not None:
        if abs(total - given) > CHARGE_TOLERANCE:
            warnings.warn(
                f"--charge is {given:+d}, but the charges of the force field on the atoms of "
                f"--ml-atoms add up to {total:+.3g}",
                UserWarning,
                stacklevel=2,
            )
        return given
    if abs(total - whole) > CHARGE_TOLERANCE:
        raise ValueError(
            "the charges of the force field on the atoms of --ml-atoms add up to "
            f"{total:+.3f} e, no whole number: state the total charge of these atoms with --charge"
        )
    if whole:
        warnings.warn(
            f"the atoms of --ml-atoms have the charge {whole:+d}, as in the force field; state "
            "another with --charge",
            UserWarning,
            stacklevel=2,
        )
    return whole


def _molecules(topology: openmm.app.Topology, system: openmm.System) -> NDArray[np.int64]:
    """Atoms joined by bonds or by constraints."""
    pairs = [(bond[0].index, bond[1].index) for bond in topology.bonds()]
    pairs += [system.getConstraintParameters(k)[:2] for k in range(system.getNumConstraints())]
    parent = list(range(system.getNumParticles()))

    def root(atom: int) -> int:
        while parent[atom] != atom:
            parent[atom] = atom = parent[parent[atom]]
        return atom

    for i, j in pairs:
        parent[root(i)] = root(j)
    roots = [root(atom) for atom in range(len(parent))]
    return np.asarray(np.unique(roots, return_inverse=True)[1], dtype=np.int64)


def choose_force_engine(settings: MDSettings, device: torch.device, platform: str) -> str:
    """``torchforce`` or ``python``: TorchForce runs where OpenMM's platform runs."""
    if settings.engine_force == "auto" and device.type == "cuda" and platform != "CUDA":
        return choose_force_class("python")
    return choose_force_class(settings.engine_force)


def choose_platform(settings: MDSettings, device: torch.device) -> str:
    """The name of OpenMM's platform.

    Where nothing was asked for: CUDA if the model runs there and OpenMM can; else CPU for a
    force field, and Reference, which integrates in double precision, for a potential alone.

    Raises
    ------
    ValueError
        If this installation has no such platform.
    """
    from openmm import Platform

    known = [Platform.getPlatform(k).getName() for k in range(Platform.getNumPlatforms())]
    if settings.platform is None:
        if device.type == "cuda" and "CUDA" in known:
            return "CUDA"
        return "CPU" if settings.ml_atoms and "CPU" in known else "Reference"
    for name in known:
        if name.lower() == settings.platform.lower():
            return name
    failures = " ".join(" ".join(Platform.getPluginLoadFailures()).split())
    raise ValueError(
        f"--platform is {settings.platform!r}: OpenMM has {', '.join(known)} here"
        + (f" ({failures})" if failures else "")
    )
