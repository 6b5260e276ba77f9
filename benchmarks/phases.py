"""Where the time of a step goes: stage by stage, beside the rate of the matrix products alone.

    python benchmarks/phases.py [--data FOLDER] [--json FILE]

TensorNet of the usual size (2 layers, 128 channels, random weights) on one thread. A step is cut
off after each of its stages in turn, so that a stage is the difference of two medians. "products"
is the time of a stage's matrix products at the rate of ``torch.mm`` on matrices of 2,048 rows.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch

from tensormd.md_runs.benchmark.model import product_rate, random_potential
from tensormd.md_runs.benchmark.systems import IN_DATA, System, collect_systems
from tensormd.models import Graph
from tensormd.models.inference.kernels import fuse
from tensormd.models.inference.kernels.cpu.team import Schedule
from tensormd.models.inference.kernels.cpu.workers import new_team
from tensormd.models.neighbors import NeighborList

STAGES = (
    "", "place pairs", "embed: sums", "embed: atoms", "mix before", "sum messages", "interact",
    "read out",
)  # fmt: skip
"""Names of the operations of `tensornet_step`; negative ones are backward passes."""
LAST = "collect forces"
SKIN = 1.0


def cut(schedule: Schedule, stage: int) -> Schedule:
    """The schedule up to this stage."""
    phase = int(np.searchsorted(schedule.starts, stage, side="right")) - 1
    starts = schedule.starts[: phase + 2].copy()
    starts[-1] = stage + 1
    return schedule._replace(starts=starts, tasks=schedule.tasks[: phase + 1].copy())


def operations(channels: int) -> dict[str, int]:
    """Multiplications and additions of an atom's matrix products in each stage, in one pass."""
    mix = 9 * channels * channels
    gate = channels * 2 * channels + 2 * channels * 3 * channels
    readout = 3 * channels * channels + channels * channels // 2 + channels // 2
    return {
        "embed: atoms": 2 * (mix + gate),
        "mix before": 2 * mix,
        "interact": 2 * mix,
        "read out": 2 * 2 * readout,
    }


def measure(system: System, rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of each stage and of its products."""
    potential = random_potential()
    fused: Any = fuse(potential)
    fused.threads = 1
    atoms = system.atoms
    graph: Graph = NeighborList(potential.cutoff, SKIN).graph(
        atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc
    )
    fused(graph)
    memory, known = fused._memory, fused._list
    count = len(atoms)
    forces, virial = np.zeros((count, 3)), np.zeros((count, 3, 3))

    def run(schedule: Schedule) -> float:
        arguments = (
            new_team(len(schedule.tasks)), schedule, graph.positions.numpy(),
            memory.composition.numbers, known.neighbors, memory.slots, memory.work, fused.factor,
            forces, virial, *fused.more(memory), *fused.packed,
        )  # fmt: skip
        start = time.perf_counter()
        memory.entry(*arguments)
        return 1000 * (time.perf_counter() - start)

    stages = [int(what) for what in memory.schedule.stages[:, 0]]
    cuts = [cut(memory.schedule, k) for k in range(len(stages))]
    times: list[list[float]] = [[] for _ in cuts]
    for _ in range(rounds):
        for schedule, each in zip(cuts, times, strict=True):
            each.append(run(schedule))
    ends = [median(each) for each in times]
    rate = product_rate()
    flops = operations(potential.representation.channels)
    rows: dict[str, dict[str, float]] = {}
    for what, begin, end in zip(stages, [0.0, *ends], ends, strict=False):
        name = LAST if what == -1 else STAGES[abs(what)] + (", back" if what < 0 else "")
        row = rows.setdefault(name, {"ms": 0.0, "products": 0.0})
        row["ms"] += end - begin
        row["products"] += 1000 * count * flops.get(STAGES[abs(what)], 0) / rate
    rows["step"] = {key: sum(r[key] for r in rows.values()) for key in ("ms", "products")}
    return rows


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="folder with chignolin.pdb and dhfr.pdb")
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    names = ("alanine_dipeptide", *(IN_DATA if arguments.data else ()))
    found = {
        len(system.atoms): measure(system, arguments.rounds)
        for system in collect_systems(names, (), arguments.data)
    }
    print("ms (products alone)" + "".join(f"{size:>16,} atoms" for size in found))
    for name in next(iter(found.values())):
        cells = [
            f"{rows[name]['ms']:12.3f} ({rows[name]['products']:7.3f})" for rows in found.values()
        ]
        print(f"{name:22}" + "".join(cells))
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
