"""Rows of a training's log, sent to TensorBoard or Weights & Biases as well."""

from __future__ import annotations

import importlib.util
import json
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol

from ..runs.files import write_json

LOGGERS = {"tensorboard": "TensorBoard", "wandb": "Weights & Biases"}
"""Names of loggers, which are those of their packages, and what people call them."""
WANDB_RUN = "wandb.json"
"""File of a run folder with the run's id, so that a resumed run goes on with it."""


class Logger(Protocol):
    """Receiver of the rows of ``log.csv``."""

    def add(self, row: Mapping[str, float]) -> None:
        """Send the values of a validation; ``step`` is their place on the axis."""

    def close(self) -> None:
        """Send what is left."""


def check_logger(name: str | None) -> None:
    """Check that the package of a logger is installed.

    Raises
    ------
    ValueError
        If it is not; the message has the command that installs it.
    """
    if name is not None and importlib.util.find_spec(name) is None:
        raise ValueError(
            f"output.logger is {name}, but {LOGGERS[name]} is not installed: "
            f"pip install 'tensormd[{name}]', or leave output.logger out"
        )


def make_logger(
    name: str | None, folder: Path, settings: Mapping[str, Any], steps: int
) -> Logger | None:
    """A logger for the training in a folder.

    Parameters
    ----------
    name
        A key of `LOGGERS`, or None.
    folder
        Run folder.
    settings
        Configuration of the run.
    steps
        Number of steps done when the run begins or resumes: later values of before are dropped.
    """
    if name is None:
        return None
    if name == "tensorboard":
        return _TensorBoard(folder, steps)
    return _WeightsAndBiases(folder, settings)


class _TensorBoard:
    def __init__(self, folder: Path, steps: int) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"), purge_step=steps + 1)  # type: ignore[no-untyped-call]

    def add(self, row: Mapping[str, float]) -> None:
        for name, value in row.items():
            if name != "step":
                self._writer.add_scalar(name, value, int(row["step"]))  # type: ignore[no-untyped-call]
        self._writer.flush()  # type: ignore[no-untyped-call]

    def close(self) -> None:
        self._writer.close()  # type: ignore[no-untyped-call]


class _WeightsAndBiases:
    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        import wandb

        file = folder / WANDB_RUN
        if not file.exists():
            write_json(file, {"id": secrets.token_hex(8)})
        self._run = wandb.init(
            project="tensormd",
            name=folder.resolve().name,
            dir=str(folder),
            id=json.loads(file.read_text())["id"],
            resume="allow",
            config=dict(settings),
        )

    def add(self, row: Mapping[str, float]) -> None:
        self._run.log(dict(row), step=int(row["step"]))

    def close(self) -> None:
        self._run.finish()
