"""From the errors without each order to a recommendation, in words with the numbers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from .removal import Accuracy

TOLERANCE = 0.1
"""By how much of itself an error may grow when an order is recommended for removal."""
NEGLIGIBLE = 1e-4
"""An error may grow by so much of the spread of the labels, too: of a model that makes none."""


class Scale(NamedTuple):
    """How large the labels are."""

    energy_mev: float
    """Mean absolute deviation of the energies from their mean (after the references)."""
    force_mev_per_angstrom: float
    """Mean absolute component of a force."""


class Advice(NamedTuple):
    """What to do."""

    order: str | None
    """The order to prune; None: keep all."""
    fine_tune: bool
    """Whether the pruned network has to be fine-tuned for it."""
    text: str


def growth(without: Accuracy, whole: Accuracy, scale: Scale) -> float:
    """How much the worse of the two errors grows, in units of what is tolerated."""
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
    """The order to prune, if any.

    Parameters
    ----------
    whole
        Errors of the network as it is.
    without
        Errors with each removable order projected out everywhere.
    tuned
        Errors after fine-tuning of the pruned networks, and of the ``whole`` one; or None.
    work
        Work without each order over the work with it.
    norms, energies
        Largest norm share and energy share of each order over the layers.
    scale
        Of the labels.
    names
        The removable orders.
    """
    if not names:
        return Advice(None, False, "There is no order to prune: the network has scalars alone.")
    ranked = sorted(names, key=lambda name: growth(without[name], whole, scale))
    spare = [name for name in ranked if growth(without[name], whole, scale) <= 1]
    if spare:
        # Of several the one whose work is saved.
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
        f"Prune nothing as it is: {least} is the order that matters least, and without it the "
        f"errors are {_errors(without[least])}, with it {_errors(whole)}."
    )
    if tuned is None:
        return Advice(None, False, text + " What fine-tuning recovers is measured by --fine-tune.")
    ranked = sorted(names, key=lambda name: growth(tuned[name], tuned["whole"], scale))
    best = ranked[0]
    outcome = (
        f"{_errors(tuned[best])} without {best}, {_errors(tuned['whole'])} for the whole network "
        "fine-tuned alike"
    )
    if growth(tuned[best], tuned["whole"], scale) <= 1:
        text += (
            f" After fine-tuning {best} can go: {outcome}. An evaluation then takes "
            f"{100 * work[best]:.0f} % of the multiplications."
        )
        return Advice(best, True, text)
    return Advice(
        None,
        False,
        text + f" After fine-tuning the best is {outcome}: more than "
        f"{100 * TOLERANCE:.0f} % worse still.",
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
