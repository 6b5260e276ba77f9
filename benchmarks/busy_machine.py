"""Steps on a machine that is busy with other work: ratios to an idle one.

    python benchmarks/busy_machine.py [--model organic] [--seconds 3] [--json FILE]

Run it on a quiet machine; it takes less than four minutes. It times

- steps of 24 and 166 atoms with one thread, two, and the number that the kernels choose, idle and
  beside two busy processes, and the part of a step that ASE and its adapter add;
- eight processes at once with one thread each, and with two;
- the start of a calculator with its first force, and of a second one, beside 0, 1 and 2 busy
  processes;
- torch's number of threads before and after.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from ase import Atoms

from tensormd.calculators import PotentialCalculator
from tensormd.calculators.evaluator import Evaluation
from tensormd.md_runs.benchmark.machine import describe_machine
from tensormd.models.graph import Graph

SIZES = (24, 166)
SETTINGS: tuple[int | None, ...] = (1, 2, None)
"""Threads of torch; None: torch's own number, below which the kernels choose."""
WARM_UP = 2.0
"""Time before the timed steps, in which the kernels choose, s."""
AT_ONCE = 8


def cluster(atoms: int) -> Atoms:
    """Atoms of H, C, N and O, as dense as in a molecule."""
    random = np.random.default_rng(0)
    side = int(np.ceil(atoms ** (1 / 3)))
    grid = np.stack(np.meshgrid(*[np.arange(side)] * 3), -1).reshape(-1, 3)[:atoms]
    positions = 1.9 * grid + random.uniform(-0.2, 0.2, (atoms, 3))
    return Atoms(random.choice([1, 6, 7, 8], atoms), positions)


def measure(model: str, atoms: int, threads: int | None, seconds: float) -> dict[str, Any]:
    """Mean time of a step through ASE with moving positions, and what it consists of, ms."""
    own = torch.get_num_threads()
    if threads is not None:
        torch.set_num_threads(threads)
    before = torch.get_num_threads()
    structure = cluster(atoms)
    calculator = PotentialCalculator(model, device="cpu", backend="fused")
    structure.calc = calculator
    evaluator = calculator.evaluator
    evaluate, evaluating = evaluator.evaluate, []

    def timed(graph: Graph) -> Evaluation:
        begin = time.perf_counter()
        found = evaluate(graph)
        evaluating.append(time.perf_counter() - begin)
        return found

    evaluator.evaluate = timed  # type: ignore[method-assign]
    start, random = structure.positions.copy(), np.random.default_rng(1)
    moves = random.normal(scale=0.01, size=(16, atoms, 3))

    def steps(duration: float) -> list[float]:
        times, end = [], time.perf_counter() + duration
        while (begin := time.perf_counter()) < end or len(times) < 5:
            structure.positions = start + moves[len(times) % 16]
            structure.get_forces()
            times.append(time.perf_counter() - begin)
        return times

    steps(WARM_UP)
    times = steps(seconds)
    beside = np.array(times) - evaluating[-len(times) :]
    after = torch.get_num_threads()
    torch.set_num_threads(own)
    return {
        "atoms": atoms,
        "threads": threads,
        "ms": 1e3 * statistics.fmean(times),
        "median_ms": 1e3 * statistics.median(times),
        "adapter_ms": 1e3 * float(np.median(beside)),
        "chosen": calculator.info()["threads"],
        "torch_threads": (before, after),
    }


def started(model: str) -> dict[str, float]:
    """Seconds from a new process's import to the first force, and of a second calculator."""
    code = (
        "import time; begin = time.perf_counter()\n"
        "import warnings; warnings.simplefilter('ignore')\n"
        "from ase.build import molecule\n"
        "from tensormd.calculators import PotentialCalculator\n"
        "for _ in range(2):\n"
        "    atoms = molecule('C6H6')\n"
        f"    atoms.calc = PotentialCalculator({model!r}, device='cpu')\n"
        "    atoms.get_forces()\n"
        "    print(time.perf_counter() - begin)\n"
        "    begin = time.perf_counter()\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, second = map(float, done.stdout.split())
    return {"first_s": first, "second_s": second}


def together(model: str, threads: int, seconds: float) -> list[float]:
    """Steps per second of each of eight processes that run 24 atoms at the same time."""
    command = [sys.executable, __file__, "--model", model, "--worker", str(threads)]
    command += ["--seconds", str(seconds)]
    environment = os.environ | {"OMP_NUM_THREADS": str(threads)}
    running = [
        subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) for _ in range(AT_ONCE)
    ]
    return [1e3 / json.loads(process.communicate()[0])["ms"] for process in running]


@contextlib.contextmanager
def busy(count: int) -> Iterator[None]:
    """Processes that do nothing but compute."""
    running = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for process in running:
            process.kill()
            process.wait()


def run(model: str, seconds: float) -> dict[str, Any]:
    """All measurements, printed as they come."""
    measure(model, SIZES[0], None, 0.1)  # kernels are compiled, or read
    result: dict[str, Any] = {
        "machine": describe_machine(torch.device("cpu"), torch.get_num_threads()),
        "steps": [],
        "starts": {},
    }
    print("atoms  threads      idle ms   busy ms  busy/idle  ASE ms  torch's threads  chosen")
    for atoms in SIZES:
        best: dict[str, float] = {}
        for threads in SETTINGS:
            idle = measure(model, atoms, threads, seconds)
            with busy(2):
                beside = measure(model, atoms, threads, seconds)
            result["steps"].append({"idle": idle, "busy": beside})
            print(
                f"{atoms:5}  {threads or 'default':>7}  {idle['ms']:11.3f}  {beside['ms']:8.3f}"
                f"  {beside['ms'] / idle['ms']:9.2f}  {idle['adapter_ms']:6.3f}"
                f"  {idle['torch_threads']!s:>15}  idle {idle['chosen']}; busy {beside['chosen']}"
            )
            for name, found in (("idle", idle), ("busy", beside)):
                if threads is not None:
                    best[name] = min(best.get(name, np.inf), found["ms"])
                else:
                    print(f"{'':5}  default / best fixed number, {name}: "
                          f"{found['ms'] / best[name]:.2f}")  # fmt: skip
    rates = {threads: together(model, threads, seconds) for threads in (1, 2)}
    result["together"] = {str(threads): found for threads, found in rates.items()}
    ratio = sum(rates[2]) / sum(rates[1])
    print(f"{AT_ONCE} processes: {sum(rates[1]):.0f} steps/s with one thread each, "
          f"{sum(rates[2]):.0f} with two ({ratio:.2f} times as many)")  # fmt: skip
    for count in (0, 1, 2):
        with busy(count):
            found = started(model)
        result["starts"][str(count)] = found
        idle_start = result["starts"]["0"]
        print(
            f"beside {count} busy: first force after {found['first_s']:.2f} s "
            f"({found['first_s'] / idle_start['first_s']:.2f} times idle), of a second calculator "
            f"{found['second_s']:.3f} s ({found['second_s'] / idle_start['second_s']:.2f})"
        )
    return result


def main() -> None:
    """Run the benchmark, or one of its eight processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="organic")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timed steps, each case")
    parser.add_argument("--json", help="file for the results")
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.worker is not None:
        found = measure(arguments.model, SIZES[0], arguments.worker, arguments.seconds)
        print(json.dumps(found))
        return
    result = run(arguments.model, arguments.seconds)
    if arguments.json:
        with open(arguments.json, "w") as file:
            json.dump(result, file, indent=1)


if __name__ == "__main__":
    main()
