"""The orders of a checkpoint, measured on labelled frames, and the checkpoint without one."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...models import Potential, load_potential, save_potential
from ...models.analysis import (
    Accuracy,
    Analysis,
    accuracy,
    analyse,
    layout_of,
    predict,
    without_order,
)
from ...models.training import Frames, read_frames
from ..runs.models import weights_digest

Tell = Callable[[str], None]

FIT_AT_MOST = 1000
"""Frames after those that are analysed, to fine-tune on."""


@dataclass(frozen=True)
class Pruned:
    """A checkpoint without an order."""

    order: str
    file: Path
    predicted: Accuracy
    """By the whole network with the order projected out; if fine-tuned, by what was trained."""
    found: Accuracy
    """By the file."""


@dataclass(frozen=True)
class IrrepsRun:
    """What `tensormd irreps` found."""

    data: str
    model: dict[str, Any]
    """Name, digest, architecture and network of what was analysed."""
    epochs: int
    """Of the fine-tuning; 0: none."""
    fit_frames: int
    potential: Potential
    """What was analysed, in float64."""
    analysis: Analysis
    frames: Frames
    pruned: Pruned | None


def run_irreps(
    checkpoint: str | Path,
    data: str | Path,
    folder: Path,
    *,
    limit: int = 200,
    prune: str | None = None,
    epochs: int = 0,
    units: tuple[str, str] | None = None,
    tell: Tell = lambda text: None,
) -> IrrepsRun:
    """Analyse a checkpoint, and write it without an order if asked to.

    Parameters
    ----------
    checkpoint
        A path or a registry name.
    data
        Labelled frames of any kind that `read_frames` reads.
    folder
        Where the pruned checkpoint goes; made only when there is something to write.
    limit
        Frames to analyse, from the first; those after them are what is fine-tuned on.
    prune
        An order: ``A``, ``S``, ``l=2``, ...
    epochs
        Of the fine-tuning of each network without an order; 0: none.
    units
        As in `load_potential`.
    tell
        Called with what is being done.

    Raises
    ------
    ValueError, OSError
        If the checkpoint, the data or an option is no good.
    """
    if limit < 1:
        raise ValueError(f"--limit is {limit}: expected 1 or more")
    if epochs < 0:
        raise ValueError(f"--fine-tune is {epochs}: expected the number of epochs")
    potential: Any = load_potential(checkpoint, units=units)
    layout = layout_of(potential)
    wanted = None if prune is None else layout.order(prune)
    for order in layout.removable if epochs else [wanted] if wanted else []:
        without_order(potential, order)  # what cannot be pruned is refused before the work
    frames = read_frames(data, potential.cutoff, limit=limit + FIT_AT_MOST if epochs else limit)
    frames = frames.without_isolated()
    fit = frames.select(range(limit, len(frames))) if epochs and len(frames) > limit else None
    if epochs and fit is None:
        raise ValueError(
            f"{data} has {len(frames)} frames, all of which are analysed: --fine-tune learns "
            "from those after the first --limit; lower it"
        )
    frames = frames.select(range(min(limit, len(frames))))
    analysis = analyse(potential, frames, fit=fit, epochs=epochs, tell=tell)
    model = {
        "name": str(potential.metadata.get("name") or Path(checkpoint).name),
        "sha256": weights_digest(potential),
        "architecture": potential.architecture,
        "network": potential.representation.config,
    }
    pruned = None
    if wanted is not None:
        tell(f"writing the network without {wanted.name}")
        pruned = _write_pruned(
            potential, wanted.name, analysis, frames, model, Path(data), folder, epochs
        )
    return IrrepsRun(
        str(data),
        model,
        epochs,
        0 if fit is None else len(fit),
        potential.double().eval(),
        analysis,
        frames,
        pruned,
    )


def _write_pruned(
    potential: Potential,
    order: str,
    analysis: Analysis,
    frames: Frames,
    model: dict[str, Any],
    data: Path,
    folder: Path,
    epochs: int,
) -> Pruned:
    forces = "forces" in frames.quantities
    if epochs:
        smaller, predicted = analysis.networks[order], analysis.tuned[order]
    else:
        smaller = without_order(potential, analysis.layout.order(order))
        predicted = analysis.everywhere[order]
    whole = predict(copy.deepcopy(potential).double().eval(), frames, forces)

    def errors(network: Any) -> Accuracy:
        return accuracy(predict(network.double().eval(), frames, forces), whole, frames)

    name = f"{model['name']}-without-{order.replace('=', '')}"
    # Errors of the whole network are not this one's.
    kept = {k: v for k, v in potential.metadata.items() if not re.search("mae|rmse", k)}
    record: dict[str, Any] = {
        "order": order,
        "from": model["name"],
        "from_sha256": model["sha256"],
        "data": data.name,
        "frames": len(frames),
        "fine_tuning_epochs": epochs,
        "predicted": predicted._asdict(),
        "found": errors(copy.deepcopy(smaller))._asdict(),
    }
    smaller.metadata = {**kept, "name": name, "pruned": record}
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / f"{name}.safetensors"
    save_potential(smaller, file)
    return Pruned(order, file, predicted, errors(load_potential(file)))
