r"""Train the small ethanol networks that ship with the package, on revised MD17, split 1.

    python -m tensormd.models.pretrained.train_ethanol tensornet \
        rmd17_ethanol_train_01.npz rmd17_ethanol_test_01.npz tensornet-ethanol.safetensors

950 frames are for training; the other 50 are only monitored, and select nothing. The state of the
run is saved beside the output, and an interrupted run resumes from it.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

import torch

from ..checkpoint import save_potential
from ..networks.base import Network
from ..networks.tdn import TDN
from ..networks.tensornet import TensorNet
from ..potential import Potential
from ..training import (
    Errors,
    Frames,
    Progress,
    TrainingSettings,
    evaluate_errors,
    read_rmd17,
    train,
)

CUTOFF = 4.5
SETTINGS = {
    "tensornet": TrainingSettings(epochs=1000),
    "tdn": TrainingSettings(epochs=600, batch=4, energy_weight=0.2),
}


def new_potential(architecture: str, frames: Frames) -> Potential:
    """A small network with scale and mean from the frames."""
    if architecture == "tensornet":
        network: Network = TensorNet(channels=128, layers=2, cutoff=CUTOFF, max_number=10)
    else:
        network = TDN(
            channels=64,
            layers=2,
            lmax=2,
            radial_functions=32,
            cutoff=CUTOFF,
            max_number=10,
            norm_epsilon=0.01,
            average_degree=7.5,  # in ethanol
        )
    forces = torch.cat(frames.forces)
    return Potential(
        network,
        network.new_readout(),
        elements=frames.elements,
        scale=float(forces.square().mean().sqrt()),
        mean=float(frames.energies.mean()),
    )


def model_card(
    architecture: str, errors: Errors, settings: TrainingSettings
) -> dict[str, str | int | float]:
    """Metadata of the file."""
    return {
        "name": f"{architecture}-ethanol",
        "training_data": "revised MD17 ethanol, split 1, 950 frames (PBE/def2-SVP)",
        "test_data": "revised MD17 ethanol, split 1, 1,000 frames",
        "energy_mae_mev": round(errors.energy_mev, 3),
        "force_mae_mev_per_angstrom": round(errors.force_mev_per_angstrom, 3),
        "epochs": settings.epochs,
        "seed": settings.seed,
        "licence": "MIT (weights); CC0-1.0 (data)",
        "reference": "Christensen & von Lilienfeld 2020, arXiv:2007.09593",
        "made_by": "models/pretrained/train_ethanol.py",
    }


def main() -> None:
    """Train, test and save."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("architecture", choices=SETTINGS)
    parser.add_argument("train", type=Path)
    parser.add_argument("test", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--seed", type=int, default=TrainingSettings.seed)
    arguments = parser.parse_args()

    architecture = arguments.architecture
    settings = replace(SETTINGS[architecture], seed=arguments.seed)
    frames = read_rmd17(arguments.train, CUTOFF)
    fit, watched = frames.split([950, 50], settings.seed)
    torch.manual_seed(settings.seed)
    state_file = arguments.output.with_suffix(".state.pt")
    potential = train(
        new_potential(architecture, frames), fit, watched, settings, state_file, _print
    )
    errors = evaluate_errors(potential, read_rmd17(arguments.test, CUTOFF))
    print(f"test: {errors.energy_mev:.2f} meV, {errors.force_mev_per_angstrom:.2f} meV/A")
    potential.metadata.update(model_card(architecture, errors, settings))
    save_potential(potential, arguments.output)


def _print(progress: Progress) -> None:
    energy, force = progress.errors["energy"], progress.errors["forces"]
    print(
        f"epoch {progress.epoch}  {progress.seconds:.0f} s  loss {progress.loss:.5f}  "
        f"watched {energy.mae:.2f} {energy.unit} {force.mae:.2f} {force.unit}",
        flush=True,
    )


if __name__ == "__main__":
    main()
