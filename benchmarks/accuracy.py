"""Accuracy on revised MD17: 950 training, 50 validation and 1,000 test frames of split 1.

    python benchmarks/accuracy.py [MOLECULE ...] --data DIR [--architecture tensornet tdn]
                                  [--epochs N | --minutes M] [--seed S] [--set KEY=VALUE ...]
                                  [--out DIR] [--work DIR]

trains every architecture on every molecule (default: all ten) and tests it. It stores the errors
with settings, seed and time in ``accuracy_cpu.json`` of the folder ``--out``, and prints them next
to TensorNet's published errors and those of two trivial predictors: the mean energy of the
training frames, and zero forces. ``--table`` prints the stored results and trains nothing.

Every run has a folder under ``--work`` with its state, a log and, at the end, the potential. The
same command resumes an interrupted run and ends with the same numbers. ``--minutes`` is the time
of one run on this machine: its first steps are timed to choose the number of epochs that fit, so
that the learning-rate schedule is completed. No choice depends on the 50 validation frames.
``--set`` changes a setting of the training, such as ``backend=plain``.

To use two cores, run two molecules at a time, each with OMP_NUM_THREADS=1.
"""

from __future__ import annotations

import argparse
import dataclasses
import fcntl
import itertools
import json
import os
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import yaml
from pydantic.dataclasses import dataclass as pydantic_dataclass
from rmd17 import CUTOFF, MOLECULES, add_data_option, data_files
from torch import nn

from tensormd.md_runs.benchmark.machine import describe_machine
from tensormd.md_runs.runs.schema import parse_config
from tensormd.models import TDN, EnergyReadout, Potential, ScalarReadout, TensorNet, save_potential
from tensormd.models.files import write_atomically
from tensormd.models.options import STRICT
from tensormd.models.training import (
    Frames,
    Progress,
    TrainingSettings,
    error_statistics,
    evaluate_errors,
    quantity_errors,
    read_rmd17,
    train,
)


@dataclass(frozen=True)
class Setting:
    """A network and how it is trained."""

    network: dict[str, Any]
    training: TrainingSettings


@pydantic_dataclass(frozen=True, config=STRICT)
class _File:
    """The section of a configuration that ``--set`` changes."""

    training: TrainingSettings


SETTINGS = {
    "tensornet": Setting(
        {"channels": 128, "layers": 2, "radial_functions": 32},
        TrainingSettings(
            epochs=1000, batch=8, learning_rate=1e-3, warm_up_steps=500, ema_decay=0.999,
            loss="norm", energy_weight=0.5, force_weight=1.0, weight_decay=1e-6,
            largest_gradient=10.0, validate_every=20,
        ),
    ),
    "tdn": Setting(
        {"channels": 64, "layers": 2, "lmax": 2, "radial_functions": 32, "norm_epsilon": 0.01},
        TrainingSettings(
            epochs=450, batch=4, learning_rate=2e-3, warm_up_steps=500, ema_decay=0.999,
            loss="norm", energy_weight=0.5, force_weight=1.0, weight_decay=1e-6,
            largest_gradient=10.0, validate_every=20,
        ),
    ),
}  # fmt: skip
SIZES = (950, 50)
"""Numbers of training and validation frames."""

PUBLISHED: dict[str, tuple[float, float | None]] = {
    "aspirin": (2.4, 8.9),
    "azobenzene": (0.7, None),
    "benzene": (0.02, None),
    "malonaldehyde": (0.8, None),
    "paracetamol": (1.3, None),
    "salicylic": (0.9, None),
    "toluene": (0.3, None),
    "uracil": (0.4, None),
}
"""TensorNet's published errors (Simeon & De Fabritiis 2023): energies, meV, forces, meV/A."""

WARM, TIMED = 3, 12  # steps before timing begins, and timed steps


class Run:
    """One molecule, one architecture, one seed: its folder, its frames and its settings.

    Parameters
    ----------
    molecule, architecture
        Entries of ``MOLECULES`` and ``SETTINGS``.
    files
        Files of the training and test frames.
    work
        Folder of all runs.
    seed
        Seed of the split, the weights and the order of the frames.
    epochs, minutes
        Length of the training; at most one is not None. Both None: as in the setting.
    changes
        Changes of the training's settings, ``key=value``.
    device
        Device to train on.
    """

    def __init__(
        self,
        molecule: str,
        architecture: str,
        files: tuple[Path, Path],
        work: Path,
        seed: int,
        epochs: int | None,
        minutes: float | None,
        changes: Sequence[str],
        device: str,
    ) -> None:
        self.molecule, self.architecture, self.device = molecule, architecture, device
        setting = SETTINGS[architecture]
        self.network = dict(setting.network)
        self.settings = replace(
            changed(setting.training, changes), seed=seed, epochs=epochs or setting.training.epochs
        )
        self.minutes = minutes
        length = f"{self.settings.epochs}-epochs" if minutes is None else f"{minutes:g}-minutes"
        self.name = "-".join([molecule, architecture, f"seed-{seed}", length, *changes])
        self.folder = work / self.name
        self.train_file, self.test_file = files
        self.frames = read_rmd17(self.train_file, CUTOFF)
        self.fit, self.watched = self.frames.split(SIZES, seed)
        if architecture == "tdn":
            edges = sum(graph.edge_index.shape[1] for graph in self.fit.graphs)
            atoms = sum(len(graph.numbers) for graph in self.fit.graphs)
            self.network["average_degree"] = round(edges / atoms, 1)

    def potential(self) -> Potential:
        """An untrained potential with the scale and mean of the training frames."""
        torch.manual_seed(self.settings.seed)
        sizes = {"cutoff": CUTOFF, "max_number": 10, **self.network}
        if self.architecture == "tensornet":
            network: nn.Module = TensorNet(**sizes)
            readout: EnergyReadout | ScalarReadout = EnergyReadout(sizes["channels"])
        else:
            network, readout = TDN(**sizes), ScalarReadout(sizes["channels"])
        return Potential(
            network,
            readout,
            elements=self.frames.elements,
            scale=float(torch.cat(self.fit.forces).square().mean().sqrt()),
            mean=float(self.fit.energies.mean()),
        )

    def execute(self) -> dict[str, Any]:
        """Train, or resume, and test; returns the entry for the file of results."""
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.minutes is not None:
            self.settings = replace(self.settings, epochs=self._epochs_that_fit(self.minutes))
        seconds = [0.0]

        def tell(progress: Progress) -> None:
            seconds[0] = progress.seconds
            report(self, progress)

        potential = train(
            self.potential(),
            self.fit,
            self.watched,
            self.settings,
            self.folder / "state.pt",
            tell,
            device=self.device,
        )
        test = read_rmd17(self.test_file, CUTOFF)
        errors = quantity_errors(potential, test)
        entry = {
            "molecule": self.molecule,
            "architecture": self.architecture,
            "seed": self.settings.seed,
            "network": self.network,
            "training": dataclasses.asdict(self.settings),
            "minutes_asked": self.minutes,
            "parameters": sum(p.numel() for p in potential.parameters()),
            "frames": {"train": SIZES[0], "watched": SIZES[1], "test": len(test)},
            "seconds": self._seconds(seconds[0]),
            "energy_mae_mev": errors["energy"].mae,
            "energy_rmse_mev": errors["energy"].rmse,
            "force_mae_mev_per_angstrom": errors["forces"].mae,
            "force_rmse_mev_per_angstrom": errors["forces"].rmse,
            "trivial": self._trivial(test),
            "machine": describe_machine(torch.device(self.device), torch.get_num_threads()),
        }
        potential.metadata.update(self._card(entry))
        save_potential(potential, self.folder / f"{self.molecule}-{self.architecture}.safetensors")
        return entry

    def _epochs_that_fit(self, minutes: float) -> int:
        """Number of epochs that fit, estimated from the first steps, once per run."""
        plan = self.folder / "plan.json"
        if plan.exists():
            return int(json.loads(plan.read_text())["epochs"])
        began = time.perf_counter()
        startup, step = self._time_steps()
        watching = time.perf_counter()
        evaluate_errors(self.potential(), self.watched)
        watching = time.perf_counter() - watching
        epoch = len(self.fit) // self.settings.batch * step
        epoch += watching / self.settings.validate_every
        spent = time.perf_counter() - began
        left = 60 * minutes - spent - startup - 2 * watching
        epochs = max(1, int(left / epoch))
        found = {"epochs": epochs, "seconds_of_an_epoch": epoch, "startup_seconds": startup}
        write_atomically(plan, (json.dumps(found, indent=1) + "\n").encode())
        print(f"{self.name}: {epoch:.2f} s an epoch, {epochs} epochs", flush=True)
        return epochs

    def _time_steps(self) -> tuple[float, float]:
        """Seconds until the warm-up steps are done, and seconds per later step."""

        class EnoughError(Exception):
            pass

        marks: list[float] = []

        def step_done(*_: Any) -> None:
            marks.append(time.perf_counter())
            if len(marks) > WARM + TIMED:
                raise EnoughError

        # Long enough that the step is compiled if the run's will be.
        settings = replace(self.settings, epochs=10**6, validate_every=10**6)
        began = time.perf_counter()
        with suppress(EnoughError):
            train(
                self.potential(),
                self.fit,
                self.watched,
                settings,
                step_done=step_done,
                device=self.device,
            )
        later = marks[WARM:]
        each = [after - before for before, after in itertools.pairwise(later)]
        return later[0] - began, statistics.median(each)

    def _seconds(self, seconds: float) -> float:
        """Seconds of the whole training, also for a run that was already complete."""
        file = self.folder / "seconds.json"
        if seconds == 0.0 and file.exists():
            return float(json.loads(file.read_text()))
        write_atomically(file, json.dumps(seconds).encode())
        return seconds

    def _trivial(self, test: Frames) -> dict[str, float]:
        mean = self.fit.energies.mean()
        return {
            "energy_mae_mev": 1e3 * error_statistics(mean - test.energies).mae,
            "force_mae_mev_per_angstrom": 1e3 * error_statistics(torch.cat(test.forces)).mae,
        }

    def _card(self, entry: dict[str, Any]) -> dict[str, Any]:
        """Metadata for the file of the potential."""
        fit, _ = SIZES
        data = f"revised MD17 {self.molecule}, split 1"
        return {
            "name": f"{self.architecture}-{self.molecule}",
            "training_data": f"{data}, {fit} frames (PBE/def2-SVP)",
            "test_data": f"{data}, {entry['frames']['test']:,} frames",
            "energy_mae_mev": round(entry["energy_mae_mev"], 3),
            "force_mae_mev_per_angstrom": round(entry["force_mae_mev_per_angstrom"], 3),
            "epochs": self.settings.epochs,
            "seed": self.settings.seed,
            "licence": "MIT (weights); CC0-1.0 (data)",
            "reference": "Christensen & von Lilienfeld 2020, arXiv:2007.09593",
            "made_by": "benchmarks/accuracy.py",
        }


def changed(settings: TrainingSettings, changes: Sequence[str]) -> TrainingSettings:
    """Settings with changes ``key=value``, whose values are YAML.

    Raises
    ------
    ValueError
        If a key is unknown or its value is not valid.
    """
    given = {k: v for k, v in dataclasses.asdict(settings).items() if v is not None}
    text = yaml.safe_dump({"training": given})
    return parse_config(
        _File, text, "--set", [f"training.{change}" for change in changes]
    ).training


def report(run: Run, progress: Progress) -> None:
    """Write a line to the screen and to the log of the run."""
    energy, forces = (progress.errors[name].mae for name in ("energy", "forces"))
    line = (
        f"{run.name}  epoch {progress.epoch}  {progress.seconds:.0f} s  loss {progress.loss:.5f}  "
        f"watched {energy:.2f} meV {forces:.2f} meV/A"
    )
    print(line, flush=True)
    with (run.folder / "log.txt").open("a") as log:
        log.write(line + "\n")


KEY = ("molecule", "architecture", "seed", "network", "training", "minutes_asked")


def keep(path: Path, entry: dict[str, Any]) -> None:
    """Write an entry to the file of results, replacing an older one of the same run."""
    with _locked(path.parent):
        entries = [e for e in read(path) if any(e[key] != entry[key] for key in KEY)]
        entries.append(entry)
        entries.sort(key=lambda e: (e["architecture"] != "tensornet", e["molecule"], e["seconds"]))
        write_atomically(path, (json.dumps(entries, indent=1) + "\n").encode())


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """Lock a folder against other processes that write to it."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def read(path: Path) -> list[dict[str, Any]]:
    """All entries of a file of results."""
    return json.loads(path.read_text()) if path.exists() else []


def table(entries: list[dict[str, Any]]) -> str:
    """Markdown table of mean absolute errors."""
    lines = [
        "| molecule | network | epochs | hours | energy, meV | published | the mean "
        "| forces, meV/Å | published | none |",
        "| --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for e in entries:
        energy, forces = PUBLISHED.get(e["molecule"], (None, None))
        if e["architecture"] != "tensornet":
            energy = forces = None
        trivial = e["trivial"]
        lines.append(
            f"| {e['molecule']} | {e['architecture']}, {e['network']['channels']} channels "
            f"| {e['training']['epochs']} | {e['seconds'] / 3600:.2f} "
            f"| {e['energy_mae_mev']:.2f} | {energy or '-'} | {trivial['energy_mae_mev']:.0f} "
            f"| {e['force_mae_mev_per_angstrom']:.2f} | {forces or '-'} "
            f"| {trivial['force_mae_mev_per_angstrom']:.0f} |"
        )
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> None:
    """Train, test, store and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("molecules", nargs="*", metavar="MOLECULE", help=", ".join(MOLECULES))
    parser.add_argument(
        "--architecture", nargs="+", choices=list(SETTINGS), default=list(SETTINGS)
    )
    length = parser.add_mutually_exclusive_group()
    length.add_argument("--epochs", type=_positive(int), help="epochs per run; default: as set")
    length.add_argument("--minutes", type=_positive(float), help="time per run, on this machine")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        dest="changes",
        metavar="KEY=VALUE",
        help="changes of the training's settings",
    )
    parser.add_argument("--device", default="cpu")
    add_data_option(parser)
    parser.add_argument(
        "--out", type=Path, default=Path(__file__).parent / "results", metavar="DIR"
    )
    parser.add_argument(
        "--work", type=Path, default=Path("accuracy_runs"), metavar="DIR",
        help="folder of states, logs and potentials (default: accuracy_runs)",
    )  # fmt: skip
    parser.add_argument("--table", action="store_true", help="print stored results and exit")
    options = parser.parse_args(arguments)
    unknown = [name for name in options.molecules if name not in MOLECULES]
    if unknown:
        parser.error(f"unknown molecule {unknown[0]!r}: expected some of {', '.join(MOLECULES)}")
    molecules = options.molecules or list(MOLECULES)
    kind = torch.device(options.device).type
    results = options.out / f"accuracy_{kind}.json"
    if not options.table:
        try:
            files = {name: data_files(options.data, name) for name in molecules}
        except ValueError as error:
            parser.error(str(error))
        options.out.mkdir(parents=True, exist_ok=True)
        for molecule, architecture in itertools.product(molecules, options.architecture):
            try:
                run = Run(
                    molecule, architecture, files[molecule], options.work, options.seed,
                    options.epochs, options.minutes, options.changes, options.device,
                )  # fmt: skip
                keep(results, run.execute())
            except ValueError as error:
                parser.error(str(error))
            except FloatingPointError as error:
                sys.exit(f"accuracy.py: {molecule}, {architecture}: {error}")
            except KeyboardInterrupt:
                sys.exit("accuracy.py: interrupted; the same command resumes from here")
    chosen = [
        e for e in read(results)
        if e["molecule"] in molecules and e["architecture"] in options.architecture
    ]  # fmt: skip
    print(table(chosen))


def _positive(kind: type[int] | type[float]) -> Any:
    def parse(text: str) -> float:
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"is {text}: expected more than 0")
        return value

    return parse


if __name__ == "__main__":
    main()
