"""Recommendation which order to remove, from the errors without each order."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .removal import Accuracy

TOLERANCE = 0.1
"""Largest relative growth of an error for which removal is recommended."""
NEGLIGIBLE = 1e-4
"""Additional allowed growth, relative to the size of the labels, for models with tiny errors."""


class Scale(NamedTuple):
    """Size of the labels."""

    energy_mev: float
    """Mean absolute deviation of the energies, less references, from their mean."""
    force_mev_per_angstrom: float
    """Mean absolute force component."""


class Advice(NamedTuple):
    """Recommendation."""

    order: str | None
    """Order to prune; None: keep all."""
    fine_tune: bool
    """Whether the pruned network must be fine-tuned."""
    text: str
    """Explanation with the numbers."""


def growth(without: Accuracy, whole: Accuracy, scale: Scale) -> float:
    """Growth of the worse of the two errors, in units of the tolerated growth."""
    found = [0.0]
    for name, size in zip(("energy_mae_mev", "force_mae_mev_per_angstrom"), scale, strict=True):
        after, before = getattr(without, name), getattr(whole, name)
        if after is not None and before is not None:
            allowed = TOLERANCE * before + NEGLIGIBLE * size
            found.append((after - before) / max(allowed, 1e-12))
    return max(found)


def advise(
    whole: Accuracy,
    without: Mapping[str, Accuracy],
    tuned: Mapping[str, Accuracy] | None,
    work: Mapping[str, float],
    norms: Mapping[str, float],
    energies: Mapping[str, float],
    scale: Scale,
    names: Sequence[str],
) -> Advice:
    """Recommend the order to prune, if any.

    Parameters
    ----------
    whole
        Errors of the unchanged network.
    without
        Errors with each removable order projected out everywhere.
    tuned
        Errors of the pruned networks and the ``whole`` one after fine-tuning; or None.
    work
        Work without each order, relative to the work with it.
    norms, energies
        Largest norm share and energy share of each order over the layers.
    scale
        Size of the labels.
    names
        Names of the removable orders.
    """
    if not names:
        return Advice(None, False, "There is no order to prune: the network has only scalars.")
    ranked = sorted(names, key=lambda name: growth(without[name], whole, scale))
    spare = [name for name in ranked if growth(without[name], whole, scale) <= 1]
    if spare:
        # Among several, the one that saves most work.
        best = min(spare, key=lambda name: work[name])
        text = (
            f"Prune {best}: without it the errors are {_errors(without[best])}, with it "
            f"{_errors(whole)}. It holds at most {100 * norms[best]:.2g} % of the norm at any "
            f"layer and carries at most {100 * energies[best]:.2g} % of the energy gradient. An "
            f"evaluation then takes {100 * work[best]:.0f} % of the multiplications."
        )
        return Advice(best, False, text)
    least = ranked[0]
    text = (
        f"Prune nothing without fine-tuning: {least} is the order that matters least, and "
        f"without it the errors are {_errors(without[least])}, with it {_errors(whole)}."
    )
    if tuned is None:
        return Advice(None, False, text + " --fine-tune measures what fine-tuning recovers.")
    ranked = sorted(names, key=lambda name: growth(tuned[name], tuned["whole"], scale))
    best = ranked[0]
    outcome = (
        f"{_errors(tuned[best])} without {best}, {_errors(tuned['whole'])} for the whole network "
        "after the same fine-tuning"
    )
    if growth(tuned[best], tuned["whole"], scale) <= 1:
        text += (
            f" After fine-tuning, {best} can be removed: {outcome}. An evaluation then takes "
            f"{100 * work[best]:.0f} % of the multiplications."
        )
        return Advice(best, True, text)
    return Advice(
        None,
        False,
        text + f" After fine-tuning, the best is {outcome}: still more than "
        f"{100 * TOLERANCE:.0f} % worse.",
    )


def _errors(found: Accuracy) -> str:
    parts = []
    if found.energy_mae_mev is not None:
        parts.append(f"{_number(found.energy_mae_mev)} meV")
    if found.force_mae_mev_per_angstrom is not None:
        parts.append(f"{_number(found.force_mae_mev_per_angstrom)} meV/A")
    return " and ".join(parts)


def _number(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
