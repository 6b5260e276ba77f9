"""Packed files: frames behind one another in one file, which is memory-mapped.

A packed file is a safetensors file whose arrays are columns (see `columns`): sizes and numbers of
atoms, positions, cells, charges, labels, masks, and neighbour lists if a cutoff was given. Numbers
are in eV, Angstrom and e, and are those that the reader of the original file gave, bit for bit.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import mmap
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..files import replacing, unwritable, write_all
from ..quantities import QUANTITIES
from .columns import Columns, FileColumn, kind_of_column, store_of
from .store import FrameArrays

SUFFIX = ".packed"
FORMAT = "tensormd frames"
VERSION = 1
UNITS = "eV, Angstrom, e"
_KINDS = {
    "<f8": "F64",
    "<i8": "I64",
    "<u4": "U32",
    "<i2": "I16",
    "<u2": "U16",
    "|u1": "U8",
    "|b1": "BOOL",
}
_LARGEST_HEADER = 1 << 20
_KEPT = 1 << 25
"""Bytes that are read before the pages of the file are given back to the system."""
_AROUND = 1 << 16
"""Bytes that the system maps at an access, even if few of them are read."""
_COPIED = 1 << 22


class PackedFile(NamedTuple):
    """A packed file that is open."""

    path: Path
    arrays: FrameArrays
    info: dict[str, Any]
    """Frames, atoms, cutoff of the lists (Angstrom), digest and size in bytes."""


class _Columns(NamedTuple):
    """What the header says about the columns."""

    arrays: dict[str, NDArray[Any]]
    metadata: Mapping[str, str]


@contextlib.contextmanager
def writing_packed(
    path: Path, cutoff: float | None, check: Callable[[Path], None]
) -> Iterator[Columns]:
    """Yield columns that become a packed file at the end, or nothing if an error is raised.

    The frames are written one by one to temporary files in the same folder.

    Parameters
    ----------
    path
        File to write.
    cutoff
        Cutoff of the edges that are added, Angstrom; None: none are.
    check
        Function called with the complete file before it gets its name; it may raise an error.

    Raises
    ------
    ValueError
        If there is no frame.
    OSError
        If the file cannot be written; the message names it.
    """
    files: list[FileColumn] = []
    try:
        with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.name}.") as folder:

            def new(name: str, dtype: str, shape: tuple[int, ...]) -> FileColumn:
                files.append(FileColumn(Path(folder) / name, dtype, shape))
                return files[-1]

            columns = Columns(new)
            try:
                yield columns
            finally:
                for file in files:
                    file.close()
            if not columns.count:
                raise ValueError(f"there is no frame to write to {path}: expected at least one")
            metadata = {
                "format": FORMAT,
                "version": str(VERSION),
                "units": UNITS,
                "cutoff": "" if cutoff is None else repr(float(cutoff)),
                "grouped": str(columns.grouped).lower(),
            }
            with replacing(path) as temporary, temporary.open("wb") as stream:
                _write(stream, files, metadata)
                stream.flush()
                check(temporary)
    except OSError as error:
        raise error if str(path) in str(error) else unwritable(path, error) from error


def _write(stream: IO[bytes], files: list[FileColumn], metadata: dict[str, str]) -> None:
    """Join columns to a safetensors file; the widest numbers come first, so that all align."""
    files = sorted(files, key=lambda file: (-file.dtype.itemsize, file.path.name))
    digest = hashlib.sha256()
    for file in files:
        for data in _chunks(file.path):
            digest.update(data)
    header: dict[str, Any] = {"__metadata__": {**metadata, "sha256": digest.hexdigest()}}
    first = 0
    for file in files:
        last = first + file.path.stat().st_size
        header[file.path.name] = {
            "dtype": _KINDS[file.dtype.str],
            "shape": [file.rows, *file.shape],
            "data_offsets": [first, last],
        }
        first = last
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    write_all(stream, len(text).to_bytes(8, "little") + text)
    for file in files:
        for data in _chunks(file.path):
            write_all(stream, data)


def _chunks(path: Path) -> Iterator[bytes]:
    with path.open("rb") as stream:
        while data := stream.read(_COPIED):
            yield data


class _Map:
    """A memory-mapped file whose pages are given back from time to time.

    Otherwise all pages that were ever read would count as memory of the process.
    """

    def __init__(self, path: Path) -> None:
        with path.open("rb") as stream:
            self.data = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
        self._read = 0

    def read(self, size: int) -> None:
        """Count bytes that are about to be read."""
        self._read += size + _AROUND
        if self._read > _KEPT and hasattr(mmap, "MADV_DONTNEED"):
            self._read = 0
            self.data.madvise(mmap.MADV_DONTNEED)


def open_packed(path: str | os.PathLike[str], cutoff: float | None = None) -> PackedFile:
    """Open a packed file; only sizes, charges, masks, weights and the like are read.

    Parameters
    ----------
    path
        The file.
    cutoff
        Cutoff of the edges, Angstrom. Stored lists serve where their cutoff is as large or larger;
        otherwise neighbours are searched when they are asked for. None: edges are not read.

    Raises
    ------
    FileNotFoundError
        If there is no such file.
    ValueError
        If it is not a packed file, is incomplete, or was written by a newer version.
    """
    path = Path(path)
    if not path.exists():
        raise FileNotFoundError(f"{path}: no such file")
    if path.is_dir() or path.stat().st_size < 8:
        raise ValueError(_not_packed(path))
    mapped = _Map(path)
    arrays, metadata = _columns(mapped.data, path)
    known = metadata.get("cutoff") or None
    try:
        lists_cutoff = None if known is None else float(known)
        store = store_of(
            arrays,
            grouped=metadata.get("grouped") == "true",
            lists_cutoff=lists_cutoff,
            cutoff=cutoff,
            read=mapped.read,
        )
        _check_rows(store, arrays)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{path} is damaged: {error}; pack the frames again") from None
    if lists_cutoff is None:
        store.lists = None
    info = {
        "frames": len(store.sizes),
        "atoms": int(store.starts[-1]),
        "cutoff_angstrom": lists_cutoff,
        "sha256": metadata.get("sha256", ""),
        "bytes": len(mapped.data),
    }
    return PackedFile(path, store, info)


def _not_packed(path: Path) -> str:
    return f"{path} is no packed file: expected one that `tensormd data pack` wrote"


def _columns(data: mmap.mmap, path: Path) -> _Columns:
    """Arrays of a file, as views of the map, and its metadata."""
    length = int.from_bytes(data[:8], "little")
    if length > min(len(data) - 8, _LARGEST_HEADER):
        raise ValueError(_not_packed(path))
    try:
        header = json.loads(data[8 : 8 + length])
        metadata = header.pop("__metadata__")
        if metadata["format"] != FORMAT:
            raise ValueError(metadata["format"])
        version = int(metadata["version"])
    except (UnicodeDecodeError, ValueError, KeyError, TypeError, AttributeError):
        raise ValueError(_not_packed(path)) from None
    if version > VERSION:
        raise ValueError(
            f"{path} has version {version} of the packed format, but this tensormd reads up to "
            f"{VERSION}: update tensormd, or pack the frames again"
        )
    arrays = {}
    try:
        for name, each in header.items():
            first, last = each["data_offsets"]
            dtype, shape = kind_of_column(name)
            if each["dtype"] != _KINDS[dtype] or tuple(each["shape"][1:]) != shape:
                raise ValueError(f"{name} is {each['dtype']} {each['shape']}")
            count = math.prod(each["shape"])
            if last - first != count * np.dtype(dtype).itemsize or 8 + length + last > len(data):
                raise ValueError(f"{path} is cut off")
            found = np.frombuffer(data, dtype, count, 8 + length + first)
            arrays[name] = found.reshape(each["shape"])
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ValueError(f"{path} is incomplete or damaged ({error}): copy it again") from None
    return _Columns(arrays, metadata)


def _check_rows(store: FrameArrays, arrays: Mapping[str, NDArray[Any]]) -> None:
    """Raise a ValueError if the lengths of the columns do not fit together."""
    count, atoms = len(arrays["sizes"]), int(store.starts[-1])
    rows = dict.fromkeys(("cells", "charges", "pbc", "isolated", "weights", "groups"), count)
    rows |= dict.fromkeys(("numbers", "positions"), atoms)
    for name, row in QUANTITIES.items():
        if f"label.{name}" in arrays:
            rows |= {f"label.{name}": atoms if row.per_atom else count, f"mask.{name}": count}
    if store.lists is not None:
        rows |= {"edge_counts": count, "shift_counts": count}
        rows |= {"edges": int(store.lists.starts[-1])}
        rows |= {"shifts": int(store.lists.shift_starts[-1])}
    for name, expected in rows.items():
        if len(arrays[name]) != expected:
            raise ValueError(f"{name} has {len(arrays[name])} rows, not {expected}")


def check_digest(file: PackedFile) -> None:
    """Read a packed file completely, and compare its digest with the one in its header.

    Raises
    ------
    ValueError
        If they differ: the file is damaged.
    """
    digest = hashlib.sha256()
    with file.path.open("rb") as stream:
        stream.seek(8 + int.from_bytes(stream.read(8), "little"))
        while data := stream.read(_COPIED):
            digest.update(data)
    if digest.hexdigest() != file.info["sha256"]:
        raise ValueError(f"{file.path} is damaged: its digest differs; pack the frames again")
