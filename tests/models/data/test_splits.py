"""Splits: disjoint, repeatable, by number, by fraction, by file, and by groups."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule

from tensormd.models import NeighborList
from tensormd.models.data.splits import Split, read_index, split_frames
from tensormd.models.training import Frames


def frames(count: int, groups: list[int] | None = None) -> Frames:
    """Hydrogen molecules whose energies are their numbers."""
    atoms, neighbors = molecule("H2"), NeighborList(3.0)
    graphs = [neighbors.graph(atoms.numbers, atoms.positions) for _ in range(count)]
    return Frames(graphs, np.arange(float(count)), groups=groups)


def numbers(split: Split) -> list[list[int]]:
    return [[] if part is None else part.energies.int().tolist() for part in split]


@pytest.mark.parametrize(
    ("parts", "sizes"),
    [
        ([6, 2, 2], [6, 2, 2]),
        ([5, 2, 1], [5, 2, 1]),
        ([5, 2], [5, 2, 3]),
        ([8, 2], [8, 2, 0]),
        ([8, 2, 0], [8, 2, 0]),
        ([0.7, 0.2, 0.1], [7, 2, 1]),
        ([0.5, 0.2], [5, 2, 3]),
        ([0.5, 0.1, 0.1], [5, 1, 1]),
    ],
)
def test_sizes_and_fractions(parts: list[float], sizes: list[int]) -> None:
    found = numbers(split_frames(frames(10), parts, seed=3))
    assert [len(part) for part in found] == sizes
    together = [k for part in found for k in part]
    assert len(set(together)) == len(together)
    assert found == numbers(split_frames(frames(10), parts, seed=3))
    assert found != numbers(split_frames(frames(10), parts, seed=4))


def test_the_same_as_that_of_the_frames() -> None:
    ours = split_frames(frames(10), [6, 2, 2], seed=1)
    theirs = frames(10).split([6, 2, 2], seed=1)
    assert numbers(ours) == [part.energies.int().tolist() for part in theirs]


def test_groups_stay_whole() -> None:
    groups = [k // 4 for k in range(40)]
    split = split_frames(frames(40, groups), [0.5, 0.2], seed=0)
    found = [{k // 4 for k in part} for part in numbers(split)]
    assert not found[0] & found[1]
    assert not (found[0] | found[1]) & found[2]
    assert [len(part) for part in numbers(split)] == [20, 8, 12]
    assert split.fit.groups == [k // 4 for k in numbers(split)[0]]
    mixed = numbers(split_frames(frames(40), [0.5, 0.2], seed=0))
    assert {k // 4 for k in mixed[0]} & {k // 4 for k in mixed[1]}, "the control is not mixed"
    filled = numbers(split_frames(frames(40, groups), [5, 5], seed=0))
    assert [len(part) for part in filled] == [8, 8, 24]
    with pytest.raises(ValueError, match="2 groups of frames are too few"):
        split_frames(frames(8, [0] * 7 + [1]), [7, 1, 0], seed=3)


def test_index_of_torchmd_net(tmp_path: Path) -> None:
    """With torchmd-net's own function that writes it."""
    from torchmdnet.utils import make_splits

    path = tmp_path / "splits.npz"
    train, val, test = make_splits(20, 12, 5, 3, seed=1, filename=str(path))
    expected = [index.tolist() for index in (train, val, test)]
    assert numbers(split_frames(frames(20), path)) == expected
    assert numbers(split_frames(frames(20), str(path))) == expected


def test_text_files(tmp_path: Path) -> None:
    (tmp_path / "fit.txt").write_text("# the first\n3, 1\n4 0 # and the last\n")
    (tmp_path / "val.txt").write_text("2\n")
    (tmp_path / "test.txt").write_text("7\n6\n")
    files = [tmp_path / "fit.txt", tmp_path / "val.txt"]
    assert numbers(split_frames(frames(8), files)) == [[3, 1, 4, 0], [2], []]
    files.append(tmp_path / "test.txt")
    assert numbers(split_frames(frames(8), files)) == [[3, 1, 4, 0], [2], [7, 6]]
    assert read_index(files[0]) == [3, 1, 4, 0]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ([9, 2], r"10 frames cannot be split into \[9, 2\]"),
        ([5], "expected two or three parts"),
        ([10, 0], "leaves none for validation"),
        ([0, 5], "leaves none for fit"),
        ([0.01, 0.5], "leaves none for fit"),
        ([0.8, 0.3], "fractions of 1 altogether"),
        ([0.8, 1], "expected whole numbers, or fractions"),
        ([5, -1], "no negative number"),
        ([0.5, float("nan")], "expected whole numbers, or fractions"),
    ],
)
def test_parts_that_cannot_be(parts: list[float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        split_frames(frames(10), parts)


def npz(**index: Any) -> Callable[[Path], Any]:
    def write(folder: Path) -> Path:
        np.savez(folder / "a.npz", **index)
        return folder / "a.npz"

    return write


def text(*lines: str) -> Callable[[Path], Any]:
    def write(folder: Path) -> list[Path]:
        for k, line in enumerate(lines):
            (folder / f"{k}.txt").write_text(line)
        return [folder / f"{k}.txt" for k in range(len(lines))]

    return write


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (npz(idx_train=[0, 1], idx_val=[1], idx_test=[2]), "frame 1 is in fit and in validation"),
        (npz(idx_train=[0, 1], idx_val=[2], idx_test=[0]), "frame 0 is in fit and in test"),
        (npz(idx_train=[0, 0], idx_val=[1]), "idx_train of .* names frame 0 2 times"),
        (npz(idx_train=[0, 10], idx_val=[1]), "fit names frame 10, but there are 10"),
        (npz(idx_train=[0, -1], idx_val=[1]), "holds -1: expected frame numbers"),
        (npz(idx_train=[0.5, 1], idx_val=[1]), "expected frame numbers"),
        (npz(idx_train=[0, 1]), "has no idx_val"),
        (npz(idx_train=[0, 1], idx_val=[]), "idx_val of .* names no frame"),
        (npz(idx_train=np.array([{}]), idx_val=[1]), "is no npz file"),
        (text("0 1", "1 2"), "frame 1 is in fit and in validation"),
        (text("0 x", "1"), "holds 'x': expected frame numbers"),
        (text("0 -2", "1"), "holds '-2'"),
        (text("0", ""), "names no frame"),
        (text("0"), "1 files of numbers: expected two or three"),
        (lambda folder: text("0 1 2")(folder)[0], "is no npz file of idx_train"),
        (lambda folder: [folder / "no.txt"] * 2, "no.txt cannot be read"),
    ],
)
def test_files_that_cannot_be(write: Callable[[Path], Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        split_frames(frames(10), write(tmp_path))
