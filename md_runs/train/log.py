"""The log of a training: one row a validation, which a resume cuts back to the state saved."""

from __future__ import annotations

import re
from pathlib import Path

import torch

from ...models.files import write_atomically
from ...models.training import Progress
from ..runs.files import Table, read_table

FIRST = ("epoch", "step", "seconds", "learning_rate", "loss")


class TrainLog:
    """``log.csv`` of a run folder.

    A row is written before the state of its validation is saved, so that none is ever missing:
    on resume, rows later than the state are removed and computed again.

    Parameters
    ----------
    path
        The table; it need not exist.
    state_file
        State of the run; it need not exist.

    Raises
    ------
    ValueError
        If either was not written by a training.
    """

    def __init__(self, path: Path, state_file: Path) -> None:
        self.path = path
        self._table: Table | None = None
        self._rows: list[dict[str, float]] = []
        columns = _cut_back(path, steps_in(state_file))
        if columns:
            self._table = Table(path, columns, path.stat().st_size)
            found = read_table(path)
            self._rows = [
                {name: found[name][k] for name in columns}
                for k in range(len(found.get("step", [])))
            ]

    @property
    def rows(self) -> int:
        """Number of rows."""
        return len(self._rows)

    def add(self, progress: Progress) -> dict[str, float]:
        """Write a row, bring it to the disk, and return it."""
        row = row_of(progress)
        if self._table is None:
            self._table = Table(self.path, row)
        self._table.add(row)
        self._table.sync()
        self._rows.append(row)
        return row

    def row(self, kept: str) -> dict[str, float]:
        """The ``last`` row, or that of the ``best`` validation loss."""
        if kept == "last":
            return self._rows[-1]
        return min(self._rows, key=lambda row: row["validation_loss"])

    @property
    def seconds(self) -> float:
        """Training time until the last row, s."""
        return self._rows[-1]["seconds"]

    def close(self) -> None:
        """Close the file."""
        if self._table is not None:
            self._table.close()


def row_of(progress: Progress) -> dict[str, float]:
    """Values of a row; errors have their units in their names, energies in meV."""
    row: dict[str, float] = {
        "epoch": progress.epoch,
        "step": progress.step,
        "seconds": round(progress.seconds, 3),
        "learning_rate": progress.learning_rate,
        "loss": progress.loss,
        **{f"loss_{name}": value for name, value in progress.losses.items()},
        "validation_loss": progress.validation_loss,
    }
    for name, errors in progress.errors.items():
        row[f"{name}_mae_{in_names(errors.unit)}"] = errors.mae
        row[f"{name}_rmse_{in_names(errors.unit)}"] = errors.rmse
    for name, errors in progress.errors.items():  # columns that came later stand behind
        if errors.mae_per_atom is not None and errors.rmse_per_atom is not None:
            unit = in_names(f"{errors.unit} per atom")
            row[f"{name}_mae_{unit}"] = errors.mae_per_atom
            row[f"{name}_rmse_{unit}"] = errors.rmse_per_atom
    return row


def whole(value: float) -> float:
    """A number as an int where it is a whole one."""
    return int(value) if float(value).is_integer() else value


def in_names(unit: str) -> str:
    """A unit as names of columns have it: ``meV/A^3`` -> ``mev_per_a3``."""
    unit = unit.lower().replace("å", "a").replace("²", "2").replace("³", "3")
    return re.sub(r"\W+", "_", unit.replace("/", "_per_").replace("^", "")).strip("_")


def steps_in(state_file: Path) -> int:
    """Steps done when the state was saved; 0 without one."""
    if not state_file.exists():
        return 0
    try:
        state = torch.load(state_file, weights_only=True, map_location="cpu", mmap=True)
        return int(state["steps_done"])
    except Exception as error:  # torch raises whatever its parsers meet in damaged bytes
        raise ValueError(
            f"{state_file} is not a training state, or is damaged ({type(error).__name__}): "
            "start a new run, or one from its checkpoint with model.start_from"
        ) from error


def _cut_back(path: Path, steps: int) -> list[str]:
    """Leave the rows up to a step, and return the columns; none if no row is left."""
    if not path.exists():
        return []
    text = path.read_text()
    lines = text[: text.rfind("\n") + 1].splitlines(keepends=True)
    if not lines or not lines[0].startswith(",".join(FIRST)):
        if lines:
            raise ValueError(f"{path} is not the log of a training")
        return []
    kept = [line for line in lines[1:] if int(line.split(",")[1]) <= steps]
    if not kept:
        path.unlink()
        return []
    if len(kept) + 1 < len(lines) or not text.endswith("\n"):
        write_atomically(path, "".join([lines[0], *kept]).encode())
    return lines[0].strip().split(",")
