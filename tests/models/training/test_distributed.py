"""Two processes, each with half a batch, take the same step as one with the whole batch."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.paths import TESTS

PROGRAM = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import torch
torch.set_num_threads(1)
from support.helpers import System, crystal, ethanol, tiny
from support.training_frames import labelled, tensornet, water
from tensormd.models.training import (
    Frames, TrainingSettings, TrainingStopped, start_processes, train
)

folder = Path(sys.argv[1])
systems = [ethanol(k) if k % 3 else water(k) for k in range(10)] + [crystal(), tiny(2)]
frames = labelled(systems)
with start_processes("cpu") as processes:
    by_number = {{"batch": 5, "keep_last_batch": True}}
    for name, dtype, batches in (
        ("float32", "float32", by_number), ("float64", "float64", by_number),
        ("by atoms", "float64", {{"batch_atoms": 28}}),
    ):
        settings = TrainingSettings(
            epochs=4, dtype=dtype, warm_up_steps=0,
            ema_decay=0.0, largest_gradient=1e9, validate_every=2, compile=False,
            weight_decay=0.1, learning_rate=1e-4, **batches,
        )
        out, told, steps, losses = folder / name, [], [], []
        if name == "by atoms":
            weights = [1.0 + k % 3 for k in range(len(frames))]
            frames = Frames(frames.graphs, frames.energies, frames.forces, weights=weights)

        def stop():
            steps.append(1)
            return processes.rank == processes.count - 1 and len(steps) == 7

        def run(**options):
            return train(
                tensornet(), frames, frames.select([0, 10]), settings,
                out.with_suffix(".state"), tell=told.append,
                step_done=lambda *a: losses.append(a[-1]), **options,
            )

        try:
            run(stop=stop)
        except TrainingStopped:
            assert len(losses) == 7
        potential = run()
        if processes.first:
            assert [p.epoch for p in told] == [2, 4]
            torch.save({{"weights": potential.state_dict(), "losses": losses}}, out)
        else:
            assert not told
"""


def run(folder: Path, processes: int) -> None:
    """The program in so many processes, with what it leaves in the folder."""
    program = folder / "program.py"
    program.write_text(PROGRAM.format(tests=str(TESTS)))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    running = [
        subprocess.Popen(
            [sys.executable, str(program), str(folder)],
            env={
                **os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_PORT": str(port),
                "WORLD_SIZE": str(processes), "MASTER_ADDR": "127.0.0.1", "OMP_NUM_THREADS": "1",
            },
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(processes)
    ]  # fmt: skip
    try:
        for process in running:
            _, errors = process.communicate(timeout=600)
            assert process.returncode == 0, errors
    finally:
        for process in running:
            process.kill()


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """What one and two processes left, in both dtypes."""
    made = [tmp_path_factory.mktemp(f"processes-{count}") for count in (1, 2)]
    for count, folder in enumerate(made, 1):
        run(folder, count)
    return made


@pytest.mark.parametrize(
    ("name", "tolerance"), [("float64", 1e-12), ("float32", 1e-6), ("by atoms", 1e-12)]
)
def test_two_processes_take_the_steps_of_one(
    folders: list[Path], name: str, tolerance: float
) -> None:
    """12 frames in batches of 5, 5 and 2, of uneven sizes and shared unevenly; or weighted."""
    one, two = (torch.load(folder / name, weights_only=True) for folder in folders)
    assert len(one["losses"]) == 12
    assert one["losses"] == pytest.approx(two["losses"], rel=10 * tolerance)
    for key, value in one["weights"].items():
        # AdamW divides by the size of the gradient, and so enlarges its rounding.
        torch.testing.assert_close(
            two["weights"][key], value, rtol=100 * tolerance, atol=100 * tolerance
        )
