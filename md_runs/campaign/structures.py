"""The structures of a campaign: from files, or from SMILES through RDKit."""

from __future__ import annotations

import csv
import glob
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from ase import Atoms

from ...models.data.structures import check_geometry, split_source
from ..runs.schema import of_key
from ..runs.structures import read_each, runnable
from .plan import StructuresSection


class Given(NamedTuple):
    """A structure that a plan asks for."""

    label: str
    """For people: the name of its file, or a name beside its SMILES; may come twice."""
    source: str
    """File and number, or SMILES."""
    structure: Atoms | Exception
    """Or why there is none."""


def read_given(section: StructuresSection) -> list[Given]:
    """All structures of a plan, in order; those that cannot be run keep the error.

    Raises
    ------
    ValueError, OSError
        If there is no such file, or RDKit is missing.
    """
    found: list[Given] = []
    for each in _all(section):
        found.append(each)
        if len(found) == section.limit:
            break
    if not found:
        raise ValueError("structures: there are none")
    return found


def _all(section: StructuresSection) -> Iterator[Given]:
    files = [section.files] if isinstance(section.files, str) else section.files or []
    for pattern in files:
        with of_key("structures.files"):
            for source in _matching(pattern):
                label = split_source(source)[0].name.partition(".")[0]
                for name, structure in read_each(source):
                    if isinstance(structure, Atoms):
                        structure = runnable(structure)
                    yield Given(label, name, structure)
    if section.smiles:
        with of_key("structures.smiles"):
            _require_rdkit()
            if isinstance(section.smiles, str):
                entries = _smiles_of(Path(section.smiles))
            else:
                entries = ((smiles, "") for smiles in section.smiles)
            yield from map(_from_smiles, entries)


def _matching(pattern: str) -> list[str]:
    """The file itself, or those of a pattern, sorted."""
    if "*" not in pattern or Path(pattern).exists():
        return [pattern]
    found = sorted(glob.glob(pattern))
    if not found:
        raise ValueError(f"{pattern}: no such file")
    return found


def _smiles_of(file: Path) -> Iterator[tuple[str, str]]:
    """SMILES and names of a file."""
    if not file.is_file():
        raise ValueError(f"{file}: no such file (SMILES themselves are a list: [{file}])")
    lines = file.read_text().splitlines()
    if file.suffix.lower() != ".csv":
        for line in lines:
            smiles, *name = line.split(None, 1)[:2] or [""]
            if smiles:
                yield smiles, name[0].strip() if name else ""
        return
    rows = csv.DictReader(lines)
    if "smiles" not in (rows.fieldnames or ()):
        raise ValueError(f"{file} has the columns {rows.fieldnames}: expected one named smiles")
    for row in rows:
        yield row["smiles"], row.get("name") or ""


def _require_rdkit() -> None:
    try:
        import rdkit  # noqa: F401
    except ImportError:
        raise ValueError(
            "SMILES need RDKit, which is not installed: pip install rdkit, or give files"
        ) from None


def _from_smiles(entry: tuple[str, str]) -> Given:
    smiles, name = entry
    try:
        atoms: Atoms | Exception = embed(smiles)
    except ValueError as error:
        atoms = error
    formula = atoms.get_chemical_formula("hill") if isinstance(atoms, Atoms) else "smiles"
    return Given(name or formula, smiles, atoms)


def embed(smiles: str, seed: int = 0) -> Atoms:
    """A conformer of a molecule: ETKDGv3, then MMFF94 (UFF where that has no parameters).

    Parameters
    ----------
    smiles
        Hydrogens are added; formal charges become the total charge.
    seed
        Seed of the embedding.

    Raises
    ------
    ValueError
        If RDKit cannot read it, or finds no geometry.
    """
    from rdkit import Chem, rdBase
    from rdkit.Chem import AllChem

    with rdBase.BlockLogs():
        molecule = Chem.MolFromSmiles(smiles)
        if molecule is None or molecule.GetNumAtoms() == 0:
            raise ValueError(f"{smiles!r} is no SMILES that RDKit can read")
        molecule = Chem.AddHs(molecule)
        parameters = AllChem.ETKDGv3()
        parameters.randomSeed = seed
        if AllChem.EmbedMolecule(molecule, parameters) != 0:
            raise ValueError(f"{smiles}: RDKit finds no geometry")
        if AllChem.MMFFHasAllMoleculeParams(molecule):
            AllChem.MMFFOptimizeMolecule(molecule)
        elif AllChem.UFFHasAllMoleculeParams(molecule):
            AllChem.UFFOptimizeMolecule(molecule)
        numbers = [atom.GetAtomicNum() for atom in molecule.GetAtoms()]
        atoms = Atoms(numbers, molecule.GetConformer().GetPositions())
        if any(atom.GetIsotope() for atom in molecule.GetAtoms()):
            atoms.set_masses([atom.GetMass() for atom in molecule.GetAtoms()])
        charge = Chem.GetFormalCharge(molecule)
    if charge:
        atoms.info["charge"] = charge
    check_geometry(atoms, smiles)
    return atoms


def folder_names(given: list[Given]) -> list[str]:
    """A folder name for each structure: its number from 1, and its label as far as one may be."""
    digits = len(str(len(given)))
    labels = (re.sub(r"[^\w+-]+", "_", each.label, flags=re.ASCII)[:40] for each in given)
    return [f"{k:0{digits}}-{label}" for k, label in enumerate(labels, start=1)]
