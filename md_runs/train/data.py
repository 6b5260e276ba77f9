"""The frames of a training: read, split, and checked against the model and the loss."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from ase.data import chemical_symbols

from ...models.data.readers import check_one_unit
from ...models.training import Frames, TrainingSettings, read_frames, split_frames
from ...models.training.losses import check_labels
from ..runs.schema import of_key
from .config import DataConfig


@dataclass(frozen=True)
class Parts:
    """Frames to train, validate and test on."""

    training: Frames
    validation: Frames
    test: Frames | None
    isolated: int = 0
    """Number of isolated atoms in the files, which are in no part."""

    def __iter__(self) -> Iterator[tuple[str, Frames]]:
        """Name and frames of the parts there are."""
        named = (
            ("training", self.training), ("validation", self.validation), ("test", self.test)
        )  # fmt: skip
        return ((name, frames) for name, frames in named if frames is not None)

    def counts(self) -> dict[str, int]:
        """Frames of each part."""
        return {name: len(frames) for name, frames in self}

    def digest(self) -> str:
        """SHA-256 over all structures and labels: the same data, whatever the file."""
        digest = hashlib.sha256()
        for name, frames in self:
            digest.update(f"{name} {len(frames)} {frames.quantities}\n".encode())
            frames.update_digest(digest)
        if self.training.atom_energies:
            digest.update(f"{sorted(self.training.atom_energies.items())}".encode())
        return digest.hexdigest()


Entries = Sequence[str | dict[str, str | float]] | str
"""A file, or files, some of which have a weight."""


def _file_of(entry: str | dict[str, str | float]) -> str:
    return entry if isinstance(entry, str) else str(entry["file"])


def read_parts(data: DataConfig, cutoff: float) -> Parts:
    """Read what a configuration names.

    Parameters
    ----------
    data
        Section of the configuration.
    cutoff
        Cutoff of the graphs, Angstrom.

    Raises
    ------
    ValueError, OSError
        If a file cannot be read, a label is not finite, units are mixed, or there are too few
        frames for the split.
    """

    def read(paths: Entries) -> Frames:
        entries = [paths] if isinstance(paths, str) else paths
        return read_frames(
            [_file_of(entry) for entry in entries],
            cutoff,
            format=data.format,
            limit=data.limit,
            seed=data.limit_seed,
            units=data.units,
            keys=data.keys,
            weights=[
                1.0 if isinstance(entry, str) else float(entry.get("weight", 1.0))
                for entry in entries
            ],
        )

    files, others = {}, {}
    for name in ("train", "validation", "test"):
        paths = getattr(data, name)
        if paths is not None:
            with of_key(f"data.{name}"):
                files[name] = read(paths)
                others[name] = files[name].without_isolated()
    isolated = sum(sum(frames.isolated) for frames in files.values())
    test = others.get("test")
    if data.split is None:
        parts = Parts(others["train"], others["validation"], test, isolated)
    else:
        with of_key("data.split"):
            split = split_frames(files["train"], data.split, data.split_seed)
        rest = split.test if test is None else test
        parts = Parts(split.fit, split.validation, rest, isolated)
    with of_key("data.train"):
        check_one_unit(dict(parts))
    return parts


def check_parts(parts: Parts, elements: Sequence[int], settings: TrainingSettings) -> None:
    """Check that the model knows every element, and that there are the labels of the loss.

    Raises
    ------
    ValueError
        Naming the element or the label, and the remedy.
    """
    known = set(elements)
    for name, frames in parts:
        others = sorted(set(frames.elements) - known)
        if others:
            counts = frames.element_counts(others)
            k = int(np.argmax(counts.any(1)))
            outside = {z for z, count in zip(others, counts[k], strict=True) if count}
            if outside:
                symbols = ", ".join(chemical_symbols[z] for z in sorted(outside))
                raise ValueError(
                    f"{name} frame {k} holds {symbols}, which the model does not know (it has "
                    f"{', '.join(chemical_symbols[z] for z in sorted(known))}): add it to "
                    "model.elements, with training frames that hold it, or leave the frame out"
                )
    for name in ("training", "validation"):
        try:
            check_labels(getattr(parts, name), settings, name)
        except ValueError as error:
            raise ValueError(str(error).replace("; set ", "; set training.")) from None


def absolute_files(data: DataConfig) -> DataConfig:
    """The section with full file names, so that a run resumes from any folder."""

    def full(name: str) -> str:
        file, at, index = (name, "", "") if Path(name).exists() else name.rpartition("@")
        return f"{Path(file).resolve()}{at}{index}" if file and Path(file).exists() else name

    def each(names: Any) -> Any:
        if isinstance(names, list):
            return [each(name) for name in names]
        if isinstance(names, dict):
            return {**names, "file": full(str(names["file"]))}
        return names and full(names)

    split = data.split
    if isinstance(split, str):
        split = full(split)
    elif split is not None:
        split = [full(p) if isinstance(p, str) else p for p in split]  # type: ignore[assignment]
    return replace(
        data,
        train=each(data.train),
        validation=each(data.validation),
        test=each(data.test),
        split=split,
    )
