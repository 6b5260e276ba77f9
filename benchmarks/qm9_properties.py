"""Dipoles and polarizabilities of QM9 from a small TensorNet with both heads.

    python benchmarks/qm9_properties.py [--json FILE] [--state FOLDER] [--epochs N]

QM9 gives the length of the dipole, and a third of the trace and the anisotropy of the
polarizability: its tensors are in axes other than those of the geometries. One network learns all
three from 10,000 molecules; 1,000 others test the averaged weights. The errors are compared with
those of trivial predictors: for the isotropic polarizability a number per element (least squares
on the composition), for the others the median of the training molecules, which of all constants
has the smallest mean absolute error.

Needs ``pip install 'tensormd[datasets]'``. When interrupted, it resumes from the last validation,
with the same results.
"""

from __future__ import annotations

import argparse
import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from tensormd.models import (
    DipoleReadout,
    EnergyReadout,
    PolarizabilityReadout,
    Potential,
    TensorNet,
    save_potential,
)
from tensormd.models.files import write_atomically
from tensormd.models.training import (
    Frames,
    Progress,
    TrainingSettings,
    quantity_errors,
    read_frames,
    read_state,
    train,
)
from tensormd.models.units import bohr3_in_e2_angstrom2_per_ev, debye_in_e_angstrom

MOLECULES = {"fit": 10_000, "validation": 300, "test": 1000}
SPLIT_SEED = 0
CUTOFF = 5.0
ELEMENTS = (1, 6, 7, 8, 9)
NETWORK: dict[str, Any] = {
    "channels": 48,
    "layers": 2,
    "radial_functions": 24,
    "cutoff": CUTOFF,
    "max_number": 10,
}
SETTINGS: dict[str, Any] = {
    "batch": 32,
    "learning_rate": 2e-3,
    "warm_up_steps": 500,
    "energy_weight": 0.0,
    "force_weight": 0.0,
    "dipole_norm_weight": 1.0,
    "polarizability_isotropic_weight": 10.0,
    "polarizability_anisotropy_weight": 5.0,
    "ema_decay": 0.998,
    "validate_every": 1,
}
EPOCHS = 40
QUANTITIES = ("dipole_norm", "polarizability_isotropic", "polarizability_anisotropy")


def load() -> list[Frames]:
    """Training, validation and test molecules."""
    frames = read_frames(
        "qm9", CUTOFF, format="qm9", limit=sum(MOLECULES.values()), seed=SPLIT_SEED
    )
    return frames.split(list(MOLECULES.values()), SPLIT_SEED)


def build(fit: Frames, seed: int) -> Potential:
    """A network with random weights, its heads standardised with the training molecules."""
    torch.manual_seed(seed)
    network = TensorNet(**NETWORK)
    dipole, polarizability = DipoleReadout(network), PolarizabilityReadout(network)
    dipole.standardise(fit.graphs, fit.values("dipole_norm"))
    polarizability.standardise(fit.graphs, fit.values("polarizability_isotropic"))
    return Potential(
        network,
        EnergyReadout(int(NETWORK["channels"])),
        elements=ELEMENTS,
        heads={"dipole": dipole, "polarizability": polarizability},
        metadata={"name": "QM9 properties", "trained_on": list(QUANTITIES)},
    )


def values(frames: Frames, quantity: str) -> NDArray[np.float64]:
    """(F,), one label per frame."""
    return torch.stack(frames.values(quantity)).numpy()


def trivial_errors(fit: Frames, test: Frames) -> dict[str, float]:
    """Mean absolute errors of the trivial predictors, which ignore the geometry."""

    def counts(frames: Frames) -> NDArray[np.float64]:
        return np.array([[float((g.numbers == z).sum()) for z in ELEMENTS] for g in frames.graphs])

    found = {}
    for quantity in QUANTITIES:
        known, wanted = values(fit, quantity), values(test, quantity)
        guess: Any = np.median(known)
        if quantity == "polarizability_isotropic":
            guess = counts(test) @ np.linalg.lstsq(counts(fit), known, rcond=None)[0]
        found[quantity] = float(np.abs(wanted - guess).mean())
    return found


def in_usual_units(errors: dict[str, float]) -> dict[str, float]:
    """Errors in Debye and Bohr^3, the units of the literature."""
    bohr3 = bohr3_in_e2_angstrom2_per_ev
    return {
        "dipole_debye": errors["dipole_norm"] / debye_in_e_angstrom,
        "isotropic_polarizability_bohr3": errors["polarizability_isotropic"] / bohr3,
        "polarizability_anisotropy_bohr3": errors["polarizability_anisotropy"] / bohr3,
    }


def show(errors: dict[str, float]) -> str:
    """Errors as text."""
    usual = in_usual_units(errors)
    return (
        f"dipole {usual['dipole_debye']:.3f} D, isotropic polarizability "
        f"{usual['isotropic_polarizability_bohr3']:.3f} a0^3, its anisotropy "
        f"{usual['polarizability_anisotropy_bohr3']:.3f} a0^3"
    )


def tell(progress: Progress) -> None:
    """Print one line per validation."""
    mae = show({name: error.mae for name, error in progress.errors.items()})
    print(f"epoch {progress.epoch}, {progress.seconds:.0f} s: {mae}", flush=True)


def main() -> None:
    """Train, test, and write the results."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--json", type=Path, default=Path("benchmarks/results/qm9_properties.json")
    )
    parser.add_argument("--state", type=Path, default=Path("qm9_properties_state"))
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--compile", choices=("auto", "yes", "no"), default="auto")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    arguments.state.mkdir(parents=True, exist_ok=True)
    fit, validation, test = load()
    trivial = trivial_errors(fit, test)
    print(f"trivial predictors: {show(trivial)}", flush=True)
    compiled: Any = {"auto": "auto", "yes": True, "no": False}[arguments.compile]
    settings = TrainingSettings(
        epochs=arguments.epochs, seed=arguments.seed, compile=compiled, **SETTINGS
    )
    state = arguments.state / f"seed-{arguments.seed}.state"
    potential = train(build(fit, arguments.seed), fit, validation, settings, state, tell)
    potential = potential.double().eval()
    save_potential(potential, arguments.state / f"seed-{arguments.seed}.safetensors")
    errors = {
        name: error.mae for name, error in quantity_errors(potential, test, QUANTITIES).items()
    }
    print(f"{len(test)} molecules that were not trained on: {show(errors)}", flush=True)
    content = {
        "molecules": MOLECULES,
        "network": NETWORK,
        "settings": SETTINGS | {"epochs": arguments.epochs},
        "seed": arguments.seed,
        "threads": arguments.threads,
        "cpus": os.cpu_count(),
        "parameters": sum(p.numel() for p in potential.parameters()),
        "seconds": read_state(state, settings)["seconds"],
        "mae": {"model": in_usual_units(errors), "trivial": in_usual_units(trivial)},
    }
    write_atomically(arguments.json, (json.dumps(content, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
