"""Structures in and out, in any format ASE reads, with errors a person can act on."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from ase.io.formats import UnknownFileTypeError, filetype, ioformats

from ...models.data.structures import Notes, iterate_atoms, split_source, xyz_frames
from ...models.files import write_atomically

Failed = Callable[[str, Exception], None]
"""Called with the name of what cannot be run, and the reason."""


def read_structures(source: str | Path) -> list[Atoms]:
    """Every structure of a file; ``file@index`` takes those that ASE's index selects.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it holds nothing that can be run, or a structure that cannot be right.
    """
    return [atoms for _, atoms in iterate_atoms(source)]


def read_each(source: str | Path) -> list[tuple[str, Atoms | ValueError]]:
    """The structures of a file, or why one cannot be run, each with its name.

    The name is ``file@number`` if the file holds several.

    Raises
    ------
    FileNotFoundError, ValueError
        If the file cannot be read.
    """
    found: dict[int, Atoms | ValueError] = {}
    for number, atoms in iterate_atoms(source, failed=found.__setitem__):
        found[number] = atoms
    path, _ = split_source(source)
    several = len(found) > 1
    return [(f"{path}@{k}" if several else str(source), each) for k, each in found.items()]


def read_structure(source: str | Path) -> Atoms:
    """The one structure of a file.

    Raises
    ------
    ValueError
        If it holds several and none was chosen.
    """
    structures = read_structures(source)
    if len(structures) > 1:
        raise ValueError(
            f"{source} holds {len(structures)} structures: choose one, for example "
            f"{source}@0 for the first or {source}@-1 for the last"
        )
    return structures[0]


def runnable(atoms: Atoms) -> Atoms:
    """What of a structure goes into a run and its files: a copy, without a calculator.

    Atomic numbers, positions, cell, periodicity, masses, momenta, tags, constraints and the
    total charge. Labels and other columns of the input stay behind: beside new positions they
    would be wrong.
    """
    copy = Atoms(atoms.numbers, atoms.positions, cell=atoms.cell, pbc=atoms.pbc)
    for name in ("masses", "momenta", "tags"):
        if atoms.has(name):
            copy.arrays[name] = atoms.arrays[name].copy()
    copy.set_constraint([constraint.copy() for constraint in atoms.constraints])
    charge = getattr(atoms.calc, "charge", None)
    if charge is None:
        charge = atoms.info.get("charge")
    if charge is not None:
        copy.info["charge"] = charge
    return copy


def with_results(atoms: Atoms, has_stress: bool = False) -> Atoms:
    """A copy for a file, with energy, forces and on request stress, and without the model."""
    results = {
        "energy": float(atoms.get_potential_energy()),
        "forces": atoms.get_forces(apply_constraint=False),
    }
    if has_stress:
        results["stress"] = atoms.get_stress(apply_constraint=False)
    copy = runnable(atoms)
    copy.calc = SinglePointCalculator(copy, **results)
    return copy


def write_structure(path: Path, atoms: Atoms) -> None:
    """Write in the format of the file's name, atomically, and warn of what it cannot hold.

    Raises
    ------
    ValueError
        If ASE cannot write the format, or not this structure in it.
    """
    name = format_of(path)
    try:
        if ioformats[name].isbinary:
            binary = io.BytesIO()
            write(binary, atoms, format=name)
            data = binary.getvalue()
        else:
            text = io.StringIO()
            write(text, atoms, format=name)
            data = text.getvalue().encode()
    except Exception as error:  # each of ASE's writers fails in its own way
        raise ValueError(f"{path} cannot be written: {error}") from error
    write_atomically(path, data)
    _warn_of_loss(path, atoms)


def _warn_of_loss(path: Path, atoms: Atoms) -> None:
    """Read a file back, and say what of the structure it does not hold."""
    if not (atoms.constraints or atoms.has("masses") or atoms.info.get("charge")):
        return  # any format holds the rest, in its own digits
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            _, back = next(iterate_atoms(path))
    except (ValueError, OSError):
        lost = ["a structure that can be read back"]
    else:
        lost = lost_parts(atoms, back)
    if lost:
        warnings.warn(f"{path} does not hold {', '.join(lost)}", UserWarning, stacklevel=3)


def lost_parts(atoms: Atoms, back: Atoms) -> list[str]:
    """What of charge, masses and constraints is not in ``back``, in words."""
    lost = []
    charge = atoms.info.get("charge", 0)
    if charge != back.info.get("charge", 0):
        lost.append(f"the charge {charge:+d} (give --charge again)")
    if not np.allclose(atoms.get_masses(), back.get_masses(), rtol=1e-4):
        lost.append("the masses")
    if not _same_constraints(atoms, back):
        kinds = sorted({type(constraint).__name__ for constraint in atoms.constraints})
        lost.append(f"all of the constraints ({', '.join(kinds)})")
    return lost


def _same_constraints(one: Atoms, two: Atoms) -> bool:
    """Whether both let the same displacements through."""
    if not (one.constraints or two.constraints):
        return True
    wish = one.positions + 1e-3 * np.random.default_rng(0).normal(size=one.positions.shape)
    moves = []
    for atoms in (one, two):
        probe = runnable(atoms)
        probe.positions[:] = one.positions
        probe.set_positions(wish)
        moves.append(probe.positions)
    return bool(np.abs(moves[0] - moves[1]).max() < 1e-6)


def stem_of(source: str) -> str:
    """Name of ``file`` or ``file@index`` without its folder and endings."""
    name = source if Path(source).exists() else (source.rpartition("@")[0] or source)
    return Path(name).name.partition(".")[0] or "structure"


def format_of(path: Path) -> str:
    """ASE's name of the format that a file to be written will have.

    Raises
    ------
    ValueError
        If the name tells none that ASE writes.
    """
    try:
        name = filetype(str(path), read=False)
    except UnknownFileTypeError:
        name = ""
    if name not in ioformats or not ioformats[name].can_write:
        raise ValueError(
            f"{path}: ASE writes no such format; expected a name such as relaxed.xyz, "
            "relaxed.cif or relaxed.pdb"
        )
    return name


def frame_text(atoms: Atoms) -> str:
    """A frame in extended XYZ, with the results of its calculator."""
    text = io.StringIO()
    write(text, atoms, format="extxyz")
    return text.getvalue()


def whole_frames(path: Path) -> Iterator[list[bytes]]:
    """The lines of each frame of an extended XYZ file; one that a kill cut short is left out."""
    with open(path, "rb") as stream:
        while header := stream.readline():
            lines = [header, *(stream.readline() for _ in range(int(header) + 1))]
            if not lines[-1].endswith(b"\n"):
                return
            yield lines


def warn_of_frames(atoms: Atoms, name: Any) -> None:
    """Say what of a structure the frames of a trajectory, extended XYZ, will not hold."""
    text = frame_text(runnable(atoms))
    back = next(xyz_frames(io.StringIO(text), Notes(name)))
    lost = lost_parts(runnable(atoms), back)
    if lost:
        warnings.warn(f"{name} does not hold {', '.join(lost)}", UserWarning, stacklevel=2)


def describe(atoms: Atoms) -> str:
    """``C2H6O, 9 atoms`` and what is periodic."""
    periodic = ", periodic" if atoms.pbc.all() else ""
    if atoms.pbc.any() and not atoms.pbc.all():
        periodic = ", periodic along " + "".join(np.array(list("abc"))[atoms.pbc])
    plural = "s" if len(atoms) != 1 else ""
    return f"{atoms.get_chemical_formula('hill')}, {len(atoms)} atom{plural}{periodic}"
