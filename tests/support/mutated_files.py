"""Damaged structure files: bytes flipped, lines cut, columns shifted; one per seed."""

from __future__ import annotations

import random
import re

from support.mutations import cut_end, cut_line, flip, mutated

_XYZ = """3
water 1
O   0.000000  0.000000  0.119000
H   0.000000  0.763000 -0.477000
H   0.000000 -0.763000 -0.477000
5
methane
C   0.000000  0.000000  0.000000
H   0.629118  0.629118  0.629118
H  -0.629118 -0.629118  0.629118
H   0.629118 -0.629118 -0.629118
H  -0.629118  0.629118 -0.629118
3
water 2
O   0.100000  0.000000  0.119000
H   0.100000  0.763000 -0.477000
H   0.100000 -0.763000 -0.477000
"""
_EXTXYZ = """3
Properties=species:S:1:pos:R:3:forces:R:3 energy=-9.98 charge=-1 pbc="F F F"
O  0.088202  0.020007  0.168198 -0.132104  0.640422  0.104900
H  0.112044  0.856616 -0.525910 -0.535669  0.361595  1.304000
H  0.047504 -0.770806 -0.482207  0.947080 -0.703735 -1.265421
2
Lattice="4.0 0 0 0 4.0 0 0 0 8.0" Properties=species:S:1:pos:R:3:move_mask:L:3 pbc="T T F"
Cu 0.000000 0.000000 0.000000 F F T
Cu 2.000000 2.000000 2.000000 T T T
"""
_PDB = """REMARK   1 CREATED WITH OPENMM 8.5.2
CRYST1   24.000   24.000   24.000  90.00  90.00  90.00 P 1           1
ATOM      1  N   GLY A   1       0.053   0.012   3.149  1.00  0.00           N1+
ATOM      2  CA  GLY A   1       1.367   0.619   2.906  1.00  0.00           C
ATOM      3  C   GLY A   1       1.429   2.068   3.380  1.00  0.00           C
TER       4      GLY A   1
HETATM    5  O   HOH A   2       2.949   0.282   7.103  1.00  0.00           O
HETATM    6  H1  HOH A   2       2.868   1.089   6.546  1.00  0.00           H
HETATM    7  H2  HOH A   2       2.952  -0.486   6.467  1.00  0.00           H
HETATM    8 CL    CL AA000       5.787   0.598   0.055  1.00  0.00          CL1-
TER       9       CL AA000
END
"""
_ALTERNATE = """ATOM      1  O   HOH A   1       0.000   0.000   0.119  1.00  0.00           O
ATOM      2  H1 AHOH A   1       0.000   0.763  -0.477  0.60  0.00           H
ATOM      3  H1 BHOH A   1       0.150   0.740  -0.477  0.40  0.00           H
ATOM      4  H2  HOH A   1       0.000  -0.763  -0.477  1.00  0.00           H
END
"""
_CIF = """data_copper
_chemical_formula_sum 'Cu3 O1'
_cell_length_a 4.2
_cell_length_b 4.2
_cell_length_c 4.2
_cell_angle_alpha 90.0
_cell_angle_beta 90.0
_cell_angle_gamma 90.0
_space_group_name_H-M_alt 'P 1'
_space_group_IT_number 1
loop_
  _atom_site_type_symbol
  _atom_site_label
  _atom_site_fract_x
  _atom_site_fract_y
  _atom_site_fract_z
  _atom_site_occupancy
  Cu Cu1 0.0000 0.0000 0.0000 1.0
  Cu Cu2 0.0000 0.5000 0.5000 1.0
  Cu Cu3 0.5000 0.0000 0.5000 1.0
  O  O1  0.5000 0.5000 0.0000 1.0
"""
_MMCIF = """data_WATER
loop_
_atom_site.group_PDB
_atom_site.id
_atom_site.type_symbol
_atom_site.label_atom_id
_atom_site.label_alt_id
_atom_site.label_comp_id
_atom_site.auth_asym_id
_atom_site.auth_seq_id
_atom_site.Cartn_x
_atom_site.Cartn_y
_atom_site.Cartn_z
_atom_site.occupancy
_atom_site.pdbx_formal_charge
_atom_site.pdbx_PDB_model_num
HETATM 1 O  O  . HOH A 1 0.000  0.000  0.119 1.00 ? 1
HETATM 2 H  H1 . HOH A 1 0.000  0.763 -0.477 1.00 ? 1
HETATM 3 D  D2 . HOH A 1 0.000 -0.763 -0.477 1.00 ? 1
HETATM 4 NA NA . NA  A 2 4.000  0.000  0.000 1.00 1 1
#
"""
_SDF = """hydroxide
  program           3D

  2  1  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.0000 O   0  5
    0.0000    0.0000    0.9700 H   0  0
  1  2  1  0
M  CHG  1   1  -1
M  END
> <name>
hydroxide

$$$$
water
  program           3D

  3  2  0  0  0  0  0  0  0  0999 V2000
    0.0000    0.0000    0.1190 O   0  0
    0.0000    0.7630   -0.4770 H   0  0
    0.0000   -0.7630   -0.4770 H   0  0
  1  2  1  0
  1  3  1  0
M  END
$$$$
"""
_POSCAR = """slab
1.0
  4.0000000 0.0000000 0.0000000
  0.0000000 4.0000000 0.0000000
  0.0000000 0.0000000 8.0000000
Cu O
2 1
Selective dynamics
Direct
  0.0000000 0.0000000 0.0000000 F F T
  0.5000000 0.5000000 0.2500000 T T T
  0.0000000 0.0000000 0.2200000 T T T
"""
FILES = {
    "a.xyz": _XYZ,
    "b.extxyz": _EXTXYZ,
    "c.pdb": _PDB,
    "d.cif": _CIF,
    "e.mmcif": _MMCIF,
    "f.sdf": _SDF,
    "POSCAR": _POSCAR,
    "g.pdb": _ALTERNATE,
}


def _shift(lines: list[bytes], k: int, rng: random.Random) -> None:
    at = rng.randrange(len(lines[k]))
    if rng.random() < 0.5:
        lines[k] = lines[k][:at] + b" " * rng.randint(1, 3) + lines[k][at:]
    else:
        lines[k] = lines[k][:at] + lines[k][at + rng.randint(1, 2) :]


def _double(lines: list[bytes], k: int, rng: random.Random) -> None:
    lines.insert(k, lines[k])


def mutated_file(seed: int) -> tuple[str, bytes, str]:
    """Name and content of a damaged file, and what was done to it."""
    actions = (flip, flip, cut_line, cut_end, _shift, _shift, _double)
    return mutated({name: text.encode() for name, text in FILES.items()}, actions, seed)


def atoms_seen(name: str, content: bytes) -> int:
    """Lines that a careful reader takes for atoms: two numbers with decimals at least."""
    text = re.split(r"\r\n|\r|\n", content.decode("utf-8", errors="replace"))
    found = [len(re.findall(r"\d\.\d", line)) >= 2 and "=" not in line for line in text]
    if name == "POSCAR":  # the cell
        return sum(found) - 3
    if name.endswith(".pdb"):
        return sum(
            seen and not line.startswith(("CRYST1", "REMARK"))
            for seen, line in zip(found, text, strict=True)
        )
    return sum(found)
