"""The folder of one run: settings, results, and the state to resume from.

``docs/guide/runs.md`` describes the files. The rule that makes a run survive a kill at any moment:
log and trajectory only grow, the restart is replaced atomically and remembers how long they
were, and on resume they are truncated to that length.
"""

from __future__ import annotations

import contextlib
import errno
import io
import json
import zipfile
from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from ase import Atoms
from ase.io import read, write
from filelock import BaseFileLock, FileLock, Timeout
from numpy.typing import NDArray

from ...models.files import unwritable, write_atomically
from .files import AppendOnly, Table, read_json, read_table, write_json

FORMAT = 1
CONFIG = "config.json"
LOG = "log.csv"
TRAJECTORY = "trajectory.extxyz"
RESTART = "restart.npz"
START = "start.traj"
LOCK = "lock"
RELAXED = "relaxed.extxyz"
EVALUATED = "evaluated.extxyz"
RESULTS = "results.json"
HESSIAN = "hessian.npz"
PHONOPY = "phonopy_params.yaml"
DOUBTFUL = "doubtful.extxyz"
REPORT = "report.html"
FIGURES = "figures"
TOPOLOGIES = ("topology.pdb", "topology.cif")
TRAJECTORY_ATOMS = "trajectory.pdb"
CONVERTED = ("trajectory.dcd", "trajectory.xtc", TRAJECTORY_ATOMS)
OWN_FILES = (
    *(CONFIG, LOG, TRAJECTORY, RESTART, START, LOCK, RELAXED, EVALUATED, RESULTS, HESSIAN),
    PHONOPY,
    DOUBTFUL,
    REPORT,
    *TOPOLOGIES,
    *CONVERTED,
)
BEGUN = (LOCK, START, *TOPOLOGIES)
NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP)
"""Answers of a file system that has no locks, such as NFS without its lock service."""


@dataclass
class Restart:
    """All that a run needs to resume, in float64, to the last bit."""

    arrays: dict[str, NDArray[Any]]
    """positions (N, 3) A, momenta (N, 3) ASE units, cell (3, 3) A; of OpenMM also its own
    checkpoint, as bytes (M,)."""
    state: dict[str, Any] = field(default_factory=dict)
    """Values that JSON holds exactly: step, random generator, heat of the thermostat."""
    log_bytes: int = 0
    trajectory_bytes: int = 0
    doubtful_bytes: int = 0

    def to_bytes(self) -> bytes:
        """As an npz archive without pickles."""
        note = {
            "format": FORMAT,
            "state": self.state,
            "log_bytes": self.log_bytes,
            "trajectory_bytes": self.trajectory_bytes,
            "doubtful_bytes": self.doubtful_bytes,
        }
        buffer = io.BytesIO()
        np.savez(buffer, note=np.array(json.dumps(note)), **self.arrays)  # type: ignore[arg-type]
        return buffer.getvalue()

    @classmethod
    def read(cls, path: Path) -> Restart:
        """Read what `to_bytes` wrote.

        Raises
        ------
        ValueError
            If the file is not a restart.
        """
        try:
            with np.load(path, allow_pickle=False) as archive:
                note = json.loads(str(archive["note"]))
                arrays = {name: archive[name] for name in archive.files if name != "note"}
            return cls(
                arrays=arrays,
                state=note["state"],
                log_bytes=note["log_bytes"],
                trajectory_bytes=note["trajectory_bytes"],
                doubtful_bytes=note.get("doubtful_bytes", 0),
            )
        except FileNotFoundError:
            raise
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(f"{path} is not the restart of a run: {error}") from None


class RunFolder:
    """A folder that one process at a time writes.

    Parameters
    ----------
    path
        The folder; see `create` and `open`.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock: BaseFileLock | None = None
        self.log: Table | None = None
        self.trajectory: AppendOnly | None = None
        self.doubtful: AppendOnly | None = None

    @classmethod
    def create(cls, path: Path | str, remedy: str = "choose another folder with -o") -> RunFolder:
        """Make the folder and lock it.

        Raises
        ------
        ValueError
            If it holds something already.
        OSError
            If it cannot be created.
        """
        path = Path(path)
        refuse_existing(path, remedy)
        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise unwritable(path, error) from error
        folder = cls(path)
        folder.lock()
        return folder

    @classmethod
    def open(cls, path: Path | str) -> RunFolder:
        """An existing run, unlocked: enough for reading.

        Raises
        ------
        ValueError
            If it is not a run folder.
        """
        path = Path(path)
        if not path.is_dir():
            raise ValueError(f"{path}: no such run folder")
        if not (path / CONFIG).is_file():
            raise ValueError(f"{path} is not a run folder: it holds no {CONFIG}")
        return cls(path)

    @classmethod
    def discard(cls, path: Path | str) -> None:
        """Delete a run folder, if it holds only files that a run writes."""
        path = Path(path)
        if not path.exists():
            return
        folder = cls.open(path)
        figures = path / FIGURES
        known = {path / name for name in OWN_FILES} | {figures}
        others = [p for p in path.iterdir() if p not in known and p.suffix != ".tmp"]
        if others:
            raise ValueError(f"{path} also holds {others[0].name}: not deleting it")
        folder.lock()
        for file in [*figures.glob("*.png"), *path.glob(".*.tmp"), *(known - {figures})]:
            file.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):
            figures.rmdir()
        folder.close()
        path.rmdir()

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def lock(self) -> None:
        """Keep other processes out, until `close` or the end of this process, a kill included.

        On a network file system the lock holds as far as its server takes locks; without any
        the run is unprotected.

        Raises
        ------
        ValueError
            If another process holds the lock.
        OSError
            If the folder cannot be written.
        """
        self._lock = locked(self.path / LOCK)

    def close(self) -> None:
        """Close the files and release the lock."""
        for stream in (self.log, self.trajectory, self.doubtful):
            if stream is not None:
                stream.close()
        if self._lock is not None:
            self._lock.release()
        self.log = self.trajectory = self.doubtful = self._lock = None

    @property
    def config(self) -> dict[str, Any]:
        """Settings of the run: the content of config.json."""
        file = self.path / CONFIG
        content = read_json(file)
        if content.get("format") != FORMAT:
            raise ValueError(f"{file} was not written by this version: expected format {FORMAT}")
        for key in ("kind", "settings"):
            if key not in content:
                raise ValueError(f"{file} is damaged: it has no {key!r}")
        return content

    def write_config(self, content: dict[str, Any]) -> None:
        """Write config.json."""
        write_json(self.path / CONFIG, {"format": FORMAT, **content})

    def write_start(self, atoms: Atoms) -> None:
        """Keep the structure as it was given: to the last bit, constraints included."""
        buffer = io.BytesIO()
        write(buffer, atoms, format="traj")
        write_atomically(self.path / START, buffer.getvalue())

    def start(self) -> Atoms:
        """The structure as it was given, without a calculator."""
        file = self.path / START
        try:
            atoms: Atoms = read(file, index=0, format="traj")
        except Exception as error:  # ASE's reader fails in many ways
            raise ValueError(f"{file} cannot be read: {error}") from error
        atoms.calc = None
        return atoms

    def keep_topology(self, source: Path) -> None:
        """Keep the file that residues, bonds and charges are found from, as it is."""
        kept = next(name for name in TOPOLOGIES if Path(name).suffix == topology_suffix(source))
        write_atomically(self.path / kept, source.read_bytes())

    def topology(self) -> Path | None:
        """The file that `keep_topology` kept, or None."""
        return next((self.path / n for n in TOPOLOGIES if (self.path / n).exists()), None)

    def open_streams(
        self, columns: Iterable[str], restart: Restart | None = None, doubt: bool = False
    ) -> None:
        """Open log and trajectory, truncated to where the restart left them.

        With ``doubt`` also the file of doubtful frames.
        """
        kept = restart or Restart({})
        self.log = Table(self.path / LOG, columns, kept.log_bytes)
        self.trajectory = AppendOnly(self.path / TRAJECTORY, kept.trajectory_bytes)
        if doubt:
            self.doubtful = AppendOnly(self.path / DOUBTFUL, kept.doubtful_bytes)

    def save(self, restart: Restart) -> None:
        """Replace the restart, once log and trajectory up to it are on the disk."""
        assert self.log is not None
        assert self.trajectory is not None
        self.log.sync()
        self.trajectory.sync()
        restart.log_bytes = self.log.length
        restart.trajectory_bytes = self.trajectory.length
        if self.doubtful is not None:
            self.doubtful.sync()
            restart.doubtful_bytes = self.doubtful.length
        write_atomically(self.path / RESTART, restart.to_bytes())

    def read_restart(self) -> Restart:
        """The last state saved.

        Raises
        ------
        ValueError
            If there is none: the run was killed before its first step.
        """
        try:
            return Restart.read(self.path / RESTART)
        except FileNotFoundError:
            raise ValueError(
                f"{self.path} holds no {RESTART}: the run ended before its first step; "
                "delete the folder and start again"
            ) from None

    def write_frames(self, text: str) -> None:
        """Write the whole trajectory of a calculation that has no steps to resume."""
        write_atomically(self.path / TRAJECTORY, text.encode())

    def write_text(self, name: str, text: str) -> None:
        """Write one of the run's own files."""
        write_atomically(self.path / name, text.encode())

    def write_hessian(self, hessian: NDArray[np.float64]) -> None:
        """Write second derivatives (3N, 3N), eV/A^2, as hessian.npz."""
        buffer = io.BytesIO()
        np.savez(buffer, hessian=hessian)
        write_atomically(self.path / HESSIAN, buffer.getvalue())

    def read_hessian(self) -> NDArray[np.float64]:
        """The matrix that `write_hessian` wrote."""
        with np.load(self.path / HESSIAN, allow_pickle=False) as archive:
            return np.asarray(archive["hessian"])

    def write_results(self, content: dict[str, Any]) -> None:
        """Write results.json."""
        write_json(self.path / RESULTS, content)

    def read_results(self) -> dict[str, Any]:
        """The content of results.json.

        Raises
        ------
        ValueError
            If there is none, or it is damaged.
        """
        try:
            return read_json(self.path / RESULTS)
        except FileNotFoundError:
            raise ValueError(f"{self.path} holds no {RESULTS}: the run did not end") from None

    def read_log(self) -> dict[str, NDArray[np.float64]]:
        """The columns of log.csv."""
        table = read_table(self.path / LOG)
        return {name: np.array(column) for name, column in table.items()}


def locked(file: Path, wait: bool = False) -> BaseFileLock:
    """A lock on a file, held until it is released or this process ends.

    Parameters
    ----------
    file
        Created where it is missing; it stays.
    wait
        Whether to wait while another process holds the lock.

    Raises
    ------
    ValueError
        If another process holds it.
    OSError
        If the file cannot be written. Where the file system has no locks, nothing is locked.
    """
    lock = FileLock(file, timeout=-1 if wait else 0, thread_local=False)
    try:
        lock.acquire()
    except Timeout:
        raise ValueError(f"{file.parent} is in use: another process is running in it") from None
    except OSError as error:
        if error.errno not in NO_LOCKS:
            raise unwritable(file, error) from error
    return lock


def topology_suffix(source: Path) -> str:
    """``.pdb`` or ``.cif``, or nothing if the name says that the file is neither."""
    suffix = source.suffix.lower()
    return {".pdb": ".pdb", ".ent": ".pdb", ".cif": ".cif", ".mmcif": ".cif"}.get(suffix, "")


def refuse_existing(path: Path, remedy: str, begun: Collection[str] = BEGUN) -> None:
    """Raise a ValueError if there is something that a new run would overwrite.

    ``begun`` are files of a run that was killed before it wrote its config.
    """
    if path.exists() and not (path.is_dir() and _holds_only(path, begun)):
        raise ValueError(f"{path} exists already: {remedy}")


def _holds_only(path: Path, names: Collection[str]) -> bool:
    return {file.name for file in path.iterdir() if file.suffix != ".tmp"} <= set(names)
