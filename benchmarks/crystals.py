"""tensormd against matgl 4 on crystals, with a network of the size of MatPES-2025.2.

    python -m venv matgl4 && matgl4/bin/pip install "matgl[jax]==4.1.2"
    python benchmarks/crystals.py matgl4/bin/python [--json FILE]

Random weights, written by matgl and read by both programs: 89 elements, 64 channels, 2 layers.
Each program runs in its own interpreter, through its ASE calculator, on rattled MgO of 64, 512
and 4,096 atoms that move a little before every step; the programs take turns, and the table has
the median time of a step. It stops if the forces differ.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
from ase import Atoms
from ase.build import bulk

SIZES = (64, 512, 4096)
STEPS = {64: 20, 512: 5, 4096: 1}
"""Steps measured at a time."""
SPREAD = 0.003
"""How far atoms move before a step, Angstrom."""


def crystal(atoms: int) -> Atoms:
    """Rattled MgO of 8 n^3 atoms."""
    found = bulk("MgO", "rocksalt", a=4.21, cubic=True).repeat(round((atoms / 8) ** (1 / 3)))
    found.rattle(0.05, seed=0)
    return found


def timed(atoms: Atoms, steps: int) -> list[float]:
    """Milliseconds of each step: forces and stress after atoms have moved."""
    random, start, times = np.random.default_rng(1), atoms.positions.copy(), []
    for _ in range(steps):
        atoms.positions = start + SPREAD * random.normal(size=start.shape)
        began = time.perf_counter()
        atoms.get_forces()
        atoms.get_stress()
        times.append(1000 * (time.perf_counter() - began))
    atoms.positions = start
    return times


def serve(calculators: dict[str, Any]) -> None:
    """Answer requests, a line of JSON each: the mode, the number of atoms, the steps."""
    structures: dict[tuple[str, int], Atoms] = {}
    for line in sys.stdin:
        mode, size, steps = json.loads(line)
        if (mode, size) not in structures:
            atoms = structures[mode, size] = crystal(size)
            atoms.calc = calculators[mode]
        atoms = structures[mode, size]
        answer = {"ms": timed(atoms, steps), "forces": atoms.get_forces()[:20].tolist()}
        print(json.dumps(answer), flush=True)


def serve_matgl(folder: str, threads: int) -> None:
    """Write the model, then serve it by torch and by JAX. Runs in matgl's environment."""
    import matgl
    import torch
    from matgl.apps.pes import Potential
    from matgl.ext.ase import PESCalculator
    from matgl.ext.jax import JAXPESCalculator
    from matgl.models import TensorNet

    torch.set_num_threads(threads)
    torch.manual_seed(0)
    network = TensorNet(is_intensive=False, units=64, nblocks=2, num_rbf=32, cutoff=5.0)
    potential = Potential(network, data_std=1.0, element_refs=np.zeros(89))
    potential.save(Path(folder))
    potential.eval()
    units: dict[str, Any] = {"stress_unit": "eV/A3", "use_voigt": True}
    calculators = {
        "torch": PESCalculator(potential, **units),
        "jax": JAXPESCalculator(potential, **units),
    }
    print(json.dumps({"version": matgl.__version__, "torch": torch.__version__}), flush=True)
    serve(calculators)


def answers(process: subprocess.Popen[str]) -> Iterator[dict[str, Any]]:
    """The lines of JSON that a process prints; other lines are its own affair."""
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("{"):
            yield json.loads(line)
    raise SystemExit(f"matgl's process has ended with {process.wait()}")


def measure(python: str, rounds: int, threads: int) -> dict[str, Any]:
    """Medians by size and program."""
    import torch

    from tensormd.calculators import PotentialCalculator

    torch.set_num_threads(threads)
    times: dict[tuple[int, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [python, __file__, "--serve", folder, "--threads", str(threads)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "OMP_NUM_THREADS": str(threads)},
        )  # fmt: skip
        told = answers(process)
        peer = next(told)
        calculator = PotentialCalculator(folder)
        assert process.stdin is not None
        for size in SIZES:
            atoms = crystal(size)
            atoms.calc = calculator
            for turn in range(rounds + 1):
                found = timed(atoms, STEPS[size])
                if turn:  # the first one compiles
                    times.setdefault((size, "tensormd"), []).extend(found)
                forces = atoms.get_forces()[:20]
                for mode in ("torch", "jax"):
                    print(json.dumps([mode, size, STEPS[size]]), file=process.stdin, flush=True)
                    answer = next(told)
                    if turn:
                        times.setdefault((size, mode), []).extend(answer["ms"])
                    error = np.abs(np.array(answer["forces"]) - forces).max()
                    if error > 1e-3 * max(1.0, np.abs(forces).max()):
                        raise SystemExit(f"{size} atoms, {mode}: forces differ by {error} eV/A")
        process.stdin.close()
        process.wait()
    rows = [
        {"atoms": size}
        | {name: median(times[size, name]) for name in ("tensormd", "torch", "jax")}
        for size in SIZES
    ]
    return {"matgl": peer["version"], "torch": peer["torch"], "threads": threads, "rows": rows}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", nargs="?", help="the interpreter that has matgl")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    parser.add_argument("--serve", metavar="FOLDER", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.serve:
        return serve_matgl(arguments.serve, arguments.threads)
    if not arguments.python:
        parser.error("give the interpreter that has matgl")
    results = measure(arguments.python, arguments.rounds, arguments.threads)
    print(f"ms a step, {results['threads']} threads, matgl {results['matgl']}:")
    print(f"{'atoms':>8}{'tensormd':>10}{'torch':>10}{'jax':>10}   times faster than the faster")
    for row in results["rows"]:
        gain = min(row["torch"], row["jax"]) / row["tensormd"]
        print("{atoms:8}{tensormd:10.2f}{torch:10.1f}{jax:10.1f}".format(**row), f"  {gain:.1f}")
    if arguments.json:
        arguments.json.write_text(json.dumps(results, indent=1) + "\n")
    return None


if __name__ == "__main__":
    main()
