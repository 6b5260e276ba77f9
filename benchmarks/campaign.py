"""Campaigns under kills, and their throughput with one and two workers.

    python benchmarks/campaign.py kills --smiles molecules.csv --molecules 300 --work DIR
    python benchmarks/campaign.py throughput --smiles molecules.csv --molecules 60 --work DIR

``kills`` relaxes the molecules and runs 1 ps of molecular dynamics of each on two workers of this
machine. Meanwhile it kills a worker three times and the scheduler once, all with SIGKILL, starts
the campaign again, and then checks that every run has ended once, that nothing was done twice, and
that the results equal those of single runs to the last bit.

``throughput`` runs a campaign in turn with one worker and with two, which needs two free cores,
and prints how many times as many runs two of them do in the same time.

``molecules.csv`` has a column ``smiles``. The first molecules are taken that the potential which
ships is for.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import yaml
from ase import Atoms
from ase.io import write

from tensormd.calculators.domain import DEFAULT, why_not
from tensormd.md_runs.campaign.folder import DONE, RUNNING, RUNS, STRUCTURES, Campaign
from tensormd.md_runs.campaign.plan import StructuresSection
from tensormd.md_runs.campaign.results import read_records, status
from tensormd.md_runs.campaign.structures import read_given
from tensormd.md_runs.md.launch import launch_md
from tensormd.md_runs.md.relax import relax_files
from tensormd.md_runs.runs.folder import LOG, RELAXED, TRAJECTORY, RunFolder
from tensormd.md_runs.runs.settings import RelaxSettings, md_settings

SECONDS = 3600


def write_molecules(path: Path, smiles: Path, count: int) -> Path:
    """The first molecules of a file of SMILES that the model that ships is for."""
    found = []
    for given in read_given(StructuresSection(smiles=str(smiles), limit=2 * count)):
        if isinstance(given.structure, Atoms) and why_not(given.structure, 0) is None:
            found.append(given.structure)
        if len(found) == count:
            break
    write(path, found, format="traj")
    return path


def write_plan(path: Path, file: Path, picoseconds: float, **model: Any) -> Path:
    """A plan that relaxes the structures of a file, then runs each at 300 K."""
    content = {
        "structures": {"files": str(file)},
        "model": model,
        "relax": {"fmax": 0.02},
        "md": {
            "ensemble": "nvt",
            "thermostat": "bussi",
            "temperatures": [300],
            "seeds": [1],
            "steps": round(picoseconds / 0.0005),
            "save_every": 0.5,
        },
    }
    path.write_text(yaml.safe_dump(content))
    return path


def started(plan: Path, out: Path, workers: int) -> subprocess.Popen[bytes]:
    """The command, in a process of its own."""
    command = ["campaign", str(plan), "-o", str(out), "--workers", str(workers)]
    return subprocess.Popen([sys.executable, "-m", "tensormd", *command], cwd=out.parent)


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[Any] | None) -> None:
    """Return once something holds; a process that should run meanwhile must not end."""
    end = time.monotonic() + SECONDS
    while not condition():
        if process is not None and process.poll() is not None:
            raise RuntimeError(f"the campaign ended too early, with {process.returncode}")
        if time.monotonic() > end:
            raise RuntimeError(f"nothing happened in {SECONDS} s")
        time.sleep(0.02)


def records(out: Path) -> dict[str, dict[str, Any]]:
    """All records that there are, by the names of their runs."""
    folder = out / RUNS
    return {
        str(file.relative_to(folder).with_suffix("")): json.loads(file.read_text())
        for file in folder.glob("*/*.json")
    }


def run_with_kills(plan: Path, out: Path, workers: int, kills: int) -> list[int]:
    """Run a campaign to its end, killing workers and once the scheduler on the way.

    Returns
    -------
    The processes of workers that were killed, or ended when the scheduler was killed.
    """
    killed: list[int] = []

    def ended() -> int:
        return sum(record["state"] == DONE for record in records(out).values())

    def at_work() -> list[int]:
        """Processes that have a run now."""
        found = [r["attempts"][-1]["pid"] for r in records(out).values() if r["state"] == RUNNING]
        return [pid for pid in found if pid not in killed and alive(pid)]

    def wait_for_progress() -> None:
        before = ended()
        wait_until(lambda: ended() > before and bool(at_work()), process)

    process = started(plan, out, workers)
    try:
        for _ in range(kills):
            wait_for_progress()
            killed.append(at_work()[0])
            os.kill(killed[-1], signal.SIGKILL)
        wait_for_progress()
        everyone = {a["pid"] for record in records(out).values() for a in record["attempts"]}
        left = [pid for pid in everyone if alive(pid)]
    finally:
        process.kill()  # the scheduler is in this process
        process.wait()
    wait_until(lambda: not any(map(alive, left)), None)  # they end by themselves
    again = started(plan, out, workers)
    if again.wait(SECONDS) != 0:
        raise RuntimeError(f"the campaign ended with {again.returncode}")
    return killed + [pid for pid in left if pid not in killed]


def alive(pid: int) -> bool:
    """Whether a process runs; one that is only not waited for does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def check_once(out: Path, killed: list[int]) -> dict[str, int]:
    """Check that every run has ended, and that only runs that a kill interrupted were begun again.

    Raises
    ------
    AssertionError
        If a run is not done, was begun again for another reason, or repeats a step in its files.
    """
    campaign = Campaign.open(out)
    found = read_records(campaign)
    assert len(found) == len(campaign.tasks) > 0
    interrupted: list[int] = []
    for name, record in found.items():
        assert record.state == DONE, (name, record)
        interrupted += [attempt["pid"] for attempt in record.attempts[:-1]]
        log = RunFolder.open(campaign.run_folder(campaign.tasks[name])).read_log()
        steps = log["step"].tolist()
        assert steps == sorted(set(steps)), name
    # A kill interrupts one run of a worker: any further repetition would be one of a finished run.
    assert set(interrupted) <= set(killed), (interrupted, killed)
    assert len(set(interrupted)) == len(interrupted), interrupted
    return {
        "runs": len(found),
        "workers_killed": len(killed),
        "runs_interrupted": len(interrupted),
    }


def compare_with_single_runs(out: Path, work: Path, most: int) -> int:
    """Repeat runs by themselves, those that were interrupted first, and compare all bits.

    Returns
    -------
    Number of molecules compared.

    Raises
    ------
    AssertionError
        If a log, a trajectory or a structure differs.
    """
    campaign = Campaign.open(out)
    found = read_records(campaign)
    runs = [task for task in campaign.tasks.values() if task.kind == "md"]
    runs.sort(
        key=lambda task: -len(found[task.name].attempts) - len(found[str(task.after)].attempts)
    )
    for task in runs[:most]:
        single = work / str(task.structure)
        relaxation = campaign.tasks[str(task.after)]
        source = f"{campaign.path / STRUCTURES}@{task.structure}"
        relax_files(
            [source], campaign.model, RelaxSettings(**relaxation.settings), single / "relax"
        )
        launch_md(
            str(single / "relax" / RELAXED),
            campaign.model,
            md_settings(task.settings),
            single / "md",
        )
        for name, files in (("relax", (RELAXED, LOG, TRAJECTORY)), ("md", (LOG, TRAJECTORY))):
            folder = campaign.run_folder(relaxation if name == "relax" else task)
            for file in files:
                alike = (single / name / file).read_bytes() == (folder / file).read_bytes()
                assert alike, f"{folder / file} differs from that of a single run"
        ends = [RunFolder.open(f).read_restart() for f in (single / "md", folder)]
        for array, other in zip(ends[0].arrays.values(), ends[1].arrays.values(), strict=True):
            assert array.tobytes() == other.tobytes(), task.name
    return len(runs[:most])


def measure(plan: Path, out: Path, workers: int) -> dict[str, float]:
    """Times of a whole campaign, s: with the start of its workers, and from its first run on."""
    began = time.monotonic()
    code = started(plan, out, workers).wait(SECONDS)
    whole = time.monotonic() - began
    if code != 0:
        raise RuntimeError(f"the campaign ended with {code}")
    found = records(out).values()
    first = min(datetime.fromisoformat(r["attempts"][0]["began"]).timestamp() for r in found)
    last = max(file.stat().st_mtime for file in (out / RUNS).glob("*/*.json"))
    return {"whole_s": whole, "runs_s": last - first}


def throughput(plan: Path, work: Path, rounds: int) -> dict[str, Any]:
    """One worker and two, in turn."""
    times: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    for k in range(rounds):
        for workers in (1, 2) if k % 2 == 0 else (2, 1):
            found = measure(plan, work / f"round{k}-{workers}", workers)
            print(f"round {k + 1}, {workers} worker(s): {found}", flush=True)
            times[workers].append(found)
    ratios = {
        key: statistics.median(
            one[key] / two[key] for one, two in zip(times[1], times[2], strict=True)
        )
        for key in ("whole_s", "runs_s")
    }
    return {"cores": len(os.sched_getaffinity(0)), "times": times, "speedup": ratios}


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("what", choices=["kills", "throughput"])
    parser.add_argument("--smiles", type=Path, required=True, help="CSV file with a column smiles")
    parser.add_argument("--molecules", type=int, default=300)
    parser.add_argument("--picoseconds", type=float, default=1.0)
    parser.add_argument("--work", type=Path, required=True, help="a new folder")
    parser.add_argument("--compare", type=int, default=300, help="molecules run by themselves")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    work: Path = arguments.work.resolve()
    work.mkdir(parents=True)
    molecules = write_molecules(work / "molecules.traj", arguments.smiles, arguments.molecules)
    # Named, so that a relaxed molecule is not refused which the given one was not.
    plan = write_plan(work / "plan.yaml", molecules, arguments.picoseconds, checkpoint=DEFAULT)
    if arguments.what == "throughput":
        print(json.dumps(throughput(plan, work, arguments.rounds), indent=2))
        return
    out = work / "campaign"
    began = time.monotonic()
    killed = run_with_kills(plan, out, workers=2, kills=3)
    seconds = time.monotonic() - began
    found = check_once(out, killed)
    attempts = status(Campaign.open(out))["attempts"]
    if started(plan, out, workers=2).wait(SECONDS) != 0:
        raise RuntimeError("a finished campaign does not end well")
    assert status(Campaign.open(out))["attempts"] == attempts, "a finished run was begun again"
    equal = compare_with_single_runs(out, work / "single", arguments.compare)
    print(json.dumps({**found, "seconds": seconds, "equal_to_single_runs": equal}, indent=2))


if __name__ == "__main__":
    main()
