"""Many small molecules on a CPU: what several threads gain, in evaluation and in relaxation.

    python benchmarks/batches.py [--molecules 200] [--threads N] [--rounds 5]

evaluates molecules with `organic` one at a time and with ``calc.evaluate``, and relaxes them with
``tensormd relax``'s function, with one thread and with all. The rounds take turns; it prints the
shortest times and their ratios, and stops if a result differs in a bit.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms
from ase.build import molecule
from ase.io import read, write

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.md.relax import relax_files
from tensormd.md_runs.runs.settings import ModelSettings, RelaxSettings

MODEL = "organic"
NAMES = ("CH3CH2OH", "C6H6", "CH3NO2", "C4H4S", "CH3CH2NH2", "CH3COOH", "C5H5N", "isobutane")


def molecules(count: int) -> list[Atoms]:
    """Distorted molecules of 7 to 14 atoms."""
    frames = []
    for k in range(count):
        atoms = molecule(NAMES[k % len(NAMES)])
        atoms.rattle(0.03, seed=k)
        frames.append(atoms)
    return frames


def one_at_a_time(calculator: PotentialCalculator, frames: list[Atoms]) -> list[dict[str, Any]]:
    """Energies and forces as an ASE script asks for them."""
    found = []
    for atoms in frames:
        atoms.calc = calculator
        found.append({"energy": atoms.get_potential_energy(), "forces": atoms.get_forces()})
    return found


def relaxed(source: Path) -> list[dict[str, Any]]:
    """Relax all molecules of a file."""
    with tempfile.TemporaryDirectory() as folder:
        results = relax_files(
            [str(source)], ModelSettings((MODEL,)), RelaxSettings(), Path(folder) / "out"
        )
        return [
            {"energy": r.energy_ev, "forces": read(r.output).get_forces()} for r in results
        ]  # fmt: skip


def check_same(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    """Exit if energies or forces differ in a bit."""
    for k, (a, b) in enumerate(zip(ours, theirs, strict=True)):
        if a["energy"] != b["energy"] or not np.array_equal(a["forces"], b["forces"]):
            raise SystemExit(f"molecule {k} differs: {a['energy']} and {b['energy']} eV")


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--molecules", type=int, default=200)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    frames, threads = molecules(arguments.molecules), arguments.threads
    calculator = PotentialCalculator(MODEL)
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "molecules.extxyz"
        write(source, frames)
        cases: dict[str, tuple[int, Callable[[], list[dict[str, Any]]]]] = {
            "one at a time": (1, lambda: one_at_a_time(calculator, frames)),
            "evaluate": (1, lambda: calculator.evaluate(frames)),
            "evaluate, all threads": (threads, lambda: calculator.evaluate(frames)),
            "relax": (1, lambda: relaxed(source)),
            "relax, all threads": (threads, lambda: relaxed(source)),
        }
        times: dict[str, list[float]] = {name: [] for name in cases}
        results: dict[str, list[dict[str, Any]]] = {}
        for _ in range(arguments.rounds + 1):
            for name, (number, run) in cases.items():
                torch.set_num_threads(number)
                start = time.perf_counter()
                results[name] = run()
                times[name].append(time.perf_counter() - start)
    check_same(results["one at a time"], results["evaluate"])
    check_same(results["one at a time"], results["evaluate, all threads"])
    check_same(results["relax"], results["relax, all threads"])
    best = {name: min(each[1:]) for name, each in times.items()}  # the first round compiles
    print(f"{len(frames)} molecules, {threads} of {os.cpu_count()} cores, seconds:")
    for name, seconds in best.items():
        print(f"  {name:24}{seconds:8.3f}")
    for name in ("evaluate", "relax"):
        gain = best[name] / best[f"{name}, all threads"]
        print(f"{name}: {gain:.2f} times as fast with {threads} threads as with one")
    gain = best["one at a time"] / best["evaluate"]
    print(f"evaluate: {gain:.2f} times as fast as one at a time, with one thread")


if __name__ == "__main__":
    main()
