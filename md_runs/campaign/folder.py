"""The folder of a campaign: the index of its runs, and a record of each.

The index is written once, before the first run, and does not change. A record is replaced when its
run begins and when it ends, under a lock that a kill releases; so the records are the truth about
what is done, whoever was killed.
"""

from __future__ import annotations

import dataclasses
import io
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ase import Atoms
from ase.io import read, write
from filelock import BaseFileLock

from ...calculators.domain import DEFAULT
from ...models.checkpoint import load_potential
from ...models.files import unwritable, write_atomically
from ..runs.files import read_json, write_json
from ..runs.folder import LOCK, locked, refuse_existing
from ..runs.models import absolute, weights_digest
from ..runs.schema import of_key
from ..runs.settings import ModelSettings, model_settings, to_json
from ..runs.structures import describe
from ..runs.versions import versions
from .plan import Plan, Task, tasks_of
from .structures import folder_names, read_given

FORMAT = 1
INDEX = "index.json"
STRUCTURES = "structures.traj"
RUNS = "runs"

WAITING, RUNNING, DONE, FAILED, LOST = "waiting", "running", "done", "failed", "lost"
"""States of a record. A failed run would fail again; a lost one was prevented from outside (its
worker was killed too often, the disk was full): the next start tries it again."""
ENDED = (DONE, FAILED, LOST)
BLOCKED, INTERRUPTED = "blocked", "interrupted"
"""States that follow from others: what a run begins with is not there; nobody runs it now."""


@dataclass
class Record:
    """State and result of a run."""

    state: str = WAITING
    attempts: list[dict[str, Any]] = field(default_factory=list)
    """Host, process and time (UTC) of every start."""
    seconds: float = 0.0
    """Wall time of the attempts that ended by themselves, s."""
    summary: dict[str, Any] = field(default_factory=dict)
    """Numbers of the result; units are in the names."""
    cause: str = ""
    """Reason of a failure."""
    warnings: list[str] = field(default_factory=list)
    """Warnings of the last attempt."""


@dataclass(frozen=True)
class Listed:
    """A given structure in the index."""

    name: str
    source: str
    formula: str = ""
    cause: str = ""
    """Why it cannot be run, if so."""


class Campaign:
    """A campaign's folder.

    Parameters
    ----------
    path
        The folder; see `begin` and `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        content = read_json(path / INDEX)
        if content.get("format") != FORMAT:
            raise ValueError(
                f"{path / INDEX} was not written by this version: expected format {FORMAT}"
            )
        self.plan: dict[str, Any] = content["plan"]
        self.model: ModelSettings = model_settings(content["model_settings"])
        self.digest: str = content["model"]["sha256"]
        self.versions: dict[str, Any] = content["versions"]
        self.structures = [Listed(**each) for each in content["structures"]]
        self.tasks = {each["name"]: Task(**each) for each in content["tasks"]}
        self._lock: BaseFileLock | None = None

    @classmethod
    def open(cls, path: Path | str) -> Campaign:
        """An existing campaign, for reading.

        Raises
        ------
        ValueError
            If the folder holds none.
        """
        path = Path(path)
        if not (path / INDEX).is_file():
            raise ValueError(f"{path} is not the folder of a campaign: it holds no {INDEX}")
        return cls(path)

    @classmethod
    def begin(cls, path: Path, plan: Plan) -> Campaign:
        """Make the folder and its index, or open that of the same plan; locked until `close`.

        Structures are read once: the folder keeps them.

        Raises
        ------
        ValueError, OSError
            If the plan cannot be run, or the folder holds something else.
        """
        path = path.resolve()
        model = dataclasses.replace(plan.model.settings, model=absolute(plan.model.settings.model))
        with of_key("model.checkpoint"):
            digest = digest_of(model)
        index = None
        if not (path / INDEX).is_file():
            refuse_existing(path, "choose another folder with -o", (LOCK, STRUCTURES))
            structures, index = _index(plan, model, digest)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        lock = locked(path / LOCK)
        if index is not None and not (path / INDEX).is_file():
            write_atomically(path / STRUCTURES, structures)
            write_json(path / INDEX, index)
        campaign = cls(path)
        campaign._lock = lock
        campaign._refuse_other(plan, digest)
        return campaign

    def _refuse_other(self, plan: Plan, digest: str) -> None:
        """Raise a ValueError if the folder was begun with another plan or other weights."""
        old, new = _flat(self.plan), _flat(json.loads(json.dumps(dataclasses.asdict(plan))))
        for key in {**old, **new}:
            if old.get(key) != new.get(key):
                raise ValueError(
                    f"{self.path} was begun with another plan ({key} was {old.get(key)}, and is "
                    f"{new.get(key)}): choose another folder with -o"
                )
        if digest != self.digest:
            raise ValueError(
                f"the weights are not those that {self.path} was begun with (SHA-256 "
                f"{digest[:12]}, not {self.digest[:12]}): choose another folder with -o"
            )

    def __enter__(self) -> Campaign:
        return self

    def __exit__(self, *_: object) -> None:
        if self._lock is not None:
            self._lock.release()

    def run_folder(self, task: Task) -> Path:
        """Where a run writes."""
        return run_folder(self.path, task.name)

    def record(self, task: Task) -> Record:
        """The record of a run, with the state that it has now."""
        record = read_record(self.path, task.name)
        if record.state == WAITING and self._blocked(task):
            record.state = BLOCKED
            record.cause = f"{task.after} has no result to begin with"
        elif record.state == RUNNING and not _is_locked(lock_file(self.path, task.name)):
            record.state = INTERRUPTED
        return record

    def _blocked(self, task: Task) -> bool:
        return task.after is not None and read_record(self.path, task.after).state in (
            FAILED,
            LOST,
        )


def _index(plan: Plan, model: ModelSettings, digest: str) -> tuple[bytes, dict[str, Any]]:
    """Content of the file of structures and of the index."""
    given = read_given(plan.structures)
    names = folder_names(given)
    listed, kept = [], {}
    for name, each in zip(names, given, strict=True):
        if isinstance(each.structure, Atoms):
            kept[name] = each.structure
            listed.append(Listed(name, each.source, describe(each.structure)))
        else:
            reason = " ".join(str(each.structure).split())
            listed.append(Listed(name, each.source, cause=reason))
    if not kept:
        raise ValueError(f"structures: none of {len(listed)} can be run: {listed[0].cause}")
    buffer = io.BytesIO()
    write(buffer, list(kept.values()), format="traj")
    return buffer.getvalue(), {
        "format": FORMAT,
        "plan": dataclasses.asdict(plan),
        "model_settings": to_json(model),
        "model": {"sha256": digest},
        "versions": versions(),
        "structures": [dataclasses.asdict(each) for each in listed],
        "tasks": [dataclasses.asdict(task) for task in tasks_of(plan, list(kept))],
    }


def digest_of(model: ModelSettings) -> str:
    """SHA-256 of the weights of a model; of the one that ships where none is named."""
    names = model.model or (DEFAULT,)
    return weights_digest(
        load_potential(names[0] if len(names) == 1 else list(names), units=model.units)
    )


def given_structure(path: Path, number: int) -> Atoms:
    """A structure that the campaign keeps, to the last bit as it was read."""
    atoms: Atoms = read(path / STRUCTURES, index=number, format="traj")
    atoms.calc = None
    return atoms


def run_folder(path: Path, name: str) -> Path:
    """Where a run writes."""
    return path / RUNS / name


def lock_file(path: Path, name: str) -> Path:
    """Locked while a process runs, or waits for, this run."""
    return path / RUNS / f"{name}.lock"


def read_record(path: Path, name: str) -> Record:
    """The record of a run as it was written last."""
    file = _record_file(path, name)
    return Record(**read_json(file)) if file.is_file() else Record()


def write_record(path: Path, name: str, record: Record) -> None:
    """Replace the record of a run."""
    file = _record_file(path, name)
    file.parent.mkdir(parents=True, exist_ok=True)
    write_json(file, dataclasses.asdict(record))


def _record_file(path: Path, name: str) -> Path:
    return path / RUNS / f"{name}.json"


def _is_locked(file: Path) -> bool:
    try:
        locked(file).release()
    except ValueError:
        return True
    return False


def _flat(content: dict[str, Any], path: str = "") -> dict[str, Any]:
    """Values by their full names."""
    found: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict):
            found |= _flat(value, f"{path}{name}.")
        else:
            found[f"{path}{name}"] = value
    return found
