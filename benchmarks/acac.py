"""Acetylacetone (AcAc): training at 300 K, errors at 300 K and 600 K and on two energy curves.

    python benchmarks/acac.py --data DIR [--epochs N] [--seed S] [--work DIR] [--out FILE]

trains a TensorNet on 450 frames of ``train_300K.xyz`` (50 are for validation; the atoms of
``isolated_atoms.xyz`` are the reference energies) and tests it on molecular dynamics at 300 K and
600 K, on the scan of a dihedral angle and on the transfer of a proton, of which only energies are
labelled. It prints root mean square errors next to published ones, and stores them with settings,
seed and time in the file ``--out``.

The run has a folder under ``--work``; the same command resumes an interrupted run and ends with
the same numbers. The data are dataset_acac of https://github.com/davkovacs/BOTNet-datasets.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import torch
import yaml

from tensormd.md_runs.benchmark.machine import describe_machine
from tensormd.md_runs.command.progress import train_progress
from tensormd.md_runs.evaluate.evaluation import evaluate_checkpoint
from tensormd.md_runs.runs.folder import CONFIG
from tensormd.md_runs.runs.schema import parse_config
from tensormd.md_runs.train.config import TrainConfig
from tensormd.md_runs.train.run import TrainSummary, resume_training, start_training
from tensormd.models.files import write_atomically

TRAIN, ATOMS = "train_300K.xyz", "isolated_atoms.xyz"
TESTS = {
    "300 K": "test_MD_300K.xyz",
    "600 K": "test_MD_600K.xyz",
    "dihedral": "test_dihedral.xyz",
    "proton": "test_H_transfer.xyz",
}
"""Files of the tests by their names in the table."""
SETTINGS: dict[str, Any] = {
    "data": {"split": [450, 50]},
    "model": {"tensornet": {"channels": 128, "layers": 2, "radial_functions": 32, "cutoff": 4.5}},
    "training": {
        "epochs": 1000,
        "batch": 5,
        "learning_rate": 1e-3,
        "warm_up_steps": 500,
        "energy_weight": 0.5,
        "force_weight": 1.0,
        "validate_every": 20,
    },
}
"""Configuration of the training, except for files, length and seed."""
PUBLISHED = {
    "BOTNet": {"300 K": (0.89, 6.3), "600 K": (6.2, 29.8)},
    "NequIP": {"300 K": (0.81, 5.9), "600 K": (6.04, 27.8)},
    "MACE": {"300 K": (0.9, 5.1), "600 K": (4.6, 22.4)},
}
"""Root mean square errors of energies (meV) and forces (meV/A), as quoted from the MACE paper
(Batatia et al. 2022, arXiv:2206.07697) by the data set's description; they have not been compared
with the paper."""


def configuration(data: Path, epochs: int | None, seed: int) -> TrainConfig:
    """Configuration of the training.

    Raises
    ------
    ValueError
        If a file of the data set is missing, or a value is not valid.
    """
    for name in (TRAIN, ATOMS, *TESTS.values()):
        if not (data / name).exists():
            raise ValueError(
                f"{data / name} is not there: expected dataset_acac of "
                "https://github.com/davkovacs/BOTNet-datasets in --data"
            )
    content = {name: dict(section) for name, section in SETTINGS.items()}
    content["data"]["train"] = [str(data / TRAIN), str(data / ATOMS)]
    content["training"]["seed"] = content["data"]["split_seed"] = seed
    if epochs is not None:
        content["training"]["epochs"] = epochs
        content["training"]["validate_every"] = min(epochs, content["training"]["validate_every"])
    return parse_config(TrainConfig, yaml.safe_dump(content), "benchmarks/acac.py")


def trained(config: TrainConfig, folder: Path) -> TrainSummary:
    """The training in a folder, begun or resumed; a finished one is not repeated."""
    with train_progress() as watcher:
        if (folder / CONFIG).exists():
            length = f"training.epochs={config.settings.epochs}"
            summary = resume_training(folder, watcher, [length])
        else:
            summary = start_training(config, folder, watcher)
    assert summary is not None  # this is the only process
    return summary


def errors_of(checkpoint: str, data: Path) -> dict[str, dict[str, float]]:
    """Root mean square errors on every test, meV and meV/A.

    ``energy_curve`` is the error of energies relative to their mean over the frames.
    """
    found = {}
    for name, file in TESTS.items():
        summary = evaluate_checkpoint(checkpoint, data / file).summary()
        found[name] = {
            "energy": summary["energy_mev"]["rmse"],
            "energy_per_atom": summary["energy_mev_per_atom"]["rmse"],
            "energy_curve": summary["energy_less_bias_mev"]["rmse"],
        }
        if summary["force_mev_per_angstrom"] is not None:
            found[name]["forces"] = summary["force_mev_per_angstrom"]["rmse"]
    return found


def table(errors: dict[str, dict[str, float]]) -> str:
    """The errors next to published ones, in Markdown."""
    lines = [
        "| RMSE | " + " | ".join(f"E {n}, meV | F {n}, meV/A" for n in ("300 K", "600 K"))
        + " | E dihedral, meV | E proton, meV |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]  # fmt: skip
    both = ("300 K", "600 K")
    own = [f"{errors[name][kind]:.2f}" for name in both for kind in ("energy", "forces")]
    own += [f"{errors[name]['energy']:.1f}" for name in ("dihedral", "proton")]
    lines.append(f"| tensormd, TensorNet | {' | '.join(own)} |")
    for program, values in PUBLISHED.items():
        numbers = " | ".join(f"{value:g}" for name in both for value in values[name])
        lines.append(f"| {program} (quoted, not checked) | {numbers} | | |")
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    root = os.environ.get("TENSORMD_DATA")
    parser.add_argument(
        "--data",
        type=Path,
        default=None if root is None else Path(root) / "acac",
        metavar="DIR",
        help="folder of the data set (default: acac in $TENSORMD_DATA)",
    )
    parser.add_argument("--epochs", type=int, metavar="N", help="length of the training")
    parser.add_argument("--seed", type=int, default=0, help="seed of split, weights and order")
    parser.add_argument("--work", type=Path, default=Path("acac_runs"), metavar="DIR")
    parser.add_argument(
        "--out", type=Path, default=Path("benchmarks/results/acac_cpu.json"), metavar="FILE"
    )
    given = parser.parse_args(arguments)
    if given.data is None:
        parser.error("no folder of data: give --data DIR or set TENSORMD_DATA")
    try:
        config = configuration(given.data, given.epochs, given.seed)
        summary = trained(config, given.work / f"tensornet_seed{given.seed}")
    except ValueError as error:
        parser.error(str(error))
    errors = errors_of(summary.checkpoint, given.data)
    content = {
        **{name: dict(section) for name, section in SETTINGS.items()},
        "epochs": config.settings.epochs,
        "seed": given.seed,
        "steps": summary.steps,
        "seconds": round(summary.seconds, 1),
        "rmse": errors,
        "machine": describe_machine(torch.device("cpu"), torch.get_num_threads()),
    }
    write_atomically(given.out, (json.dumps(content, indent=1) + "\n").encode())
    print(table(errors))


if __name__ == "__main__":
    main()
