"""Errors of a checkpoint on labelled frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from ase.data import chemical_symbols
from numpy.typing import NDArray

from ...calculators import PotentialCalculator
from ...calculators.checks import check_elements, check_geometry
from ...models.data.readers import Named, check_labels, iterate_structures, require_labels
from ...models.quantities import QUANTITIES, VOIGT, Quantity, with_derived
from ...models.training import calibration, error_statistics
from ..runs.models import load_calculator
from ..runs.settings import ModelSettings

Array = NDArray[np.float64]
Tell = Callable[[int, int], None]

ATOMS_AT_ONCE = 2000
"""Frames are evaluated together up to so many atoms, where no number of frames is given."""
QUARTILES = (0.25, 0.5, 0.75)


class LabelledFrame(NamedTuple):
    """A structure and its labels."""

    atoms: Atoms
    labels: dict[str, Array]
    """By the names of `QUANTITIES`, with those that can be computed from others."""
    isolated: bool = False
    """Whether it is an isolated atom, whose energy is a reference energy."""


USUAL = 0.99
"""Share of the frames that the suggested threshold of doubt leaves alone."""


@dataclass(frozen=True)
class Compared:
    """Predictions of a quantity beside the labels, for the frames that have both."""

    row: Quantity
    frames: list[int]
    """Their numbers."""
    found: list[Array]
    """Predictions, one of each frame: ``row.shape``, or (N, ...); six components of a stress."""
    wanted: list[Array]
    """The labels."""
    deviations: list[Array] | None = None
    """Standard deviations of a committee."""

    def joined(self, values: Sequence[Array]) -> Array:
        """Values of all frames as one array, frame after frame: (K, ...) or (M, ...)."""
        return np.concatenate(values) if self.row.per_atom else np.stack(values)

    @property
    def errors(self) -> Array:
        """Predicted less reference, of all frames."""
        return self.joined(self.found) - self.joined(self.wanted)

    @property
    def largest(self) -> Array:
        """(K,), length of the error of each frame, or of the largest on one of its atoms."""
        both = zip(self.found, self.wanted, strict=True)
        errors = [a - b if self.row.per_atom else (a - b)[None] for a, b in both]
        return np.array([np.linalg.norm(e.reshape(len(e), -1), axis=1).max() for e in errors])

    def statistics(self, errors: Array) -> dict[str, float]:
        """Statistics of some of the errors, in the unit that they are reported in."""
        return error_statistics(self.row.evaluated.factor * errors)._asdict()


@dataclass(frozen=True)
class Evaluation:
    """Predictions of a potential beside the labels: F frames."""

    data: str
    """The file."""
    model: dict[str, Any]
    """Name, digest, architecture and engine of what ran."""
    frames: list[LabelledFrame]
    compared: dict[str, Compared]
    """By quantity, in the order of `QUANTITIES`; one at least."""
    skipped: list[str]
    """What was not compared and why, a line each."""

    @property
    def sizes(self) -> NDArray[np.int64]:
        """(F,), atoms of each frame."""
        return np.array([len(frame.atoms) for frame in self.frames], dtype=np.int64)

    @property
    def energy_errors(self) -> Array:
        """(K,), predicted less reference, eV; see `errors`."""
        return self.errors("energy")

    @property
    def force_errors(self) -> Array:
        """(M, 3), predicted less reference, eV/A; see `errors`."""
        return self.errors("forces")

    def errors(self, name: str) -> Array:
        """Predicted less reference of a quantity, for the K frames (of M atoms) that have it.

        Raises
        ------
        ValueError
            If it was not compared.
        """
        if name not in self.compared:
            raise ValueError(f"{name!r} was not compared, but {', '.join(self.compared)}")
        return self.compared[name].errors

    @property
    def ranking(self) -> Compared:
        """The quantity whose errors rank frames: forces, or else the first one."""
        return self.compared.get("forces") or next(iter(self.compared.values()))

    def worst(self, count: int = 10) -> list[int]:
        """Numbers of the frames with the largest errors (see `ranking`), the worst first."""
        ranking = self.ranking
        order = np.argsort(-ranking.largest, kind="stable")[:count]
        return [ranking.frames[place] for place in order]

    def worst_structures(self, count: int = 10) -> list[Atoms]:
        """The same frames with references and predictions as arrays, or in ``info``."""
        structures = []
        for k in self.worst(count):
            frame = self.frames[k].atoms
            atoms = Atoms(frame.numbers, frame.positions, cell=frame.cell, pbc=frame.pbc)
            atoms.info["frame"] = k
            if "charge" in frame.info:
                atoms.info["charge"] = frame.info["charge"]
            for name, each in self.compared.items():
                if k not in each.frames:
                    continue
                place = each.frames.index(k)
                for kind, values in (("reference", each.wanted), ("predicted", each.found)):
                    if each.row.per_atom:
                        atoms.set_array(f"{kind}_{name}", values[place])
                    else:
                        value = values[place]
                        atoms.info[f"{kind}_{name}"] = value if value.ndim else float(value)
                if name == "forces":
                    atoms.info["largest_force_error"] = float(each.largest[place])
            structures.append(atoms)
        return structures

    def summary(self, worst: int = 10) -> dict[str, Any]:
        """All statistics, as plain data; ``errors`` by quantity, with the unit of each."""
        energy, forces = self.compared.get("energy"), self.compared.get("forces")
        stress = self.compared.get("stress")
        found: dict[str, Any] = {
            "data": self.data,
            "model": self.model,
            "frames": len(self.frames),
            "atoms": int(self.sizes.sum()),
            "errors": {
                name: {
                    "unit": each.row.evaluated.unit,
                    "frames": len(each.frames),
                    **each.statistics(each.errors),
                }
                for name, each in self.compared.items()
            },
            "skipped": self.skipped,
            **dict.fromkeys(_OF_ENERGIES),
            **dict.fromkeys(_OF_FORCES),
            "stress_mev_per_cubic_angstrom": stress and stress.statistics(stress.errors),
            "calibration": self._calibration(),
            "doubt": self._doubt(),
        }
        if energy is not None:
            errors, sizes = energy.errors, self.sizes[energy.frames]
            parts = (errors, errors - errors.mean(), errors / sizes)
            found |= zip(_OF_ENERGIES, map(energy.statistics, parts), strict=True)
        if forces is not None:
            errors = forces.errors
            numbers = np.concatenate([self.frames[k].atoms.numbers for k in forces.frames])
            by_element = {
                chemical_symbols[z]: forces.statistics(errors[numbers == z])
                for z in np.unique(numbers)
            }
            statistics = (forces.statistics(errors), by_element, _by_magnitude(forces))
            found |= zip(_OF_FORCES, statistics, strict=True)
        found["worst_frames"] = [self._errors_of(k) for k in self.worst(worst)]
        return found

    def _errors_of(self, k: int) -> dict[str, Any]:
        """Errors of one frame: of one number with its sign, otherwise of the largest length."""
        found: dict[str, Any] = {"frame": k}
        for name, each in self.compared.items():
            if k in each.frames:
                place = each.frames.index(k)
                error: Any = each.largest[place]
                if each.found[place].ndim == 0:
                    error = each.found[place] - each.wanted[place]
                found[error_key(name)] = float(each.row.evaluated.factor * error)
        return found

    def _doubt(self) -> dict[str, float] | None:
        """A threshold for ``--doubt``, of a committee whose forces are labelled.

        `USUAL` of these frames stay below it.
        """
        forces = self.compared.get("forces")
        if forces is None or forces.deviations is None:
            return None
        largest = np.array([deviations.max() for deviations in forces.deviations])
        threshold = float(np.quantile(largest, USUAL))
        ratio = calibration(forces.joined(forces.deviations), forces.errors).ratio
        return {
            "ev_per_angstrom": threshold,
            "share_below": float((largest <= threshold).mean()),
            "error_ev_per_angstrom": threshold * (ratio or 0.0),
        }

    def _calibration(self) -> dict[str, Any] | None:

        names = {"energy": "energy", "forces": "force"}
        found = {
            names[name]: calibration(each.joined(each.deviations), each.errors)._asdict()
            for name, each in self.compared.items()
            if each.deviations is not None
        }
        return found or None


_OF_ENERGIES = ("energy_mev", "energy_less_bias_mev", "energy_mev_per_atom")
_OF_FORCES = (
    "force_mev_per_angstrom",
    "force_by_element_mev_per_angstrom",
    "force_by_magnitude_mev_per_angstrom",
)
"""Keys of the statistics of energies and forces, None where they are not compared."""


def error_key(name: str) -> str:
    """Key of the error of a quantity in a worst frame; its unit is that in ``errors``."""
    known = {
        "energy": "energy_error_mev",
        "forces": "largest_force_error_mev_per_angstrom",
    }
    return known.get(name, f"{name}_error")


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
    coulomb_cutoff: float | None = None,
    dispersion: str | None = None,
    tell: Tell | None = None,
) -> Evaluation:
    """Predict every frame of a file and keep the predictions beside its labels.

    Parameters
    ----------
    checkpoint
        A path or a registry name; several make a committee.
    data
        Any data set that `read_frames` reads, with labels of what the model predicts.
    limit
        Frames to read, from the first; None for all.
    format, keys, data_units
        Of the data: ``format``, ``keys`` and ``units`` of `read_frames`.
    batch
        Frames to evaluate at once; None takes as many as make up `ATOMS_AT_ONCE` atoms.
    charge, dtype, device, backend, threads, units, coulomb_cutoff, dispersion
        As in `ModelSettings`.
    tell
        Called with the number of frames done, and of all.

    Raises
    ------
    ValueError, OSError
        If the checkpoint or the data cannot be read, nothing that the model predicts is labelled,
        a label is not finite, or the model cannot evaluate a frame: its number is named.
    """
    names = [checkpoint] if isinstance(checkpoint, (str, Path)) else checkpoint
    for name, value in (("limit", limit), ("batch", batch)):
        if value is not None and value < 1:
            raise ValueError(f"--{name} is {value}: expected 1 or more")
    settings = ModelSettings(
        tuple(str(name) for name in names),
        charge,
        dtype,
        device,
        backend,
        units,
        threads,
        coulomb_cutoff,
        dispersion,
    )
    calculator, model = load_calculator(settings)
    frames = read_labelled(data, limit, format, keys, data_units)
    check_frames(frames, calculator, data)
    given = check_labelled(frames, calculator, data)
    results: list[dict[str, Any]] = []
    for part in batches([len(frame.atoms) for frame in frames], batch):
        results += _evaluate(calculator, [frame.atoms for frame in frames[part]], part.start, data)
        if tell is not None:
            tell(len(results), len(frames))
    compared = _compare(frames, results, given)
    skipped = _skipped(frames, results, given, compared)
    return Evaluation(str(data), {**model, "dtype": dtype}, frames, compared, skipped)


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
        If it cannot be read, has no frame, no label at all, none that ``keys`` names, or a label
        that is not finite; frames are counted from 0.
    """
    frames, first, named = [], None, Named()
    for _, structure in iterate_structures(
        path, limit=limit, format=format, keys=keys, units=units
    ):
        check_labels(structure)
        named.add(structure)
        first = first or structure
        atoms = Atoms(
            structure.numbers, structure.positions, cell=structure.cell, pbc=structure.pbc
        )
        if structure.charge:
            atoms.info["charge"] = structure.charge
        labels = _with_derived(structure.labels)
        frames.append(LabelledFrame(atoms, labels, structure.isolated))
    if first is None:
        raise ValueError(f"{path} holds no frame: expected at least one")
    named.check(path)
    if not any(frame.labels for frame in frames):
        require_labels(first)
    return frames


def _with_derived(values: Mapping[str, Any]) -> dict[str, Array]:
    """Quantities of one frame, and those that can be computed from them."""
    tensors = {
        name: torch.as_tensor(np.asarray(value, dtype=np.float64)).unsqueeze(0)
        for name, value in values.items()
        if name in QUANTITIES
    }
    return {name: value[0].numpy() for name, value in with_derived(tensors).items()}


def check_frames(
    frames: Sequence[LabelledFrame], calculator: PotentialCalculator, path: str | Path
) -> None:
    """Raise a ValueError that names the first frame the model cannot evaluate, and why."""
    for k, frame in enumerate(frames):
        try:
            check_elements(frame.atoms.numbers, calculator.potential.elements)
            check_geometry(frame.atoms.positions, frame.atoms.cell.array, frame.atoms.pbc)
        except ValueError as error:
            raise ValueError(f"frame {k} of {path}: {error}") from None


def check_labelled(
    frames: Sequence[LabelledFrame], calculator: PotentialCalculator, path: str | Path
) -> list[str]:
    """Names of the quantities that the model predicts.

    Raises
    ------
    ValueError
        If none of them is labelled.
    """
    energies = "energy" in calculator.implemented_properties
    given = [
        name
        for name, row in QUANTITIES.items()
        if (energies if row.source is None else row.source in calculator.heads)
    ]
    labelled = {name for frame in frames for name in frame.labels}
    if not labelled.intersection(given):
        has = ", ".join(name for name in QUANTITIES if name in labelled)
        raise ValueError(
            f"{path} has labels of {has}, of which the model predicts none (it predicts "
            f"{', '.join(given)}): take another checkpoint, or name labels by --label"
        )
    return given


def _compare(
    frames: Sequence[LabelledFrame], results: Sequence[dict[str, Any]], given: Sequence[str]
) -> dict[str, Compared]:
    """Predictions beside labels, of the quantities that a frame has labels and predictions of."""
    found: dict[str, Compared] = {}
    apart = _set_apart(frames)
    predicted = [_with_derived(result) for result in results]
    for name in given:
        row = QUANTITIES[name]
        both = [
            k
            for k, frame in enumerate(frames)
            if name in frame.labels and name in predicted[k] and k not in apart
        ]
        if both:
            wanted = [frames[k].labels[name] for k in both]
            found[name] = Compared(
                row,
                both,
                [predicted[k][name] for k in both],
                [label[VOIGT] for label in wanted] if row.voigt else wanted,
                [np.asarray(results[k][f"{name}_std"]) for k in both]
                if f"{name}_std" in results[0]
                else None,
            )
    return found


def _set_apart(frames: Sequence[LabelledFrame]) -> set[int]:
    """Isolated atoms, which are not compared where there is anything else."""
    isolated = {k for k, frame in enumerate(frames) if frame.isolated}
    return set() if len(isolated) == len(frames) else isolated


def _skipped(
    frames: Sequence[LabelledFrame],
    results: Sequence[dict[str, Any]],
    given: Sequence[str],
    compared: Mapping[str, Compared],
) -> list[str]:
    """What is not compared, a line each; nothing of what nobody could expect to be."""
    lines = []
    apart = _set_apart(frames)
    if apart:
        lines.append(f"isolated atoms: {len(apart)} frames, whose energies are reference energies")
    frames = [frame for k, frame in enumerate(frames) if k not in apart]
    results = [result for k, result in enumerate(results) if k not in apart]
    for name, row in QUANTITIES.items():
        labelled = [k for k, frame in enumerate(frames) if name in frame.labels]
        if name not in given:
            if labelled and row.of not in frames[labelled[0]].labels:
                head = row.source
                why = f"has no head for the {head}" if head else "was trained on no energies"
                lines.append(f"{name}: labelled, but the model {why}")
            continue
        if row.of is not None and not 0 < len(labelled) < len(frames):
            continue
        predicted = [k for k, result in enumerate(results) if (row.of or name) in result]
        missing = len(set(predicted).difference(labelled))
        others = any(each.row.of == name for each in compared.values())
        if missing and row.of not in compared and (labelled or not others):
            lines.append(f"{name}: not labelled in {missing} of {len(frames)} frames")
        undefined = len(set(labelled).difference(predicted))
        if undefined:
            why = (
                "is not defined in {} periodic frames"
                if row.not_periodic
                else "needs a cell, which {} frames lack"
            )
            lines.append(f"{name}: labelled, but {why.format(undefined)}")
    return lines


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


def _by_magnitude(forces: Compared) -> list[dict[str, Any]]:
    """Statistics in quartiles of the length of the reference force on an atom."""
    length, errors = np.linalg.norm(forces.joined(forces.wanted), axis=1), forces.errors
    edges = np.quantile(length, QUARTILES)
    which = np.searchsorted(edges, length, side="right")
    return [
        {
            "from_ev_per_angstrom": float(length[which == quarter].min()),
            "to_ev_per_angstrom": float(length[which == quarter].max()),
            **forces.statistics(errors[which == quarter]),
        }
        for quarter in range(len(edges) + 1)
        if (which == quarter).any()
    ]
