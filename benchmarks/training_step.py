"""Time of a training step compared with torchmd-net, on a CPU.

    python benchmarks/training_step.py --data DIR [--mixed FILE] [--threads 1 2]
                                       [--networks small large] [--seconds 60] [--json FILE]

Batches are eight frames of rMD17's aspirin and, with ``--mixed``, 32 of different molecules. A
step is everything that a program does from one batch to the next: combining frames into one
graph, energies and forces, the loss (mean squared errors of both), its gradient through the
forces, gradient clipping, AdamW, and the learning rate; tensormd also averages its weights.
torchmd-net searches neighbours in every step, tensormd once per frame.

- torchmd-net: `LNNP.training_step` on batches of its own data loader (in the same process, because
  workers would compete for the cores), then clipping and the optimizer that LNNP configures.
- plain operators: the same without its Warp kernels, which are compiled for the CPU too.
- torchmd-train: the same steps with Lightning's trainer, as `torchmd-train` sets it up, with its
  log, without checkpoints, validation and progress bar.
- tensormd, with each backend: `tensormd.models.training.train`, without validation.

All start from the same weights and have the same frames; the losses of the first batch are
compared. Each program has its own process, in which its training loop pauses after some steps
until the others have completed theirs. Times are medians; steps before everything is compiled and
warm are not counted. Results are merged into the JSON file by network and threads. Keep the
machine idle meanwhile; the first run compiles for some minutes.
"""

from __future__ import annotations

import argparse
import io
import itertools
import json
import logging
import multiprocessing
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rmd17 import CUTOFF, add_data_option, data_files
from torch import nn

from tensormd.md_runs.benchmark.machine import describe_machine
from tensormd.models import EnergyReadout, Potential, TensorNet
from tensormd.models.checkpoint.torchmdnet_writer import write_torchmdnet_checkpoint
from tensormd.models.files import write_atomically
from tensormd.models.training import (
    Frames,
    TrainingSettings,
    TrainingStep,
    read_extxyz,
    read_rmd17,
    train,
)

NETWORKS = {
    "small": {"channels": 128, "layers": 2},  # torchmd-net's examples/TensorNet-rMD17.yaml
    "large": {"channels": 256, "layers": 3},
}
FRAMES = 962  # whole batches, and the two frames that torchmd-net needs for validation and test
SIZES = 20, 50  # numbers of atoms of mixed molecules
OURS = TrainingSettings(
    epochs=10**6,
    learning_rate=1e-3,
    warm_up_steps=500,
    schedule="constant",
    loss="mse",
    energy_weight=0.5,
    force_weight=0.5,
    weight_decay=0.0,
    largest_gradient=40.0,
    validate_every=10**6,
)
THEIRS: dict[str, Any] = {  # from the same example
    "lr": 1e-3,
    "lr_warmup_steps": 500,
    "lr_factor": 0.8,
    "lr_patience": 25,
    "lr_min": 1e-8,
    "weight_decay": 0.0,
    "y_weight": 0.5,
    "neg_dy_weight": 0.5,
    "ema_alpha_y": 1.0,
    "ema_alpha_neg_dy": 1.0,
    "train_loss": "mse_loss",
    "inference_batch_size": 64,
    "num_workers": 0,
    "train_size": FRAMES - 2,
    "val_size": 1,
    "test_size": 1,
    "seed": 1,
    "splits": None,
    "standardize": False,
    "test_interval": -1,
    "precision": 32,
}
WARM = 5  # steps of each program before counting begins
LEAST = 10  # smallest number of counted steps
TURN = 8  # steps that a program runs in a row, as in training

Pause = Callable[[], None]


@dataclass(frozen=True)
class Case:
    """Network, threads and data, the same for all programs."""

    network: str
    threads: int
    file: Path
    batch: int
    cutoff: float

    def frames(self) -> Frames:
        """Frames with the elements' energies subtracted: torchmd-net would add them in float32."""
        if self.file.suffix == ".npz":
            found = read_rmd17(self.file, self.cutoff)
        else:
            found = read_extxyz(self.file, self.cutoff)
            sizes = np.array([len(graph.numbers) for graph in found.graphs])
            found = found.select(np.flatnonzero((sizes >= SIZES[0]) & (sizes <= SIZES[1])))
        found = found.select(np.linspace(0, len(found) - 1, FRAMES).astype(int))
        counts = torch.stack([torch.bincount(g.numbers, minlength=20) for g in found.graphs])
        elements = torch.linalg.lstsq(counts.double(), found.energies[:, None], driver="gelsd")
        energies = found.energies - (counts.double() @ elements.solution)[:, 0]
        return Frames(found.graphs, energies, found.forces)

    def potential(self, frames: Frames) -> Potential:
        """A potential with random weights, the same in every process."""
        torch.manual_seed(0)
        sizes = NETWORKS[self.network]
        return Potential(
            TensorNet(**sizes, radial_functions=32, cutoff=self.cutoff, max_number=20),
            EnergyReadout(sizes["channels"]),
            elements=frames.elements,
            scale=float(torch.cat(frames.forces).square().mean().sqrt()),
        )


class Tensormd:
    """tensormd's `train`."""

    def __init__(self, case: Case, folder: Path, **settings: Any) -> None:
        self.frames = case.frames()
        self.potential = case.potential(self.frames)
        self.settings = replace(OURS, batch=case.batch, **settings)

    def first_loss(self) -> float:
        """Of the first batch."""
        batch = self.frames.batch(range(self.settings.batch))
        return TrainingStep(self.potential, self.settings).step(batch).total

    def loop(self, pause: Pause) -> None:
        """All steps."""
        watched = self.frames.select(range(1))
        step_done = lambda *_: pause()  # noqa: E731
        train(self.potential, self.frames, watched, self.settings, step_done=step_done)


class TorchMDNet:
    """torchmd-net's own parts, without Lightning's trainer."""

    def __init__(self, case: Case, folder: Path, *, kernels: bool = True) -> None:
        from torch_geometric.data import Data

        if not kernels:
            plain_operators()
        frames = case.frames()
        checkpoint = folder / "start.ckpt"
        write_torchmdnet_checkpoint(case.potential(frames), checkpoint)
        content = torch.load(checkpoint, weights_only=True)
        self.state = content["state_dict"]
        self.batch = case.batch
        given = {"log_dir": str(folder), "batch_size": case.batch}
        self.hyper_parameters = content["hyper_parameters"] | THEIRS | given
        self.data = [
            Data(
                z=graph.numbers,
                pos=graph.positions.float(),
                y=energy.float().reshape(1),
                neg_dy=forces.float(),
            )
            for graph, energy, forces in zip(
                frames.graphs, frames.energies, frames.forces, strict=True
            )
        ]

    def module(self) -> Any:
        """A new LNNP."""
        from torchmdnet.module import LNNP

        module = LNNP(dict(self.hyper_parameters))
        module.load_state_dict(self.state)
        return module.train()

    def first_loss(self) -> float:
        """Of the first batch."""
        from torch_geometric.data import Batch

        batch = Batch.from_data_list(self.data[: self.batch])
        return float(self.module().training_step(batch, 0).detach())

    def loop(self, pause: Pause) -> None:
        """All steps."""
        from torch_geometric.loader import DataLoader

        module = self.module()
        optimizer = module.configure_optimizers()[0][0]
        loader = DataLoader(self.data, batch_size=self.batch, shuffle=True, drop_last=True)
        steps = 0
        while True:
            for batch in loader:
                steps += 1
                for group in optimizer.param_groups:
                    group["lr"] = THEIRS["lr"] * min(1.0, steps / THEIRS["lr_warmup_steps"])
                loss = module.training_step(batch, steps)
                optimizer.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(module.parameters(), OURS.largest_gradient)
                optimizer.step()
                pause()


class TorchMDTrain(TorchMDNet):
    """torchmd-net with Lightning's trainer."""

    def loop(self, pause: Pause) -> None:
        """All steps."""
        import lightning.pytorch as pl
        from lightning.pytorch.loggers import CSVLogger
        from torchmdnet.data import DataModule

        class Hold(pl.Callback):
            def on_train_batch_end(self, *_: Any) -> None:
                pause()

        folder = self.hyper_parameters["log_dir"]
        trainer = pl.Trainer(
            strategy="auto",
            max_epochs=-1,
            accelerator="cpu",
            devices=1,
            default_root_dir=folder,
            callbacks=[Hold()],
            logger=CSVLogger(folder, name="", version=""),
            precision=32,
            gradient_clip_val=OURS.largest_gradient,
            inference_mode=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            limit_val_batches=0,
            num_sanity_val_steps=0,
        )
        trainer.fit(self.module(), DataModule(dict(self.hyper_parameters), self.data))


def plain_operators() -> None:
    """Make torchmd-net run TensorNets without its Warp kernels, in this process."""
    from torchmdnet.models import tensornet

    tensornet.OPT = False
    for name in ("compose_tensor", "decompose_tensor", "tensor_matmul_o3", "tensor_matmul_so3"):
        setattr(tensornet, name, getattr(tensornet, f"_{name}"))


OUR_BEST = "tensormd, fused"
PROGRAMS: dict[str, Callable[[Case, Path], Any]] = {
    "torchmd-net": TorchMDNet,
    "torchmd-net, plain operators": partial(TorchMDNet, kernels=False),
    "torchmd-train": TorchMDTrain,
    "tensormd, plain": partial(Tensormd, backend="plain"),
    "tensormd, compiled": partial(Tensormd, backend="compiled"),
    "tensormd, fused, no splines": partial(Tensormd, backend="fused", radial_intervals=0),
    OUR_BEST: partial(Tensormd, backend="fused"),
}


class Program:
    """A program's training loop in its own process, controlled step by step.

    Parameters
    ----------
    name
        A key of ``PROGRAMS``.
    case
        Network, threads and data.
    folder
        Folder for the program's files.
    """

    def __init__(self, name: str, case: Case, folder: Path) -> None:
        context = multiprocessing.get_context("spawn")
        self.name = name
        self.seconds: list[float] = []
        self._here, there = context.Pipe()
        self._process = context.Process(target=work, args=(name, case, folder, there))
        self._process.start()
        there.close()

    def let_go(self) -> None:
        """Let the program run one step."""
        self._here.send(None)

    def hear(self) -> float:
        """Wait for the loss of the first batch or, later, the time of a step, s."""
        try:
            return self._here.recv()
        except EOFError:
            raise RuntimeError(f"{self.name} failed") from None

    def step(self) -> None:
        """Run one step and record its time."""
        self.let_go()
        self.seconds.append(self.hear())

    def end(self) -> None:
        """Kill the process; Lightning would hold back any other signal."""
        self._process.kill()
        self._process.join()


def work(name: str, case: Case, folder: Path, there: Connection) -> None:
    """Main function of a program's process."""
    torch.set_num_threads(case.threads)
    # Only results go to the screen.
    warnings.simplefilter("ignore")
    logging.disable(logging.INFO)
    began = 0.0

    def pause() -> None:
        nonlocal began
        there.send(time.perf_counter() - began)
        there.recv()
        began = time.perf_counter()

    with redirect_stdout(io.StringIO()):
        program = PROGRAMS[name](case, folder)
        there.send(program.first_loss())
        there.recv()
        began = time.perf_counter()
        program.loop(pause)


def measure(case: Case, names: list[str], seconds: float, folder: Path) -> dict[str, Any]:
    """Times of programs, ms; ``folder`` is for their files."""
    programs = []
    for k, name in enumerate(names):
        (folder / str(k)).mkdir()
        programs.append(Program(name, case, folder / str(k)))
    try:
        losses = {program.name: program.hear() for program in programs}
        if max(losses.values()) > (1 + 1e-4) * min(losses.values()):
            raise RuntimeError(f"the programs do not compute the same loss: {losses}")
        for program in programs:  # all compile at the same time
            program.let_go()
        for program in programs:
            program.hear()
        began = time.perf_counter()
        while time.perf_counter() - began < seconds or len(programs[0].seconds) < WARM + LEAST:
            for program in programs:
                for _ in range(TURN):
                    program.step()
    finally:
        for program in programs:
            program.end()
    frames = case.frames()
    edges = sum(graph.edge_index.shape[1] for graph in frames.graphs) / len(frames)
    return {
        "network": case.network,
        **NETWORKS[case.network],
        "threads": case.threads,
        "frames": case.file.name,
        "batch": case.batch,
        "edges": case.batch * edges,
        "first_loss": losses,
        "programs": {program.name: summary(program.seconds[WARM:]) for program in programs},
        "machine": describe_machine(torch.device("cpu"), case.threads),
    }


def summary(seconds: list[float]) -> dict[str, float]:
    """Median and quartiles, ms."""
    low, middle, high = (1e3 * value for value in statistics.quantiles(seconds, n=4))
    return {"ms": middle, "quartile_1": low, "quartile_3": high, "steps": len(seconds)}


def ratios(result: dict[str, Any]) -> dict[str, float]:
    """Time of each program's step relative to tensormd's fused step."""
    programs = result["programs"]
    ours = programs[OUR_BEST]["ms"]
    return {name: found["ms"] / ours for name, found in programs.items()}


def table(results: list[dict[str, Any]]) -> str:
    """Markdown table of the results."""
    lines = [
        "| frames | network | threads | program | ms a step | quartiles | times fused |",
        "| --- | --- | ---: | --- | ---: | --- | ---: |",
    ]
    for result in results:
        named = f"{result['channels']} channels, {result['layers']} layers"
        ratio = ratios(result)
        which = f"{result['batch']} of {result['frames']} | {named} | {result['threads']}"
        for name, found in result["programs"].items():
            lines.append(
                f"| {which} | {name} | {found['ms']:.0f} | "
                f"{found['quartile_1']:.0f} to {found['quartile_3']:.0f} | {ratio[name]:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    """Measure, print and store."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add_data_option(parser)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument(
        "--mixed", type=Path, metavar="FILE",
        help="extended XYZ of many molecules: measure batches of 32 of 20 to 50 atoms too",
    )  # fmt: skip
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--programs", nargs="+", choices=list(PROGRAMS), default=list(PROGRAMS))
    parser.add_argument("--seconds", type=float, default=60.0, help="time per measurement")
    parser.add_argument("--json", type=Path, metavar="FILE", help="results are merged into it")
    options = parser.parse_args()
    try:
        train_file, _ = data_files(options.data, "aspirin")
    except ValueError as error:
        parser.error(str(error))
    sets = [(train_file, 8, CUTOFF)]
    sets += [(options.mixed, 32, 5.0)] if options.mixed else []
    for network, threads, data in itertools.product(options.networks, options.threads, sets):
        with tempfile.TemporaryDirectory() as folder:
            case = Case(network, threads, *data)
            result = measure(case, options.programs, options.seconds, Path(folder))
        print(table([result]), flush=True)
        if options.json:
            merge(options.json, result)


def merge(path: Path, result: dict[str, Any]) -> None:
    """Write a result to a file, replacing an older one of the same case."""
    kept = json.loads(path.read_text()) if path.exists() else []
    names = ("network", "threads", "frames")
    key = [result[name] for name in names]
    kept = [entry for entry in kept if [entry.get(name) for name in names] != key]
    kept.append(result)
    kept.sort(
        key=lambda e: (e.get("frames", ""), list(NETWORKS).index(e["network"]), e["threads"])
    )
    write_atomically(path, (json.dumps(kept, indent=1) + "\n").encode())


if __name__ == "__main__":
    main()
