"""The units of data sets: given, stated by a frame, or mixed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import write
from support.reader_frames import CUTOFF, MOLECULES, RNG, check_against, references, waters

from tensormd.models import units
from tensormd.models.data.readers import DataUnits, check_one_unit
from tensormd.models.training import read_frames


def test_labels_in_other_units(tmp_path: Path) -> None:
    """The same frames in kcal/mol, nm, debye, bohr^3 and kbar are the same frames."""
    kcal, nm = units.kcal_per_mol_in_ev, units.nm_in_angstrom
    foreign = []
    for atoms in waters():
        alpha, labels = atoms.info.pop("polarizability"), atoms.calc.results
        other = Atoms(atoms.numbers, atoms.positions / nm, cell=atoms.cell / nm, pbc=True)
        other.calc = SinglePointCalculator(
            other,
            energy=labels["energy"] / kcal,
            forces=labels["forces"] / kcal * nm,
            stress=labels["stress"] * units.ev_per_angstrom3_in_gpa * 10,
            dipole=labels["dipole"] / units.debye_in_e_angstrom,
        )
        other.info["polarizability"] = alpha / units.bohr3_in_e2_angstrom2_per_ev
        other.info["units"] = "kcal/mol, nm, kcal/mol/nm, debye"
        foreign.append(other)
    in_units = {
        "energy": "kcal/mol",
        "length": "nm",
        "stress": "kbar",
        "dipole": "Debye",
        "polarizability": "bohr^3",
    }
    with connect(tmp_path / "kept.db") as database:
        for atoms in foreign:
            database.write(atoms, data=atoms.info)
    frames = read_frames(tmp_path / "kept.db", CUTOFF, units=in_units)
    check_against(frames, waters())
    with pytest.raises(ValueError, match=r"frame 0 .* states the unit 'kcal/mol' of energy"):
        read_frames(tmp_path / "kept.db", CUTOFF)


def test_forces_in_a_unit_of_their_own() -> None:
    in_units = DataUnits(energy="hartree", forces="hartree/bohr")
    expected = units.hartree_in_ev / units.bohr_in_angstrom
    assert in_units.factor("forces") == pytest.approx(expected, rel=1e-15)
    assert DataUnits(energy="hartree").factor("forces") == units.hartree_in_ev
    assert DataUnits(forces="kcal/mol/A").factor("forces") == units.kcal_per_mol_in_ev


@pytest.mark.parametrize(
    ("said", "message"),
    [
        ("hartree", "frame 2 of .* states the unit 'hartree' of energy"),
        ("eV, bohr", "states the unit 'bohr' of length"),
        ("eV, eV/Angstrom, GPa", "states the unit 'gpa' of stress"),
        ("eV, hartree/bohr", "states the unit 'hartree/bohr' of forces"),
        ("metal", "states the unit 'metal', which is unknown"),
    ],
)
def test_a_frame_that_states_other_units(said: str, message: str, tmp_path: Path) -> None:
    frames = waters(3)
    frames[0].info["units"] = "eV, Angstrom, eV/A, eV/A^3"
    frames[2].info["units"] = said
    write(tmp_path / "a.extxyz", frames)
    with pytest.raises(ValueError, match=message):
        read_frames(tmp_path / "a.extxyz", CUTOFF)


def test_units_that_are_given_explain_a_name_that_is_unknown(tmp_path: Path) -> None:
    frames = waters(1)
    frames[0].info["units"] = "metal"
    write(tmp_path / "a.extxyz", frames)
    assert len(read_frames(tmp_path / "a.extxyz", CUTOFF, units={"energy": "eV"})) == 1


def energies_of(kind: str, count: int = 80) -> list[Atoms]:
    """Molecules with energies that differ from their references by 5 % of a binding energy."""
    rng, refs, frames = RNG(1), references(kind), []
    for k in range(count):
        atoms = molecule(MOLECULES[k % len(MOLECULES)])
        noise = 0.2 * rng.normal() * len(atoms)
        atoms.info["energy"] = sum(refs[z] for z in atoms.numbers) + noise
        frames.append(atoms)
    return frames


@pytest.mark.parametrize("unit", ["kcal/mol", "hartree", "kj/mol", "mev"])
@pytest.mark.parametrize("kind", ["total", "pseudo", "cohesive"])
@pytest.mark.parametrize("share", [0.02, 0.3, 0.5])
def test_mixed_units_are_found_out(kind: str, unit: str, share: float, tmp_path: Path) -> None:
    frames = energies_of(kind)
    wrong = sorted(RNG(2).permutation(len(frames))[: max(1, int(share * len(frames)))].tolist())
    for k in wrong:
        frames[k].info["energy"] /= units.energy_in_ev(unit)
    write(tmp_path / "mixed.extxyz", frames)
    message = rf"{unit}|{unit.replace('mev', 'ev')}.*units are mixed"
    with pytest.raises(ValueError, match=message) as raised:
        read_frames(tmp_path / "mixed.extxyz", CUTOFF)
    if share < 0.5:
        assert f"frame {wrong[0]} of" in str(raised.value)


def test_mixed_units_of_two_files(tmp_path: Path) -> None:
    frames = energies_of("total")
    write(tmp_path / "a.extxyz", frames[:50])
    for atoms in frames[50:]:
        atoms.info["energy"] /= units.hartree_in_ev
    write(tmp_path / "b.extxyz", frames[50:])
    files = [tmp_path / "a.extxyz", tmp_path / "b.extxyz"]
    with pytest.raises(ValueError, match=r"frame 0 of .*b.extxyz and 29 other .* units are mixed"):
        read_frames(files, CUTOFF)
    right = read_frames(files[1], CUTOFF, units={"energy": "hartree"})
    parts = {"training": read_frames(files[0], CUTOFF), "validation": right}
    check_one_unit(parts)
    parts["validation"] = read_frames(files[1], CUTOFF)
    with pytest.raises(ValueError, match=r"frame 0 of validation and 29 other frames are 0\.0367"):
        check_one_unit(parts)


@pytest.mark.parametrize("kind", ["total", "pseudo", "cohesive"])
def test_no_false_alarm(kind: str, tmp_path: Path) -> None:
    """Atoms alone, an energy of zero, and energies that have nothing to do with elements."""
    frames = energies_of(kind)
    atom, zero = molecule("H"), molecule("H2")
    atom.info["energy"], zero.info["energy"] = -0.4, 0.0
    write(tmp_path / "a.extxyz", [*frames, atom, zero])
    assert len(read_frames(tmp_path / "a.extxyz", CUTOFF)) == 82
    for k, atoms in enumerate(frames):
        atoms.info["energy"] = float(np.exp(RNG(k).normal(scale=3)) * RNG(k).choice([-1, 1]))
    write(tmp_path / "b.extxyz", frames)
    assert len(read_frames(tmp_path / "b.extxyz", CUTOFF)) == 80
