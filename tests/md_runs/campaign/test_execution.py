"""Campaigns on workers of dask: kills, schedulers that are not there or end, batch systems."""

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml
from ase.build import molecule
from ase.io import write
from support.md_runs import run
from support.paths import ROOT

from tensormd.md_runs.campaign.execution import LOOPBACK, Workers, _connect
from tensormd.md_runs.campaign.folder import Campaign, write_record
from tensormd.md_runs.campaign.results import read_records, status

pytest.importorskip("distributed", reason="dask.distributed runs campaigns")

SMALL = ("CH4", "H2O", "C2H2", "H2CO")


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    return importlib.import_module("campaign")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write("small.xyz", [molecule(name) for name in SMALL])
    return tmp_path


def plan(steps: int = 10) -> str:
    content = {
        "structures": {"files": "small.xyz"},
        "relax": {"fmax": 0.05},
        "md": {"steps": steps, "save_every": 0.1},
    }
    Path("plan.yaml").write_text(yaml.safe_dump(content))
    return "plan.yaml"


def test_kills_of_worker_and_scheduler(here: Path, benchmark: ModuleType) -> None:
    """Everything ends, nothing is done twice, and results equal single runs to the bit."""
    path = benchmark.write_plan(
        here / "plan.yaml",
        here / "small.xyz",
        picoseconds=0.1,
    )
    killed = benchmark.run_with_kills(path, here / "c", workers=1, kills=1)
    found = benchmark.check_once(here / "c", killed)
    assert (found["runs"], found["workers_killed"]) == (2 * len(SMALL), 2)
    assert 1 <= found["runs_interrupted"] <= 2  # a run may end just before the kill
    assert benchmark.compare_with_single_runs(here / "c", here / "single", 2) == 2
    campaign = Campaign.open(here / "c")
    attempts = status(campaign)["attempts"]
    assert run("campaign", path, "-o", here / "c") == 0
    assert status(campaign)["attempts"] == attempts

    # The controls: a finished run that was begun again, and a result with another last digit.
    name, record = next(iter(read_records(campaign).items()))
    write_record(campaign.path, name, replace(record, attempts=record.attempts * 2))
    with pytest.raises(AssertionError):
        benchmark.check_once(here / "c", killed)
    for log in (here / "c" / "runs").glob("*/md*/log.csv"):
        log.write_text(log.read_text().replace("1", "2", 1))
    with pytest.raises(AssertionError, match="differs"):
        benchmark.compare_with_single_runs(here / "c", here / "again", 1)


@contextmanager
def scheduler(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A dask scheduler with a worker, in processes of their own, and its file."""
    file = folder / "sched.json"
    parts = [
        ["scheduler", "--host", "127.0.0.1", "--port", "0", "--no-dashboard"],
        ["worker", "--nthreads", "1", "--no-dashboard"],
    ]
    processes = []
    try:
        for part in parts:
            command = [sys.executable, "-m", "dask", *part, "--scheduler-file", str(file)]
            processes.append(
                subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            )
            while not file.exists():
                time.sleep(0.05)
        yield processes[0]
    finally:
        for process in processes:
            process.kill()
            process.wait()


def test_a_scheduler_that_is_not_there_is_one_line_and_quick(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    began = time.monotonic()
    for address in ("tcp://127.0.0.1:9", "nowhere", "tcp://no.such.host.invalid:8786"):
        assert run("campaign", plan(), "-o", "c", "--scheduler", address) == 2
        lines = capsys.readouterr().err.strip().splitlines()
        assert f"--scheduler {address}: no scheduler answers" in lines[-1]
        assert "Traceback" not in "".join(lines)
        assert lines[:-1] == ["8 runs of 4 structures"]
    assert time.monotonic() - began < 40


def test_a_scheduler_that_runs_and_one_that_ends(here: Path, benchmark: ModuleType) -> None:
    """With a worker; when the scheduler is killed, the command ends and says what to do."""
    with scheduler(here) as process:
        command = [sys.executable, "-m", "tensormd", "campaign", plan(steps=20_000), "-o", "long"]
        long = subprocess.Popen(
            [*command, "--scheduler", "sched.json"], stderr=subprocess.PIPE, text=True
        )
        benchmark.wait_until(lambda: any(r.attempts for r in _records("long").values()), long)
        process.kill()
        _, errors = long.communicate(timeout=900)
    assert long.returncode == 1
    assert "the scheduler has ended: " in errors.splitlines()[-1]
    Path("sched.json").unlink()
    with scheduler(here):
        assert run("campaign", plan(), "-o", "c", "--scheduler", "sched.json") == 0
    pids = {record.attempts[0]["pid"] for record in _records("c").values()}
    assert os.getpid() not in pids
    assert {record.state for record in _records("c").values()} == {"done"}


def _records(folder: str) -> dict[str, Any]:
    try:
        return read_records(Campaign.open(folder))
    except ValueError:
        return {}


def test_ctrl_c_stops_and_the_rest_is_done_later(here: Path, benchmark: ModuleType) -> None:
    command = [sys.executable, "-m", "tensormd", "campaign", plan(steps=20_000), "-o", "c"]
    process = subprocess.Popen(
        [*command, "--workers", "1"], stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    benchmark.wait_until(
        lambda: any("md" in name and r.attempts for name, r in _records("c").items()), process
    )
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: workers get it too
    _, errors = process.communicate(timeout=900)
    assert process.returncode == 130, errors
    assert "the same command does the others" in errors.splitlines()[-1]
    assert "Traceback" not in errors
    assert "running" not in {record.state for record in _records("c").values()}


KILLS = """
import os
from tensormd.md_runs.campaign import work

def killed(task, relax=work.RUNS["relax"]):
    return os.kill(os.getpid(), 9) if task.task.structure == 0 else relax(task)

work.RUNS["relax"] = killed
"""


@pytest.mark.slow
def test_a_run_whose_worker_always_dies_is_lost_and_tried_again(here: Path) -> None:
    Path("kills.py").write_text(KILLS)
    preload = {"DASK_DISTRIBUTED__WORKER__PRELOAD": str(["kills.py"])}
    command = [sys.executable, "-m", "tensormd", "campaign", plan(), "-o", "c", "--workers", "1"]
    for extra, code, state in ((preload, 1, "lost"), ({}, 0, "done")):
        done = subprocess.run(
            [*command, "--retries", "1"],
            env={**os.environ, **extra},
            stderr=subprocess.PIPE,
            text=True,
            timeout=900,
        )
        assert done.returncode == code, done.stderr
        found = _records("c")
        assert found["1-small/relax"].state == state
        assert {r.state for n, r in found.items() if not n.startswith("1-")} == {"done"}
        if state == "lost":
            assert len(found["1-small/relax"].attempts) == 2
            assert "failed: 1-small/relax: its worker died 2 times" in done.stderr
            assert found["1-small/md-300K-seed0"].state == "blocked"


def test_workers_here_listen_to_this_machine_only(here: Path) -> None:
    import psutil

    me = psutil.Process()

    def listening() -> set[tuple[str, int]]:
        return {
            (connection.laddr.ip, connection.laddr.port)
            for process in (me, *me.children(recursive=True))
            for connection in process.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        }

    before = listening()  # other tests of this process use MPI
    with _connect(Workers(count=1), threads=1, retries=0) as client:
        assert client.submit(abs, -2).result() == 2
        assert {address for address, _ in listening() - before} == {LOOPBACK}
        assert list(client.nthreads().values()) == [1]


def test_as_many_workers_as_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    """As dask counts them, by affinity and cgroups; fewer if runs have several threads."""
    counts = []

    def local(count: int) -> None:
        counts.append(count)
        raise ValueError("enough")

    monkeypatch.setattr("tensormd.md_runs.campaign.execution._local", local)
    monkeypatch.setattr("dask.system.CPU_COUNT", 4)
    for threads in (1, 2, 8):
        with pytest.raises(ValueError, match="enough"), _connect(Workers(), threads, retries=0):
            pass
    assert counts == [4, 2, 1]


def test_dask_is_optional(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert run("campaign", plan(), "-o", "c") == 2
    assert "dask.distributed, which is not installed: pip install" in capsys.readouterr().err


@pytest.mark.slow
def test_batch_systems(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for sbatch, which runs the script of a job at once."""
    pytest.importorskip("dask_jobqueue", reason="dask-jobqueue starts jobs")
    bin_ = here / "bin"
    bin_.mkdir()
    for name, text in {
        "sbatch": 'cp "${!#}" "$JOBS/$$.sh"\nsetsid bash "$JOBS/$$.sh" > "$JOBS/$$.out" 2>&1 &\n'
        'echo "Submitted batch job $!"\n',
        "scancel": 'echo "$@" >> "$JOBS/cancelled"\nkill -- "-$1"\n',
    }.items():
        (bin_ / name).write_text(f"#!/bin/bash\n{text}")
        (bin_ / name).chmod(0o755)
    monkeypatch.setenv("JOBS", str(here))
    monkeypatch.setenv("PATH", f"{bin_}:{os.environ['PATH']}")
    (here / "dask").mkdir()
    options = {"cores": 1, "processes": 1, "memory": "4GB", "walltime": "00:10:00"}
    (here / "dask" / "jobqueue.yaml").write_text(yaml.safe_dump({"jobqueue": {"slurm": options}}))
    monkeypatch.setenv("DASK_CONFIG", str(here / "dask"))
    command = ["campaign", plan(), "-o", "c", "--batch", "slurm", "--workers", "1"]
    done = subprocess.run(
        [sys.executable, "-m", "tensormd", *command], capture_output=True, text=True, timeout=900
    )
    assert done.returncode == 0, done.stderr
    [script] = here.glob("*.sh")
    assert "#SBATCH -t 00:10:00" in script.read_text()
    assert {record.state for record in _records("c").values()} == {"done"}
    assert (here / "cancelled").exists()
