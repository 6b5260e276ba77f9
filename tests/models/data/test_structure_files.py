"""Structure files as users have them: the right value, or one clear error line."""

from __future__ import annotations

import gzip
import warnings
from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write

from tensormd.models.data.readers import read_frames
from tensormd.models.data.structures import CLOSEST_LABELLED, iterate_atoms
from tensormd.models.data.structures.pdb import guess_element

WATER = "O 0 0 0.119\nH 0 0.763 -0.477\nH 0 -0.763 -0.477\n"
FRAME = f"3\nframe\n{WATER}"
BOX = "CRYST1{:9.3f}{:9.3f}{:9.3f}  90.00  90.00  90.00 P 1           1\n"
WATER_PDB = (
    "ATOM      1  O   HOH A   1       0.000   0.000   0.119  1.00  0.00           O\n"
    "ATOM      2  H1  HOH A   1       0.000   0.763  -0.477  1.00  0.00           H\n"
    "ATOM      3  H2  HOH A   1       0.000  -0.763  -0.477  1.00  0.00           H\n"
)
SDF = (
    "{title}\n  program           3D\n\n  2  1  0  0  0  0  0  0  0  0999 V2000\n"
    "    0.0000    0.0000    0.0000 O   0{old}\n    0.0000    0.0000    0.9700 {h}   0  0\n"
    "  1  2  1  0\n{lines}M  END\n$$$$\n"
)
MMCIF = (
    "data_W\nloop_\n_atom_site.id\n_atom_site.type_symbol\n_atom_site.label_alt_id\n"
    "_atom_site.label_comp_id\n_atom_site.label_atom_id\n_atom_site.Cartn_x\n_atom_site.Cartn_y\n"
    "_atom_site.Cartn_z\n_atom_site.occupancy\n_atom_site.pdbx_formal_charge\n"
    "1 O . HOH O  0 0 0.119 1.0 -1\n2 D . HOH D1 0 0.763 -0.477 1.0 ?\n"
    "3 H A HOH H2 0 -0.763 -0.477 0.4 ?\n4 H B HOH H2 0.1 -0.763 -0.477 0.6 ?\n"
)
CIF = (
    "data_x\n_chemical_formula_sum '{formula}'\n_cell_length_a 4\n_cell_length_b 4\n"
    "_cell_length_c 4\n_cell_angle_alpha 90\n_cell_angle_beta 90\n_cell_angle_gamma 90\n"
    "_space_group_name_H-M_alt 'P 1'\nloop_\n_atom_site_type_symbol\n_atom_site_fract_x\n"
    "_atom_site_fract_y\n_atom_site_fract_z\n_atom_site_occupancy\n{atoms}"
)
POSCAR = (
    "slab\n1.0\n4 0 0\n0 4 0\n0 0 8\n{symbols}\n{counts}\nSelective dynamics\nDirect\n"
    "0 0 0 F F T\n0.5 0.5 0.25 T T T\n"
)


def read(path: Path | str, **options) -> tuple[list[Atoms], str]:
    """Structures of a file, and all that was said of them."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        found = [atoms for _, atoms in iterate_atoms(path, **options)]
    return found, "; ".join(str(warning.message) for warning in said)


def one(path: Path, text: str) -> tuple[Atoms, str]:
    """The one structure of a file with this text, and what was said of it."""
    path.write_text(text)
    found, said = read(path)
    assert len(found) == 1
    return found[0], said


def refusal(path: Path, text: str) -> str:
    """The line that refuses a text."""
    path.write_text(text)
    with pytest.raises(ValueError, match=path.name) as error:
        read(path)
    assert "\n" not in str(error.value)
    return str(error.value)


# Truth values


@pytest.mark.parametrize("comment", ["charge 0 mult 1", "charge=T", "Charge", "charge: -1"])
def test_a_word_is_no_charge(comment: str, tmp_path: Path) -> None:
    atoms, said = one(tmp_path / "word.xyz", f"3\n{comment}\n{WATER}")
    assert "charge" not in atoms.info
    assert "charge" in said.lower()


@pytest.mark.parametrize("comment", ["energy -76.4", "forces pbc energy", "stress energy=T"])
def test_a_word_is_no_label(comment: str, tmp_path: Path) -> None:
    path = tmp_path / "word.xyz"
    atoms, said = one(path, f"3\n{comment}\n{WATER}")
    assert "energy" in said
    assert atoms.calc is None or "energy" not in atoms.calc.results
    assert not atoms.pbc.any()
    with pytest.raises(ValueError, match=r"frame 0 of .* has no energy, no forces"):
        read_frames(path, 3.0)
    path.write_text(f"3\nFlag=T\n{WATER}")
    with pytest.raises(ValueError, match="Flag is True, a truth value"):
        read_frames(path, 3.0, keys={"energy": "Flag"})


def test_entries_with_blanks_and_quotes(tmp_path: Path) -> None:
    comment = 'Bob\'s run: energy = -1.5 charge=-1 note="a = b" i = 3, E = -5'
    atoms, said = one(tmp_path / "a.xyz", f"3\n{comment}\n{WATER}")
    assert atoms.calc.results["energy"] == -1.5
    assert (atoms.info["charge"], atoms.info["note"], atoms.info["E"]) == (-1, "a = b", -5)
    assert not said


def test_truth_values_of_other_formats(tmp_path: Path) -> None:
    atoms = molecule("H2O")
    atoms.info["charge"] = np.bool_(True)
    atoms.calc = SinglePointCalculator(atoms)
    atoms.calc.results = {"energy": True, "forces": np.zeros((3, 3))}
    write(tmp_path / "a.traj", atoms)
    found, said = read(tmp_path / "a.traj")
    assert "charge" not in found[0].info
    assert "energy" not in found[0].calc.results
    assert "charge is True, a truth value" in said


@pytest.mark.parametrize("value", ["0.5", "one", '"1 2"'])
def test_charges_that_are_none(value: str, tmp_path: Path) -> None:
    assert "expected an integer" in refusal(tmp_path / "a.xyz", f"3\ncharge={value}\n{WATER}")


def test_charges_by_other_names(tmp_path: Path) -> None:
    atoms, said = one(tmp_path / "a.xyz", f"3\ntotal_charge=-2\n{WATER}")
    assert atoms.info["charge"] == -2
    assert "total charge -2, by the entry total_charge" in said


# SDF


def test_all_molecules_of_an_sdf_file(tmp_path: Path) -> None:
    path = tmp_path / "three.sdf"
    part = SDF.format(title="w", old="  0", h="H", lines="")
    path.write_text(part * 3)
    found, said = read(path)
    assert [len(atoms) for atoms in found] == [2, 2, 2]
    assert not said
    path.write_text(part + part.replace("$$$$\n", "") + part)
    with pytest.raises(ValueError, match=r"line 18: 'w' stands where \$\$\$\$ is expected"):
        read(path)


@pytest.mark.parametrize(
    ("old", "lines", "charge"),
    [
        ("  0", "M  CHG  1   1  -1\n", -1),
        ("  5", "", -1),  # the old column alone
        ("  5", "M  CHG  1   2   2\n", 2),  # which does not count beside M  CHG
        ("  5", "M  CHG  1   1  -1\n", -1),
        ("  0", "M  CHG  2   1  -1   2   1\n", 0),
    ],
)
def test_charges_of_an_sdf_file(old: str, lines: str, charge: int, tmp_path: Path) -> None:
    text = SDF.format(title="oh", old=old, h="H", lines=lines)
    atoms, said = one(tmp_path / "a.sdf", text)
    assert atoms.info.get("charge", 0) == charge
    assert f"total charge {charge:+d}, as stated" in said
    (tmp_path / "b.mol").write_text(text.replace("$$$$\n", ""))
    assert read(tmp_path / "b.mol")[0][0].info.get("charge", 0) == charge


def test_isotopes_of_an_sdf_file(tmp_path: Path) -> None:
    for h, lines in (("D", ""), ("H", "M  ISO  1   2   2\n")):
        atoms, _ = one(tmp_path / "a.sdf", SDF.format(title="od", old="  0", h=h, lines=lines))
        assert atoms.get_chemical_symbols() == ["O", "H"]
        np.testing.assert_allclose(atoms.get_masses(), [15.999, 2.0141], atol=1e-3)


def test_v3000(tmp_path: Path) -> None:
    text = (
        "oh\n  program           3D\n\n  0  0  0     0  0            999 V3000\n"
        "M  V30 BEGIN CTAB\nM  V30 COUNTS 2 1 0 0 0\nM  V30 BEGIN ATOM\n"
        "M  V30 1 O 0 0 0 0 CHG=-1\nM  V30 2 H 0 0 0.97 -\nM  V30 0 MASS=3\nM  V30 END ATOM\n"
        "M  V30 BEGIN BOND\nM  V30 1 1 1 2\nM  V30 END BOND\nM  V30 END CTAB\nM  END\n"
    )
    atoms, _ = one(tmp_path / "a.sdf", text)
    assert atoms.info["charge"] == -1
    np.testing.assert_allclose(atoms.get_masses(), [15.999, 3.01605], atol=1e-3)
    assert "the counts say 3 atoms, but 2" in refusal(
        tmp_path / "a.sdf", text.replace("COUNTS 2", "COUNTS 3")
    )


def test_sdf_files_that_cannot_be_right(tmp_path: Path) -> None:
    text = SDF.format(title="oh", old="  0", h="H", lines="")
    flat = text.replace("0.9700", "0.0000").replace(
        "    0.0000    0.0000    0.0000 H", "    0.9700    0.0000    0.0000 H"
    )
    assert "is a drawing (2D)" in refusal(tmp_path / "a.sdf", flat.replace("3D", "2D"))
    assert "line 7" in refusal(tmp_path / "a.sdf", text.replace("  2  1  0", "  3  1  0", 1))
    assert "ends without M  END" in refusal(tmp_path / "a.sdf", text.replace("M  END\n", ""))


# PDB


def test_charges_of_a_pdb_file(tmp_path: Path) -> None:
    ion = (
        "HETATM    4 {name:4} {res:>3} A   2       4.000   0.000   0.000  1.00  0.00          "
        "{tail}\n"
    )
    for name, tail, charge in (("CL", "CL1-", -1), ("ZN", "ZN2+", 2), ("NA", "NA+1", 1)):
        atoms, said = one(
            tmp_path / "a.pdb", WATER_PDB + ion.format(name=name, res=name, tail=tail)
        )
        assert atoms.info["charge"] == charge
        assert f"total charge {charge:+d}" in said
        assert atoms.get_chemical_symbols()[3] == name.capitalize()
    assert "expected a charge such as 1+" in refusal(
        tmp_path / "a.pdb", WATER_PDB + ion.format(name="CL", res="CL", tail="CLx-")
    )


@pytest.mark.parametrize("edge", [0.0, 1.0])
def test_a_box_that_fills_a_field(edge: float, tmp_path: Path) -> None:
    atoms, said = one(tmp_path / "a.pdb", BOX.format(edge, edge, edge) + WATER_PDB)
    assert not atoms.pbc.any()
    assert not atoms.cell.any()
    assert "stands for no crystal" in said


def test_boxes_of_pdb_files(tmp_path: Path) -> None:
    path = tmp_path / "a.pdb"
    box = BOX.format(20, 21, 22)
    path.write_text(box + f"MODEL 1\n{WATER_PDB}ENDMDL\nMODEL 2\n{WATER_PDB}ENDMDL\nEND\n")
    found, said = read(path)
    assert [atoms.cell.lengths().tolist() for atoms in found] == [[20, 21, 22]] * 2
    assert all(atoms.pbc.all() for atoms in found)  # ASE gives the box to the first one alone
    assert not said
    _, said = one(path, box.replace("P 1   ", "P 21 21 21")[:70] + "\n" + WATER_PDB)
    assert "symmetry copies are not made" in said
    assert "A^3 for each of 3 atoms" in refusal(path, BOX.format(1.0, 1.1, 1.2) + WATER_PDB)


def test_alternate_locations(tmp_path: Path) -> None:
    line = (
        "ATOM      {n}  {name} {alt}HOH A   1    {x:8.3f}{y:8.3f}  -0.477  {occ:.2f}  0.00"
        "           {el}\n"
    )
    oxygen = line.format(n=1, name="O ", alt=" ", x=0, y=0, occ=1, el="O").replace(
        "-0.477", " 0.119"
    )

    def water(*hydrogens: tuple[str, str, float, float]) -> str:
        rows = [
            line.format(n=n, name=name, alt=alt, x=x, y=0.763, occ=occ, el="H")
            for n, (name, alt, x, occ) in enumerate(hydrogens, start=2)
        ]
        return oxygen + "".join(rows)

    # The first of equals, the highest, and the highest sum in a residue: no mixture of two.
    for first, second, kept in ((1.0, 1.0, 0.0), (0.4, 0.6, 0.15), (0.6, 0.4, 0.0)):
        atoms, said = one(
            tmp_path / "a.pdb", water(("H1", "A", 0.0, first), ("H1", "B", 0.15, second))
        )
        assert len(atoms) == 2
        assert atoms.positions[1, 0] == kept
        assert "alternate locations" in said
    # Letters without a rival are no alternatives.
    atoms, said = one(tmp_path / "a.pdb", water(("H1", "A", 0.0, 0.5), ("H2", "B", 0.9, 0.5)))
    assert len(atoms) == 3
    assert not said


def test_hexadecimal_and_hybrid_numbers(tmp_path: Path) -> None:
    for number, serial in (("A000", "A0000"), ("A0Z9", "186a0"), ("-999", "*****")):
        text = WATER_PDB.replace("HOH A   1", f"HOH A{number}").replace(
            "ATOM      1", f"ATOM  {serial}"
        )
        atoms, said = one(tmp_path / "a.pdb", text)
        assert atoms.get_chemical_formula() == "H2O"
        assert not said


@pytest.mark.parametrize(
    ("name", "residue", "symbol"),
    [
        (" CA ", "ALA", "C"),
        ("CA  ", "CA", "Ca"),
        ("HG11", "VAL", "H"),
        ("1HB ", "LEU", "H"),
        ("CL  ", "LIG", "Cl"),
        (" CL1", "LIG", "C"),
        ("FE  ", "HEM", "Fe"),
        (" D1 ", "HOH", "D"),
        ("DOH2", "HOH", None),
        (" M  ", "HOH", None),
    ],
)
def test_elements_by_name(name: str, residue: str, symbol: str | None) -> None:
    if symbol is None:
        with pytest.raises(ValueError, match="tell an element"):
            guess_element(name, residue)
    else:
        assert guess_element(name, residue) == symbol


def test_pdb_lines_that_cannot_be_right(tmp_path: Path) -> None:
    path = tmp_path / "a.pdb"
    lines = WATER_PDB.splitlines(keepends=True)
    for change, message in (
        (lines[1].replace("ATOM  ", "AT0M  "), "line 2: 'AT0M' is no atom record"),
        (lines[1].replace("       0.000   0.763", "      0.0000   0.7631"), "cut a number"),
        (lines[1].replace(" 0.763", " 0.7x3"), "'0.7x3' is no number"),
        (lines[1][:50] + "\n", "line 2"),
    ):
        assert message in refusal(path, lines[0] + change + lines[2])
    _, said = one(path, lines[0] + lines[1] + lines[2].replace("     3", "     4"))
    assert "jump from 2 to 4" in said
    _, said = one(path, "CRYSTL   20.000\n" + WATER_PDB)
    assert "'CRYSTL' is no record of PDB" in said
    _, said = one(path, "".join(line[:76] + "\n" for line in lines))
    assert "columns 77-78 name no element: O is O, H1 is H" in said


# mmCIF


def test_mmcif(tmp_path: Path) -> None:
    atoms, said = one(tmp_path / "a.cif", MMCIF)
    assert atoms.get_chemical_symbols() == ["O", "H", "H"]
    np.testing.assert_allclose(atoms.get_masses(), [15.999, 2.0141, 1.008], atol=1e-3)
    assert atoms.positions[2, 0] == 0.1  # the higher occupancy
    assert atoms.info["charge"] == -1
    assert "alternate locations" in said
    assert "charge -1" in said
    cell = "".join(f"_cell.length_{k} 1.000\n" for k in "abc") + "".join(
        f"_cell.angle_{k} 90.00\n" for k in ("alpha", "beta", "gamma")
    )
    atoms, said = one(tmp_path / "b.cif", MMCIF.replace("loop_", cell + "loop_"))
    assert not atoms.pbc.any()
    assert "stands for no crystal" in said
    atoms, _ = one(
        tmp_path / "c.cif", MMCIF.replace("loop_", cell.replace("1.0", "15.0") + "loop_")
    )
    assert atoms.cell.lengths().tolist() == [15, 15, 15]
    short = MMCIF.replace("2 D . HOH D1 0 ", "2 D . HOH D1 ")
    assert "line 14: expected the 10 values of one atom" in refusal(tmp_path / "a.cif", short)


# XYZ


def test_blank_lines_between_frames(tmp_path: Path) -> None:
    path = tmp_path / "blank.xyz"
    path.write_text(f"{FRAME}\n{FRAME}  \n\n{FRAME}\n\n")
    assert len(read(path)[0]) == 3
    labelled = FRAME.replace("frame", "energy=-1.0")
    path.write_text("\n".join([labelled] * 3))
    assert len(read_frames(path, 3.0)) == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (FRAME + "garbage\n", "line 6: 'garbage' stands where the number of atoms"),
        (FRAME + "O 0 0 0\n", "line 6: 'O 0 0 0' stands where"),
        (FRAME.replace("3\n", "2\n", 1), "line 5"),
        (
            FRAME.replace("3\n", "4\n", 1),
            "line 1: the frame shall have 4 atoms, but the file ends",
        ),
        (FRAME.replace("H 0 0.763", "\nH 0 0.763"), "line 4 is blank after 1"),
        (FRAME.replace("0.763", "0.7x3"), "line 4: expected numbers"),
        (FRAME.replace("0.763", "0_763"), "line 4: expected numbers"),
        (FRAME.replace("O 0", "Oh 0"), "line 3: 'Oh' is no element"),
        (FRAME.replace("O 0", "X 0"), "line 3: 'X' is no element"),
        (FRAME.replace("H 0 0.763 -0.477", "H 0 0.763"), "line 4 has 3 columns: expected 4"),
        (FRAME.replace("frame", 'Lattice="1 2"'), "line 2: Got info item Lattice"),
        (FRAME.replace("frame", 'pbc="T F x"'), "pbc is 'T F x': expected three of T and F"),
        (FRAME.replace("frame", "Properties=species:S:1:pos:R:4"), "line 3 has 4 columns"),
        ("0\n\n" + FRAME, "line 1: the frame has no atoms"),
    ],
)
def test_xyz_files_that_cannot_be_right(text: str, message: str, tmp_path: Path) -> None:
    assert message in refusal(tmp_path / "a.xyz", text)
    with pytest.raises(ValueError, match=r"a\.xyz"):
        read_frames(tmp_path / "a.xyz", 3.0)


def test_xyz_of_other_hands(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    atoms, said = one(path, FRAME.replace("O 0", "8 0"))
    assert atoms.get_chemical_formula() == "H2O"
    _, said = one(path, FRAME.replace("0.119", "0.119 -0.8"))
    assert "columns after the fourth are not read" in said
    path.write_bytes("\ufeff".encode() + FRAME.replace("\n", "\r\n").encode() + b"\r\n")
    assert len(read(path)[0]) == 1
    path.write_bytes(FRAME.encode().replace(b"frame", b"5 \xc5ngstr\xf6m"))
    assert len(read(path)[0]) == 1
    atoms, _ = one(path, FRAME + "VEC1 9 0 0\nVEC2 0 8 0\nVEC3 0 0 7\n")
    assert atoms.cell.lengths().tolist() == [9, 8, 7]
    with gzip.open(tmp_path / "a.xyz.gz", "wt") as stream:
        stream.write(FRAME * 2)
    assert len(read(tmp_path / "a.xyz.gz")[0]) == 2


def test_extended_xyz_is_what_ase_reads(tmp_path: Path) -> None:
    from ase.constraints import FixAtoms, FixCartesian
    from ase.io import read as ase_read

    frames = []
    for k in range(3):
        atoms = bulk("Cu", cubic=True) if k == 2 else molecule("CH3CH2OH")
        atoms.rattle(0.1, seed=k)
        atoms.set_tags(np.arange(len(atoms)))
        atoms.set_momenta(atoms.positions)
        atoms.info.update(charge=k - 1, name="a b", virial=np.arange(9.0).reshape(3, 3))
        if k:
            atoms.set_constraint([FixAtoms([0]), FixCartesian(1, [True, False, True])][:k])
        atoms.calc = SinglePointCalculator(
            atoms, energy=-1.5, forces=atoms.positions, stress=np.arange(6.0)
        )
        frames.append(atoms)
    write(tmp_path / "a.extxyz", frames)
    wanted = ase_read(tmp_path / "a.extxyz", ":")
    found, said = read(tmp_path / "a.extxyz")
    assert not said
    for mine, theirs in zip(found, wanted, strict=True):
        assert mine.info.keys() == theirs.info.keys()
        assert mine.arrays.keys() == theirs.arrays.keys()
        for name in mine.arrays:
            np.testing.assert_array_equal(mine.arrays[name], theirs.arrays[name])
        np.testing.assert_array_equal(mine.cell.array, theirs.cell.array)
        np.testing.assert_array_equal(mine.pbc, theirs.pbc)
        assert mine.calc.results.keys() == theirs.calc.results.keys()
        np.testing.assert_array_equal(mine.get_stress(), theirs.get_stress())
        np.testing.assert_array_equal(mine.get_forces(), theirs.get_forces())


# Isotopes, distances, cells


def test_heavy_water(tmp_path: Path) -> None:
    text = FRAME.replace("H 0 0", "D 0 0").replace("H 0 -", "T 0 -")
    pdb = WATER_PDB.replace("           H\n", "           D\n")
    cif = CIF.format(formula="D2 O1", atoms="O .5 .5 .5 1\nD .5 .5 .7 1\nD .5 .7 .5 1\n")
    for name, content, masses in (
        ("a.xyz", text, [15.999, 2.0141, 3.01605]),
        ("a.pdb", pdb, [15.999, 2.0141, 2.0141]),
        ("a.cif", cif, [15.999, 2.0141, 2.0141]),
    ):
        atoms, said = one(tmp_path / name, content)
        assert atoms.get_chemical_symbols() == ["O", "H", "H"]
        np.testing.assert_allclose(atoms.get_masses(), masses, atol=1e-3)
        assert not said
        write(tmp_path / "again.extxyz", atoms)
        back = read(tmp_path / "again.extxyz")[0][0]
        np.testing.assert_allclose(back.get_masses(), atoms.get_masses(), atol=1e-6)


def test_two_atoms_in_one_place(tmp_path: Path) -> None:
    text = f"4\n\n{WATER}H 0.15 0.74 -0.477\n"
    assert "atoms 1 (H) and 3 (H) are 0.152 A apart, in one place" in refusal(
        tmp_path / "a.xyz", text
    )
    # Across a face of the cell, and in one corner of a slanted one.
    for cell, far in (("9 0 0 0 9 0 0 0 9", "8.9 0 0"), ("9 0 0 4 9 0 0 0 9", "12.9 9 0")):
        text = f'2\nLattice="{cell}" pbc="T T F"\nC 0.1 0 0\nO {far}\n'
        assert "atoms 0 (C) and 1 (O) are 0.2 A apart" in refusal(tmp_path / "a.xyz", text)
        one(tmp_path / "a.xyz", text.replace("T T F", "F F F"))
    text = "2\n\nH 0 0 0\nH 0 0 0.3\n"
    assert "expected 0.4 A or more" in refusal(tmp_path / "a.xyz", text)
    assert len(read(tmp_path / "a.xyz", closest=CLOSEST_LABELLED)[0]) == 1


def test_crystals_of_close_packed_atoms_pass(tmp_path: Path) -> None:
    for k, atoms in enumerate(
        (bulk("C"), bulk("Fe"), bulk("Cu", cubic=True), bulk("H", "sc", 1.3))
    ):
        write(tmp_path / f"{k}.extxyz", atoms)
        assert len(read(tmp_path / f"{k}.extxyz")[0][0]) == len(atoms)


@pytest.mark.parametrize(
    ("lattice", "message"),
    [
        ("1 0 0 0 1 0 0 0 1", "is no crystal"),
        ("0 0 0 0 9 0 0 0 9", "periodic along a, but its cell vector is zero"),
        ("9 0 0 9 0 0 0 0 9", "spans no volume"),
        ("nan 0 0 0 9 0 0 0 9", "expected finite numbers"),
        ("1.1 0 0 0 1.1 0 0 0 1.1", "A^3 for each of 3 atoms"),
        ("0.2 0 0 0 90 0 0 0 90", "is no crystal"),
    ],
)
def test_cells_that_are_nonsense(lattice: str, message: str, tmp_path: Path) -> None:
    text = f'3\nLattice="{lattice}" pbc="T T T"\n{WATER}'
    assert message in refusal(tmp_path / "a.xyz", text)


# CIF, POSCAR


def test_cif_files_that_cannot_be_right(tmp_path: Path) -> None:
    path = tmp_path / "a.cif"
    good = CIF.format(formula="Cu1 O1", atoms="Cu 0 0 0 1\nO .5 .5 .5 0.95\n")
    atoms, said = one(path, good)
    assert atoms.get_chemical_formula() == "CuO"
    assert "occupancy 0.95" in said
    for old, new, message in (
        ("0.95", "0.5", "occupancy of 0.5: a disordered crystal"),
        ("O .5", "O8x .5", "is no symbol"),
        ("O .5 .5 .5", "O .5 .5", "expected the 5 values of one atom"),
        ("O .5 .5 .5", "O 0 0 0.01", "in one place"),
        ("_cell_length_c 4\n", "", "expected six numbers"),
        ("Cu 0", "Cv 0", "'Cv' is no element"),
    ):
        assert message in refusal(path, good.replace(old, new))
    _, said = one(path, good.replace("Cu1 O1", "Cu1 O1 H2"))
    assert "the formula is Cu1 O1 H2, but the atoms are CuO" in said


def test_poscar(tmp_path: Path) -> None:
    from ase.constraints import FixCartesian

    path = tmp_path / "POSCAR"
    atoms, said = one(path, POSCAR.format(symbols="Cu", counts=2))
    assert isinstance(atoms.constraints[0], FixCartesian)  # what extended XYZ can hold
    assert atoms.constraints[0].mask.tolist() == [True, True, False]
    assert not said
    for symbols, counts, message in (
        ("Cu", 1, "line 11: one more position, but the numbers add up to 1 atoms"),
        ("Cu", 3, "line 12: expected atom 3 of 3, not 'nothing'"),
        ("Cv", 2, "line 6: 'Cv' is no element"),
        ("Cu O", 2, "2 elements, but 1 numbers"),
    ):
        assert message in refusal(path, POSCAR.format(symbols=symbols, counts=counts))
    old = POSCAR.format(symbols="@", counts=2).replace("@\n", "").replace("slab", "Cu slab")
    _, said = one(path, old)
    assert "line 6 names no elements" in said


# Which of several


@pytest.mark.parametrize("name", ["a.extxyz", "a.db", "a.traj"])
def test_an_index_out_of_range(name: str, tmp_path: Path) -> None:
    frames = [molecule("H2O") for _ in range(3)]
    for k, atoms in enumerate(frames):
        atoms.positions[0, 0] = 0.01 * k
    write(tmp_path / name, frames)
    path = tmp_path / name
    for index, places in (("2", [0.02]), ("-1", [0.02]), ("1:", [0.01, 0.02])):
        assert [a.positions[0, 0] for a in read(f"{path}@{index}")[0]] == places
    for index in ("7", "-4", "5:9"):
        with pytest.raises(ValueError, match=f"{name} holds 3 structures, numbered from 0: there"):
            read(f"{path}@{index}")


def test_bad_structures_are_told_and_the_rest_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.xyz"
    path.write_text(FRAME + "2\n\nH 0 0 0\nH 0 0 0\n" + FRAME)
    failed: dict[int, ValueError] = {}
    found = [k for k, _ in iterate_atoms(path, failed=failed.__setitem__)]
    assert found == [0, 2]
    assert "a.xyz@1: atoms 0 (H) and 1 (H)" in str(failed[1])
