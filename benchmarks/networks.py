"""TensorNet and TDN side by side: time of a step, and errors after equal time of training.

    python benchmarks/networks.py steps [--data FOLDER] [--json FILE]
    python benchmarks/networks.py train TRAIN.npz TEST.npz [--minutes 10] [--json FILE]

``steps`` measures forces through the ASE calculator with random weights while atoms move, on
alanine dipeptide and, if ``--data`` has them, chignolin and DHFR. ``train`` trains each network
on 950 frames of revised MD17 for the same time on one core, a cosine schedule over as many epochs
as fit, and tests it.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import torch

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.benchmark.systems import IN_DATA, Motion, collect_systems
from tensormd.models import TDN, Potential, TensorNet
from tensormd.models.networks import Network
from tensormd.models.training import TrainingSettings, quantity_errors, read_rmd17, train

CUTOFF = 4.5
PROBE = 2
"""Epochs that tell how long one takes."""


def tdn(lmax: int, layers: int = 2) -> TDN:
    """64 channels."""
    return TDN(
        channels=64, layers=layers, lmax=lmax, radial_functions=32, cutoff=CUTOFF,
        norm_epsilon=0.01, average_degree=7.5,
    )  # fmt: skip


NETWORKS: dict[str, Callable[[], Network]] = {
    "TensorNet, 128 channels": lambda: TensorNet(channels=128, layers=2, cutoff=CUTOFF),
    "TensorNet, 64 channels": lambda: TensorNet(channels=64, layers=2, cutoff=CUTOFF),
    "TDN, L = 1": lambda: tdn(1),
    "TDN, L = 2": lambda: tdn(2),
    "TDN, L = 3": lambda: tdn(3),
}
SETTINGS = {
    "TensorNet": TrainingSettings(epochs=1, batch=4, energy_weight=0.2),
    "TDN": TrainingSettings(epochs=1, batch=4, energy_weight=0.2),
}


def steps(data: Path | None, rounds: int = 3) -> dict[str, Any]:
    """Milliseconds a step by network and system; the networks take turns."""
    names = ("alanine_dipeptide", *(IN_DATA if data else ()))
    systems = [(s.name, s.atoms, Motion(s.atoms)) for s in collect_systems(names, (), data)]
    calculators, weights = {}, {}
    for name, make in NETWORKS.items():
        torch.manual_seed(0)
        network = make()
        potential = Potential(network, network.new_readout(), elements=[1, 6, 7, 8, 16])
        weights[name] = sum(p.numel() for p in potential.parameters())
        calculators[name] = PotentialCalculator(potential.eval())
    rows: dict[str, Any] = {name: {"weights": weights[name]} for name in NETWORKS}
    for system, atoms, motion in systems:
        count = 2 if len(atoms) > 1000 else 30
        times: dict[str, list[float]] = {name: [] for name in NETWORKS}
        for turn in range(rounds + 1):
            places = [motion.next().copy() for _ in range(count)]
            for name, calculator in calculators.items():
                atoms.calc = calculator
                for atoms.positions in places:
                    start = time.perf_counter()
                    atoms.get_forces()
                    if turn:
                        times[name].append(1000 * (time.perf_counter() - start))
        for name, each in times.items():
            rows[name][f"{len(atoms)} atoms"] = median(each)
            print(f"{system:20}{len(atoms):7}  {name:26}{median(each):9.2f} ms", flush=True)
    return rows


def training(source: Path, test: Path, minutes: float, names: list[str]) -> dict[str, Any]:
    """Errors of networks after the same time of training."""
    frames, tests = read_rmd17(source, CUTOFF), read_rmd17(test, CUTOFF)
    fit, watched = frames.split([950, 50], 0)
    forces = torch.cat(frames.forces)
    rows = {}
    for name in names:
        make = NETWORKS[name]

        def run(epochs: int, name: str = name, make: Callable[[], Network] = make) -> Potential:
            torch.manual_seed(0)
            network = make()
            potential = Potential(
                network, network.new_readout(), elements=frames.elements,
                scale=float(forces.square().mean().sqrt()), mean=float(frames.energies.mean()),
            )  # fmt: skip
            settings = replace(SETTINGS[name.split(",")[0]], epochs=epochs, validate_every=10_000)
            return train(potential, fit, watched, settings)

        def seconds(epochs: int, run: Callable[[int], Potential] = run) -> float:
            start = time.process_time()
            run(epochs)
            return time.process_time() - start

        seconds(1)  # compiles
        fixed = seconds(1)
        each = (seconds(1 + PROBE) - fixed) / PROBE
        epochs = max(1, round(60 * minutes / each))
        start = time.process_time()
        potential = run(epochs)
        spent = time.process_time() - start
        errors = quantity_errors(potential, tests)
        rows[name] = {
            "epochs": epochs, "minutes": spent / 60, "energy_mev": errors["energy"].mae,
            "force_mev_per_angstrom": errors["forces"].mae,
        }  # fmt: skip
        told = " ".join(f"{key} {value:.2f}" for key, value in rows[name].items())
        print(f"{name}: {told}", flush=True)
    return rows


def main() -> None:
    """Measure or train."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=["steps", "train"])
    parser.add_argument("files", nargs="*", type=Path, help="training and test frames")
    parser.add_argument("--data", type=Path, help="folder with chignolin.pdb and dhfr.pdb")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results")
    arguments = parser.parse_args()
    if arguments.what == "train" and len(arguments.files) != 2:
        parser.error("train needs two files: the frames to train and to test on")
    rows = (
        steps(arguments.data)
        if arguments.what == "steps"
        else training(*arguments.files, arguments.minutes, arguments.networks)
    )
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1) + "\n")


if __name__ == "__main__":
    main()
