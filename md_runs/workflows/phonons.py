"""Phonons of a crystal: harmonic force constants by finite displacements (phonopy)."""

from __future__ import annotations

import importlib.util
import math
import tempfile
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from ase import Atoms
from ase.dft.kpoints import parse_path_string
from numpy.typing import NDArray

from ...models.units import ev_per_angstrom3_in_gpa, kj_per_mol_in_ev
from ..runs.folder import PHONOPY
from ..runs.settings import ModelSettings
from ..runs.structures import with_results
from .single import Job, check_crystal, converge, prepare, write_run

if TYPE_CHECKING:
    from phonopy import Phonopy

Array = NDArray[np.float64]

INSTALL = "pip install 'tensormd[phonons]'"
IMAGINARY = 0.05
"""Frequencies above i 0.05 THz are rounding near the zone centre, not an instability."""
LENGTH = 10.0
"""Least length of the supercell's vectors where none is given, A."""
POINTS_OF_A_SEGMENT = 51


@dataclass(frozen=True)
class PhononsSettings:
    """Phonons by finite displacements."""

    supercell: tuple[int, int, int] | None = None
    """Repetitions of the cell; None: until each vector is 10 A or longer."""
    displacement: float = 0.01
    """Length of a displacement, A."""
    mesh: float = 50.0
    """Density of the mesh of wave vectors: a length, A, of which a cell's vector takes a part."""
    temperature: float = 1000.0
    """Highest temperature of the thermal properties, K."""
    fmax: float = 1e-3
    """Largest force on an atom before displacements, eV/A; the cell stays as it is."""
    steps: int = 200
    """Maximum number of relaxation steps."""

    def __post_init__(self) -> None:
        if self.supercell is not None and (
            len(self.supercell) != 3 or any(number < 1 for number in self.supercell)
        ):
            raise ValueError(
                f"--supercell is {','.join(map(str, self.supercell))}: expected three numbers of "
                "repetitions such as 2,2,2"
            )
        for name, unit in (
            ("displacement", "A"),
            ("mesh", "A"),
            ("temperature", "K"),
            ("fmax", "eV/A"),
        ):
            value = getattr(self, name)
            if not (value > 0 and math.isfinite(value)):
                raise ValueError(f"--{name} is {value} {unit}: expected a finite number above 0")
        if self.displacement > 0.2:
            raise ValueError(
                f"--displacement is {self.displacement} A: expected at most 0.2, where forces are "
                "still harmonic"
            )
        if self.steps < 0:
            raise ValueError(f"--steps is {self.steps}: expected 0 or more")


def phonons_of_file(
    source: str, model: ModelSettings, settings: PhononsSettings, out: Path | None = None
) -> dict[str, Any]:
    """Phonons of the structure in a file, in a new run folder; see `phonons`."""
    job = prepare(source, model, out, "phonons", check_phonons)
    return {**phonons(job, settings), "folder": str(job.path)}


def check_phonons(atoms: Atoms) -> None:
    """Raise a ValueError if the structure is no crystal, or phonopy is not installed."""
    if importlib.util.find_spec("phonopy") is None:
        raise ValueError(f"phonons need the package phonopy: {INSTALL}")
    check_crystal(atoms, "phonons need")
    if atoms.constraints:
        raise ValueError(
            "the structure holds constraints, which have no place among phonons: take them out of "
            "the file"
        )


def phonons(job: Job, settings: PhononsSettings) -> dict[str, Any]:
    """Force constants, bands, density of states and thermal properties into a run folder.

    Parameters
    ----------
    job
        A crystal with a calculator, best in float64, at its lattice constants; its atoms are
        relaxed in place, its cell is not.
    settings
        Options.

    Returns
    -------
    dict
        ``supercell``, ``displacements`` (their number), ``max_stress_gpa`` of the given cell;
        ``bands``: ``labels`` and their ``ticks``, ``distances`` (1/A) and ``frequencies_thz`` of
        each segment of the path; ``dos``: ``frequencies_thz`` and ``states_per_thz``;
        ``thermal``: ``temperatures_k``, ``free_energy_ev``, ``entropy_ev_per_k`` and
        ``heat_capacity_ev_per_k``; ``zero_point_ev``; ``lowest_thz`` and ``highest_thz`` of mesh
        and path, imaginary ones negative; ``imaginary``, whether there are any. Extensive values
        are those of the primitive cell with ``atoms`` atoms. The folder holds what phonopy reads,
        phonopy_params.yaml.

    Raises
    ------
    ValueError
        If the structure is no crystal, or phonopy is not installed.
    RunStopped
        If the atoms do not relax.
    """
    atoms, start = job.atoms, job.atoms.copy()
    check_phonons(atoms)
    converge(atoms, settings.fmax, settings.steps, "the relaxation of the atoms")
    repeats = settings.supercell or _repeats(atoms)
    found = force_constants(atoms, repeats, settings.displacement)
    bands = _bands(found)
    found.run_mesh(settings.mesh)
    found.run_total_dos()
    # The cell's translation is a mode at the zone centre, whose energy would be that of rounding.
    found.run_thermal_properties(
        t_min=0, t_max=settings.temperature, t_step=10, cutoff_frequency=IMAGINARY
    )
    dos, thermal = found.total_dos, found.thermal_properties
    every = np.concatenate([*bands["frequencies_thz"], found.mesh.frequencies])
    stress = "stress" in atoms.calc.implemented_properties
    free_energy = np.asarray(thermal.free_energy) * kj_per_mol_in_ev
    results = {
        "supercell": list(repeats),
        "displacements": len(found.displacements),
        "atoms": len(found.primitive),
        "max_stress_gpa": (
            float(np.abs(atoms.get_stress()).max() * ev_per_angstrom3_in_gpa) if stress else None
        ),
        "lowest_thz": float(every.min()),
        "highest_thz": float(every.max()),
        "imaginary": bool(every.min() < -IMAGINARY),
        "zero_point_ev": float(free_energy[0]),
        "bands": {
            **bands,
            "frequencies_thz": [each.tolist() for each in bands["frequencies_thz"]],
        },
        "dos": {
            "frequencies_thz": dos.frequency_points.tolist(),
            "states_per_thz": dos.dos.tolist(),
        },
        "thermal": {
            "temperatures_k": np.asarray(thermal.temperatures).tolist(),
            "free_energy_ev": free_energy.tolist(),
            "entropy_ev_per_k": _per_cell(thermal.entropy),
            "heat_capacity_ev_per_k": _per_cell(thermal.heat_capacity),
        },
    }
    frames = [with_results(atoms, stress)]
    extra = {PHONOPY: _parameters(found)}
    write_run(job.path, "phonons", settings, job.record, start, frames, results, extra=extra)
    return results


def force_constants(atoms: Atoms, repeats: tuple[int, int, int], displacement: float) -> Phonopy:
    """A `Phonopy` with symmetrised force constants of the calculator of a crystal.

    Parameters
    ----------
    atoms
        A relaxed crystal with a calculator; it is not moved.
    repeats
        Repetitions of the cell.
    displacement
        Length of a displacement, A.
    """
    from phonopy import Phonopy
    from phonopy.structure.atoms import PhonopyAtoms

    unit = PhonopyAtoms(
        symbols=atoms.get_chemical_symbols(),
        cell=atoms.cell.array,
        scaled_positions=atoms.get_scaled_positions(),
        masses=atoms.get_masses(),
    )
    found = Phonopy(unit, supercell_matrix=np.diag(repeats), primitive_matrix="auto")
    found.generate_displacements(distance=displacement)
    forces = []
    for each in found.supercells_with_displacements or []:
        moved = Atoms(each.symbols, each.positions, cell=each.cell, pbc=True, info=atoms.info)
        moved.calc = atoms.calc
        forces.append(moved.get_forces())
    found.forces = np.array(forces)
    found.produce_force_constants()
    found.symmetrize_force_constants()
    return found


def _repeats(atoms: Atoms) -> tuple[int, int, int]:
    a, b, c = (max(math.ceil(LENGTH / length), 1) for length in atoms.cell.lengths())
    return a, b, c


def _bands(found: Phonopy) -> dict[str, Any]:
    """Frequencies along the standard path of the primitive cell (Setyawan & Curtarolo)."""
    path = Atoms(cell=found.primitive.cell, pbc=True).cell.bandpath(npoints=0)
    labels, ticks, distances, frequencies = [], [], [], []
    reciprocal = np.linalg.inv(found.primitive.cell).T
    along = 0.0
    for part in parse_path_string(path.path):
        for first, last in pairwise(part):
            ends = path.special_points[first], path.special_points[last]
            share = np.linspace(0, 1, POINTS_OF_A_SEGMENT)[:, None]
            points = (1 - share) * ends[0] + share * ends[1]
            length = float(np.linalg.norm((ends[1] - ends[0]) @ reciprocal))
            found.run_qpoints(points)
            frequencies.append(np.asarray(found.qpoints.frequencies))
            distances.append((along + share[:, 0] * length).tolist())
            labels.append([first, last])
            ticks.append([along, along + length])
            along += length
    return {
        "labels": labels,
        "ticks": ticks,
        "distances": distances,
        "frequencies_thz": frequencies,
    }


def _per_cell(values: Any) -> list[float]:
    """J/K/mol in eV/K."""
    return [float(value) for value in np.asarray(values) * 1e-3 * kj_per_mol_in_ev]


def _parameters(found: Phonopy) -> str:
    """Cells and force constants in phonopy's format."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / PHONOPY
        found.save(file, settings={"force_constants": True})
        return file.read_text()
