"""Splits of frames into training, validation and test parts."""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .frames import Frames

PathLike = str | os.PathLike[str]
PARTS = ("fit", "validation", "test")
_NPZ_KEYS = ("idx_train", "idx_val", "idx_test")


class Split(NamedTuple):
    """Disjoint parts of frames."""

    fit: Frames
    validation: Frames
    test: Frames | None
    """Test frames; None if none are left."""


def split_frames(
    frames: Frames, parts: Sequence[float] | PathLike | Sequence[PathLike], seed: int = 0
) -> Split:
    """Split frames into training, validation and test parts.

    Parameters
    ----------
    frames
        Frames to split.
    parts
        Numbers of frames (integers) or fractions (floats) for fit, validation and test; if only
        two are given, the test part is the rest. Or an npz file with ``idx_train``, ``idx_val``
        and ``idx_test``, as torchmd-net writes it; or two or three text files of frame numbers.
        Frames are counted from 0. Isolated atoms count in files, but are in no part.
    seed
        Seed of the permutation if no file is given, the same permutation as in `Frames.split`.
        Groups of frames are not split: a part ends with the group that fills it.

    Returns
    -------
    Split
        Parts; fit and validation have at least one frame.

    Raises
    ------
    ValueError
        If a part would be empty, there are too few frames, or a file names a frame twice, in two
        parts, or out of range.
    """
    if isinstance(parts, (str, os.PathLike)):
        chosen = _read_npz(parts)
    elif parts and isinstance(parts[0], (str, os.PathLike)):
        _expect(len(parts) in (2, 3), f"{len(parts)} files of numbers: expected two or three")
        chosen = {name: read_index(file) for name, file in zip(PARTS, parts, strict=False)}  # type: ignore[arg-type]
    else:
        frames = frames.without_isolated()
        chosen = _draw(frames, _sizes(parts, len(frames)), seed)  # type: ignore[arg-type]
    _check_disjoint(chosen, len(frames))
    isolated = frames.isolated
    chosen = {part: [k for k in index if not isolated[k]] for part, index in chosen.items()}
    for part in PARTS[:2]:
        _expect(bool(chosen[part]), f"{part} names isolated atoms alone: expected other frames")
    test = chosen.get("test")
    return Split(
        frames.select(chosen["fit"]),
        frames.select(chosen["validation"]),
        frames.select(test) if test else None,
    )


def read_index(path: PathLike) -> list[int]:
    """Frame numbers of a text file, separated by blanks, newlines or commas; # starts a comment.

    Raises
    ------
    ValueError
        If it has no numbers, anything other than whole numbers, or a number twice.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} cannot be read as a list of frame numbers: {error}") from None
    words = re.sub(r"#.*", "", text).replace(",", " ").split()
    wrong = [word for word in words if not word.isdecimal()]
    if wrong:
        raise ValueError(f"{path} holds {wrong[0]!r}: expected frame numbers, from 0")
    return checked_index((int(word) for word in words), path)


def checked_index(index: Iterable[int], source: object) -> list[int]:
    """Check frame numbers, and return them as a list.

    Parameters
    ----------
    index
        Frame numbers.
    source
        Their name in error messages.

    Raises
    ------
    ValueError
        If there are none, or one is not a whole number, is negative, or occurs twice.
    """
    numbers = np.asarray(list(index))
    if numbers.ndim != 1 or not len(numbers):
        raise ValueError(f"{source} names no frame: expected frame numbers, from 0")
    if not np.issubdtype(numbers.dtype, np.integer) or numbers.min() < 0:
        raise ValueError(f"{source} holds {numbers.min()}: expected frame numbers, from 0")
    values, times = np.unique(numbers, return_counts=True)
    if times.max() > 1:
        raise ValueError(f"{source} names frame {values[times.argmax()]} {times.max()} times")
    return numbers.tolist()


def _read_npz(path: PathLike) -> dict[str, list[int]]:
    try:
        with np.load(path, allow_pickle=False) as data:
            found = {key: data[key] for key in _NPZ_KEYS if key in data.files}
    except FileNotFoundError:
        raise
    except (OSError, zipfile.BadZipFile, EOFError, ValueError, AttributeError, TypeError):
        raise ValueError(
            f"{path} is no npz file of {', '.join(_NPZ_KEYS)}: expected that, or two or three "
            "text files of frame numbers"
        ) from None
    missing = [key for key in _NPZ_KEYS[:2] if key not in found]
    if missing:
        raise ValueError(f"{path} has no {missing[0]}: expected {', '.join(_NPZ_KEYS)}")
    return {
        part: checked_index(found[key], f"{key} of {path}")
        for part, key in zip(PARTS, _NPZ_KEYS, strict=True)
        if key in found and (part != "test" or found[key].size)
    }


def _sizes(parts: Sequence[float], count: int) -> list[int]:
    _expect(len(parts) in (2, 3), f"split {list(parts)}: expected two or three parts")
    if all(isinstance(part, (int, np.integer)) and not isinstance(part, bool) for part in parts):
        sizes = [int(part) for part in parts]
        _expect(min(sizes) >= 0, f"split {list(parts)}: expected no negative number")
        _expect(sum(sizes) <= count, f"{count} frames cannot be split into {sizes}")
    else:
        _expect(
            all(isinstance(part, (float, np.floating)) and 0 <= part <= 1 for part in parts)
            and sum(parts) <= 1 + 1e-9,
            f"split {list(parts)}: expected whole numbers, or fractions of 1 altogether",
        )
        ends = np.round(np.cumsum([0.0, *parts]) * count).astype(int)
        sizes = np.diff(ends).tolist()
    if len(sizes) == 2:
        sizes.append(count - sum(sizes))
    for name, size in zip(PARTS[:2], sizes, strict=False):
        _expect(size > 0, f"split {list(parts)} of {count} frames leaves none for {name}")
    return sizes


def _draw(frames: Frames, sizes: Sequence[int], seed: int) -> dict[str, list[int]]:
    """Draw random frames, group by group, until each part is full."""
    groups = frames.groups or list(range(len(frames)))
    members: dict[int, list[int]] = {}
    for k, group in enumerate(groups):
        members.setdefault(group, []).append(k)
    names = list(members)
    order = iter(np.random.default_rng(seed).permutation(len(names)).tolist())
    chosen: dict[str, list[int]] = {}
    for part, size in zip(PARTS, sizes, strict=True):
        taken: list[int] = []
        while len(taken) < size:
            following = next(order, None)
            if following is None:
                break
            taken += members[names[following]]
        chosen[part] = taken
    for part in PARTS[:2]:
        _expect(
            bool(chosen[part]),
            f"{len(names)} groups of frames are too few for a split into {list(sizes)}",
        )
    return chosen


def _check_disjoint(chosen: dict[str, list[int]], count: int) -> None:
    seen: dict[int, str] = {}
    for part, index in chosen.items():
        for k in index:
            _expect(k < count, f"{part} names frame {k}, but there are {count}, counted from 0")
            _expect(k not in seen, f"frame {k} is in {seen.get(k)} and in {part}: expected once")
            seen[k] = part


def _expect(true: bool, message: str) -> None:
    if not true:
        raise ValueError(message)
