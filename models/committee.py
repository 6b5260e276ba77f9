"""Committees: the mean prediction of several potentials, and the spread between them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from .graph import Graph
from .potential import Prediction


class CommitteePrediction(NamedTuple):
    """Mean and sample standard deviation (n - 1) over the members."""

    mean: Prediction
    energy_std: Tensor
    """Spread of the energies, (B,), eV."""
    forces_std: Tensor
    """Spread of each force component, (N, 3), eV/Angstrom."""


class Committee(nn.Module):
    """Two or more potentials evaluated on the same graph.

    Parameters
    ----------
    members
        Potentials; they may differ in weights, size, units and architecture. The committee
        knows the elements that all of them know.

    Raises
    ------
    ValueError
        If there are fewer than two members or no element is known to all.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        if len(members) < 2:
            raise ValueError(f"a committee of {len(members)}: expected two or more potentials")
        self.members = nn.ModuleList(members)
        known = [set(member.elements) for member in members]  # type: ignore[arg-type]
        self.elements = sorted(set.intersection(*known))
        if not self.elements:
            raise ValueError("the members of the committee have no element in common")
        self.cutoff = max(float(member.cutoff) for member in members)  # type: ignore[arg-type]
        self.metadata: dict[str, Any] = {"members": [member.metadata for member in members]}

    __jit_unused_properties__ = ("architecture", "dtype")

    @property
    def architecture(self) -> str:
        """The architectures of the members."""
        return " + ".join(str(member.architecture) for member in self.members)

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of the first member's weights."""
        return next(self.members[0].parameters()).dtype

    def forward(self, graph: Graph) -> CommitteePrediction:
        """Mean and standard deviation of the predictions for a graph."""
        return combine([member(graph) for member in self.members])


def mean(values: list[Tensor]) -> Tensor:
    """Mean over the members of a committee; a single value is returned unchanged."""
    return values[0] if len(values) == 1 else torch.stack(values).mean(0)


def mean_prediction(predictions: list[Prediction]) -> Prediction:
    """The mean of the members' predictions; TorchScript can compile it."""
    return Prediction(
        mean([p.energy for p in predictions]),
        mean([p.energies for p in predictions]),
        mean([p.forces for p in predictions]),
        mean([p.virial for p in predictions]),
        mean([p.virials for p in predictions]),
    )


def combine(predictions: list[Prediction]) -> CommitteePrediction:
    """Mean and standard deviation of two or more members' predictions."""
    return CommitteePrediction(
        mean_prediction(predictions),
        _spread([p.energy for p in predictions]),
        _spread([p.forces for p in predictions]),
    )


def _spread(values: list[Tensor]) -> Tensor:
    """Sample standard deviation, whose bits, unlike those of torch.std, batches do not change."""
    deviations = torch.stack(values) - mean(values)
    return (deviations.square().sum(0) / (len(values) - 1)).sqrt()


def with_coulomb_cutoff(potential: nn.Module, cutoff: float) -> nn.Module:
    """A potential, or a committee, whose members with a Coulomb energy have another cutoff.

    Parameters
    ----------
    potential
        Potential or committee; it is not changed, and shares its weights.
    cutoff
        Cutoff, Angstrom, beyond which there is a reaction field; infinity: all pairs of a
        molecule.

    Raises
    ------
    ValueError
        If no member has a Coulomb energy, or the cutoff cannot be.
    """
    members = members_of(potential)
    if not any(has_coulomb(member) for member in members):
        raise ValueError(
            f"coulomb_cutoff is {cutoff}, but a {potential.architecture} without charges has no "
            "Coulomb energy to cut off: leave it out"
        )
    changed: list[nn.Module] = [
        member.with_coulomb_cutoff(cutoff) if has_coulomb(member) else member  # type: ignore[operator]
        for member in members
    ]
    if not isinstance(potential, Committee):
        return changed[0]
    return Committee(changed).train(potential.training)


def has_coulomb(member: nn.Module) -> bool:
    """Whether a potential has a Coulomb energy of predicted charges."""
    return getattr(member, "coulomb_cutoff", None) is not None


def members_of(potential: nn.Module) -> list[nn.Module]:
    """The members of a committee, or the potential itself."""
    return list(potential.members) if isinstance(potential, Committee) else [potential]
