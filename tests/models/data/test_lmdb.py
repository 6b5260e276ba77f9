"""LMDB data sets, made by the tests: PubChemQCR, fairchem's rows, and pickles that are refused."""

from __future__ import annotations

import gzip
import io
import json
import os
import pickle
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io.jsonio import encode

from tensormd.models import units
from tensormd.models.data.readers import LEVELS, lmdb_files
from tensormd.models.data.readers.plain_pickle import load_plain
from tensormd.models.data.splits import split_frames
from tensormd.models.training import format_of, read_frames

lmdb = pytest.importorskip("lmdb", reason="lmdb is not installed")

CUTOFF = 4.5


def write_lmdb(path: Path, records: dict[bytes, bytes], subdir: bool = False) -> Path:
    environment = lmdb.open(str(path), map_size=2**24, subdir=subdir)
    with environment, environment.begin(write=True) as transaction:
        for key, value in records.items():
            transaction.put(key, value)
    return path


def morse(positions: np.ndarray[Any, Any]) -> float:
    """Hartree, of positions in Angstrom: Morse bonds between all pairs, and something offset."""
    distances = [
        np.linalg.norm(positions[i] - positions[j])
        for i in range(len(positions))
        for j in range(i)
    ]
    return float(sum(0.17 * (1 - np.exp(-1.9 * (r - 1.0))) ** 2 for r in distances)) - 76.0


def gradient(positions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """dE/dR of `morse` in hartree/bohr by central differences."""
    found, step = np.zeros_like(positions), 1e-5
    for index in np.ndindex(positions.shape):
        move = np.zeros_like(positions)
        move[index] = step
        slope = (morse(positions + move) - morse(positions - move)) / (2 * step)
        found[index] = slope * units.bohr_in_angstrom
    return found


def step(seed: int) -> dict[str, Any]:
    """A distorted water as PubChemQCR has it."""
    atoms = molecule("H2O")
    positions = atoms.positions + np.random.default_rng(seed).normal(scale=0.1, size=(3, 3))
    names = [
        {"atom": symbol, "charge": float(z)}
        for symbol, z in zip(atoms.get_chemical_symbols(), atoms.numbers, strict=True)
    ]
    return {
        "coordinates": [
            name | dict(zip("xyz", map(float, r), strict=True))
            for name, r in zip(names, positions, strict=True)
        ],
        "energy": morse(positions),
        "gradient": [
            name | dict(zip(("dx", "dy", "dz"), map(float, g), strict=True))
            for name, g in zip(names, gradient(positions), strict=True)
        ],
    }


def relaxation(k: int) -> dict[str, Any]:
    return {
        "pm3": [step(100 * k)],
        "hf": [step(100 * k + 1), step(100 * k + 2)],
        "DFT_1st": None,
        "DFT_2nd": [step(100 * k + n) for n in range(3, 3 + k)],
    }


def packed(record: Any) -> bytes:
    return gzip.compress(pickle.dumps(record), mtime=0)


@pytest.fixture
def pubchem(tmp_path: Path) -> Path:
    """Molecules of 1, 2, 3 and 4 steps, after their keys, and one that was not finished."""
    records = {b"%09d" % k: packed(relaxation(k)) for k in (1, 2, 3, 4)}
    records[b"000000005"] = packed(relaxation(5) | {"DFT_2nd": None})
    return write_lmdb(tmp_path / "pubchem.lmdb", records)


# PubChemQCR


def test_forces_are_the_slope_of_the_energy(pubchem: Path) -> None:
    assert format_of(pubchem) == "pubchemqcr"
    frames = read_frames(pubchem, CUTOFF)
    assert len(frames) == 1 + 2 + 3 + 4
    assert frames.groups == [0, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    for graph, energy, forces in zip(frames.graphs, frames.energies, frames.forces, strict=True):
        assert graph.numbers.tolist() == [8, 1, 1]
        positions = graph.positions.numpy()
        assert float(energy) == pytest.approx(morse(positions) * units.hartree_in_ev, rel=1e-12)
        direction = np.random.default_rng(0).normal(size=(3, 3))
        small = 1e-4
        change = morse(positions + small * direction) - morse(positions - small * direction)
        slope = change * units.hartree_in_ev / (2 * small)
        assert abs(slope) > 1e-2
        assert slope == pytest.approx(-float((forces.numpy() * direction).sum()), rel=1e-5)


def test_levels_and_selection(pubchem: Path) -> None:
    assert len(read_frames(pubchem, CUTOFF, keys={"level": "pm3"})) == 5
    both = read_frames(pubchem, CUTOFF, keys={"level": ["hf", "DFT_2nd"]}, limit=2)
    assert len(both) == 4 + 3
    chosen = read_frames(pubchem, CUTOFF, split=[3, 1])
    assert [chosen.groups.count(g) for g in dict.fromkeys(chosen.groups or [])] == [4, 2]  # type: ignore[union-attr]
    close = chosen.energies[0] - morse(chosen.graphs[0].positions.numpy()) * units.hartree_in_ev
    assert abs(float(close)) < 1e-9
    split = split_frames(read_frames(pubchem, CUTOFF), [5, 2], seed=0)
    groups = [set(part.groups or []) for part in (split.fit, split.validation)]
    assert not groups[0] & groups[1]
    for keys in ({"level": "DFT"}, {"level": None}, {"level": []}):
        with pytest.raises(ValueError, match=f"expected one or more of {', '.join(LEVELS)}"):
            read_frames(pubchem, CUTOFF, keys=keys)
    with pytest.raises(ValueError, match="has no 'energy': expected level"):
        read_frames(pubchem, CUTOFF, keys={"energy": "hf"})
    with pytest.raises(ValueError, match="holds no frame"):
        read_frames(pubchem, CUTOFF, keys={"level": "DFT_1st"})


def test_steps_without_nuclear_charges(tmp_path: Path) -> None:
    """As SMASH left them, one of the programs behind DFT_1st; symbols in whatever case."""
    record = relaxation(2)
    for one in record["DFT_2nd"]:
        for part in (*one["coordinates"], *one["gradient"]):
            del part["charge"]
            part["atom"] = part["atom"].lower()
    path = write_lmdb(tmp_path / "a.lmdb", {b"000000002": packed(record)})
    assert read_frames(path, CUTOFF).graphs[1].numbers.tolist() == [8, 1, 1]


class Runs:
    """A pickle that runs a command when it is opened."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_a_record_that_would_run_a_command_is_refused(tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    bad = relaxation(2)
    bad["DFT_2nd"][1]["energy"] = Runs(f"touch {mark}")
    pickle.loads(pickle.dumps(bad))  # the control: pickle itself runs it
    assert mark.exists()
    mark.unlink()
    records = {b"1": packed(relaxation(1)), b"2": packed(bad)}
    path = write_lmdb(tmp_path / "bad.lmdb", records)
    with pytest.raises(ValueError, match=r"record 2 of .* would load (posix|nt).system"):
        read_frames(path, CUTOFF)
    assert not mark.exists()
    assert len(read_frames(path, CUTOFF, limit=1)) == 1


def without(name: str) -> dict[str, Any]:
    record = relaxation(1)
    del record["DFT_2nd"][0][name]
    return record


def changed(where: str, key: str, value: Any) -> dict[str, Any]:
    record = relaxation(1)
    record["DFT_2nd"][0][where][1][key] = value
    return record


def renamed(symbol: str) -> dict[str, Any]:
    record = changed("coordinates", "atom", symbol)
    record["DFT_2nd"][0]["gradient"][1]["atom"] = symbol
    return record


@pytest.mark.parametrize(
    ("record", "message"),
    [
        (packed(without("gradient")), "step 0 of DFT_2nd in record 7 of .* lacks something"),
        (packed(without("energy")), "'energy'"),
        (packed(changed("coordinates", "x", "one")), "a value that is no number"),
        (packed(changed("coordinates", "x", float("nan"))), "step 0 .* non-finite coordinate"),
        (packed(changed("gradient", "dy", float("inf"))), r"step 0 .* not finite \(forces\)"),
        (packed(changed("gradient", "atom", "O")), "different atoms"),
        (packed(changed("coordinates", "atom", "Qq")), "different atoms"),
        (packed(renamed("Qq")), r"step 0 .* has \['Qq'\]: expected symbols"),
        (packed([1, 2]), "no dict of pm3"),
        (gzip.compress(b"\x80\x04noise", mtime=0), "record 7 .* damaged pickle"),
        (packed(relaxation(1))[:-20], "record 7 .* is cut off"),
        (b"\x1f\x8bnoise", "record 7 .* is damaged"),
        (pickle.dumps(relaxation(1)), "bare pickle"),
    ],
)
def test_records_that_are_damaged(record: bytes, message: str, tmp_path: Path) -> None:
    path = write_lmdb(tmp_path / "a.lmdb", {b"7": record})
    with pytest.raises(ValueError, match=message):
        read_frames(path, CUTOFF, format="pubchemqcr")


def test_a_record_that_unpacks_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lmdb_files, "LARGEST_RECORD", 2**20)
    path = write_lmdb(tmp_path / "a.lmdb", {b"7": gzip.compress(bytes(2**21))})
    with pytest.raises(ValueError, match=r"record 7 .* unpacks to more than 1 MiB"):
        read_frames(path, CUTOFF)


# Pickles

PLAIN = {
    "numbers": [1, -(2**80), 0.5, True, None, float("inf")],
    "text": ("a", "ä", b"\x00\xff", b""),
    "sets": [{1, 2}, frozenset({"a"})],
    3: {(1, 2): [[]]},
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_plain_data(protocol: int) -> None:
    assert load_plain(pickle.dumps(PLAIN, protocol), "it") == PLAIN
    assert load_plain(pickle.dumps(bytearray(b"x"), protocol), "it") == b"x"


@pytest.mark.parametrize("protocol", range(2, pickle.HIGHEST_PROTOCOL + 1))
def test_numbers_of_numpy(protocol: int) -> None:
    data = {
        "scalars": [np.float64(1.5), np.float32(0.1), np.int64(-3), np.bool_(True), np.uint8(7)],
        "array": np.arange(6.0).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6, dtype=">i4").reshape(2, 3)),
        "empty": np.zeros((0, 3)),
    }
    found = load_plain(pickle.dumps(data, protocol), "it")
    assert found["scalars"] == [1.5, float(np.float32(0.1)), -3, True, 7]
    assert type(found["scalars"][0]) is float
    assert found["array"] == [[0, 1, 2], [3, 4, 5]]
    assert found["columns"] == [[0, 1, 2], [3, 4, 5]]
    assert found["empty"] == []


class Sample:
    """A class of the user's own."""


def by_hand(text: bytes) -> bytes:
    return b"\x80\x02" + text + b"."


@pytest.mark.parametrize(
    ("data", "named"),
    [
        (pickle.dumps(Sample()), "Sample"),
        (pickle.dumps(Atoms("H")), "ase.atoms.Atoms"),
        (pickle.dumps(torch.zeros(2)), "torch"),
        (pickle.dumps(np.array([Sample()])), "plain number|Sample"),
        (pickle.dumps(np.zeros(2, dtype=[("a", "f8")])), "plain number"),
        (pickle.dumps(np.array(["2000-01-01"], dtype="M8[D]")), "plain number"),
        (pickle.dumps(print), "builtins.print"),
        (by_hand(b"cbuiltins\neval\nX\x01\x00\x00\x001\x85R"), "builtins.eval"),
        (by_hand(b"c__builtin__\ngetattr\n"), "__builtin__.getattr"),
        (by_hand(b"cbuiltins\nset.__class__\n"), "set.__class__"),
        (by_hand(b"(iposix\nsystem\n"), "posix.system"),
        (by_hand(b"c_codecs\nencode\nX\x01\x00\x00\x00aX\x03\x00\x00\x00zip\x86R"), "latin1"),
        (by_hand(b"cbuiltins\nbytearray\nJ\xff\xff\xff\x7f\x85R"), "no text in latin1"),
        (by_hand(b"X\x01\x00\x00\x00aQ"), "an object outside the file"),
        # Writing to a maker: its slots are closed.
        (by_hand(b"c_codecs\nencode\nN}X\x01\x00\x00\x00aK\x01s\x86b"), "damaged"),
        (b"", "damaged"),
        (by_hand(b"K"), "damaged"),
    ],
)
def test_pickles_that_are_refused(data: bytes, named: str) -> None:
    with pytest.raises(ValueError, match=rf"it is a .*({named})"):
        load_plain(data, "it")


def test_pickles_whose_arrays_lie_outside() -> None:
    buffers: list[Any] = []
    data = pickle.dumps(np.zeros(3), protocol=5, buffer_callback=buffers.append)
    assert buffers
    with pytest.raises(ValueError, match="damaged"):
        load_plain(data, "it")


# fairchem


def compressed(found: Any) -> bytes:
    text = found if isinstance(found, str) else json.dumps(found)
    return zlib.compress(text.encode())


def slabs(count: int = 5) -> list[Atoms]:
    frames = []
    for k in range(count):
        rng = np.random.default_rng(k)
        atoms = bulk("Cu", cubic=True)
        atoms.rattle(0.05, rng=rng)
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=-14 + 0.1 * rng.normal(),
            forces=rng.normal(size=(4, 3)),
            stress=rng.normal(size=6),
        )
        frames.append(atoms)
    return frames


def row(atoms: Atoms, **others: Any) -> dict[str, Any]:
    """As fairchem writes it: nested lists and numbers."""
    results = {key: np.asarray(value).tolist() for key, value in atoms.calc.results.items()}
    return {
        "numbers": atoms.numbers.tolist(),
        "positions": atoms.positions.tolist(),
        "cell": atoms.cell.array.tolist(),
        "pbc": atoms.pbc.tolist(),
        "calculator": "unknown",
        "unique_id": "0" * 32,
        **results,
        **others,
    }


def write_aselmdb(
    path: Path, rows: list[Any], deleted: tuple[int, ...] = (), subdir: bool = False
) -> Path:
    records = {str(k).encode(): compressed(r) for k, r in enumerate(rows, 1) if k not in deleted}
    records |= {b"nextid": compressed(len(rows) + 1), b"metadata": compressed({"title": "slabs"})}
    if deleted:
        records[b"deleted_ids"] = compressed(list(deleted))
    return write_lmdb(path, records, subdir)


def check_slabs(found: Any, expected: list[Atoms]) -> None:
    assert found.quantities == ("energy", "forces", "stress")
    assert len(found) == len(expected)
    for k, atoms in enumerate(expected):
        np.testing.assert_array_equal(found.graphs[k].positions, atoms.positions)
        np.testing.assert_array_equal(found.graphs[k].cell[0], atoms.cell.array)
        assert len(found.graphs[k].edge_shift.unique(dim=0)) > 8  # periodic
        assert float(found.energies[k]) == atoms.calc.results["energy"]
        np.testing.assert_array_equal(found.forces[k], atoms.calc.results["forces"])
        xx, yy, zz, yz, xz, xy = atoms.calc.results["stress"]
        stress = [[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]]
        np.testing.assert_array_equal(found.values("stress")[k], stress)


def test_a_file_can_be_read_again_after_an_error(tmp_path: Path) -> None:
    """LMDB allows a process to open a file once: it must be closed whatever happens."""
    rows = [row(atoms) for atoms in slabs(3)]
    rows[1].update(energy=None, forces=None, stress=None)
    path = write_aselmdb(tmp_path / "a.aselmdb", rows)
    with pytest.raises(ValueError, match=r"frame 1 of .* has no energy") as raised:
        read_frames(path, CUTOFF)
    assert len(read_frames(path, CUTOFF, split=[0, 2])) == 2
    assert raised.value.__traceback__ is not None, "nobody has closed it by forgetting it"


@pytest.mark.parametrize("name", ["data.aselmdb", "data.lmdb"])
def test_rows_of_fairchem(name: str, tmp_path: Path) -> None:
    frames = slabs(12)
    path = write_aselmdb(tmp_path / name, [row(atoms) for atoms in frames], deleted=(1, 4))
    left = [atoms for k, atoms in enumerate(frames) if k not in (0, 3)]
    assert format_of(path) == "aselmdb"
    check_slabs(read_frames(path, CUTOFF), left)
    check_slabs(read_frames(path, CUTOFF, split=[9, 2]), [left[9], left[2]])
    assert len(read_frames(path, CUTOFF, limit=4, seed=1)) == 4


def test_arrays_as_ase_writes_them(tmp_path: Path) -> None:
    """ase.io.jsonio marks arrays; the labels may be in data or key-value pairs, the charge too."""
    atoms = slabs(1)[0]
    fields = row(atoms) | {
        "positions": atoms.positions,
        "forces": atoms.calc.results["forces"],
        "numbers": atoms.numbers,
    }
    text = encode({**fields, "key_value_pairs": {"E": 2.5}, "data": {"charge": 3}})
    path = write_aselmdb(tmp_path / "a.aselmdb", [text])
    frames = read_frames(path, CUTOFF)
    check_slabs(frames, [atoms])
    assert frames.graphs[0].charge == 3
    assert read_frames(path, CUTOFF, keys={"energy": "E"}).energies.tolist() == [2.5]


def test_a_folder_of_several_files(tmp_path: Path) -> None:
    frames = slabs(6)
    for part in range(3):
        rows = [row(atoms) for atoms in frames[2 * part : 2 * part + 2]]
        write_aselmdb(tmp_path / f"data.000{part}.aselmdb", rows)
    assert format_of(tmp_path) == "aselmdb"
    check_slabs(read_frames(tmp_path, CUTOFF), frames)
    check_slabs(read_frames(tmp_path, CUTOFF, split=[5, 2]), [frames[5], frames[2]])


def test_a_folder_that_lmdb_made(tmp_path: Path) -> None:
    frames = slabs(2)
    path = write_aselmdb(tmp_path / "data", [row(atoms) for atoms in frames], subdir=True)
    assert format_of(path) == "aselmdb"
    check_slabs(read_frames(path, CUTOFF), frames)


def test_rows_that_are_refused(tmp_path: Path) -> None:
    good = row(slabs(1)[0])
    cases = {
        "b": ([good, good | {"forces": [[np.nan] * 3] * 4}], r"frame 1 .* not finite \(forces\)"),
        "c": ([good, {"numbers": [1]}], r"frame 1 .*row 2 of c.aselmdb\) is no row of an ASE"),
        "d": ([good, "[1, 2"], "frame 1 .* is no JSON"),
        "e": ([good | {"energy": "low"}], "frame 0 .* energy is 'low': expected numbers"),
        "f": ([{k: v for k, v in good.items() if k not in ("energy", "forces", "stress")}], "no "),
    }
    for name, (rows, message) in cases.items():
        path = write_aselmdb(tmp_path / f"{name}.aselmdb", rows)
        with pytest.raises(ValueError, match=message):
            read_frames(path, CUTOFF)
    path = write_lmdb(tmp_path / "g.aselmdb", {b"nextid": compressed(3), b"1": compressed(good)})
    with pytest.raises(ValueError, match=r"row 2 of g.aselmdb\) is missing"):
        read_frames(path, CUTOFF)
    path = write_lmdb(tmp_path / "h.aselmdb", {b"1": compressed(good)})
    with pytest.raises(ValueError, match=r"h.aselmdb has no nextid"):
        read_frames(path, CUTOFF)
    path = write_lmdb(tmp_path / "i.lmdb", {})
    with pytest.raises(ValueError, match=r"i.lmdb holds no record"):
        read_frames(path, CUTOFF)


def test_pickled_graphs_of_older_data_sets_are_refused(tmp_path: Path) -> None:
    """S2EF files of OC20 before fairchem 1: keys 0.., length, pickled torch_geometric objects."""
    stream = io.BytesIO()
    pickle.dump({"pos": torch.zeros(2, 3)}, stream)
    records = {b"0": stream.getvalue(), b"length": pickle.dumps(1)}
    path = write_lmdb(tmp_path / "data.lmdb", records)
    with pytest.raises(ValueError, match=r"bare pickle, as older data sets of OC20 .* not opened"):
        read_frames(path, CUTOFF)


def test_lmdb_that_is_not_installed(pubchem: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lmdb", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'tensormd\[datasets\]'"):
        read_frames(pubchem, CUTOFF)
