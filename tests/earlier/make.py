"""Make the files of this folder with the code of the commit that README.md names.

This script is not part of the tests and does not follow later changes of the code: files made by
a newer commit would no longer be earlier files.
"""

from __future__ import annotations

import io
import json
import shutil
import signal
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from ase import Atoms
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from torch import nn

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.cli import main
from tensormd.md_runs.config_file import read_config
from tensormd.md_runs.errors import Interrupted
from tensormd.md_runs.launch import launch_md
from tensormd.md_runs.potentials import weights_digest
from tensormd.md_runs.settings import MDSettings, ModelSettings
from tensormd.md_runs.train_config import TrainConfig
from tensormd.md_runs.train_run import resume_training, start_training
from tensormd.models import (
    TDN,
    Committee,
    EnergyReadout,
    Potential,
    ScalarReadout,
    TensorNet,
    export_torchscript,
    load_potential,
    save_potential,
)
from tensormd.models.orders import prune_degrees, prune_irreps
from tensormd.models.properties import DipoleReadout, PolarizabilityReadout
from tensormd.models.repulsion import ZBLRepulsion

REFERENCES = [0.0, -13.6, 0.0, 0.0, 0.0, 0.0, -1030.0, 0.0, -2043.0]
MODEL = "models/tensornet.safetensors"
HOW = {"dtype": "float64", "backend": "reference", "device": "cpu", "threads": 1}


def ethanol(seed: int = 0) -> Atoms:
    atoms = molecule("CH3CH2OH")
    atoms.rattle(0.05, seed=seed)
    return atoms


def waters() -> Atoms:
    """Four molecules in a triclinic cell smaller than twice the cutoff."""
    atoms = Atoms()
    for shift in ((0, 0, 0), (3.2, 0, 0.3), (0, 3.2, 0.6), (3.2, 3.2, 0)):
        water = molecule("H2O")
        water.translate(shift)
        atoms += water
    atoms.set_cell([[6.4, 0, 0], [0.9, 6.4, 0], [0.4, 0.7, 5.2]])
    atoms.pbc = True
    atoms.rattle(0.03, seed=0)
    return atoms


# Models


def tensornet(seed: int, **keywords: Any) -> Potential:
    torch.manual_seed(seed)
    options = {"channels": 8, "layers": 2, "radial_functions": 8, "cutoff": 4.0, "max_number": 9}
    network = TensorNet(**options | keywords.pop("network", {}))
    heads = {name: kind(network) for name, kind in keywords.pop("heads", {}).items()}
    return finish(network, EnergyReadout(8), heads=heads, **keywords)


def tdn(seed: int, **network: Any) -> Potential:
    torch.manual_seed(seed)
    options = {
        "channels": 8, "layers": 2, "heads": 2, "radial_functions": 8, "radial_widths": [8],
        "cutoff": 4.0, "max_number": 9, "average_degree": 8.0,
    }  # fmt: skip
    return finish(TDN(**options | network), ScalarReadout(8), references=REFERENCES)


def finish(network: nn.Module, readout: nn.Module, **keywords: Any) -> Potential:
    """Random weights that see their neighbours, and biases that are not zero."""
    heads = keywords.pop("heads", {})
    with torch.no_grad():
        for module in (network, readout, *heads.values()):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    parameter *= 1.5
                else:
                    parameter += 0.1 * torch.randn_like(parameter)
    return Potential(
        network,
        readout,
        elements=[1, 6, 8],
        metadata={"name": "earlier", "licence": "MIT"},
        heads=heads,
        **keywords,
    ).eval()


def make_models() -> None:
    Path("models").mkdir()
    plain_net = tensornet(0, references=REFERENCES, scale=1.5, mean=-2.0)
    heads = {"dipole": DipoleReadout, "polarizability": PolarizabilityReadout}
    models: dict[str, nn.Module] = {
        "tensornet": plain_net,
        "heads": tensornet(1, heads=heads, network={"group": "SO(3)"}),
        "pruned": prune_irreps(tensornet(2, references=REFERENCES), "IS"),
        "repulsion": tensornet(
            3,
            network={"cutoff": 7.5, "radial": "gauss"},
            repulsion=ZBLRepulsion(4.0, coulomb=1.0, screening_length=0.8854),
            length_unit="bohr",
            energy_unit="hartree",
            scale=0.05,
        ),
        "tdn": tdn(4, lmax=2),
        "factored": tdn(5, lmax=2, product="cp", group="SO(3)"),
        "degrees": prune_degrees(tdn(6, lmax=2), [0, 2]),
        "double": tensornet(7).double(),
    }
    for name, potential in models.items():
        save_potential(potential, f"models/{name}.safetensors")
    save_potential(Committee([plain_net, models["tdn"]]), "models/committee.zip")
    run("convert", MODEL, "models/torchmdnet.ckpt")
    export_torchscript(models["double"], "models/portable.pt", tables=False)
    drop_source_names(Path("models/portable.pt"))
    found = {}
    for path in sorted(Path("models").iterdir()):
        if path.suffix != ".pt":
            found[path.name] = answers(path)
    write_json("models/answers.json", found)


def drop_source_names(path: Path) -> None:
    """Leave out what TorchScript keeps for tracebacks: the full names of source files."""
    kept = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(kept, "w") as new:
        for name in old.namelist():
            if not name.endswith(".debug_pkl"):
                new.writestr(name, old.read(name))
    path.write_bytes(kept.getvalue())


def answers(path: Path) -> dict[str, Any]:
    """What a model says of a molecule and of a crystal, in float64."""
    calculator = PotentialCalculator(path, dtype="float64", backend="reference", device="cpu")
    info = calculator.info()
    found: dict[str, Any] = {
        "sha256": weights_digest(load_potential(path)),
        **{k: info[k] for k in ("architecture", "parameters", "elements", "cutoff_angstrom")},
        "metadata": info["metadata"],
    }
    for name in ("ethanol", "waters"):
        atoms = read(f"{name}.xyz")
        results = calculator.evaluate([atoms])[0]
        found[name] = {
            key: np.asarray(results[key]).tolist()
            for key in ("energy", "forces", "stress", "dipole", "polarizability", "energy_std")
            if key in results
        }
    return found


# Runs


class Stop:
    """Ctrl-C after a step of a molecular dynamics run, or of a training."""

    def __init__(self, last: int) -> None:
        self.last, self.done = last, 0

    def __call__(self, step: int, row: object) -> None:
        if step >= self.last:
            signal.raise_signal(signal.SIGINT)

    def stepped(self, *numbers: Any) -> None:
        self.done += 1
        if self.done == self.last:
            signal.raise_signal(signal.SIGINT)

    def validated(self, progress: object) -> None:
        pass


RUNS: dict[str, tuple[str, dict[str, Any]]] = {
    "nve": ("ethanol.xyz", {"ensemble": "nve"}),
    "langevin": ("ethanol.xyz", {"ensemble": "nvt"}),
    "bussi": ("ethanol.xyz", {"ensemble": "nvt", "thermostat": "bussi"}),
    "npt": ("waters.xyz", {"ensemble": "npt", "pressure": 100.0, "barostat_time": 200.0}),
    "openmm": (
        "ethanol.xyz",
        {
            "ensemble": "nvt", "engine": "openmm", "platform": "Reference",
            "engine_force": "python",
        },
    ),
}  # fmt: skip


def make_runs() -> None:
    for name, (structure, options) in RUNS.items():
        settings = MDSettings(**options, steps=40, seed=11, interval=4)
        for kind, observer in (("whole", None), ("half", Stop(20))):
            folder = Path("runs", name, kind)
            try:
                launch_md(structure, ModelSettings((MODEL,), **HOW), settings, folder,
                          observer=observer)  # fmt: skip
            except Interrupted as stopped:
                print(stopped)
            relative(folder)
        run("report", f"runs/{name}/whole", "--json", to=f"runs/{name}/report.json")
    options = ("--optimizer", "fire", "--steps", "15", "--fmax", "1e-6")
    how = (f"--{key}={value}" for key, value in HOW.items())
    run("relax", "ethanol.xyz", "-m", MODEL, *options, *how, "-o", "runs/relax/whole")
    relative(Path("runs/relax/whole"))
    run("report", "runs/relax/whole", "--json", to="runs/relax/report.json")
    clean(Path("runs"))


def relative(folder: Path) -> None:
    """Names of files as they are from this folder."""
    here = f"{Path.cwd()}/"
    for name in ("config.json", "config.yaml"):
        if (folder / name).exists():
            text = (folder / name).read_text()
            (folder / name).write_text(text.replace(here, ""))


def clean(folder: Path) -> None:
    for name in ("report.html", "lock"):
        for path in folder.rglob(name):
            path.unlink()
    for path in [*folder.rglob("figures")]:
        shutil.rmtree(path)


# Trainings


def make_trainings() -> None:
    Path("trainings").mkdir()
    frames = [ethanol(seed) for seed in range(20)]
    calculator = PotentialCalculator(
        "models/heads.safetensors", dtype="float64", backend="reference", device="cpu"
    )
    for atoms, results in zip(frames, calculator.evaluate(frames), strict=True):
        labels = {key: results[key] for key in ("energy", "forces", "dipole")}
        atoms.calc = SinglePointCalculator(atoms, **labels)
    write("trainings/frames.extxyz", frames)
    for name, config in CONFIGURATIONS.items():
        file = Path("trainings", f"{name}.yaml")
        file.write_text(yaml.safe_dump(config, sort_keys=False))
        for kind, stop in (("whole", None), ("half", Stop(13))):
            train(name, Path("trainings", name, kind), stop)
        for path in Path("trainings", name, "whole").glob("state.pt"):
            path.unlink()
        if name == "all_keys":  # for its configuration alone
            shutil.rmtree(f"trainings/{name}/half")
        run("report", f"trainings/{name}/whole", "--json", to=f"trainings/{name}/report.json")
    clean(Path("trainings"))


def train(name: str, folder: Path, stop: Stop | None) -> None:
    """Stopped at once and begun again, so that no file has the name of this machine's folders."""
    config = read_config(TrainConfig, Path("trainings", f"{name}.yaml"))
    try:
        start_training(config, folder, Stop(1))
    except Interrupted:
        for path in ("state.pt", "log.csv", "last.safetensors", "best.safetensors"):
            (folder / path).unlink(missing_ok=True)
    relative(folder)
    try:
        resume_training(folder, stop)
    except Interrupted as stopped:
        print(stopped)


NETWORK = {
    "channels": 8, "layers": 1, "radial_functions": 8, "cutoff": 4.0, "max_number": 9,
}  # fmt: skip
HOW_TRAINED = {
    "epochs": 8, "batch": 4, "warm_up_steps": 4, "learning_rate": 0.005, "ema_decay": 0.9,
    "validate_every": 2, "compile": False, "dtype": "float64", "seed": 3,
}  # fmt: skip
CONFIGURATIONS: dict[str, Any] = {
    "tensornet": {
        "data": {"train": "trainings/frames.extxyz", "split": [13, 4], "split_seed": 1},
        "model": {"tensornet": NETWORK, "properties": ["dipole"]},
        "training": HOW_TRAINED | {"dipole_weight": 2.0, "keep": "best"},
        "machine": {"threads": 1, "device": "cpu"},
        "output": {"metadata": {"name": "earlier"}},
    },
    "tdn": {
        "data": {"train": "trainings/frames.extxyz", "split": [13, 4]},
        "model": {
            "architecture": "tdn",
            "tdn": NETWORK
            | {"lmax": 1, "heads": 2, "radial_widths": [8], "dropout": 0.2, "average_degree": 8.0},
        },
        "training": HOW_TRAINED
        | {
            "schedule": "plateau", "plateau_patience": 1, "plateau_factor": 0.5, "loss": "huber",
            "energy_loss_ema": 0.7,
        },
        "machine": {"threads": 1, "device": "cpu"},
    },
    "finetune": {
        "data": {"train": "trainings/frames.extxyz", "split": [13, 4], "split_seed": 2},
        "model": {"start_from": "models/double.safetensors"},
        "training": HOW_TRAINED | {"learning_rate": 0.001},
        "machine": {"threads": 1, "device": "cpu"},
    },
    "all_keys": {
        "data": {
            "train": ["trainings/frames.extxyz"],
            "split": [12, 4, 3],
            "split_seed": 5,
            "limit": 19,
            "limit_seed": 2,
            "format": "extxyz",
            "units": {"energy": "kcal/mol", "forces": "kcal/mol/angstrom"},
            "keys": {"energy": "energy", "forces": "forces", "dipole": "dipole"},
        },
        "model": {
            "architecture": "tensornet",
            "tensornet": NETWORK
            | {
                "radial": "gauss", "trainable_radial": True, "activation": "tanh",
                "cutoff_lower": 0.0, "group": "SO(3)", "self_interaction": True, "irreps": "IAS",
            },
            "readout": "mlp",
            "repulsion_cutoff": 2.0,
            "properties": ["dipole"],
            "dipole_charges": False,
            "elements": ["H", "C", "O"],
            "references": {"H": -13.6, "C": -1030.0, "O": -2043.0},
        },
        "training": {
            "epochs": 6, "batch": 3, "keep_last_batch": True, "learning_rate": 0.002,
            "warm_up_steps": 7, "schedule": "plateau", "plateau_factor": 0.7,
            "plateau_patience": 3, "plateau_minimum": 1.0e-6, "early_stopping": 6,
            "loss": "mse", "huber_delta": 0.5, "energy_weight": 0.1, "energy_per_atom": True,
            "force_weight": 2.0, "stress_weight": 0.0, "dipole_weight": 1.5,
            "dipole_norm_weight": 0.0, "energy_loss_ema": 0.5, "force_loss_ema": 0.9,
            "ema_decay": 0.99, "keep": "best", "weight_decay": 1.0e-5,
            "largest_gradient": 5.0, "dtype": "float64", "seed": 9,
            "validate_every": 2, "compile": False,
        },
        "machine": {"device": "cpu", "threads": 1},
        "output": {
            "folder": "out", "torchmdnet_ckpt": False,
            "metadata": {"name": "all keys", "licence": "MIT"},
        },
    },
}  # fmt: skip


def run(*arguments: str, to: str | None = None) -> None:
    """The command, in this process; its output in a file."""
    print("tensormd", *arguments)
    usual = sys.stdout
    try:
        if to is not None:
            sys.stdout = open(to, "w")  # noqa: SIM115
        main(list(arguments))
    except SystemExit as exit_:
        if exit_.code not in (0, None, 1):  # 1: a relaxation that does not converge
            raise
    finally:
        if to is not None:
            sys.stdout.close()
        sys.stdout = usual


def write_json(path: str, content: Any) -> None:
    Path(path).write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    torch.set_num_threads(1)
    for old in ("models", "runs", "trainings"):
        shutil.rmtree(old, ignore_errors=True)
    write("ethanol.xyz", ethanol())
    write("waters.xyz", waters())
    make_models()
    make_runs()
    make_trainings()
