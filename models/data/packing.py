"""Packing data sets of any format into one file."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .frames import Frames
from .packed import SUFFIX, open_packed, writing_packed
from .readers import Keys, Named, PathLike, check_one_unit, iterate_structures
from .readers.structure import Collector, tell_missing


def pack_frames(
    paths: PathLike | Sequence[PathLike],
    output: PathLike,
    *,
    cutoff: float | None = None,
    format: str | None = None,
    limit: int | None = None,
    seed: int | None = None,
    units: Mapping[str, str] | None = None,
    keys: Keys | None = None,
    weights: Sequence[float] | None = None,
    tell: Callable[[int], None] = lambda count: None,
) -> dict[str, Any]:
    """Write the frames of one or more files to a packed file, one frame after the other.

    Parameters
    ----------
    paths
        Files of any format of `read_frames`.
    output
        File to write, with the suffix ``.packed``; it must not exist.
    cutoff
        Cutoff of the neighbour lists to write, Angstrom; None: no lists, so that neighbours are
        searched when a batch is made.
    format, limit, seed, units, keys, weights
        As for `read_frames`.
    tell
        Function called with the number of frames done.

    Returns
    -------
    dict
        Frames, atoms, cutoff of the lists (Angstrom), digest and size in bytes.

    Raises
    ------
    ValueError, OSError
        If a file or frame is not valid, the output exists, or it cannot be written.
    """
    files = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    output = Path(output)
    if output.suffix != SUFFIX:
        raise ValueError(f"{output} does not end with {SUFFIX}: name it {output.name}{SUFFIX}")
    if output.exists():
        raise ValueError(f"{output} exists: choose another name, or delete it")
    if cutoff is not None and not 0 < cutoff < float("inf"):
        raise ValueError(f"cutoff is {cutoff} A: expected a positive length")
    factors = [1.0] * len(files) if weights is None else list(weights)
    source = str(files[0]) if len(files) == 1 else "the packed frames"

    def check(path: Path) -> None:
        frames = Frames.of_store(open_packed(path).arrays)
        check_one_unit({source: frames})
        tell_missing(frames, source)

    named = Named()
    with writing_packed(output, cutoff, check) as columns:
        collector = Collector(columns, cutoff, named)
        for number, (file, factor) in enumerate(zip(files, factors, strict=True)):
            for k, structure in iterate_structures(
                file, format=format, limit=limit, seed=seed, units=units, keys=keys
            ):
                collector.add(structure, k, number, factor)
                tell(columns.count)
        named.check(source)
    return open_packed(output).info
