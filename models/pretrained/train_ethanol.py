r"""Reproduce the checkpoint that ships: TensorNet on revised MD17 ethanol, split 1.

    python -m tensormd.models.pretrained.train_ethanol \
        rmd17_ethanol_train_01.npz rmd17_ethanol_test_01.npz tensornet-ethanol.safetensors

950 frames are trained on; the other 50 are only watched and choose nothing. AdamW with a cosine
schedule, a loss of mean absolute errors, and an exponential moving average of the weights,
which is what is saved. The state of the run is kept beside the output and taken up again
after an interruption.
"""

from __future__ import annotations

import argparse
import copy
import math
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..checkpoint import save_potential
from ..graph import Graph, NeighborList, batch_graphs
from ..potential import Potential
from ..readout import EnergyReadout
from ..tensornet import TensorNet
from ..units import kcal_per_mol_in_ev

CHANNELS = 64
BATCH = 8
LEARNING_RATE = 1e-3
WARM_UP_STEPS = 500
EMA_DECAY = 0.999
FORCE_WEIGHT = 1.0  # per eV/A of a component
ENERGY_WEIGHT = 0.5  # per eV


class Frames:
    """Graphs and labels of one npz file of revised MD17, in eV and Angstrom."""

    def __init__(self, path: Path, cutoff: float) -> None:
        with np.load(path) as data:
            numbers = data["nuclear_charges"].astype(np.int64)
            self.energies = torch.from_numpy(data["energies"] * kcal_per_mol_in_ev)
            self.forces = torch.from_numpy(data["forces"] * kcal_per_mol_in_ev)
            self.graphs = [
                NeighborList(cutoff).graph(numbers, positions) for positions in data["coords"]
            ]

    def batch(self, frames: Any) -> tuple[Graph, Tensor, Tensor]:
        """The graph, energies (B,) and forces (B * N, 3) of some frames."""
        index = torch.as_tensor(np.asarray(frames))
        graph = batch_graphs([self.graphs[int(k)] for k in index])
        return graph, self.energies[index], self.forces[index].reshape(-1, 3)


def build(train: Frames) -> Potential:
    """A new potential whose references reproduce the mean energy of the training frames."""
    numbers = train.graphs[0].numbers
    mean, scale = train.energies.mean(), train.forces.pow(2).mean().sqrt()
    return Potential(
        TensorNet(channels=CHANNELS, layers=2, cutoff=4.5, max_number=10),
        EnergyReadout(CHANNELS),
        elements=numbers.tolist(),
        scale=float(scale),
        mean=float(mean),
    )


def mean_absolute_errors(potential: Potential, frames: Frames, which: Any) -> tuple[float, float]:
    """MAE of energies (meV) and of force components (meV/A)."""
    potential.eval()
    energy_error, force_error = [], []
    for part in np.array_split(np.asarray(which), math.ceil(len(which) / 100)):
        graph, energies, forces = frames.batch(part)
        prediction = potential(graph)
        energy_error.append((prediction.energy - energies).abs())
        force_error.append((prediction.forces - forces).abs().mean(1))
    return (
        1e3 * float(torch.cat(energy_error).mean()),
        1e3 * float(torch.cat(force_error).mean()),
    )


def learning_rate(step: int, steps: int) -> float:
    """Linear warm-up, then half a cosine down to a hundredth."""
    warm = min(1.0, (step + 1) / WARM_UP_STEPS)
    return LEARNING_RATE * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))


def main() -> None:
    """Train, test and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--epochs", type=int, default=900)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(arguments.seed)

    cutoff = 4.5
    frames = Frames(arguments.train, cutoff)
    order = np.random.default_rng(arguments.seed).permutation(len(frames.graphs))
    fit, watch = order[:950], order[950:]
    potential = build(frames)
    average = copy.deepcopy(potential)
    optimizer = torch.optim.AdamW(potential.parameters(), lr=LEARNING_RATE, weight_decay=1e-6)
    steps = arguments.epochs * (len(fit) // BATCH)
    state_path = arguments.output.with_suffix(".state.pt")
    first_epoch, seconds = 0, 0.0
    if state_path.exists():
        state = torch.load(state_path, weights_only=True)
        potential.load_state_dict(state["potential"])
        average.load_state_dict(state["average"])
        optimizer.load_state_dict(state["optimizer"])
        first_epoch, seconds = state["epoch"], state["seconds"]

    step = first_epoch * (len(fit) // BATCH)
    began = time.perf_counter() - seconds
    for epoch in range(first_epoch, arguments.epochs):
        potential.train()
        shuffled = np.random.default_rng([arguments.seed, epoch]).permutation(fit)
        for start in range(0, len(fit) - BATCH + 1, BATCH):
            graph, energies, forces = frames.batch(shuffled[start : start + BATCH])
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps)
            prediction = potential(graph)
            loss = (
                ENERGY_WEIGHT * (prediction.energy - energies).abs().mean()
                + FORCE_WEIGHT * (prediction.forces - forces).norm(dim=1).mean()
            )
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(potential.parameters(), 10.0)
            optimizer.step()
            step += 1
            decay = min(EMA_DECAY, step / (step + 10))
            with torch.no_grad():
                for mean, value in zip(average.parameters(), potential.parameters(), strict=True):
                    mean.lerp_(value, 1 - decay)
        if epoch % 20 == 19 or epoch + 1 == arguments.epochs:
            seconds = time.perf_counter() - began
            energy_mae, force_mae = mean_absolute_errors(average, frames, watch)
            print(
                f"epoch {epoch + 1} {seconds:.0f} s loss {float(loss.detach()):.5f} "
                f"watched: {energy_mae:.2f} meV {force_mae:.2f} meV/A",
                flush=True,
            )
            temporary = state_path.with_suffix(".tmp")
            torch.save(
                {
                    "potential": potential.state_dict(),
                    "average": average.state_dict(),
                    "optimizer": optimizer.state_dict(),
                    "epoch": epoch + 1,
                    "seconds": seconds,
                },
                temporary,
            )
            os.replace(temporary, state_path)

    test = Frames(arguments.test, cutoff)
    energy_mae, force_mae = mean_absolute_errors(average, test, np.arange(len(test.graphs)))
    print(f"test: energy MAE {energy_mae:.2f} meV, force MAE {force_mae:.2f} meV/A")
    average.metadata = {
        "name": "tensornet-ethanol",
        "training_data": "revised MD17 ethanol, split 1, 950 frames (PBE/def2-SVP)",
        "test_data": "revised MD17 ethanol, split 1, 1,000 frames",
        "energy_mae_mev": round(energy_mae, 3),
        "force_mae_mev_per_angstrom": round(force_mae, 3),
        "epochs": arguments.epochs,
        "seed": arguments.seed,
        "licence": "MIT (weights); CC0-1.0 (data)",
        "reference": "Christensen & von Lilienfeld 2020, arXiv:2007.09593",
        "made_by": "models/pretrained/train_ethanol.py",
    }
    save_potential(average, arguments.output)


if __name__ == "__main__":
    main()
