"""Files that are either whole or not there: what a run needs to survive a kill or a full disk."""

from __future__ import annotations

import contextlib
import csv
import errno
import json
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any


def write_atomically(path: Path, data: bytes) -> None:
    """Replace the file at ``path`` by ``data``, or leave it as it was.

    The bytes go to a temporary file in the same folder, reach the disk (fsync), and only then
    take the name. A kill or a full disk at any moment leaves the old file intact.

    Raises
    ------
    OSError
        If the folder cannot be written or the disk is full; the message names the file.
    """
    temporary: str | None = None
    try:
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"
        )
        with os.fdopen(descriptor, "wb") as stream:
            write_all(stream, data)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException as error:
        if temporary is not None:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
        if isinstance(error, OSError):
            raise unwritable(path, error) from error
        raise


def write_all(stream: IO[bytes], data: bytes) -> None:
    """Write to an open file: the one call that a full disk makes fail."""
    stream.write(data)


def unwritable(path: Path, error: OSError) -> OSError:
    """The same error with a message that names the file and what to do."""
    reason = os.strerror(error.errno) if error.errno else str(error)
    remedy = "; free some space" if error.errno in (errno.ENOSPC, errno.EDQUOT) else ""
    return OSError(f"cannot write {path}: {reason}{remedy}")


def sync_folder(folder: Path) -> None:
    """Make a rename in the folder last; where folders cannot be opened, nothing."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; floats keep every digit."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


class AppendOnly:
    """A file that grows, whose length is known and can be cut back.

    Parameters
    ----------
    path
        Created where it is missing.
    length
        Bytes to keep of what is there: the rest, written after the last restart, is cut off.
    """

    def __init__(self, path: Path, length: int = 0) -> None:
        self.path = path
        try:
            self._stream = open(path, "ab")  # noqa: SIM115 - closed by `close`
            if path.stat().st_size < length:
                raise ValueError(
                    f"{path} is shorter than the restart says ({path.stat().st_size} of "
                    f"{length} bytes): it was changed after the run wrote it"
                )
            os.truncate(path, length)
        except OSError as error:
            raise unwritable(path, error) from error
        self.length = length

    def append(self, text: str) -> None:
        """Write and hand to the operating system, so that a kill does not lose it."""
        data = text.encode()
        try:
            write_all(self._stream, data)
            self._stream.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.length += len(data)

    def sync(self) -> None:
        """Bring what was written to the disk, so that a power cut does not lose it."""
        try:
            os.fsync(self._stream.fileno())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file; errors were reported by `append`."""
        with contextlib.suppress(OSError):
            self._stream.close()


class Table(AppendOnly):
    """A CSV file with a header, of numbers that keep every digit."""

    def __init__(self, path: Path, columns: Iterable[str], length: int = 0) -> None:
        super().__init__(path, length)
        self.columns = tuple(columns)
        if self.length == 0:
            self.append(",".join(self.columns) + "\n")

    def add(self, row: dict[str, float]) -> None:
        """Append one line; keys are the columns."""
        self.append(",".join(_cell(row[name]) for name in self.columns) + "\n")


def read_table(path: Path) -> dict[str, list[float]]:
    """Columns of a `Table`; a last line that a kill cut short is left out."""
    text = path.read_text()
    complete = text[: text.rfind("\n") + 1]
    rows = list(csv.reader(complete.splitlines()))
    if not rows:
        raise ValueError(f"{path} is empty: the run wrote nothing yet")
    try:
        columns = zip(*([float(x) for x in row] for row in rows[1:]), strict=True)
        return dict(zip(rows[0], map(list, columns), strict=True)) if len(rows) > 1 else {}
    except ValueError as error:
        raise ValueError(f"{path} is not a table that a run wrote: {error}") from None


def _cell(value: float) -> str:
    return str(value) if isinstance(value, int) else repr(float(value))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
