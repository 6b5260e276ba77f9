"""Packed files hold what was read, to the last bit, and are refused where they are damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import write
from support.reader_frames import waters

from tensormd.models.data import packed
from tensormd.models.data.frames import Frames
from tensormd.models.data.packed import check_digest, open_packed
from tensormd.models.graph import Graph, within
from tensormd.models.training import (
    format_of,
    pack_frames,
    read_frames,
    split_frames,
    standardise,
)

CUTOFF = 5.0


def mixed() -> list[Atoms]:
    """Molecules, crystals and an isolated atom; some lack labels, some have weights."""
    frames = waters(6)
    rng = np.random.default_rng(1)
    cell = [[3.1, 0, 0], [0.4, 2.9, 0], [0.1, -0.3, 3.3]]
    for k in range(4):
        atoms = Atoms("OC", rng.normal(size=(2, 3)), cell=cell, pbc=[True, True, k % 2 == 0])
        atoms.positions[1] += [12.0, 0, -9.0]
        atoms.calc = SinglePointCalculator(atoms, energy=-300 + rng.normal())
        atoms.info["config_weight"] = 0.5 + k
        frames.append(atoms)
    alone = Atoms("H", info={"config_type": "IsolatedAtom", "charge": 0})
    alone.calc = SinglePointCalculator(alone, energy=-13.0, forces=np.zeros((1, 3)))
    ion = Atoms("OH", [[0, 0, 0], [0, 0, 1.0]], info={"charge": -1})
    ion.calc = SinglePointCalculator(ion, energy=-460.0, forces=rng.normal(size=(2, 3)))
    return [*frames, alone, ion]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("packed") / "mixed.extxyz"
    write(path, mixed(), format="extxyz")
    return path


@pytest.fixture(scope="module", params=[None, 4.0, CUTOFF, 6.5])
def pack(request: pytest.FixtureRequest, file: Path) -> Path:
    """Without neighbour lists, and with shorter, equal and longer ones."""
    path = file.with_name(f"{request.param}.packed")
    if not path.exists():
        with pytest.warns(UserWarning, match="labels are missing"):
            pack_frames(file, path, cutoff=request.param)
    return path


def digest(frames: Frames) -> str:
    found = hashlib.sha256()
    frames.update_digest(found)
    return found.hexdigest()


def same_graphs(a: Graph, b: Graph) -> None:
    (a, _), (b, _) = within(a, CUTOFF), within(b, CUTOFF)
    for x, y in zip(a, b, strict=True):
        assert x.dtype == y.dtype
        assert torch.equal(x, y)


@pytest.mark.filterwarnings("ignore:.*labels are missing")
def test_what_is_packed_is_what_is_read(file: Path, pack: Path) -> None:
    assert format_of(pack) == "packed"
    inside, outside = read_frames(file, CUTOFF), read_frames(pack, CUTOFF)
    assert len(outside) == 12
    for name in ("quantities", "partial", "elements", "isolated", "groups", "atom_energies"):
        assert getattr(inside, name) == getattr(outside, name), name
    assert outside.isolated[10]
    assert outside.charges.tolist() == inside.charges.tolist() == [0.0] * 11 + [-1.0]
    assert outside.weights.tolist() == [1] * 6 + [0.5, 1.5, 2.5, 3.5, 1, 1]
    assert digest(outside) == digest(inside)
    for one, two in zip(inside.graphs, outside.graphs, strict=True):
        same_graphs(one, two)
    parts = [f.without_isolated() for f in (inside, outside)]
    assert standardise(parts[0]) == standardise(parts[1])
    for index in ([0, 7, 3], [10, 8, 9, 6], [11]):
        a, b = inside.batch(index), outside.batch(index)
        same_graphs(a.graph, b.graph)
        for one, two in ((a.labels, b.labels), (a.masks, b.masks), (a.weights, b.weights)):
            assert one.keys() == two.keys()
            assert all(torch.equal(one[n].nan_to_num(), two[n].nan_to_num()) for n in one)
    assert inside.batch([6]).graph.edge_shift.abs().max() > 2


@pytest.mark.filterwarnings("ignore:.*labels are missing")
def test_lists_of_another_cutoff_are_never_taken_as_they_are(file: Path) -> None:
    path = file.with_name("4.0.packed")
    if not path.exists():
        pack_frames(file, path, cutoff=4.0)
    for cutoff in (2.0, 4.0, 7.0):
        inside, outside = read_frames(file, cutoff), read_frames(path, cutoff)
        assert outside.edge_counts.tolist() == inside.edge_counts.tolist()
        assert outside.edge_counts.sum() > 20


@pytest.mark.filterwarnings("ignore:.*labels are missing")
def test_parts_of_packed_files(file: Path, pack: Path) -> None:
    inside = read_frames(file, CUTOFF)
    assert digest(read_frames(pack, CUTOFF, limit=4)) == digest(inside.select(range(4)))
    chosen = read_frames(pack, CUTOFF, split=[7, 2, 5])
    assert digest(chosen) == digest(inside.select([7, 2, 5]))
    drawn = read_frames(file, CUTOFF, limit=5, seed=3)
    assert digest(read_frames(pack, CUTOFF, limit=5, seed=3)) == digest(drawn)
    for one, two in zip(
        split_frames(inside, [5, 2]), split_frames(read_frames(pack, CUTOFF), [5, 2]), strict=True
    ):
        assert one is not None
        assert two is not None
        assert digest(one) == digest(two)
    with pytest.raises(ValueError, match=r"frame 12, but .* holds 12"):
        read_frames(pack, CUTOFF, split=[0, 12])


@pytest.mark.filterwarnings("ignore:.*labels are missing")
def test_files_in_a_list(file: Path, pack: Path, tmp_path: Path) -> None:
    """In the order given, whatever holds them, with the weights of frames and of files."""
    more = tmp_path / "more.extxyz"
    write(more, waters(3), format="extxyz")
    inside = read_frames([more, file, more], CUTOFF, weights=[2.0, 3.0, 1.0])
    outside = read_frames([more, pack, more], CUTOFF, weights=[2.0, 3.0, 1.0])
    assert outside.weights.tolist() == inside.weights.tolist()
    assert outside.weights[[0, 3, 9, 15]].tolist() == [2.0, 3.0, 1.5, 1.0]
    assert digest(outside) == digest(inside)
    index = [0, 4, 12, 16, 9]
    same_graphs(inside.batch(index).graph, outside.batch(index).graph)
    joined = tmp_path / "joined.packed"
    pack_frames([more, pack, more], joined, weights=[2.0, 3.0, 1.0])
    assert digest(read_frames(joined, CUTOFF)) == digest(inside)
    with pytest.raises(ValueError, match=r"weights of files are \[1.0\]: expected one"):
        read_frames([more, more], CUTOFF, weights=[1.0])


def test_groups_stay(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Steps of a molecule, which a reader gives one number, are packed as one group."""
    from tensormd.models.data import packing

    path = tmp_path / "frames.extxyz"
    write(path, waters(6), format="extxyz")
    whole = packing.iterate_structures
    monkeypatch.setattr(
        packing,
        "iterate_structures",
        lambda *a, **k: ((n // 2, structure) for n, structure in whole(*a, **k)),
    )
    pack_frames(path, tmp_path / "a.packed")
    monkeypatch.undo()
    pack_frames(tmp_path / "a.packed", tmp_path / "b.packed")
    for name in ("a", "b"):
        assert read_frames(tmp_path / f"{name}.packed", CUTOFF).groups == [0, 0, 1, 1, 2, 2]


@pytest.mark.filterwarnings("ignore:.*labels are missing")
def test_options_that_packed_files_do_not_take(file: Path, pack: Path) -> None:
    with pytest.raises(ValueError, match="packed, in eV and Angstrom: leave them out"):
        read_frames(pack, CUTOFF, units={"energy": "kcal/mol"})
    with pytest.raises(ValueError, match=r"energy is 'REF', but labels of .* got their names"):
        read_frames(pack, CUTOFF, keys={"energy": "REF"})
    with pytest.raises(ValueError, match="'colour' cannot be ignored"):
        read_frames(pack, CUTOFF, keys={"colour": None})
    left = read_frames(pack, CUTOFF, keys={"forces": None, "weight": None})
    assert "forces" not in left.quantities
    assert not left.weighted
    with pytest.raises(ValueError, match=r"frame 6 of .* has no label but those that keys ignore"):
        read_frames(pack, CUTOFF, keys={"energy": None})


def test_files_that_cannot_be_packed(file: Path, tmp_path: Path) -> None:
    def refused(match: str, *args: Any, **options: Any) -> None:
        with pytest.raises(ValueError, match=match):
            pack_frames(*args, **options)
        assert {path.name for path in tmp_path.iterdir()} <= {"there.packed", "bad.extxyz"}

    out = tmp_path / "out.packed"
    refused("does not end with .packed: name it out.npz.packed", file, tmp_path / "out.npz")
    refused("cutoff is -1", file, out, cutoff=-1.0)
    (tmp_path / "there.packed").touch()
    refused("exists: choose another name", file, tmp_path / "there.packed")
    frames = waters(40)
    for k, atoms in enumerate(frames):
        atoms.calc.results["energy"] = -470.0 - k % 3
    frames[30].calc.results["forces"][1] = np.nan
    write(tmp_path / "bad.extxyz", frames, format="extxyz")
    refused("frame 30 of .* not finite", tmp_path / "bad.extxyz", out)
    frames[30].calc.results["forces"][1] = 0
    for atoms in frames[20:]:
        atoms.calc.results["energy"] *= 23.0605
    write(tmp_path / "bad.extxyz", frames, format="extxyz")
    refused("frame .* units are mixed", tmp_path / "bad.extxyz", out)


def test_a_full_disk_leaves_nothing(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(packed, "write_all", full)
    with pytest.raises(OSError, match=r"cannot write .*out\.packed: No space left .* free some"):
        pack_frames(file, tmp_path / "out.packed")
    assert not list(tmp_path.iterdir())


def _header(change: Callable[[dict[str, Any]], None]) -> Callable[[bytes], bytes]:
    def apply(data: bytes) -> bytes:
        length = int.from_bytes(data[:8], "little")
        header = json.loads(data[8 : 8 + length])
        change(header)
        text = json.dumps(header).encode()
        return len(text).to_bytes(8, "little") + text + data[8 + length :]

    return apply


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "empty": (lambda data: b"", "is no packed file"),
    "text": (lambda data: b"3\n\nO 0 0 0\n" * 9, "is no packed file"),
    "cut": (lambda data: data[:-100], "copy it again"),
    "header": (lambda data: data[:60], "is no packed file"),
    "version": (_header(lambda h: h["__metadata__"].update(version="9")), "update tensormd"),
    "other": (_header(lambda h: h.pop("__metadata__")), "is no packed file"),
    "shape": (_header(lambda h: h["positions"].update(shape=[3, 2])), "copy it again"),
    "column": (_header(lambda h: h.update(colour=h["charges"])), "copy it again"),
    "missing": (_header(lambda h: h.pop("charges")), "pack the frames again"),
    "cutoff": (_header(lambda h: h["__metadata__"].update(cutoff="x")), "pack the frames again"),
    "rows": (
        _header(lambda h: h.update(positions=h["forces"] if "forces" in h else h["cells"])),
        "copy it again|pack the frames again",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files(kind: str, tmp_path: Path) -> None:
    change, message = DAMAGE[kind]
    write(tmp_path / "a.extxyz", waters(3), format="extxyz")
    path = tmp_path / "a.packed"
    pack_frames(tmp_path / "a.extxyz", path, cutoff=3.0)
    path.write_bytes(change(path.read_bytes()))
    with pytest.raises(ValueError, match=message):
        read_frames(path, CUTOFF)


def test_damage_inside(tmp_path: Path) -> None:
    write(tmp_path / "a.extxyz", waters(3), format="extxyz")
    path = tmp_path / "a.packed"
    pack_frames(tmp_path / "a.extxyz", path, cutoff=3.0)
    check_digest(open_packed(path))
    with pytest.raises(FileNotFoundError):
        open_packed(tmp_path / "none.packed")
    store = open_packed(path).arrays
    assert store.lists is not None
    place = path.read_bytes().rfind(np.ascontiguousarray(store.lists.edges).tobytes())
    data = bytearray(path.read_bytes())
    data[place : place + 2] = b"\xff\xff"
    path.write_bytes(data)
    with pytest.raises(ValueError, match="its digest differs"):
        check_digest(open_packed(path))
    with pytest.raises(ValueError, match=r"frame 0 .* neighbour 65535 of 3 atoms"):
        read_frames(path, 3.0).batch([0])


def test_frames_in_a_file_take_no_memory(tmp_path: Path) -> None:
    """Positions, labels and lists are views of the map; frames in memory are small."""
    write(tmp_path / "a.extxyz", waters(6), format="extxyz")
    pack_frames(tmp_path / "a.extxyz", tmp_path / "a.packed", cutoff=CUTOFF)
    store = open_packed(tmp_path / "a.packed").arrays
    assert store.lists is not None
    for array in (store.positions, store.numbers, store.label_arrays["forces"], store.lists.edges):
        assert not array.flags.owndata
        assert not array.flags.writeable
    frames: Any = read_frames(tmp_path / "a.extxyz", CUTOFF)
    assert frames._store.lists.edges.dtype.itemsize == 1
