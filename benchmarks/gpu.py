"""All that a machine with a GPU has to show, within ten minutes: `make gpu`.

    python benchmarks/gpu.py [--device cuda] [--picoseconds 20] [--sizes 648,2187,30000]
                             [--json FILE]

1. Fused kernels compared with the network itself, as at their first use.
2. The tests of the CUDA kernels, and of the Triton kernels in Triton's interpreter.
3. Energy of alanine dipeptide (``organic``) in dynamics without a thermostat: its drift.
4. Time of a step beside torchmd-net in its best mode, and of large boxes, atoms a second.
5. Share of a step that is outside of kernels (CUDA alone).

It works from the source tree, without a network. Every part that fails is told and counted; where
there is no CUDA device, parts 3 to 5 are left out, unless ``--device cpu`` asks for them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution
from ase.md.verlet import VelocityVerlet

from tensormd.calculators import TensorNetCalculator
from tensormd.md_runs.benchmark.machine import describe_machine
from tensormd.md_runs.benchmark.report import markdown
from tensormd.md_runs.benchmark.rounds import BenchmarkSettings, run_benchmark
from tensormd.md_runs.benchmark.systems import BUILT_IN, collect_systems
from tensormd.md_runs.command.doctor import check_kernels
from tensormd.models.files import write_atomically

ROOT = Path(__file__).resolve().parent.parent
KERNELS = "tests/models/inference/kernels"
TIMESTEP = 0.5  # fs
PROFILED = 50  # steps


def self_check(device: str) -> dict[str, Any]:
    """Fused kernels against the network itself."""
    check = check_kernels(device)
    if not check.works:
        raise RuntimeError(check.detail)
    return {"detail": check.detail}


def tests() -> dict[str, Any]:
    """The tests of the kernels, in a process of their own."""
    files = [f"{KERNELS}/test_kernels_cuda.py", f"{KERNELS}/test_kernels_triton.py"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", *files],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0:
        raise RuntimeError("\n".join(lines[-30:]) or done.stderr)
    return {"summary": lines[-1]}


def drift(device: str, picoseconds: float) -> dict[str, Any]:
    """Drift of the total energy in dynamics at constant energy, meV/atom/ps."""
    atoms = built_in(BUILT_IN[0])
    atoms.calc = TensorNetCalculator("organic", device=device, backend="fused")
    MaxwellBoltzmannDistribution(atoms, temperature_K=600, rng=np.random.default_rng(0))
    dynamics = VelocityVerlet(atoms, TIMESTEP * units.fs)
    energies: list[float] = []
    every = 20
    dynamics.attach(lambda: energies.append(atoms.get_total_energy()), interval=every)
    began = time.perf_counter()
    dynamics.run(int(picoseconds * 1000 / TIMESTEP))
    seconds = time.perf_counter() - began
    times = np.arange(len(energies)) * every * TIMESTEP / 1000
    slope = float(np.polyfit(times, energies, 1)[0]) * 1000 / len(atoms)
    return {
        "atoms": len(atoms),
        "picoseconds": picoseconds,
        "drift_mev_per_atom_per_ps": slope,
        "fluctuation_mev_per_atom": float(np.std(energies)) * 1000 / len(atoms),
        "ms_per_step": 1000 * seconds / max(dynamics.nsteps, 1),
        "engine": atoms.calc.info()["engine"],
    }


def speed(device: str, sizes: tuple[int, ...]) -> dict[str, Any]:
    """Time a step, beside torchmd-net's best mode."""
    settings = BenchmarkSettings(
        sizes=sizes, device=device, backend="fused", rounds=3, limit=120.0
    )
    results = run_benchmark(settings, lambda line: print(f"  {line}", flush=True))
    for system in results["systems"]:
        if "failed" not in system:
            system["atom_steps_per_second"] = 1000 * system["atoms"] / system["tensormd"]["ms"]
    return results


def outside_kernels() -> dict[str, Any]:
    """Share of a step in which no kernel runs, by the profiler."""
    found = {}
    for name in BUILT_IN:
        atoms = built_in(name)
        atoms.calc = TensorNetCalculator("organic", device="cuda", backend="fused")
        random = np.random.default_rng(0)

        def step(atoms: Atoms = atoms, random: np.random.Generator = random) -> None:
            atoms.positions += random.normal(scale=1e-4, size=atoms.positions.shape)
            atoms.get_forces()

        for _ in range(10):
            step()
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as profile:
            began = time.perf_counter()
            for _ in range(PROFILED):
                step()
            seconds = time.perf_counter() - began
        busy = sum(event.self_device_time_total for event in profile.key_averages()) * 1e-6
        found[name] = {
            "ms_per_step": 1000 * seconds / PROFILED,
            "share_outside_kernels": 1 - busy / seconds,
        }
    return found


def built_in(name: str) -> Atoms:
    """A molecule of the benchmarks."""
    return collect_systems((name,), (), None)[0].atoms


def main(arguments: list[str] | None = None) -> int:
    """Run all parts; returns the number of those that failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", choices=("cuda", "cpu"))
    parser.add_argument("--picoseconds", type=float, default=20.0)
    parser.add_argument("--sizes", default="192,2187,30000", help="atoms of boxes of water")
    parser.add_argument("--json", type=Path, metavar="FILE")
    given = parser.parse_args(arguments)
    device = given.device or ("cuda" if torch.cuda.is_available() else None)
    if device == "cuda" and not torch.cuda.is_available():
        parser.error("--device is cuda, but torch finds no CUDA device")
    sizes = tuple(int(size) for size in given.sizes.split(",") if size)
    parts: dict[str, Callable[[], dict[str, Any]]] = {"tests": tests}
    if device is None:
        print("torch finds no CUDA device: only the tests run, in Triton's interpreter")
    else:
        parts = {
            "self-check": lambda: self_check(device),
            **parts,
            "drift": lambda: drift(device, given.picoseconds),
            "speed": lambda: speed(device, sizes),
        }
    if device == "cuda":
        parts["outside kernels"] = outside_kernels
    machine = describe_machine(torch.device(device or "cpu"), torch.get_num_threads())
    results: dict[str, Any] = {"machine": machine, "failed": {}}
    for name, part in parts.items():
        print(f"{name} ...", flush=True)
        began = time.perf_counter()
        try:
            results[name] = part()
        except Exception as error:  # the other parts still have something to tell
            results["failed"][name] = f"{type(error).__name__}: {error}"
            print(f"{name} failed: {results['failed'][name]}")
        else:
            shown = markdown(results[name]) if name == "speed" else json.dumps(results[name])
            print(f"{shown}\n{name}: {time.perf_counter() - began:.0f} s", flush=True)
        if given.json is not None:
            write_atomically(given.json, (json.dumps(results, indent=1) + "\n").encode())
    return len(results["failed"])


if __name__ == "__main__":
    sys.exit(main())
