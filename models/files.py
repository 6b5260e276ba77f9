"""Atomic writing: a file is complete or absent, even after a kill or on a full disk."""

from __future__ import annotations

import contextlib
import errno
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yield a temporary file that replaces ``path`` once it is complete.

    The temporary file is in the same folder, and is flushed to disk (fsync) before it is renamed.
    A kill or a full disk at any moment leaves the old file intact.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; the message names the file.
    """
    path = Path(path)
    temporary: Path | None = None
    try:
        descriptor, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        os.close(descriptor)
        temporary = Path(name)
        yield temporary
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        temporary.chmod(0o666 & ~_umask())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def cache_folder() -> Path:
    """Folder for downloads and compiled kernels: ``TENSORMD_CACHE``, or the user's cache."""
    if given := os.environ.get("TENSORMD_CACHE"):
        return Path(given)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "tensormd"


def write_atomically(path: str | os.PathLike[str], data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, or leave it unchanged; see `replacing`."""
    with replacing(path) as temporary, temporary.open("wb") as stream:
        write_all(stream, data)


def write_all(stream: IO[bytes], data: bytes) -> None:
    """Write to an open file; this is the only call that fails on a full disk."""
    stream.write(data)


def unwritable(path: Path, error: OSError) -> OSError:
    """The same error with a message that names the file and what to do."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return OSError(f"cannot write {path}: {reason}{remedy}")


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder durable; does nothing where folders cannot be opened."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
