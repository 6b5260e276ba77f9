"""Atomic writes, growing files and run folders, also on a full disk."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from support.md_runs import Springs, ethanol

from tensormd.md_runs.md.loop import resume_md, start_md
from tensormd.md_runs.runs import files
from tensormd.md_runs.runs.files import AppendOnly, Table, read_table
from tensormd.md_runs.runs.folder import Restart, RunFolder
from tensormd.md_runs.runs.settings import MDSettings
from tensormd.models import files as whole_files
from tensormd.models.files import write_atomically


def full_disk(monkeypatch: pytest.MonkeyPatch, room: int = 0) -> None:
    """Writes of more than ``room`` bytes end as on a full disk: part is there, then ENOSPC."""

    def write(stream, data: bytes) -> None:
        stream.write(data[:room])
        if len(data) > room:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for module in (files, whole_files):
        monkeypatch.setattr(module, "write_all", write)


def test_atomic_write_replaces_and_leaves_nothing_behind(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]
    assert path.stat().st_mode & 0o777 == 0o666 & ~whole_files._umask()


def test_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "file"
    write_atomically(path, b"old")
    full_disk(monkeypatch, room=2)
    with pytest.raises(OSError, match=r"cannot write .*file: No space left on device; free some"):
        write_atomically(path, b"newer and longer")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root writes anywhere")
def test_unwritable_folder(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        write_atomically(tmp_path / "file", b"x")
    tmp_path.chmod(0o700)


def test_missing_folder(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write .*: No such file or directory"):
        write_atomically(tmp_path / "none" / "file", b"x")
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match="cannot write"):
        RunFolder.create(tmp_path / "file" / "run")


def test_append_only_is_cut_back(tmp_path: Path) -> None:
    stream = AppendOnly(tmp_path / "log")
    stream.append("one\n")
    length = stream.length
    stream.append("two\n")
    stream.close()
    again = AppendOnly(tmp_path / "log", length)
    again.append("drei\n")
    again.close()
    assert (tmp_path / "log").read_text() == "one\ndrei\n"
    with pytest.raises(ValueError, match="is shorter than the restart says"):
        AppendOnly(tmp_path / "log", 1000)


def test_table_keeps_every_digit(tmp_path: Path) -> None:
    table = Table(tmp_path / "log.csv", ["step", "energy"])
    values = [1 / 3, 1e-300, -np.pi * 1e9]
    for step, value in enumerate(values):
        table.add({"step": step, "energy": value})
    table.close()
    assert read_table(tmp_path / "log.csv") == {"step": [0.0, 1.0, 2.0], "energy": values}


def test_table_whose_last_line_was_cut(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,energy\n0,1.5\n1,2.")
    assert read_table(tmp_path / "log.csv") == {"step": [0.0], "energy": [1.5]}
    (tmp_path / "log.csv").write_text("step,energy\n0,1.5,9\n")
    with pytest.raises(ValueError, match="is not a table"):
        read_table(tmp_path / "log.csv")


def test_restart_keeps_every_bit(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    rng.normal(size=7)
    arrays = {"positions": rng.normal(size=(5, 3)) * 1e5, "cell": rng.normal(size=(3, 3)) * 1e-9}
    restart = Restart(arrays, {"rng": rng.bit_generator.state, "step": 3}, 17, 2**40)
    (tmp_path / "r.npz").write_bytes(restart.to_bytes())
    back = Restart.read(tmp_path / "r.npz")
    assert back.state == restart.state
    assert (back.log_bytes, back.trajectory_bytes) == (17, 2**40)
    for name in arrays:
        np.testing.assert_array_equal(back.arrays[name], arrays[name])


def test_restart_never_unpickles(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "boom"),)

    np.savez(tmp_path / "r.npz", note=np.array(Bomb(), dtype=object))
    with pytest.raises(ValueError, match="is not the restart of a run"):
        Restart.read(tmp_path / "r.npz")
    assert not (tmp_path / "boom").exists()


def test_folder_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    RunFolder.create(tmp_path / "run").close()  # empty: fine
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"exists already: .*-o"):
        RunFolder.create(tmp_path / "run")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ValueError, match="exists already"):
        RunFolder.create(tmp_path / "file")


def test_discard_takes_only_its_own(tmp_path: Path) -> None:
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    start_md(atoms, MDSettings(steps=3), tmp_path / "run")
    (tmp_path / "run" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"also holds notes\.txt"):
        RunFolder.discard(tmp_path / "run")
    (tmp_path / "run" / "notes.txt").unlink()
    RunFolder.discard(tmp_path / "run")
    assert not (tmp_path / "run").exists()
    RunFolder.discard(tmp_path / "run")  # nothing there: nothing to do
    (tmp_path / "other").mkdir()
    with pytest.raises(ValueError, match="is not a run folder"):
        RunFolder.discard(tmp_path / "other")


@pytest.mark.parametrize("room", [0, 700, 2000])
def test_disk_full_in_a_run_leaves_it_resumable(
    room: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The disk fills before a frame (0), within it (700), or while the restart is written."""
    whole, cut = ethanol(), ethanol()
    settings = MDSettings(ensemble="nvt", steps=40, seed=3)
    whole.calc, cut.calc = Springs(whole.positions), Springs(cut.positions)
    start_md(whole, settings, tmp_path / "whole")

    def fill(step: int, row: object) -> None:
        if step == 25:
            full_disk(monkeypatch, room)

    with pytest.raises(
        OSError, match=r"No space left.*keeps step \d+; then resume with: tensormd"
    ):
        start_md(cut, settings, tmp_path / "cut", observer=fill, save_every=0)
    monkeypatch.undo()
    resume_md(RunFolder.open(tmp_path / "cut"), Springs(ethanol().positions))
    for file in ("log.csv", "trajectory.extxyz"):
        assert (tmp_path / "cut" / file).read_bytes() == (tmp_path / "whole" / file).read_bytes()
    one, two = (RunFolder.open(tmp_path / n).read_restart() for n in ("whole", "cut"))
    np.testing.assert_array_equal(one.arrays["positions"], two.arrays["positions"])


HOLDER = """
import sys, time
from pathlib import Path
from tensormd.md_runs.runs.folder import RunFolder
folder = RunFolder(Path(sys.argv[1]))
folder.lock()
print("locked", flush=True)
time.sleep(600)
"""


def test_a_lock_keeps_processes_out_and_ends_with_its_own(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as holder:
        try:
            assert holder.stdout is not None
            assert holder.stdout.readline() == "locked\n"
            with pytest.raises(ValueError, match=r"is in use: another process is running in it$"):
                RunFolder(tmp_path).lock()
        finally:
            holder.kill()
    with RunFolder(tmp_path) as folder:
        folder.lock()
        with pytest.raises(ValueError, match="is in use"):
            RunFolder(tmp_path).lock()
    RunFolder(tmp_path).lock()


@pytest.mark.skipif(sys.platform == "win32", reason="flock is Unix's")
def test_a_file_system_without_locks_runs_unprotected(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr("fcntl.flock", refuse)
    with RunFolder(tmp_path) as folder:
        folder.lock()
