r"""Labelled frames for the general organic potential.

    python -m tensormd.models.pretrained.organic.make_data molecules.txt --teacher DIR \
        --student organic.safetensors --part 0 --molecules 10000 -o part0.extxyz

takes molecules of the list that ``molecules`` made, samples geometries of each and of their
complexes, labels them with the teacher (the ANI-2x ensemble: ``ani2x.py`` and ``ani2x.npz`` in
DIR) and appends the frames to the file, a chunk of molecules at a time. An interrupted run goes on
at the next chunk; part and seed make the same frames again (other parts: other molecules,
conformers, velocities). ``--student`` is the network that relaxes and heats molecules and
complexes; frames on which the teacher's members disagree, or of very large forces, are left out
and counted.
"""

from __future__ import annotations

import argparse
import collections
import sys
import time
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ase.data import chemical_symbols
from rdkit import RDLogger

from ...checkpoint import load_potential
from ...graph import Graph
from ...inference.backends import compile_potential
from .geometries import (
    Array,
    Conformer,
    Forces,
    Geometry,
    cluster,
    dimers,
    langevin,
    relaxed,
    sane,
)

CHUNK = 100
"""Molecules sampled and labelled together."""
LARGEST_SPREAD = 0.8  # eV/A, over the members of the teacher
LARGEST_FORCE = 25.0  # eV/A
SOLVENTS = ("O", "CO", "N", "CC=O", "C(=O)N", "CC(=O)O", "CCO", "CSC", "CS", "CN", "CF", "CCl")


class Student:
    """Forces of several molecules at once from the fused pass of a network."""

    def __init__(self, checkpoint: Path) -> None:
        potential = load_potential(checkpoint)
        self.cutoff = float(potential.cutoff)
        self.compiled = compile_potential(potential.float(), "fused")

    def __call__(self, geometries: Sequence[Geometry]) -> list[Array]:
        """Forces of each, (N, 3), eV/Angstrom."""
        sizes = [len(g.numbers) for g in geometries]
        edges, ends = [], np.cumsum([0, *sizes])
        for geometry, first in zip(geometries, ends, strict=False):
            x = geometry.positions
            distances = ((x[:, None] - x[None]) ** 2).sum(-1)
            np.fill_diagonal(distances, np.inf)
            edges.append(np.stack(np.nonzero(distances < self.cutoff**2)) + first)
        index = torch.from_numpy(np.concatenate(edges, axis=1))
        graph = Graph(
            torch.from_numpy(np.concatenate([g.numbers for g in geometries])),
            torch.from_numpy(np.concatenate([g.positions for g in geometries])),
            torch.zeros(len(geometries), 3, 3, dtype=torch.float64),
            index,
            torch.zeros(index.shape[1], 3, dtype=torch.float64),
            torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes)),
            torch.zeros(len(geometries), dtype=torch.float64),
        )
        forces = self.compiled(graph).forces.detach().double().numpy()
        return [forces[a:b] for a, b in pairwise(ends)]


def heated(
    student: Forces, starts: Sequence[Geometry], steps: int, rng: np.random.Generator
) -> list[Geometry]:
    """Langevin dynamics with the network, 300 to 700 K."""
    if not starts:
        return []
    temperatures = rng.choice([300.0, 300.0, 500.0, 700.0], size=len(starts))

    def forces(positions: list[Array]) -> list[Array]:
        return student([g.moved(x, "") for g, x in zip(starts, positions, strict=True)])

    moved = langevin(forces, [g.positions for g in starts], temperatures, steps, rng)
    return [
        g.moved(x, f"{'complex' if '+' in g.molecule else 'network'}{t:.0f}")
        for g, x, t in zip(starts, moved, temperatures, strict=True)
    ]


def sample(
    molecules: Sequence[tuple[int, str]], student: Forces, rng: np.random.Generator
) -> list[Geometry]:
    """Geometries of some molecules, by number and SMILES, and of complexes of them."""
    found, starts = [], []
    for number, smiles in molecules:
        try:
            conformer = Conformer(smiles, str(number), int(rng.integers(2**31)))
        except ValueError:
            continue  # one of many molecules
        starts.append(conformer.geometry)
        hot = conformer.geometry
        for temperature in rng.permutation([300.0, 500.0, 750.0, 1000.0]):
            hot = conformer.heated(hot, temperature, 30, rng)
            found.append(hot)
        twisted = conformer.twisted(rng)
        if twisted is not None:
            found.append(conformer.heated(twisted, 300.0, 8, rng))
        found.append(conformer.stretched(rng))
    low = relaxed(student, [g for g in starts if sane(g)], 6, "relaxing")
    found += low
    warm = heated(student, low, 10, rng)
    found += warm + heated(student, warm, 10, rng)
    found += complexes([*low, *warm], rng, student)
    return [g for g in found if sane(g)]


def complexes(
    pool: Sequence[Geometry], rng: np.random.Generator, student: Forces
) -> list[Geometry]:
    """Dimers at three distances, relaxing and warm ones, and clusters of small molecules."""
    small = [g for g in pool if len(g.numbers) <= 24]
    solvents = [Conformer(s, f"solvent{k}", 1).geometry for k, s in enumerate(SOLVENTS)]
    found, near = [], []
    for _ in range(len(pool) // 3):
        one = small[rng.integers(len(small))]
        other = (
            solvents[rng.integers(len(solvents))]
            if rng.random() < 0.4
            else small[rng.integers(len(small))]
        )
        if len(one.numbers) + len(other.numbers) <= 44:
            made = dimers(one, other, rng)
            found += made
            near += made[1:2]
    for _ in range(len(pool) // 20):
        few = rng.choice(3 if rng.random() < 0.6 else len(solvents), size=rng.integers(2, 8))
        near.append(cluster([solvents[k] for k in few], rng))
    near = [g for g in near if sane(g)]
    settled = relaxed(student, near, 8, "complex")
    return [*found, *settled, *heated(student, settled, 8, rng)]


def batches(geometries: Sequence[Geometry], atoms: int = 800) -> Iterator[list[int]]:
    """Indices of geometries of like elements and sizes, which the teacher takes fastest."""

    def elements(k: int) -> tuple[int, ...]:
        return tuple(np.unique(geometries[k].numbers).tolist())

    order = sorted(
        range(len(geometries)), key=lambda k: (elements(k), len(geometries[k].numbers), k)
    )
    batch: list[int] = []
    for k in order:
        size = len(geometries[k].numbers)
        if batch and (
            elements(k) != elements(batch[0])
            or (len(batch) + 1) * size > atoms
            or size > 1.15 * len(geometries[batch[0]].numbers) + 1
        ):
            yield batch
            batch = []
        batch.append(k)
    if batch:
        yield batch


def labelled(geometries: Sequence[Geometry], teacher: Any) -> tuple[list[str], dict[str, int]]:
    """Frames as extended XYZ, and how many were left out and why."""
    frames, dropped = [], collections.Counter[str]()
    for batch in batches(geometries):
        most = max(len(geometries[k].numbers) for k in batch)
        numbers = np.zeros((len(batch), most), dtype=int)
        positions = np.zeros((len(batch), most, 3))
        for row, k in enumerate(batch):
            numbers[row, : len(geometries[k].numbers)] = geometries[k].numbers
            positions[row, : len(geometries[k].numbers)] = geometries[k].positions
        energies, forces, _, spreads = teacher(numbers, positions)
        for row, k in enumerate(batch):
            size = len(geometries[k].numbers)
            spread = np.linalg.norm(spreads[row, :size], axis=1).max()
            if not spread < LARGEST_SPREAD:
                dropped["spread"] += 1
            elif not np.linalg.norm(forces[row, :size], axis=1).max() < LARGEST_FORCE:
                dropped["force"] += 1
            else:
                frames.append(_text(geometries[k], energies[row], forces[row, :size], spread))
    return frames, dict(dropped)


def _text(geometry: Geometry, energy: float, forces: Array, spread: float) -> str:
    rows = [
        f"{chemical_symbols[z]} {x[0]:.6f} {x[1]:.6f} {x[2]:.6f} {f[0]:.5f} {f[1]:.5f} {f[2]:.5f}"
        for z, x, f in zip(geometry.numbers, geometry.positions, forces, strict=True)
    ]
    head = (
        f"Properties=species:S:1:pos:R:3:forces:R:3 energy={energy:.6f} "
        f"forces_std_max={spread:.4f} tag={geometry.tag} mol={geometry.molecule} "
        'pbc="F F F"'
    )
    return "\n".join([str(len(rows)), head, *rows, ""])


def main() -> None:
    """Sample and label the molecules of a part, chunk by chunk."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("molecules_file", type=Path, metavar="MOLECULES")
    parser.add_argument("--teacher", type=Path, required=True, help="folder of ani2x.py")
    parser.add_argument("--student", type=Path, required=True, help="checkpoint")
    parser.add_argument("--part", type=int, default=0)
    parser.add_argument("--molecules", type=int, default=10000, help="molecules of a part")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("-o", "--output", type=Path, required=True)
    arguments = parser.parse_args()

    RDLogger.DisableLog("rdApp.*")
    sys.path.insert(0, str(arguments.teacher))
    from ani2x import ANI2x  # the teacher's own folder

    teacher, student = ANI2x(), Student(arguments.student)
    listed = arguments.molecules_file.read_text().splitlines()
    first = arguments.part * arguments.molecules
    numbers = [k % len(listed) for k in range(first, first + arguments.molecules)]
    progress = arguments.output.with_suffix(".chunks")
    done = len(progress.read_text().split()) if progress.exists() else 0
    began, frames_done = time.perf_counter(), 0
    for chunk in range(done, -(-len(numbers) // CHUNK)):
        rng = np.random.default_rng([arguments.seed, arguments.part, chunk])
        chosen = numbers[chunk * CHUNK : (chunk + 1) * CHUNK]
        geometries = sample([(k, listed[k].split()[1]) for k in chosen], student, rng)
        sampled = time.perf_counter()
        frames, dropped = labelled(geometries, teacher)
        with arguments.output.open("a") as file:
            file.writelines(frames)
        with progress.open("a") as file:
            file.write(f"{chunk}\n")
        frames_done += len(frames)
        now = time.perf_counter()
        print(
            f"chunk {chunk}: {len(frames)} frames, left out {dropped}, labels "
            f"{now - sampled:.1f} s, {frames_done / (now - began):.0f} frames/s",
            flush=True,
        )


if __name__ == "__main__":
    main()
