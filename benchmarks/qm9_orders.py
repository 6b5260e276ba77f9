"""QM9 energies from TDNs with different sets of degrees, to see which ones a network needs.

    python benchmarks/qm9_orders.py [--json FILE] [--state FOLDER] [--minutes M]

After Lee, Galkin & Miret, "Deconstructing equivariant representations in molecular systems"
(2024, arXiv:2410.08131). Each network (``exact_cg``, O(3)) learns the internal energies at 0 K of
the same molecules for the same number of epochs, after subtracting least-squares energies of the
elements; seeds differ in the weights and in the order of the molecules. Reported are the mean
absolute errors of the network and of the trivial predictor (the elements alone) on test molecules,
and each degree's share of the norm and of the energy gradient (`tensormd.models.analysis`).

Needs ``pip install 'tensormd[datasets]'``. An interrupted run resumes from its saved state; with
``--minutes`` it stops by itself.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import torch

from tensormd.models import TDN, Potential, ScalarReadout
from tensormd.models.analysis import layout_of, maps_of, measure_shares, predict
from tensormd.models.analysis.maps import explained_by
from tensormd.models.data.standardise import standardise
from tensormd.models.files import write_atomically
from tensormd.models.training import (
    Frames,
    Progress,
    TrainingSettings,
    TrainingStopped,
    read_frames,
    train,
)

DEGREES = ((0, 1, 2), (0, 1, 2, 3, 4), (0, 3, 4))
SEEDS = (0, 1)
MOLECULES = {"fit": 4000, "validation": 200, "test": 1000}
SPLIT_SEED = 0
CUTOFF = 5.0
NETWORK = {
    "channels": 16,
    "layers": 2,
    "radial_functions": 32,
    "radial_widths": (32, 32),
    "product": "exact_cg",
    "group": "O(3)",
    "max_number": 10,
    "average_degree": 15.0,
}
SETTINGS: dict[str, Any] = {
    "epochs": 20,
    "batch": 16,
    "learning_rate": 2e-3,
    "warm_up_steps": 200,
    "energy_weight": 1.0,
    "force_weight": 0.0,
    "ema_decay": 0.995,
    "validate_every": 1,
    "compile": False,
}


def label(degrees: tuple[int, ...]) -> str:
    """Name of a set of degrees, such as ``0,3,4``."""
    return ",".join(map(str, degrees))


def load(cutoff: float) -> tuple[Frames, Frames, Frames]:
    """Training, validation and test molecules, the same for every network."""
    frames = read_frames(
        "qm9", cutoff, format="qm9", limit=sum(MOLECULES.values()), seed=SPLIT_SEED
    )
    return tuple(frames.split(list(MOLECULES.values()), SPLIT_SEED))  # type: ignore[return-value]


def build(degrees: tuple[int, ...], seed: int, fit: Frames) -> Potential:
    """A network with random weights."""
    torch.manual_seed(seed)
    network = TDN(degrees=degrees, cutoff=CUTOFF, **NETWORK)
    readout = ScalarReadout(int(NETWORK["channels"]))
    return Potential(network, readout, **standardise(fit).options())


def run(
    degrees: tuple[int, ...],
    seed: int,
    parts: tuple[Frames, Frames, Frames],
    state: Path,
    until: float,
) -> dict[str, Any]:
    """Train one network, or resume its training, and measure it."""
    fit, validation, test = parts
    name = f"{label(degrees)}-{seed}"
    settings = TrainingSettings(seed=seed, **SETTINGS)

    def tell(progress: Progress) -> None:
        energy = progress.errors["energy"]
        print(
            f"{name}: epoch {progress.epoch}, {energy.mae:.1f} {energy.unit}, "
            f"{progress.seconds:.0f} s",
            flush=True,
        )

    began = time.process_time()
    spent = state / f"{name}.seconds"
    before = float(spent.read_text()) if spent.exists() else 0.0
    potential = build(degrees, seed, fit)
    try:
        trained = train(
            potential,
            fit,
            validation,
            settings,
            state / f"{name}.state",
            tell,
            stop=lambda: time.time() > until,
        )
    finally:
        write_atomically(spent, str(before + time.process_time() - began).encode())
    return {"degrees": list(degrees), "seed": seed,
            "cpu_seconds": before + time.process_time() - began,
            **measure(trained, test)}  # fmt: skip


def measure(potential: Potential, test: Frames) -> dict[str, Any]:
    """Test error, shares of each degree after each layer, and R^2 of the maps for energies."""
    potential = potential.double().eval()
    energies = predict(potential, test, forces=False).energy
    layout = layout_of(potential)
    few = test.select(range(200))
    shares = measure_shares(potential, few, layout)
    names = [order.name for order in layout.orders]
    references = potential.atomic_scale.references
    elements = torch.stack([references[graph.numbers].sum() for graph in test.graphs])
    rest = test.energies - elements - potential.atomic_scale.mean
    sizes = torch.tensor([len(graph.numbers) for graph in test.graphs], dtype=torch.float64)
    return {
        "parameters": sum(p.numel() for p in potential.parameters()),
        "test_mae_mev": 1e3 * float((energies - test.energies).abs().mean()),
        "trivial_mae_mev": 1e3 * float(rest.abs().mean()),
        "norm_share": table(layout.layers, names, shares.norm),
        "energy_share": table(layout.layers, names, shares.energy),
        "map_r2_of_energy_per_atom": {
            each.name: explained_by(each.points, rest / sizes)
            for each in maps_of(potential, test, layout)
        },
    }


def table(layers: tuple[str, ...], names: list[str], values: torch.Tensor) -> dict[str, Any]:
    """Values by layer, then by order."""
    return {
        layer: dict(zip(names, row, strict=True))
        for layer, row in zip(layers, values.tolist(), strict=True)
    }


def markdown(runs: list[dict[str, Any]]) -> str:
    """Markdown table, a line per set of degrees: means over the seeds, and each seed's error."""
    lines = [
        "| degrees | weights | test MAE / meV (by seed) | norm after block 1, by l / % "
        "| energy gradient after block 1, by l / % | R² of the map | CPU minutes |",
        "|---|---|---|---|---|---|---|",
    ]
    for degrees in DEGREES:
        found = [each for each in runs if tuple(each["degrees"]) == degrees]
        if not found:
            continue
        errors = ", ".join(f"{each['test_mae_mev']:.0f}" for each in found)
        mean = sum(each["test_mae_mev"] for each in found) / len(found)

        def shares(kind: str, found: list[dict[str, Any]] = found) -> str:
            values = [list(each[kind]["layer 1"].values()) for each in found]
            return ", ".join(f"{100 * sum(v) / len(v):.0f}" for v in zip(*values, strict=True))

        explained = [each["map_r2_of_energy_per_atom"]["all"] for each in found]
        minutes = sum(each["cpu_seconds"] for each in found) / 60
        lines.append(
            f"| {label(degrees)} | {found[0]['parameters']:,} | {mean:.0f} ({errors}) "
            f"| {shares('norm_share')} | {shares('energy_share')} "
            f"| {sum(explained) / len(explained):.2f} | {minutes:.0f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Run every set of degrees with every seed, beginning with the first seed."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--json", type=Path, default=Path("benchmarks/results/qm9_orders.json"))
    parser.add_argument("--state", type=Path, default=Path("qm9_orders_state"))
    parser.add_argument("--minutes", type=float, default=float("inf"))
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    until = time.time() + 60 * arguments.minutes
    arguments.state.mkdir(parents=True, exist_ok=True)
    content: dict[str, Any] = {"runs": []}
    if arguments.json.exists():
        content = json.loads(arguments.json.read_text())
    content |= {"molecules": MOLECULES, "cutoff_angstrom": CUTOFF, "network": NETWORK,
                "settings": SETTINGS, "threads": arguments.threads}  # fmt: skip
    done = {(tuple(each["degrees"]), each["seed"]) for each in content["runs"]}
    parts = load(CUTOFF)
    for seed in SEEDS:
        for degrees in DEGREES:
            if (degrees, seed) in done:
                continue
            try:
                found = run(degrees, seed, parts, arguments.state, until)
            except TrainingStopped:
                print("out of time: the same command resumes", flush=True)
                return
            content["runs"].append(found)
            write_atomically(arguments.json, (json.dumps(content, indent=1) + "\n").encode())
            print(f"{label(degrees)}, seed {seed}: {found['test_mae_mev']:.1f} meV", flush=True)
    print(markdown(content["runs"]))


if __name__ == "__main__":
    main()
