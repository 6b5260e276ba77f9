"""Writing of TensorNet and TensorNet2 as Lightning checkpoints like those of ``torchmd-train``.

This is the inverse of `torchmdnet_format`: ``torchmdnet.models.model.load_model`` of torchmd-net 3
gives the same energies, and `load_potential` gives bitwise the same weights.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..files import replacing
from ..heads.energy import EnergyReadout
from ..heads.repulsion import CovalentRepulsion, ZBLRepulsion
from ..potential import Potential
from . import torchmdnet_tensornet2
from .files import require_finite
from .layout import interleaved_outputs
from .torchmdnet_format import BOHR_M, COULOMB_J_M, NOTE

LIGHTNING_VERSION = "2.4.0"
"""Lightning version of the file layout; newer versions read it."""
ARCHITECTURES = ("TensorNet", "TensorNet2")
LAST_OF_EMBEDDING = r"tensor_embedding\.linears_scalar\.1\.(weight|bias)$"
LAST_OF_LAYER = r"layers\.\d+\.linears_scalar\.2\.(weight|bias)$"
"""Names of the layers with one output for each of I, A and S."""
DENSEST_ATOMS_PER_CUBIC_ANGSTROM = 0.18
"""Number density of diamond, an upper limit for estimating the number of neighbours."""


def write_torchmdnet_checkpoint(
    potential: nn.Module, path: str | os.PathLike[str], *, old_layout: bool = False
) -> None:
    """Write a TensorNet or TensorNet2 potential as a checkpoint of torchmd-net 3.

    Numbers are in the network's own units, which torchmd-net does not record; units, elements and
    metadata are added to the file for `load_potential`. torchmd-net stores references, scale and
    mean in the precision of the network. It multiplies the Coulomb energy and the repulsion of a
    TensorNet2 by the scale; where those of the potential have none, the scale is multiplied into
    the last layer of the readout. For SO(3) models, its plain torch operators give these
    energies, but its compiled operators give those of the mirror image.

    Parameters
    ----------
    potential
        `Potential` with a `TensorNet` or a `TensorNet2`.
    path
        Path of the file, usually ``*.ckpt``. An existing file is replaced once the new one is
        complete.
    old_layout
        Whether to write the outputs of scalar layers in the order [F, 3] of torchmd-net before
        version 3, with its mark: openmm-ml 1.7 and 1.8 read every file in this order.

    Raises
    ------
    ValueError
        If torchmd-net does not support the model; the message gives the reason.
    OSError
        If the file cannot be written.
    """
    reason = why_not_torchmdnet(potential)
    if reason is not None:
        raise ValueError(f"{path}: cannot be written for torchmd-net: {reason}")
    assert isinstance(potential, Potential)
    content = _content(potential, potential.representation.config)
    if old_layout:
        content["hyper_parameters"]["check_errors"] = True
        # The layers of TensorNet2 never had another order.
        layers = f"|{LAST_OF_LAYER}" if potential.architecture == "TensorNet" else ""
        for name, tensor in content["state_dict"].items():
            if re.search(LAST_OF_EMBEDDING + layers, name):
                content["state_dict"][name] = interleaved_outputs(tensor)
    require_finite(content["state_dict"], str(path))
    with replacing(Path(path)) as temporary:
        torch.save(content, temporary)


def why_not_torchmdnet(potential: nn.Module) -> str | None:
    """Reason why torchmd-net does not support a potential, or None if it does."""
    if not isinstance(potential, Potential):
        return f"a {type(potential).__name__} is no Potential; write its members one by one"
    network = potential.representation
    if potential.architecture not in ARCHITECTURES:
        return (
            f"{potential.architecture} is not one of its networks: expected a "
            f"{' or a '.join(ARCHITECTURES)}"
        )
    config: Mapping[str, Any] = network.config
    readout = potential.readout
    if network.table is not None:
        return "it has lost its radial networks: take the potential that the tables were made from"
    if config.get("irreps", "IAS") != "IAS":
        return f"its TensorNet has I, A and S, this one {config['irreps']}"
    if config["radial"] == "bessel":
        return "it has no smooth Bessel functions: expected radial expnorm or gauss"
    if not config.get("self_interaction", True):
        return "its atoms send messages to themselves, those of this network do not"
    if not isinstance(readout, EnergyReadout) or readout.config["head"] != "mlp":
        return f"it has no head {readout.config.get('head')!r}: expected mlp"
    if readout.config["activation"] != config["activation"]:
        return (
            f"it has one activation function, this model two ({config['activation']} and "
            f"{readout.config['activation']})"
        )
    hidden = readout.config.get("hidden_layers", 0)
    if hidden and potential.coulomb is None:
        return f"its readout without a Coulomb energy has no hidden layers, this one {hidden}"
    others = [name for name in potential.heads if name != "charges"]
    if others:
        return f"beside the energy it would lose {', '.join(others)}"
    if potential.architecture == "TensorNet2":
        return torchmdnet_tensornet2.why_not(potential)
    if isinstance(potential.repulsion, CovalentRepulsion):
        return "its TensorNet has no repulsion that ends at the covalent radii"
    return None


def _content(potential: Potential, config: Mapping[str, Any]) -> dict[str, Any]:
    priors = list(_priors(potential, config["max_number"]))
    state = dict(_network(potential, config["layers"]))
    scale = potential.atomic_scale.scale
    more: dict[str, Any] = {}
    if potential.architecture == "TensorNet2":
        state |= dict(torchmdnet_tensornet2.tensors_of(potential, config["layers"]))
        more = torchmdnet_tensornet2.arguments_of(potential)
        std = torchmdnet_tensornet2.scale_of(potential)
        if std != float(scale):
            last = 2 * potential.readout.config.get("hidden_layers", 0) + 2
            for part in ("weight", "bias"):
                state[f"output_model.output_network.layers.{last}.{part}"] *= float(scale) / std
            scale = torch.full_like(scale, std)
    state["mean"] = potential.atomic_scale.mean
    state["std"] = scale
    for k, (_, _, tensors) in enumerate(priors):
        state |= {f"prior_model.{k}.{name}": tensor for name, tensor in tensors.items()}
    arguments = {
        "model": "tensornet",
        "embedding_dimension": config["channels"],
        "num_layers": config["layers"],
        "num_rbf": config["radial_functions"],
        "rbf_type": config["radial"],
        "trainable_rbf": config["trainable_radial"],
        "activation": config["activation"],
        "cutoff_lower": config["cutoff_lower"],
        "cutoff_upper": config["cutoff"],
        "max_z": config["max_number"],
        "max_num_neighbors": _most_neighbours(potential),
        "equivariance_invariance_group": config["group"],
        "precision": 64 if potential.dtype == torch.float64 else 32,
        "derivative": True,
        "output_model": "Scalar",
        "reduce_op": "add",
        "atom_filter": -1,
        "static_shapes": False,
        "prior_model": [kind for kind, _, _ in priors] or None,
        "prior_args": [options for _, options, _ in priors] or None,
        # Options that torchmd-net's Lightning module reads.
        "load_model": None,
        "remove_ref_energy": False,
        "charge": bool(potential.metadata.get("trained_with_charge", False)),
        "spin": False,
        **more,
    }
    return {
        "epoch": 0,
        "global_step": 0,
        "pytorch-lightning_version": LIGHTNING_VERSION,
        "state_dict": {f"model.{name}": _plain(tensor) for name, tensor in state.items()},
        "hparams_name": "hparams",
        "hyper_parameters": arguments,
        NOTE: {
            "elements": list(potential.elements),
            "units": [potential.length_unit, potential.energy_unit],
            "metadata": potential.metadata,
        },
    }


def _plain(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True).contiguous()


def _network(potential: Potential, layers: int) -> Iterator[tuple[str, Tensor]]:
    """Representation and head under torchmd-net's names; `layout` has the inverse."""
    state = potential.state_dict()
    prefix, ours = "representation_model.", "representation."
    if f"{ours}radial.means" in state:
        yield f"{prefix}distance_expansion.means", state[f"{ours}radial.means"]
        yield f"{prefix}distance_expansion.betas", state[f"{ours}radial.betas"]
    else:
        yield f"{prefix}distance_expansion.offset", state[f"{ours}radial.centres"]
        yield f"{prefix}distance_expansion.coeff", state[f"{ours}radial.coefficient"]
    embedding = f"{prefix}tensor_embedding."
    yield f"{embedding}emb.weight", state[f"{ours}embedding.species.weight"]
    for part in ("weight", "bias"):
        yield f"{embedding}emb2.{part}", state[f"{ours}embedding.species_pair.{part}"]
        for k, each in enumerate(state[f"{ours}embedding.radial.{part}"].chunk(3)):
            yield f"{embedding}distance_proj{k + 1}.{part}", each
        yield f"{embedding}init_norm.{part}", state[f"{ours}embedding.norm.{part}"]
        for k in (0, 1):
            yield (
                f"{embedding}linears_scalar.{k}.{part}",
                state[f"{ours}embedding.gate.{2 * k}.{part}"],
            )
        yield f"{prefix}out_norm.{part}", state[f"readout.norm.{part}"]
        yield f"{prefix}linear.{part}", state[f"readout.head.network.0.{part}"]
        for k in range(0, 2 * potential.readout.config.get("hidden_layers", 0) + 4, 2):
            name = f"output_model.output_network.layers.{k}.{part}"
            yield name, state[f"readout.head.network.{k + 2}.{part}"].clone()
    for k, each in enumerate(state[f"{ours}embedding.mix.weight"]):
        yield f"{embedding}linears_tensor.{k}.weight", each
    for layer in range(layers):
        theirs, own = f"{prefix}layers.{layer}.", f"{ours}layers.{layer}."
        for part in ("weight", "bias"):
            for k in range(3):
                yield f"{theirs}linears_scalar.{k}.{part}", state[f"{own}radial.{2 * k}.{part}"]
        mixes = [*state[f"{own}mix_in.weight"], *state[f"{own}mix_out.weight"]]
        for k, each in enumerate(mixes):
            yield f"{theirs}linears_tensor.{k}.weight", each
    yield f"{prefix}distance.box", torch.zeros(3, 3, dtype=potential.dtype)


def _priors(
    potential: Potential, places: int
) -> Iterator[tuple[str, dict[str, Any], dict[str, Tensor]]]:
    """Names, options and tensors of torchmd-net's priors."""
    references = potential.atomic_scale.references
    if references.any():
        table = references.new_zeros(places, 1)
        known = min(places, len(references))
        table[:known, 0] = references[:known]
        options: dict[str, Any] = {"max_z": places, "trainable": False, "enable": True}
        yield "Atomref", options, {"initial_atomref": table, "atomref.weight": table}
    repulsion = potential.repulsion
    if isinstance(repulsion, ZBLRepulsion):
        # The model's units in metres and joules, such that torchmd-net's constants give ours.
        length_m = 0.8854 * BOHR_M / repulsion.screening_length
        options = {
            "cutoff_distance": repulsion.cutoff,
            "max_num_neighbors": _most_neighbours(potential),
            "atomic_number": list(range(places)),
            "distance_scale": length_m,
            "energy_scale": COULOMB_J_M / repulsion.coulomb / length_m,
        }
        box = torch.zeros(3, 3, dtype=potential.dtype)
        yield "ZBL", options, {"atomic_number": torch.arange(places), "distance.box": box}


def _most_neighbours(potential: Potential) -> int:
    """Largest number of neighbours in a structure, as torchmd-net's network counts them."""
    network, repulsion = potential.representation, potential.repulsion
    own = network.cutoff if repulsion is None else max(network.cutoff, repulsion.cutoff)
    cutoff = own * potential.length_in_angstrom
    volume = 4 / 3 * math.pi * cutoff**3
    return max(64, math.ceil(DENSEST_ATOMS_PER_CUBIC_ANGSTROM * volume))
