r"""Molecules for the general organic potential: a list, and variants of them that nature lacks.

    python -m tensormd.models.pretrained.organic.molecules molecules.csv \
        --exclude excluded_sha256.txt --number 40000 -o molecules.txt

``molecules.csv`` has columns ``smiles`` and ``split``; rows of other splits than ``train``, and
the molecules of the list of hashes, are never used, nor made. Variants are tautomers, exchanges of
atoms and groups (with more S, F, N, Cl and small rings than the list has), and recombined
fragments (BRICS). The same seed gives the same list.
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import random
from collections.abc import Iterator
from pathlib import Path

from rdkit import Chem, RDLogger
from rdkit.Chem import BRICS, AllChem
from rdkit.Chem.MolStandardize import rdMolStandardize

ELEMENTS = {"H", "C", "N", "O", "F", "S", "Cl"}
MOST_HEAVY_ATOMS = 26
# An atom or group in place of another; each where the valence allows it.
EXCHANGES = [
    AllChem.ReactionFromSmarts(text)
    for text in (
        "[cH:1]>>[n:1]",
        "[c:1][H]>>[c:1]F",
        "[c:1][H]>>[c:1]Cl",
        "[c:1][H]>>[c:1]S",
        "[c:1][H]>>[c:1]N",
        "[c:1][H]>>[c:1]O",
        "[c:1][H]>>[c:1]C#N",
        "[c:1][H]>>[c:1]N(=O)=O",
        "[c:1][H]>>[c:1]S(=O)(=O)N",
        "[c:1][H]>>[c:1]C(F)(F)F",
        "[c:1][H]>>[c:1]C(=O)O",
        "[C;X4:1][H]>>[C:1]F",
        "[C;X4:1][H]>>[C:1]Cl",
        "[C;X4:1][H]>>[C:1]O",
        "[C;X4:1][H]>>[C:1]S",
        "[C;X4:1][H]>>[C:1]N",
        "[C;X4:1][H]>>[C:1]C1CC1",
        "[C;X4:1][H]>>[C:1]C1CO1",
        "[C;X4:1][H]>>[C:1]C1CN1",
        "[C;X4:1][H]>>[C:1]C=C",
        "[C;X4:1][H]>>[C:1]C#C",
        "[CH2;X4:1]>>[O:1]",
        "[CH2;X4:1]>>[S:1]",
        "[CH2;X4:1]>>[NH:1]",
        "[CH2;X4:1]>>[C:1]=O",
        "[CH2;X4:1]>>[S:1](=O)=O",
        "[O;X1:1]=[C:2]>>[S:1]=[C:2]",
        "[O;X2:1]>>[S:1]",
        "[o:1]>>[s:1]",
        "[N;X3;H1:1][H]>>[N:1]C",
        "[N;X3;H0:1]-[CH3]>>[N:1][H]",
    )
]
# The teacher is unsure of these, or they are no stable molecules.
UNWANTED = [
    Chem.MolFromSmarts(text)
    for text in (
        "[N,O,S]-[F,Cl]",
        "[O,S]-[O,S;X2]",
        "[OX2]-[NX3]",
        "N-N-N",
        "[#6;r3]=[#6;r3]",
        "*=[C;X2]=*",
        "[N;X2]=[N;X2]-[N;X3]",
        "[F,Cl]-[F,Cl]",
        "[C-]#[N+]",
        "[CX3]=[S+]",
    )
]


def canonical(molecule: Chem.Mol) -> str:
    """SMILES without stereochemistry, by which molecules are told apart."""
    return str(Chem.MolToSmiles(Chem.RemoveHs(molecule), isomericSmiles=False))


def wanted(molecule: Chem.Mol) -> bool:
    """Whether a molecule is a neutral closed shell of the elements, small enough and sound."""
    atoms = list(molecule.GetAtoms())
    return (
        0 < molecule.GetNumHeavyAtoms() <= MOST_HEAVY_ATOMS
        and len(Chem.GetMolFrags(molecule)) == 1
        and all(a.GetSymbol() in ELEMENTS and not a.GetNumRadicalElectrons() for a in atoms)
        and sum(a.GetFormalCharge() for a in atoms) == 0
        and not any(molecule.HasSubstructMatch(pattern) for pattern in UNWANTED)
    )


def exchanged(molecule: Chem.Mol, chance: random.Random) -> Chem.Mol | None:
    """The molecule after one to three exchanges at random places; None if none was possible."""
    found = None
    for _ in range(chance.randint(1, 3)):
        reaction = chance.choice(EXCHANGES)
        products = reaction.RunReactants((Chem.AddHs(found or molecule),), maxProducts=20)
        if products:
            product = chance.choice(products)[0]
            if Chem.SanitizeMol(product, catchErrors=True) == Chem.SANITIZE_NONE:
                found = Chem.RemoveHs(product)
    return found


def variants(molecules: list[Chem.Mol], chance: random.Random) -> Iterator[tuple[str, Chem.Mol]]:
    """Endless variants, each with its kind: tautomer, exchange, or recombination."""
    tautomers = rdMolStandardize.TautomerEnumerator()
    tautomers.SetMaxTautomers(12)
    fragments = sorted(
        {f for m in molecules if m.GetNumHeavyAtoms() <= 20 for f in BRICS.BRICSDecompose(m)}
    )
    pieces = [m for f in fragments if (m := Chem.MolFromSmiles(f)) and m.GetNumHeavyAtoms() <= 14]
    while True:
        kind = chance.choices(("tautomer", "exchange", "recombination"), (0.15, 0.55, 0.3))[0]
        if kind == "recombination":
            made = BRICS.BRICSBuild(chance.sample(pieces, 6), scrambleReagents=False, maxDepth=2)
            for _, product in zip(range(3), made, strict=False):
                if Chem.SanitizeMol(product, catchErrors=True) == Chem.SANITIZE_NONE:
                    yield kind, product
            continue
        parent = chance.choice(molecules)
        if kind == "tautomer":
            found = list(tautomers.Enumerate(parent))
            yield kind, chance.choice(found)
        elif (product := exchanged(parent, chance)) is not None:
            yield kind, product


def main() -> None:
    """Write the list: kind and SMILES of each molecule."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("table", type=Path, help="CSV with columns smiles and split")
    parser.add_argument("--exclude", type=Path, required=True, help="hashes of molecules to avoid")
    parser.add_argument("--number", type=int, default=40000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()

    RDLogger.DisableLog("rdApp.*")
    excluded = set(arguments.exclude.read_text().split())
    rows = list(csv.DictReader(arguments.table.open()))
    read = [(row, Chem.MolFromSmiles(row["smiles"])) for row in rows]
    elsewhere = {canonical(m) for row, m in read if m is not None and row["split"] != "train"}
    listed: dict[str, str] = {}

    def take(kind: str, molecule: Chem.Mol) -> bool:
        name = canonical(molecule)
        if (
            name in listed
            or name in elsewhere
            or hashlib.sha256(name.encode()).hexdigest() in excluded
        ):
            return False
        again = Chem.MolFromSmiles(name)
        if again is None or not wanted(again):
            return False
        listed[name] = kind
        return True

    parents = [m for row, m in read if m and row["split"] == "train" and take("listed", m)]
    chance = random.Random(arguments.seed)
    for kind, molecule in variants(parents, chance):
        if len(listed) >= arguments.number:
            break
        take(kind, molecule)
    lines = [f"{kind} {name}\n" for name, kind in listed.items()]
    chance.shuffle(lines)
    arguments.output.write_text("".join(lines))
    print(f"{len(lines)} molecules, {len(parents)} of them listed")


if __name__ == "__main__":
    main()
