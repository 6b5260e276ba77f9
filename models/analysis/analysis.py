"""Analysis of the orders of one network on one set of frames."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from ase.data import chemical_symbols

from ..graph import within
from ..networks.base import Irrep
from ..potential import Potential
from ..training import Frames, TrainingSettings, train
from .advice import Advice, Scale, advise
from .cost import work_without
from .layout import Layout, layout_of
from .maps import Map, maps_of
from .pruning import projected, pruned
from .removal import Accuracy, Predictions, accuracy, predict, predict_without
from .shares import Shares, measure_shares

Tell = Callable[[str], None]

FINE_TUNING_RATE = 5e-4
"""Highest learning rate in fine-tuning."""
FINE_TUNING_BATCH = 8


@dataclass(frozen=True)
class Analysis:
    """Results of an analysis; orders by name."""

    layout: Layout
    frames: int
    """Number of frames."""
    atoms: int
    """Number of atoms in all frames."""
    neighbours: float
    """Mean number of neighbours within the cutoff."""
    shares: Shares
    whole: Accuracy
    """Errors of the whole network."""
    at_layer: dict[str, list[Accuracy]]
    """Errors without an order (scalars included) at one layer only, for each layer."""
    everywhere: dict[str, Accuracy]
    """Errors without a removable order from embedding to readout, as after pruning."""
    tuned: dict[str, Accuracy]
    """Errors of the pruned networks and the ``whole`` one after fine-tuning; may be empty."""
    networks: dict[str, Potential]
    """The fine-tuned networks."""
    work: dict[str, float]
    """Multiplications without a removable order, relative to those with it."""
    maps: list[Map]
    advice: Advice


def analyse(
    potential: Potential,
    frames: Frames,
    *,
    fit: Frames | None = None,
    epochs: int = 0,
    seed: int = 0,
    tell: Tell = lambda text: None,
) -> Analysis:
    """Measure the orders of a network.

    Parameters
    ----------
    potential
        TensorNet or TDN. Measurements are in float64, so that rounding does not affect small
        numbers; fine-tuning uses the dtype of the weights.
    frames
        Frames with energies, forces or both.
    fit, epochs, seed
        Frames for fine-tuning, disjoint from the others, number of epochs (0: no fine-tuning), and
        seed of their order.
    tell
        Function called with a description of the current step.

    Raises
    ------
    ValueError
        If the network has no orders, or the frames have no labels or an unknown element.
    """
    layout = layout_of(potential)
    check_frames(potential, frames)
    if epochs and fit is not None:
        check_frames(potential, fit)
    given, potential = potential, copy.deepcopy(potential).double().eval()
    forces = "forces" in frames.quantities
    tell("norms and gradients")
    shares = measure_shares(potential, frames, layout)
    whole = predict(potential, frames, forces)

    def judge(found: Predictions) -> Accuracy:
        return accuracy(found, whole, frames)

    at_layer: dict[str, list[Accuracy]] = {}
    for order in layout.orders:
        tell(f"without {order.name} at each layer")
        at_layer[order.name] = [
            judge(predict_without(potential, frames, layout, order, k, forces))
            for k in range(len(layout.layers))
        ]
    everywhere = {}
    for order in layout.removable:
        tell(f"without {order.name} everywhere")
        kept = potential.representation.kept_without(order.name)
        left = projected(potential, kept).eval()
        everywhere[order.name] = judge(predict(left, frames, forces))
    networks: dict[str, Potential] = {}
    if epochs and fit is not None:
        for name in ("whole", *(order.name for order in layout.removable)):
            tell(f"fine-tuning {'the whole network' if name == 'whole' else 'without ' + name}")
            start = given if name == "whole" else without_order(given, layout.order(name))
            networks[name] = fine_tuned(start, fit, epochs, seed)
    tuned = {
        name: judge(predict(copy.deepcopy(network).double(), frames, forces))
        for name, network in networks.items()
    }
    neighbours = neighbours_of(frames, potential.cutoff)
    work = {
        order.name: work_without(potential, layout, order, neighbours)
        for order in layout.removable
    }
    tell("maps of the embeddings")
    largest = {
        kind: dict(zip((o.name for o in layout.orders), amounts.amax(0).tolist(), strict=True))
        for kind, amounts in (("norm", shares.norm), ("energy", shares.energy))
    }
    advice = advise(
        judge(whole),
        everywhere,
        tuned or None,
        work,
        largest["norm"],
        largest["energy"],
        scale_of(potential, frames),
        [order.name for order in layout.removable],
    )
    return Analysis(
        layout,
        len(frames),
        int(frames.sizes.sum()),
        neighbours,
        shares,
        judge(whole),
        at_layer,
        everywhere,
        tuned,
        networks,
        work,
        maps_of(potential, frames, layout),
        advice,
    )


def check_frames(potential: Potential, frames: Frames) -> None:
    """Raise a ValueError if the frames have no labels or an unknown element."""
    if not {"energy", "forces"} & set(frames.quantities):
        raise ValueError("the frames have neither energies nor forces: expected labelled ones")
    unknown = sorted(set(frames.elements) - set(potential.elements))
    if unknown:
        known = ", ".join(chemical_symbols[z] for z in potential.elements)
        raise ValueError(
            f"the model does not know {chemical_symbols[unknown[0]]}: it was trained on {known}"
        )


def without_order(potential: Potential, order: Irrep) -> Potential:
    """Smaller network, equal to this one with the order projected out."""
    return pruned(potential, potential.representation.kept_without(order.name))


def fine_tuned(potential: Potential, fit: Frames, epochs: int, seed: int = 0) -> Potential:
    """Copy of the network, trained for some epochs on all energies and forces of the frames."""
    batch = min(FINE_TUNING_BATCH, len(fit))
    steps = epochs * (len(fit) // batch)
    settings = TrainingSettings(
        epochs=epochs,
        batch=batch,
        learning_rate=FINE_TUNING_RATE,
        warm_up_steps=max(steps // 20, 1),
        energy_weight=0.5 if "energy" in fit.quantities else 0.0,
        force_weight=1.0 if "forces" in fit.quantities else 0.0,
        # The average covers at most a tenth of the run.
        ema_decay=min(0.999, 1 - 10 / max(steps, 20)),
        dtype="float64" if potential.dtype == torch.float64 else "float32",
        seed=seed,
        validate_every=epochs,
    )
    few = fit.select(sorted({k for name in fit.quantities for k in fit.labelled(name)[:batch]}))
    return train(copy.deepcopy(potential), fit, few, settings).eval()


def neighbours_of(frames: Frames, cutoff: float) -> float:
    """Mean number of neighbours within the cutoff (Angstrom)."""
    edges = sum(within(graph, cutoff)[0].edge_index.shape[1] for graph in frames.graphs)
    return edges / int(frames.sizes.sum())


def scale_of(potential: Potential, frames: Frames) -> Scale:
    """Size of the labels, after subtracting the reference energies."""
    energy = force = 0.0
    if "energy" in frames.quantities:
        table = potential.atomic_scale.references.cpu() * potential.energy_in_ev
        known = frames.select(frames.labelled("energy"))
        shares = torch.stack([table[graph.numbers].sum() for graph in known.structures])
        rest = known.energies - shares
        energy = 1e3 * float((rest - rest.mean()).abs().mean())
    if "forces" in frames.quantities:
        forces = torch.cat([frames.forces[k] for k in frames.labelled("forces")])
        force = 1e3 * float(forces.abs().mean())
    return Scale(energy, force)
