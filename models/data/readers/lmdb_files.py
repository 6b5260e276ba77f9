"""Opening LMDB files, and recognising their contents."""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .structure import PathLike, existing_file

LARGEST_RECORD = 2**28
"""Largest size of an unpacked record, bytes."""
_GZIP_OR_ZLIB = zlib.MAX_WBITS | 32


@contextlib.contextmanager
def reading(path: PathLike) -> Iterator[Any]:
    """Open an LMDB file, or a folder with data.mdb, and yield a read transaction.

    Raises
    ------
    ModuleNotFoundError
        If lmdb is not installed.
    ValueError
        If it is not an LMDB file.
    """
    try:
        import lmdb
    except ModuleNotFoundError:
        raise ModuleNotFoundError(
            f"{path} is an LMDB file: to read it, pip install 'tensormd[datasets]'"
        ) from None
    folder = Path(path).is_dir()
    file = existing_file(Path(path) / "data.mdb" if folder else path)
    try:
        environment = lmdb.open(
            str(path),
            subdir=folder,
            readonly=True,
            lock=False,
            readahead=False,
            create=False,
            max_readers=1,
        )
    except lmdb.Error as error:
        raise ValueError(f"{file} is no LMDB file, or is damaged: {error}") from None
    try:
        with environment.begin(buffers=False) as transaction:
            yield transaction
    except lmdb.Error as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    finally:
        environment.close()


def unpacked(data: bytes, name: str) -> bytes:
    """Unpack a record compressed by gzip or zlib.

    Raises
    ------
    ValueError
        If it is damaged, an uncompressed pickle, or unpacks to more than ``LARGEST_RECORD``.
    """
    if is_pickle(data):
        raise ValueError(
            f"{name} is a bare pickle, as older data sets of OC20 hold torch_geometric objects, "
            "which run code when opened: it was not opened. Expected rows of an .aselmdb file or "
            "gzipped records of PubChemQCR; fairchem converts its older files"
        )
    machine = zlib.decompressobj(_GZIP_OR_ZLIB)
    try:
        found = machine.decompress(data, LARGEST_RECORD)
    except zlib.error as error:
        raise ValueError(f"{name} is damaged: {error}") from None
    if machine.unconsumed_tail:
        raise ValueError(f"{name} unpacks to more than {LARGEST_RECORD >> 20} MiB")
    if not machine.eof:
        raise ValueError(f"{name} is cut off: copy the file again")
    return found


def is_pickle(data: bytes) -> bool:
    """Whether bytes begin like a pickle of protocol 2 or later."""
    return data[:1] == b"\x80" and data[1:2] in (b"\x02", b"\x03", b"\x04", b"\x05")


def kind_of(path: PathLike) -> str:
    """``pubchemqcr`` for gzipped records, else ``aselmdb``.

    Raises
    ------
    ValueError
        If it is not an LMDB file, or is empty.
    """
    with reading(path) as transaction:
        for _, value in transaction.cursor():
            return "pubchemqcr" if value[:2] == b"\x1f\x8b" else "aselmdb"
    raise ValueError(f"{path} holds no record: expected at least one")
