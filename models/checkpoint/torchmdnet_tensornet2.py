"""The parts of torchmd-net's TensorNet2 that its TensorNet does not have, to and from our names.

torchmd-net multiplies the Coulomb energy and the repulsion by the standard deviation of the
labels, like the network's output. Here they stand beside it: a scale is part of their constants.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..heads.coulomb import COULOMB_EV_ANGSTROM, DAMPING_ANGSTROM, DIELECTRIC, CoulombEnergy
from ..heads.repulsion import COULOMB_EV_ANGSTROM as REPULSION_EV_ANGSTROM
from ..heads.repulsion import SCREENING_RADIUS_ANGSTROM, CovalentRepulsion
from ..potential import Potential
from .build import TensorPool

OUTPUTS = ("Scalar", "ScalarPlusWeightedCoulomb")
PREFIX = "representation_model."
TABLES = f"{PREFIX}repulsion."


@dataclass(frozen=True)
class Parts:
    """Additional arguments and tensors of a potential."""

    network: dict[str, Any] = field(default_factory=dict)
    state: dict[str, Tensor] = field(default_factory=dict)
    repulsion: dict[str, Any] | None = None
    repulsion_state: dict[str, Tensor] = field(default_factory=dict)
    coulomb: dict[str, Any] | None = None


def is_native(arguments: Mapping[str, Any]) -> bool:
    """Whether the network and its output are ours."""
    return (
        arguments["model"] == "tensornet2"
        and arguments["output_model"] in OUTPUTS
        and int(arguments["q_dim"]) >= 1
    )


def hidden_layers(arguments: Mapping[str, Any]) -> int:
    """Number of additional layers of the output; torchmd-net's `Scalar` ignores the option."""
    if arguments["output_model"] == "Scalar":
        return 0
    return int(arguments["output_mlp_num_layers"])


# Reading


def take(pool: TensorPool, arguments: Mapping[str, Any], scale: float) -> Parts:
    """Charges, Coulomb energy and repulsion of a model.

    Parameters
    ----------
    pool
        Tensors of the file, from which those of these parts are taken.
    arguments
        Hyper-parameters.
    scale
        Standard deviation of the labels.

    Raises
    ------
    ValueError
        If a tensor is missing or does not fit the hyper-parameters.
    """
    state: dict[str, Tensor] = {}
    layers, channels = int(arguments["num_layers"]), int(arguments["q_dim"])
    for theirs, ours in _charge_names(layers):
        for part in ("weight", "bias"):
            state[f"{ours}.{part}"] = pool.take(f"{PREFIX}{theirs}.{part}")
    repulsion, tables = None, {}
    if arguments["repulsion"]:
        powers, pairs = pool.take(f"{TABLES}z_pow"), pool.take(f"{TABLES}cutoff_ab")
        pool.discard(f"{TABLES}z_outer")
        if pairs.shape != (len(powers), len(powers)):
            raise ValueError(
                f"{pool.name}: {TABLES}cutoff_ab has the shape {tuple(pairs.shape)}: expected "
                f"one sum of radii for each pair of {len(powers)} elements"
            )
        tables = {"powers": powers.double(), "radii": 0.5 * pairs.diagonal().double()}
        repulsion = {
            "kind": "covalent",
            "elements": len(powers),
            "cutoff": float(arguments["cutoff_upper"]),
            "coulomb": REPULSION_EV_ANGSTROM * scale,
        }
    coulomb = None
    if arguments["output_model"] != "Scalar":
        cutoff = arguments["coulomb_cutoff"]
        coulomb = {
            "weights": _weights(pool, layers + 1, channels),
            "channels": channels,
            "cutoff": None if cutoff is None else float(cutoff),
            "coulomb": COULOMB_EV_ANGSTROM * scale,
        }
    return Parts({"charge_channels": channels}, state, repulsion, tables, coulomb)


def _weights(pool: TensorPool, levels: int, channels: int) -> list[float]:
    """Weights of the levels: torchmd-net repeats each for every channel."""
    tensor = pool.take("output_model.qweights")
    table = tensor.double().reshape(-1, channels) if tensor.numel() else tensor
    if table.shape != (levels, channels) or not torch.equal(table, table[:, :1].expand_as(table)):
        raise ValueError(
            f"{pool.name}: output_model.qweights are {tensor.tolist()}: expected {levels} "
            f"weights, each repeated {channels} times"
        )
    return [float(weight) for weight in table[:, 0]]


def _charge_names(layers: int) -> Iterator[tuple[str, str]]:
    """Names of the modules that predict charges: torchmd-net's and ours."""
    levels = [("charge_predict_0", "charges")]
    levels += [(f"charge_predicts.{k}", f"layers.{k}.charges") for k in range(layers)]
    for theirs, ours in levels:
        yield f"{theirs}.q_norm", f"{ours}.norm"
        for k in (0, 2, 4):
            yield f"{theirs}.q_mlp.layers.{k}", f"{ours}.network.{k}"


# Writing


def why_not(potential: Potential) -> str | None:
    """Reason why torchmd-net has no such Coulomb energy or repulsion, or None."""
    coulomb, repulsion = potential.coulomb, potential.repulsion
    if coulomb is not None:
        config = coulomb.config
        for key, value in (("damping", DAMPING_ANGSTROM), ("dielectric", DIELECTRIC)):
            if config[key] != value:
                return f"its Coulomb energy has {key} {value}, this one {config[key]}"
    if isinstance(repulsion, CovalentRepulsion):
        if repulsion.screening_length != SCREENING_RADIUS_ANGSTROM:
            return f"its repulsion has another screening length than {repulsion.screening_length}"
        if repulsion.cutoff != potential.representation.cutoff:
            return "its repulsion ends at the cutoff of the network at the latest"
    scales = {round(scale, 12) for scale in _scales(potential)}
    if len(scales) > 1:
        return f"its Coulomb energy and its repulsion have one common scale, these {scales}"
    return None


def _scales(potential: Potential) -> list[float]:
    """Standard deviations with which torchmd-net would have these constants."""
    found = []
    if potential.coulomb is not None:
        found.append(potential.coulomb.coulomb / COULOMB_EV_ANGSTROM)
    if isinstance(potential.repulsion, CovalentRepulsion):
        found.append(potential.repulsion.coulomb / REPULSION_EV_ANGSTROM)
    return found


def scale_of(potential: Potential) -> float:
    """Standard deviation to write: that of the Coulomb energy or repulsion, or the potential's."""
    scale = float(potential.atomic_scale.scale)
    others = _scales(potential)
    return others[0] if others and abs(others[0] / scale - 1) > 1e-12 else scale


def arguments_of(potential: Potential) -> dict[str, Any]:
    """Additional hyper-parameters."""
    found: dict[str, Any] = {
        "model": "tensornet2",
        "q_dim": potential.representation.charge_channels,
        "repulsion": isinstance(potential.repulsion, CovalentRepulsion),
        "output_mlp_num_layers": potential.readout.config.get("hidden_layers", 0),
    }
    if isinstance(potential.coulomb, CoulombEnergy):
        found |= {
            "output_model": "ScalarPlusWeightedCoulomb",
            "q_weights": potential.coulomb.config["weights"],
            "coulomb_cutoff": potential.coulomb.config["cutoff"],
        }
    return found


def tensors_of(potential: Potential, layers: int) -> Iterator[tuple[str, Tensor]]:
    """Additional tensors under torchmd-net's names."""
    state = potential.state_dict()
    for theirs, ours in _charge_names(layers):
        for part in ("weight", "bias"):
            yield f"{PREFIX}{theirs}.{part}", state[f"representation.{ours}.{part}"]
    repulsion, coulomb, dtype = potential.repulsion, potential.coulomb, potential.dtype
    if isinstance(repulsion, CovalentRepulsion):
        numbers = torch.arange(len(repulsion.powers), dtype=dtype)
        numbers[0] = 1  # as torchmd-net has it; there is no such element
        yield f"{TABLES}z_pow", repulsion.powers.to(dtype)
        yield f"{TABLES}z_outer", torch.outer(numbers, numbers)
        radii = repulsion.radii
        yield f"{TABLES}cutoff_ab", (radii.unsqueeze(0) + radii.unsqueeze(1)).to(dtype)
    if isinstance(coulomb, CoulombEnergy):
        weights = torch.tensor(coulomb.config["weights"], dtype=dtype)
        yield "output_model.qweights", weights.repeat_interleave(coulomb.config["channels"])
        if coulomb.config["cutoff"] is not None:
            yield "output_model.distance.box", torch.zeros(3, 3, dtype=dtype)
