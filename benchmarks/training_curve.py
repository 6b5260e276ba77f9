"""Error against time of training, beside torchmd-train, on a molecule of revised MD17.

    python benchmarks/training_curve.py [MOLECULE] --data DIR [--epochs N] [--seed S] [--json FILE]

tensormd trains for some epochs with the settings of ``accuracy.py``, but `CHANGES`; torchmd-train,
with the settings of its own example for these data, gets as much time afterwards. Both have 950
training frames, batches of 8, two layers of 128 channels, and watch the errors of the same 50
frames; at the end both are tested on the same 1,000 frames. Time is that of the processor, in one
thread, so that other programs on the machine matter less. torchmd-train is Lightning's trainer as
it sets it up, without progress bar and checkpoints.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from accuracy import SIZES, Run
from rmd17 import CUTOFF, MOLECULES, add_data_option, data_files
from training_step import THEIRS

from tensormd.md_runs.benchmark.machine import describe_machine
from tensormd.models.checkpoint.torchmdnet_writer import write_torchmdnet_checkpoint
from tensormd.models.files import write_atomically
from tensormd.models.training import Frames, Progress, quantity_errors, read_rmd17, train

EVERY = 5  # epochs of tensormd between two points
CHANGES = ("learning_rate=2e-3", "energy_weight=0.1")  # better in short trainings


class Point(NamedTuple):
    """Errors of the watched frames after some time."""

    seconds: float
    epoch: int
    energy: float
    """Mean absolute error, meV."""
    forces: float
    """Mean absolute error, meV/A."""


class Curve(NamedTuple):
    """A training: points of the curve, and the errors of the test frames."""

    points: list[Point]
    test: Point


def tensormd_curve(run: Run, test: Frames) -> Curve:
    """Train with tensormd."""
    points: list[Point] = []
    began = time.process_time()

    def tell(progress: Progress) -> None:
        energy, forces = (progress.errors[name].mae for name in ("energy", "forces"))
        points.append(Point(time.process_time() - began, progress.epoch, energy, forces))
        print(f"tensormd  {points[-1]}", flush=True)

    settings = replace(run.settings, validate_every=EVERY)
    potential = train(run.potential(), run.fit, run.watched, settings, None, tell)
    errors = quantity_errors(potential, test)
    last = points[-1]
    return Curve(
        points, Point(last.seconds, last.epoch, errors["energy"].mae, errors["forces"].mae)
    )


def torchmd_curve(run: Run, test: Frames, seconds: float) -> Curve:
    """Train with torchmd-net's own parts as `torchmd-train` does, for a time."""
    import lightning.pytorch as pl
    from torch_geometric.data import Data
    from torch_geometric.loader import DataLoader
    from torchmdnet.module import LNNP

    # Its weights and data are float32: the mean energy is left out.
    mean = run.fit.energies.mean()
    start = run.potential()
    start.atomic_scale.mean.zero_()

    def loader(frames: Frames, batch: int, shuffle: bool) -> DataLoader:
        data = [
            Data(z=g.numbers, pos=g.positions.float(), y=e.float().reshape(1), neg_dy=f.float())
            for g, e, f in zip(frames.graphs, frames.energies - mean, frames.forces, strict=True)
        ]
        return DataLoader(data, batch_size=batch, shuffle=shuffle, drop_last=shuffle)

    points: list[Point] = []
    began = time.process_time()

    def errors(trainer: pl.Trainer, kind: str) -> Point:
        energy, forces = (
            1e3 * float(trainer.callback_metrics[f"{kind}_{name}_l1_loss"])
            for name in ("y", "neg_dy")
        )
        return Point(time.process_time() - began, trainer.current_epoch + 1, energy, forces)

    class Watch(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            trainer.should_stop = time.process_time() - began > seconds

        def on_train_epoch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            points.append(errors(trainer, "val"))
            print(f"torchmd-train  {points[-1]}", flush=True)

    with tempfile.TemporaryDirectory() as folder:
        write_torchmdnet_checkpoint(start, Path(folder) / "start.ckpt")
        content = torch.load(Path(folder) / "start.ckpt", weights_only=True)
        given = {"log_dir": folder, "batch_size": run.settings.batch, "seed": run.settings.seed}
        module = LNNP(dict(content["hyper_parameters"] | THEIRS | given))
        module.load_state_dict(content["state_dict"])
        trainer = pl.Trainer(
            max_epochs=-1, accelerator="cpu", devices=1, default_root_dir=folder,
            callbacks=[Watch()], logger=False, gradient_clip_val=40.0, inference_mode=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            num_sanity_val_steps=0,
        )  # fmt: skip
        trainer.fit(
            module, loader(run.fit, run.settings.batch, True), loader(run.watched, 50, False)
        )
        trainer.test(module, loader(test, 50, False), verbose=False)
    last = points[-1]
    found = errors(trainer, "test")
    return Curve(points, found._replace(seconds=last.seconds, epoch=last.epoch))


def table(curves: dict[str, Curve]) -> str:
    """Markdown: errors of the watched frames at the same times, and of the test frames."""
    lines = [
        "| program | time, s | epochs | energy, meV | forces, meV/Å |",
        "|---|---:|---:|---:|---:|",
    ]
    end = max(curve.test.seconds for curve in curves.values())
    for name, curve in curves.items():
        for share in (0.25, 0.5, 0.75):
            before = [point for point in curve.points if point.seconds <= share * end]
            if before:
                lines.append(_row(f"{name}, watched frames", before[-1]))
        lines.append(_row(f"{name}, test frames", curve.test))
    return "\n".join(lines)


def _row(name: str, point: Point) -> str:
    return (
        f"| {name} | {point.seconds:.0f} | {point.epoch} | {point.energy:.2f} "
        f"| {point.forces:.2f} |"
    )


def main(arguments: list[str] | None = None) -> None:
    """Train both, store and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("molecule", nargs="?", choices=MOLECULES, default="aspirin")
    parser.add_argument("--epochs", type=int, default=160, help="epochs of tensormd")
    parser.add_argument("--seed", type=int, default=0)
    add_data_option(parser)
    parser.add_argument("--json", type=Path, metavar="FILE", help="file for the curves")
    given = parser.parse_args(arguments)
    try:
        files = data_files(given.data, given.molecule)
    except ValueError as error:
        parser.error(str(error))
    torch.set_num_threads(1)
    run = Run(
        given.molecule, "tensornet", files, Path(), given.seed, given.epochs, None, CHANGES, "cpu"
    )
    test = read_rmd17(files[1], CUTOFF)
    curves = {"tensormd": tensormd_curve(run, test)}
    curves["torchmd-train"] = torchmd_curve(run, test, curves["tensormd"].test.seconds)
    if given.json is not None:
        content = {
            "molecule": given.molecule,
            "seed": given.seed,
            "frames": {"train": SIZES[0], "watched": SIZES[1], "test": len(test)},
            "curves": {name: list(curve) for name, curve in curves.items()},
            "fields": Point._fields,
            "machine": describe_machine(torch.device("cpu"), 1),
        }
        write_atomically(given.json, (json.dumps(content, indent=1) + "\n").encode())
    print(table(curves))


if __name__ == "__main__":
    main()
