"""The potential that a training starts from: a new one, or a checkpoint."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence

import torch
from ase.data import chemical_symbols
from torch import Tensor

from ...models.checkpoint import load_potential
from ...models.committee import Committee
from ...models.data.standardise import element_counts, standardise
from ...models.evaluation.predictions import predict_graphs, slices
from ...models.heads.coulomb import CoulombEnergy
from ...models.heads.repulsion import ZBLRepulsion
from ...models.networks import Network
from ...models.potential import Potential, check_charges, parse_dtype
from ...models.quantities import HEADS, QUANTITIES
from ...models.training import Frames
from ..runs.models import parse_elements
from ..runs.schema import of_key
from .config import ModelConfig, TrainConfig
from .data import Parts

AT_ONCE = 50
"""Frames to evaluate together."""


class Start:
    """A network, new or loaded, whose scales and references wait for the training frames.

    Parameters
    ----------
    config
        Configuration of the training.

    Raises
    ------
    ValueError
        If an option makes no network, or the checkpoint cannot be trained.
    """

    def __init__(self, config: TrainConfig) -> None:
        self.config = config
        model = config.model
        torch.manual_seed(config.settings.seed)
        self.loaded: Potential | None = None
        self.network: Network | None = None
        if model.start_from is not None:
            with of_key("model.start_from"):
                self.loaded = load_trainable(model.start_from, model.start_from_units)
            if model.coulomb_cutoff is not None:
                with of_key("model.coulomb_cutoff"):
                    self.loaded = self.loaded.with_coulomb_cutoff(model.coulomb_cutoff)
            self.cutoff = self.loaded.cutoff
        else:
            try:
                self.network = model.network(**model.options)
            except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
                reason = str(error).splitlines()[0]  # torch adds where it failed
                raise ValueError(f"model.{model.name}: {reason}") from None
            self.cutoff = max(float(model.options["cutoff"]), model.repulsion_cutoff or 0.0)
            if model.coulomb_weights is not None:
                self.cutoff = max(self.cutoff, model.coulomb_cutoff or math.inf)

    def elements(self, training: Frames) -> list[int]:
        """Atomic numbers that the potential knows."""
        if self.config.model.elements is not None:
            return sorted(
                set(parse_elements(",".join(self.config.model.elements), "model.elements"))
            )
        return training.elements if self.loaded is None else list(self.loaded.elements)

    def potential(self, training: Frames) -> Potential:
        """The potential, with references, scales and heads for these frames."""
        elements = self.elements(training)
        network = self.network if self.loaded is None else self.loaded.representation
        assert network is not None
        places = network.max_number
        if max(elements) >= places:
            raise ValueError(
                f"the elements go up to atomic number {max(elements)}, but the network has a "
                f"place for those below {places}: "
                + (
                    f"set max_number in model.{self.config.model.name}"
                    if self.loaded is None
                    else "train a new one"
                )
            )
        found = (
            self._new(training, elements)
            if self.loaded is None
            else self._further(self.loaded, training, elements)
        )
        freeze(found, self.config.model.freeze)
        _add_heads(found, self.config.model, training)
        if not any(p.requires_grad for p in found.parameters()):
            raise ValueError(
                f"model.freeze is {self.config.model.freeze}, which leaves nothing to train: "
                "expected fewer parts"
            )
        return found.to(parse_dtype(self.config.settings.dtype))

    def _new(self, training: Frames, elements: list[int]) -> Potential:
        model = self.config.model
        assert self.network is not None
        with of_key("model.references"):
            found = standardise(training, _references(model))
        scales = found.options()
        scales["references"] = _padded(scales["references"], elements)
        for z in set(elements).intersection(found.references):
            scales["references"][z] = found.references[z]
        cutoff = model.repulsion_cutoff
        with of_key("model.coulomb_weights"):
            coulomb = self._coulomb(model)
        return Potential(
            self.network,
            self.network.new_readout(model.readout),
            **{**scales, "elements": elements},
            repulsion=None if cutoff is None else ZBLRepulsion(cutoff),
            coulomb=coulomb,
        )

    def _coulomb(self, model: ModelConfig) -> CoulombEnergy | None:
        if model.coulomb_weights is None:
            return None
        assert self.network is not None
        if not self.network.charge_levels:
            raise ValueError(
                f"a {type(self.network).__name__} predicts no charges: set architecture: "
                "tensornet2, or leave coulomb_weights out"
            )
        found = CoulombEnergy(
            model.coulomb_weights, self.network.charge_channels, model.coulomb_cutoff
        )
        check_charges(self.network, found)
        return found

    def _further(self, loaded: Potential, training: Frames, elements: list[int]) -> Potential:
        """A loaded potential for these elements, its references refitted where wanted."""
        model = self.config.model
        scale = loaded.atomic_scale
        scale.references = _padded(scale.references, elements)
        new = set(elements) - set(loaded.elements)
        loaded.elements = elements
        if model.refit == "all":
            refit = sorted(set(training.elements) | new)
        else:
            named = (
                []
                if model.refit == "none"
                else parse_elements(",".join(model.refit), "model.refit")
            )
            if set(named) - set(elements):
                raise ValueError(f"model.refit has {model.refit}: expected elements of the model")
            refit = sorted(set(named) | new)
        if refit and "energy" in training.quantities:
            refit_references(loaded, training, refit)
        return loaded


def _padded(references: Tensor, elements: Sequence[int]) -> Tensor:
    """The table with a place for every element."""
    missing = max(elements) + 1 - len(references)
    return torch.cat([references, references.new_zeros(max(missing, 0))])


def load_trainable(checkpoint: str, units: Sequence[str] | None) -> Potential:
    """A checkpoint as a potential that can be trained.

    Raises
    ------
    ValueError
        If it cannot be read, is a committee, or runs as another program's module.
    """
    pair = None if units is None else (units[0], units[1])
    potential = load_potential(checkpoint, units=pair)
    if isinstance(potential, Committee):
        raise ValueError(
            f"model.start_from is {checkpoint}, a committee: give one of its members, and train "
            "them one by one"
        )
    if not isinstance(potential, Potential):
        raise ValueError(
            f"model.start_from is {checkpoint}, a {potential.architecture} that runs as "
            "torchmd-net's own module and is not trained here: expected a TensorNet, a TensorNet2 "
            "or a TDN; "
            "train it with torchmd-train"
        )
    return potential


def refit_references(potential: Potential, frames: Frames, elements: Sequence[int]) -> None:
    r"""Change energies of elements so that the potential's total energies fit best.

    .. math:: \min_\Delta \sum_k \Big( E_k - \hat E_k - \sum_Z n_{kZ} \Delta_Z \Big)^2

    and of several solutions the one with the smallest :math:`\Delta`.
    """
    frames = frames.select(frames.labelled("energy"))
    counts = torch.from_numpy(element_counts(frames, elements))
    if counts.sum(0).min() == 0:
        z = elements[int(counts.sum(0).argmin())]
        raise ValueError(
            f"model.refit or model.elements has {chemical_symbols[z]}, which no training frame "
            "holds: there is nothing to fit its energy to"
        )
    parts = slices(len(frames), AT_ONCE)
    found = predict_graphs(potential, frames.graphs, ("energy",), parts)["energy"]
    left = frames.energies - found
    change = torch.linalg.lstsq(counts, left.unsqueeze(1), driver="gelsd").solution[:, 0]
    potential.atomic_scale.references[list(elements)] += change / potential.energy_in_ev


def tell_isolated(parts: Parts, model: ModelConfig, potential: Potential) -> None:
    """Say in one line what becomes of the isolated atoms of the files, if there are any."""
    if not parts.isolated:
        return
    known = [z for z in sorted(parts.training.atom_energies) if z in potential.elements]
    what = "not used: the references are those of start_from"
    if model.start_from is None:
        what = "not used: model.references has others"
        if model.references == "fit":
            what = "not used: no element of the training frames has one"
    if known and model.start_from is None and model.references == "fit":
        energies = ", ".join(
            f"{chemical_symbols[z]} {parts.training.atom_energies[z][0]:.8g} eV" for z in known
        )
        what = f"the reference energies ({energies})"
    warnings.warn(
        f"isolated atoms ({parts.isolated}) are no training, validation or test frames; their "
        f"energies are {what}",
        UserWarning,
        stacklevel=2,
    )


def freeze(potential: Potential, names: Sequence[str]) -> None:
    """Keep the weights of some parts as they are.

    Parameters
    ----------
    potential
        Potential, changed in place.
    names
        Names of modules or parameters, such as ``representation.embedding``.

    Raises
    ------
    ValueError
        If a name is no part of the potential; the message lists the parts.
    """
    for name in names:
        found = [
            parameter
            for key, parameter in potential.named_parameters()
            if key == name or key.startswith(f"{name}.")
        ]
        if not found:
            parts = [
                key
                for key, module in potential.named_modules()
                if key and key.count(".") < 3 and any(True for _ in module.parameters())
            ]
            raise ValueError(f"model.freeze has {name!r}: expected of {', '.join(parts)}")
        for parameter in found:
            parameter.requires_grad_(False)


def _references(model: ModelConfig) -> str | dict[int, float]:
    if isinstance(model.references, str):
        return model.references
    return {
        parse_elements(symbol, "model.references")[0]: energy
        for symbol, energy in model.references.items()
    }


def _add_heads(potential: Potential, model: ModelConfig, training: Frames) -> None:
    """Readouts of the properties wanted that the potential does not have yet."""
    for name in model.properties:
        if name in potential.heads:
            continue
        options = {"charges": model.dipole_charges} if name == "dipole" else {}
        head = HEADS[name](potential.representation, **options)
        labelled, labels = _labels_of(name, training)
        head.standardise(labelled.structures, labels)
        potential.heads[name] = head


def _labels_of(name: str, frames: Frames) -> tuple[Frames, list[Tensor]]:
    """The frames that have a label of a property, or of what is computed from it; the labels."""
    if name in frames.quantities:
        frames = frames.select(frames.labelled(name))
        return frames, frames.values(name)
    for other in frames.quantities:
        row = QUANTITIES[other]
        if row.of == name and row.inverse is not None:
            frames = frames.select(frames.labelled(other))
            return frames, [row.inverse(value) for value in frames.values(other)]
    raise ValueError(
        f"model.properties has {name}, but the training frames have none: they are labelled with "
        f"{', '.join(frames.quantities)}; name it by data.keys, or leave it out"
    )
