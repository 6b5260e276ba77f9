"""Files that are either whole or not there, so that a run survives a kill or a full disk."""

from __future__ import annotations

import contextlib
import csv
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ...models.files import unwritable, write_all, write_atomically


def write_json(path: Path, content: Any) -> None:
    """Write JSON atomically; floats keep every digit."""
    write_atomically(path, (json.dumps(content, indent=2) + "\n").encode())


def read_json(path: Path) -> dict[str, Any]:
    """The section that a JSON file holds.

    Raises
    ------
    ValueError
        If it is damaged.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is damaged: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is damaged: it holds no section")
    return content


class AppendOnly:
    """A file that grows, whose length is known and can be truncated.

    Parameters
    ----------
    path
        Created where it is missing.
    length
        Bytes to keep: the rest, written after the last restart, is truncated.
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
        """Write and flush to the operating system, so that a kill does not lose it."""
        data = text.encode()
        try:
            write_all(self._stream, data)
            self._stream.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.length += len(data)

    def sync(self) -> None:
        """Flush to the disk (fsync), so that a power cut does not lose it."""
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
    """Columns of a `Table`; a last line that a kill cut short is ignored."""
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
