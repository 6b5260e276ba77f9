"""One program, one structure, in a process of its own: memory, speed, results, or the reason.

    python -m tensormd.md_runs.benchmark.worker FOLDER

A peak of memory is meaningful only if nothing else ran before, and a program that crashes or runs
out of memory must not take the other one with it.
"""

from __future__ import annotations

import contextlib
import ctypes
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms

from .programs import Contestant, Program, make_program
from .systems import Array, Motion

MIB = 2**20
EVALUATIONS = 3
"""Evaluations during which the peak of memory is measured."""
SECONDS = 1.0
"""Approximate time of the first measurement of a program's speed, s."""
SHARE = 0.85
"""Share of the free memory that a process may take."""


@dataclasses.dataclass(frozen=True)
class Trial:
    """Results of a program in a process of its own."""

    seconds: float
    """Time of one step, a first estimate."""
    memory_mib: float | None
    """Peak above the start; None where the system does not tell."""
    energy: float
    """eV, at the structure given."""
    forces: Array
    """(N, 3), eV/Angstrom."""


class TrialError(RuntimeError):
    """A program failed; the message gives the reason in one line."""


def run_trial(contestant: Contestant, atoms: Atoms, threads: int, limit: float) -> Trial:
    """Try a program in a fresh process.

    Parameters
    ----------
    contestant, atoms
        The program and the structure.
    threads
        CPU threads.
    limit
        Time limit, s.

    Raises
    ------
    TrialError
        If it failed, crashed or took too long.
    """
    with tempfile.TemporaryDirectory(prefix="tensormd-benchmark-") as name:
        folder = Path(name)
        np.savez(
            folder / "structure.npz",
            numbers=atoms.numbers,
            positions=atoms.positions,
            cell=atoms.cell.array,
            pbc=atoms.pbc,
        )
        request = {"contestant": dataclasses.asdict(contestant), "threads": threads}
        (folder / "request.json").write_text(json.dumps(request))
        command = [sys.executable, "-m", __name__, str(folder)]
        try:
            done = subprocess.run(
                command,
                env=os.environ | thread_variables(threads),
                capture_output=True,
                text=True,
                errors="replace",
                timeout=limit,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise TrialError(f"no answer within {limit:g} s") from None
        answer = folder / "answer.json"
        if not answer.exists():
            last = [line for line in done.stderr.splitlines() if line.strip()][-1:]
            raise TrialError(f"its process ended with code {done.returncode}: {''.join(last)}")
        found = json.loads(answer.read_text())
        if "failed" in found:
            raise TrialError(found["failed"])
        return Trial(**found, forces=np.load(folder / "forces.npy"))


def thread_variables(threads: int) -> dict[str, str]:
    """Environment variables that the libraries read when they are loaded."""
    return {"OMP_NUM_THREADS": str(threads)}


def try_out(contestant: Contestant, atoms: Atoms) -> tuple[dict[str, Any], Array]:
    """Evaluate in this process: what `Trial` holds, as plain data, and the forces.

    The start is after a fragment of three atoms was evaluated: libraries, weights and compiled
    code are there (with the mode ``compile``, which compiles for a structure, they are not).
    """
    device = torch.device(contestant.device)
    program = make_program(contestant, atoms)
    if contestant.mode != "compile":
        away = np.linalg.norm(atoms.positions - atoms.positions[0], axis=1)
        near = np.argsort(away, kind="stable")[:3]
        fragment = Atoms(atoms.numbers[near], atoms.positions[near])
        program.load(fragment)
        for _ in range(EVALUATIONS):
            program.step(fragment.get_positions())
    with limited_memory(device), Peak(device) as peak:
        program.load(atoms)
        motion = Motion(atoms)
        for _ in range(EVALUATIONS):
            program.step(motion.next())
        synchronize(device)
        memory = peak.mib()
        seconds = first_judgement(program, motion, device)
        program.step(atoms.get_positions())
        energy, forces = program.results()
    return {"seconds": seconds, "memory_mib": memory, "energy": energy}, forces


def first_judgement(program: Program, motion: Motion, device: torch.device) -> float:
    """Median seconds of a step."""
    times: list[float] = []
    while len(times) < 2 or (sum(times) < SECONDS and len(times) < 20):
        began = time.perf_counter()
        program.step(motion.next())
        synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has done what it was told."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Peak:
    """Growth of the memory in use: resident (Linux), or a GPU's as torch counts it."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def __enter__(self) -> Peak:
        if self.device.type == "cuda":
            synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self.start: int | None = torch.cuda.memory_allocated(self.device)
            return self
        try:
            ctypes.CDLL("libc.so.6").malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # forgets the peak so far
            self.start = _status("VmRSS")
        except OSError:
            self.start = None
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def mib(self) -> float | None:
        """Peak above the start, MiB."""
        if self.start is None:
            return None
        if self.device.type == "cuda":
            return (torch.cuda.max_memory_allocated(self.device) - self.start) / MIB
        return (_status("VmHWM") - self.start) / MIB


@contextlib.contextmanager
def limited_memory(device: torch.device) -> Iterator[None]:
    """Have allocations beyond the free memory fail, rather than the machine."""
    try:
        import resource

        free = 1024 * _proc(Path("/proc/meminfo"), "MemAvailable")
        before = resource.getrlimit(resource.RLIMIT_AS)
        limit = _status("VmSize") + int(SHARE * free)
    except (ImportError, OSError):
        yield
        return
    if device.type != "cpu":  # CUDA maps far more addresses than it uses
        yield
        return
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def _status(field: str) -> int:
    return 1024 * _proc(Path("/proc/self/status"), field)


def _proc(file: Path, field: str) -> int:
    for line in file.read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1])
    raise OSError(f"{file} has no {field}")


def main(folder: Path) -> None:
    """Read the request in a folder and leave an answer there."""
    request = json.loads((folder / "request.json").read_text())
    torch.set_num_threads(request["threads"])
    told = request["contestant"]
    told["units"] = tuple(told["units"]) if told["units"] else None
    with np.load(folder / "structure.npz") as content:
        atoms = Atoms(**{name: content[name] for name in content.files})
    try:
        answer, forces = try_out(Contestant(**told), atoms)
        np.save(folder / "forces.npy", forces)
    except Exception as error:  # whatever it is, it is the result
        answer = {"failed": one_line(error)}
    (folder / "answer.json").write_text(json.dumps(answer))


def one_line(error: BaseException) -> str:
    """The part of a message that says most."""
    text = str(error).strip()
    signs = ("can't allocate memory", "bad_alloc")
    if isinstance(error, MemoryError) or any(sign in text for sign in signs):
        return "not enough memory"
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    # TorchScript puts the reason last, the others first.
    line = lines[-1] if lines and "TorchScript" in lines[0] else (lines or [""])[0]
    return f"{type(error).__name__}: {line}"[:300]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
