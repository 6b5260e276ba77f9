"""Errors of a checkpoint on labelled frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..runs.models import load_calculator
from ..runs.settings import ModelSettings

if TYPE_CHECKING:
    from ase import Atoms

    from ...calculators import PotentialCalculator

Array = NDArray[np.float64]
Tell = Callable[[int, int], None]

ATOMS_AT_ONCE = 2000
"""Frames are evaluated together up to so many atoms, where no number of frames is given."""
QUARTILES = (0.25, 0.5, 0.75)
VOIGT = ([0, 1, 2, 1, 0, 0], [0, 1, 2, 2, 2, 1])
"""Rows and columns of the components that ASE lists."""


class LabelledFrame(NamedTuple):
    """A structure and what is known of it."""

    atoms: Atoms
    energy: float
    """eV."""
    forces: Array
    """(N, 3), eV/A."""
    stress: Array | None
    """(6,), eV/A^3, ASE's sign and order; None where the file has none."""


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a potential beside the labels: F frames of M atoms in all."""

    data: str
    """The file."""
    model: dict[str, Any]
    """Name, digest, architecture and engine of what ran."""
    frames: list[LabelledFrame]
    energies: Array
    """(F,), predicted, eV."""
    forces: Array
    """(M, 3), predicted, eV/A, frame after frame."""
    stresses: list[Array | None]
    """Predicted (6,), eV/A^3, of frames with a volume."""
    energies_std: Array | None = None
    """(F,), eV, of a committee."""
    forces_std: Array | None = None
    """(M, 3), eV/A, of a committee."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(F,), atoms of each frame."""
        return np.array([len(frame.atoms) for frame in self.frames], dtype=np.int64)

    @property
    def numbers(self) -> NDArray[np.int64]:
        """(M,), atomic numbers."""
        return np.concatenate([frame.atoms.numbers for frame in self.frames])

    @property
    def reference_energies(self) -> Array:
        """(F,), eV."""
        return np.array([frame.energy for frame in self.frames])

    @property
    def reference_forces(self) -> Array:
        """(M, 3), eV/A."""
        return np.concatenate([frame.forces for frame in self.frames])

    @property
    def energy_errors(self) -> Array:
        """(F,), predicted less reference, eV."""
        return self.energies - self.reference_energies

    @property
    def force_errors(self) -> Array:
        """(M, 3), predicted less reference, eV/A."""
        return self.forces - self.reference_forces

    @property
    def largest_force_errors(self) -> Array:
        """(F,), length of the largest error of a force on an atom, eV/A."""
        starts = np.cumsum([0, *self.sizes[:-1]])
        return np.maximum.reduceat(np.linalg.norm(self.force_errors, axis=1), starts)

    def worst(self, count: int = 10) -> list[int]:
        """Numbers of the frames with the largest force errors, the worst first."""
        return np.argsort(-self.largest_force_errors, kind="stable")[:count].tolist()

    def worst_structures(self, count: int = 10) -> list[Atoms]:
        """The same frames with both forces as arrays and both energies in ``info``."""
        from ase import Atoms

        ends, largest = np.cumsum(self.sizes), self.largest_force_errors
        structures = []
        for k in self.worst(count):
            frame = self.frames[k]
            atoms = Atoms(
                frame.atoms.numbers,
                frame.atoms.positions,
                cell=frame.atoms.cell,
                pbc=frame.atoms.pbc,
                info={
                    "frame": k,
                    "reference_energy": frame.energy,
                    "predicted_energy": float(self.energies[k]),
                    "largest_force_error": float(largest[k]),
                },
            )
            if "charge" in frame.atoms.info:
                atoms.info["charge"] = frame.atoms.info["charge"]
            atoms.set_array("reference_forces", frame.forces)
            atoms.set_array("predicted_forces", self.forces[ends[k] - len(atoms) : ends[k]])
            structures.append(atoms)
        return structures

    def summary(self, worst: int = 10) -> dict[str, Any]:
        """All statistics, as plain data: meV, meV/A and meV/A^3; forces by component."""
        from ase.data import chemical_symbols

        forces, errors, numbers = self.reference_forces, self.force_errors, self.numbers
        found: dict[str, Any] = {
            "data": self.data,
            "model": self.model,
            "frames": len(self.frames),
            "atoms": len(numbers),
            "energy_mev": _statistics(self.energy_errors),
            "energy_less_bias_mev": _statistics(self.energy_errors - self.energy_errors.mean()),
            "energy_mev_per_atom": _statistics(self.energy_errors / self.sizes),
            "force_mev_per_angstrom": _statistics(errors),
            "force_by_element_mev_per_angstrom": {
                chemical_symbols[z]: _statistics(errors[numbers == z]) for z in np.unique(numbers)
            },
            "force_by_magnitude_mev_per_angstrom": _by_magnitude(forces, errors),
            "stress_mev_per_cubic_angstrom": self._stress(),
            "calibration": self._calibration(),
        }
        largest = self.largest_force_errors
        found["worst_frames"] = [
            {
                "frame": k,
                "energy_error_mev": 1e3 * float(self.energy_errors[k]),
                "largest_force_error_mev_per_angstrom": 1e3 * float(largest[k]),
            }
            for k in self.worst(worst)
        ]
        return found

    def _stress(self) -> dict[str, float] | None:
        pairs = [
            predicted - frame.stress
            for frame, predicted in zip(self.frames, self.stresses, strict=True)
            if frame.stress is not None and predicted is not None
        ]
        return _statistics(np.stack(pairs)) if pairs else None

    def _calibration(self) -> dict[str, Any] | None:
        from ...models.training import calibration

        if self.energies_std is None or self.forces_std is None:
            return None
        return {
            "energy": calibration(self.energies_std, self.energy_errors)._asdict(),
            "force": calibration(self.forces_std, self.force_errors)._asdict(),
        }


def evaluate_checkpoint(
    checkpoint: str | Path | Sequence[str | Path],
    data: str | Path,
    *,
    limit: int | None = None,
    format: str | None = None,
    keys: Mapping[str, str | None] | None = None,
    data_units: Mapping[str, str] | None = None,
    batch: int | None = None,
    charge: int | None = None,
    dtype: str = "float32",
    device: str = "auto",
    backend: str = "auto",
    threads: int | None = None,
    units: tuple[str, str] | None = None,
    tell: Tell | None = None,
) -> Evaluation:
    """Predict every frame of a file and keep the predictions beside its labels.

    Parameters
    ----------
    checkpoint
        A path or a registry name; several make a committee.
    data
        Any data set that `read_frames` reads, with energies and forces.
    limit
        Frames to read, from the first; None for all.
    format, keys, data_units
        Of the data: ``format``, ``keys`` and ``units`` of `read_frames`.
    batch
        Frames to evaluate at once; None takes as many as make up `ATOMS_AT_ONCE` atoms.
    charge, dtype, device, backend, threads, units
        As in `ModelSettings`.
    tell
        Called with the number of frames done, and of all.

    Raises
    ------
    ValueError, OSError
        If the checkpoint or the data cannot be read, a label is missing or not finite, or the
        model cannot evaluate a frame: its number is named.
    """
    names = [checkpoint] if isinstance(checkpoint, (str, Path)) else checkpoint
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: expected 1 or more")
    settings = ModelSettings(
        tuple(str(name) for name in names), charge, dtype, device, backend, units, threads
    )
    calculator, model = load_calculator(settings)
    frames = read_labelled(data, limit, format, keys, data_units)
    check_frames(frames, calculator, data)
    results: list[dict[str, Any]] = []
    for part in batches([len(frame.atoms) for frame in frames], batch):
        results += _evaluate(calculator, [frame.atoms for frame in frames[part]], part.start, data)
        if tell is not None:
            tell(len(results), len(frames))
    committee = "forces_std" in results[0]
    return Evaluation(
        str(data),
        {**model, "dtype": dtype},
        frames,
        np.array([result["energy"] for result in results]),
        np.concatenate([result["forces"] for result in results]),
        [result.get("stress") for result in results],
        np.array([result["energy_std"] for result in results]) if committee else None,
        np.concatenate([result["forces_std"] for result in results]) if committee else None,
    )


def read_labelled(
    path: str | Path,
    limit: int | None = None,
    format: str | None = None,
    keys: Mapping[str, str | None] | None = None,
    units: Mapping[str, str] | None = None,
) -> list[LabelledFrame]:
    """The frames of a file, with checked labels; for the parameters see `read_frames`.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it cannot be read, has no frame, or a frame has no energy, no forces, or a label that
        is not finite; frames are counted from 0.
    """
    from ase import Atoms

    from ...models.data.readers import check_labels, iterate_structures

    frames = []
    for _, structure in iterate_structures(
        path, limit=limit, format=format, keys=keys, units=units
    ):
        check_labels(structure)
        labels = {key: np.asarray(value) for key, value in structure.labels.items()}
        if "energy" not in labels or "forces" not in labels:
            raise ValueError(f"{structure.name} has no energy or no forces")
        atoms = Atoms(
            structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc
        )
        if structure.charge:
            atoms.info["charge"] = structure.charge
        stress = labels["stress"][VOIGT] if "stress" in labels else None
        frames.append(LabelledFrame(atoms, float(labels["energy"]), labels["forces"], stress))
    if not frames:
        raise ValueError(f"{path} holds no frame: expected at least one")
    return frames


def check_frames(
    frames: Sequence[LabelledFrame], calculator: PotentialCalculator, path: str | Path
) -> None:
    """Raise a ValueError that names the first frame the model cannot evaluate, and why."""
    from ...calculators.checks import check_elements, check_energies, check_geometry

    check_energies(calculator.potential)
    for k, frame in enumerate(frames):
        try:
            check_elements(frame.atoms.numbers, calculator.potential.elements)
            check_geometry(frame.atoms.positions, frame.atoms.cell.array, frame.atoms.pbc)
        except ValueError as error:
            raise ValueError(f"frame {k} of {path}: {error}") from None


def batches(sizes: Sequence[int], count: int | None = None) -> Iterator[slice]:
    """Consecutive frames to evaluate at once: ``count``, or up to `ATOMS_AT_ONCE` atoms."""
    start, atoms = 0, 0
    for k, size in enumerate(sizes):
        full = k - start == count if count else atoms + size > ATOMS_AT_ONCE
        if k > start and full:
            yield slice(start, k)
            start, atoms = k, 0
        atoms += size
    if start < len(sizes):
        yield slice(start, len(sizes))


def _evaluate(
    calculator: PotentialCalculator, structures: list[Atoms], first: int, path: str | Path
) -> list[dict[str, Any]]:
    """Results of a batch; an error names the frame."""
    try:
        return calculator.evaluate(structures)
    except ValueError:
        for k, atoms in enumerate(structures, start=first):
            try:
                calculator.evaluate([atoms])
            except ValueError as error:
                raise ValueError(f"frame {k} of {path}: {error}") from None
        raise


def _statistics(errors: Array) -> dict[str, float]:
    """Statistics of errors in eV (/A, /A^3), in thousandths of it."""
    from ...models.training import error_statistics

    return error_statistics(1e3 * errors)._asdict()


def _by_magnitude(forces: Array, errors: Array) -> list[dict[str, Any]]:
    """Statistics in quartiles of the length of the reference force on an atom."""
    length = np.linalg.norm(forces, axis=1)
    edges = np.quantile(length, QUARTILES)
    which = np.searchsorted(edges, length, side="right")
    return [
        {
            "from_ev_per_angstrom": float(length[which == quarter].min()),
            "to_ev_per_angstrom": float(length[which == quarter].max()),
            **_statistics(errors[which == quarter]),
        }
        for quarter in range(len(edges) + 1)
        if (which == quarter).any()
    ]
