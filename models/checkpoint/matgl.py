"""Folders of matgl: ``model.json`` describes a potential, ``state.pt`` has its tensors.

This reads the TensorNets of matgl 2 (model version 1) and of matgl 3 and 4 (version 2), and the
QETs of matgl 3 and 4, and reproduces their numbers. The versions differ in the direction of
messages in the embedding, which a QET has from version 2:

========================  ======================  ======================
TensorNet                 1                       2
========================  ======================  ======================
vector of an edge         r_i - r_j               r_j - r_i
species of an edge        emb2([Z_j, Z_i])        emb2([Z_i, Z_j])
========================  ======================  ======================

where i receives and j sends. Here it is r_i - r_j and [Z_i, Z_j]: version 1 has the halves of emb2
swapped, version 2 the sign of the antisymmetric part. The DGL code of matgl 1 had a third
convention and is not read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any

import torch
from ase.data import atomic_numbers
from torch import Tensor

from ..potential import Potential
from .build import TensorPool
from .files import load_torch, require_finite
from .formats import Format
from .layout import embedding_state, finish, interaction_state

UNITS = ("angstrom", "ev")
VERSIONS = {
    ("TensorNet", 1, "matgl.models._tensornet_pyg"): 1,
    ("TensorNet", 2, "matgl.models._tensornet"): 2,
    ("TensorNet", 2, "matgl.models._tensornet_pyg"): 2,
    ("TensorNet", 2, "matgl.models"): 2,
    ("QET", 1, "matgl.models._qet"): 2,
    ("QET", 1, "matgl.models._qet_pyg"): 2,
}
"""Classes, model versions and modules whose files are read, and the version of the embedding."""
EMBEDDING = "tensor_embedding."
ACTIVATIONS = {"swish": "silu", "tanh": "tanh", "sigmoid": "sigmoid", "softplus2": "ssp"}

# Other options of a description, and the only value that is supported.
FIXED: dict[str, Any] = {
    "include_state": False,
    "is_intensive": False,
    "task_type": "regression",
    "ntargets": 1,
    "include_magmom": False,
}


def read_matgl(
    description: bytes, state: bytes, name: str, *, elements: Iterable[int] | None = None
) -> Potential:
    """Read the potential of a matgl folder.

    Parameters
    ----------
    description, state
        Contents of ``model.json`` and ``state.pt``.
    name
        Name of the folder, for error messages and the metadata.
    elements
        Atomic numbers that the model knows; None: all that the description lists.

    Raises
    ------
    ValueError
        If the folder has anything other than a TensorNet potential of a version that is read.
    """
    try:
        parsed = json.loads(description)
        wrapper, model = parsed["kwargs"], parsed["kwargs"]["model"]
        arguments = dict(model["init_args"])
        kind = (parsed["@class"], model["@class"], model["@module"], model["@model_version"])
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
            f"{name}/model.json describes no matgl potential ({type(error).__name__}: {error}): "
            "expected the file that matgl saves beside state.pt"
        ) from error
    if kind[0] != "Potential" or kind[1] not in ("TensorNet", "QET"):
        raise ValueError(
            f"{name} holds a {kind[1]} ({kind[0]}) of matgl: expected a Potential with a "
            "TensorNet or a QET"
        )
    architecture, module, version = kind[1:]
    if (architecture, version, module) not in list(VERSIONS):  # they may be of any type
        raise ValueError(
            f"{name} has model version {version} of {module}, whose conventions are not known: "
            "expected model version 1 (matgl 2, matgl.models._tensornet_pyg) or 2 (matgl 3 and 4) "
            "of a TensorNet, or 1 of a QET (matgl 3 and 4); run it in its own matgl"
        )
    for key, value in FIXED.items():
        if arguments.get(key, value) != value:
            raise ValueError(f"{name}: {key} is {arguments[key]!r}: expected {value!r}")
    if wrapper.get("calc_repuls"):
        raise ValueError(
            f"{name} adds matgl's own nuclear repulsion (calc_repuls), which is not supported: "
            "expected calc_repuls = false"
        )
    content = load_torch(state, f"{name}/state.pt")
    if not isinstance(content, Mapping) or not all(
        isinstance(key, str) and isinstance(tensor, Tensor) for key, tensor in content.items()
    ):
        raise ValueError(f"{name}/state.pt holds no state dict: expected named tensors")
    tensors = {key.removeprefix("model."): tensor for key, tensor in content.items()}
    require_finite(tensors, f"{name}/state.pt")
    pool = TensorPool(_separate(tensors), name)
    source = {"model": str(module), "model_version": version}
    embedding = VERSIONS[architecture, version, module]
    return _build(
        pool, architecture, arguments, embedding, source, parsed.get("metadata"), elements
    )


def _separate(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors with three projections of distances; matgl's Warp code saves them as one."""
    separate = dict(tensors)
    for part in ("weight", "bias"):
        joined = separate.pop(f"{EMBEDDING}distance_proj.{part}", None)
        if joined is not None:
            for k, each in enumerate(joined.chunk(3)):
                separate[f"{EMBEDDING}distance_proj{k + 1}.{part}"] = each
    return separate


def _to_our_direction(state: dict[str, Tensor], version: int) -> None:
    """Change the embedding from a version's direction of messages to ours; see the module."""
    if version == 1:
        pair = state["embedding.species_pair.weight"]
        state["embedding.species_pair.weight"] = pair.roll(pair.shape[1] // 2, dims=1)
        return
    for part in ("weight", "bias"):
        i, a, s = state[f"embedding.radial.{part}"].chunk(3)
        state[f"embedding.radial.{part}"] = torch.cat([i, -a, s])


def _build(
    pool: TensorPool,
    architecture: str,
    arguments: Mapping[str, Any],
    version: int,
    source: dict[str, Any],
    notes: Any,
    given: Iterable[int] | None,
) -> Potential:
    name = pool.name
    try:
        numbers = [atomic_numbers[symbol] for symbol in arguments["element_types"]]
        channels, layers = int(arguments["units"]), int(arguments["nblocks"])
        cutoff = float(arguments["cutoff"])
        activation = ACTIVATIONS[arguments["activation_type"]]
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name}/model.json has no usable {error}: expected element symbols, sizes and one "
            f"of the activations {', '.join(ACTIVATIONS)}"
        ) from error
    chosen = sorted(numbers) if given is None else sorted({int(z) for z in given})
    if not chosen or not set(chosen) <= set(numbers):
        outside = sorted(set(chosen) - set(numbers)) or "nothing"
        raise ValueError(
            f"{name}: elements has {outside}: expected some of the {len(numbers)} elements that "
            "the model was trained on"
        )
    radial, radial_state = _radial(pool, arguments, cutoff)
    pool.discard("element_refs.onehot", "bond_expansion.rbf.cutoff")
    state = radial_state | embedding_state(pool, EMBEDDING, interleaved=True)
    for layer in range(layers):
        state |= interaction_state(pool, f"layers.{layer}.", layer, interleaved=True)
    # One row for each atomic number, instead of each entry in matgl's list of elements.
    rows = state["embedding.species.weight"]
    table = rows.new_zeros(max(numbers) + 1, rows.shape[-1])
    if len(rows) != len(numbers):
        raise ValueError(
            f"{name}: the embedding has {len(rows)} rows: expected one for each of the "
            f"{len(numbers)} elements of model.json"
        )
    table[numbers] = rows
    state["embedding.species.weight"] = table
    _to_our_direction(state, version)

    references = torch.zeros(max(numbers) + 1, dtype=torch.float64)
    if "element_refs.property_offset" in pool:
        energies = pool.take("element_refs.property_offset").double().reshape(-1)
        if len(energies) != len(numbers):
            raise ValueError(
                f"{name}: {len(energies)} reference energies: expected one per element"
            )
        references[numbers] = energies
    network = {
        "channels": channels,
        "layers": layers,
        **radial,
        "activation": activation,
        "cutoff": cutoff,
        "max_number": max(numbers) + 1,
        "group": str(arguments.get("equivariance_invariance_group", "O(3)")),
    }
    scalars, head = _readout(pool)
    if architecture == "QET":
        charged, charges = _charges(pool, arguments, numbers)
        network |= charged
        state = {f"network.{key}": tensor for key, tensor in state.items()} | scalars | charges
        readout: dict[str, Any] = {}
    else:
        network["self_interaction"] = False
        scalars["head.linear.weight"] = scalars.pop("linear.weight")
        scalars["head.linear.bias"] = scalars.pop("linear.bias")
        head = scalars | {f"head.{key}": tensor for key, tensor in head.items()}
        readout = {"head": "gated"}
    folder = PurePath(name).name
    return finish(
        pool,
        architecture=architecture,
        network=network,
        readout=readout,
        representation=state,
        head=head,
        references=references,
        scale=pool.take("data_std"),
        mean=pool.take("data_mean"),
        elements=chosen,
        units=UNITS,
        metadata={
            "name": folder,
            "source": {"format": "matgl folder", "file": folder, **source},
            "units_stated": True,
            "elements_stated": True,
            "trained_with_charge": architecture == "QET",
            "training": notes if isinstance(notes, dict) else {},
        },
    )


def _readout(pool: TensorPool) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Layers from the invariants to scalars, and the gated perceptron, with a QET's norm."""
    scalars, gated = {}, {}
    for part in ("weight", "bias"):
        scalars[f"norm.{part}"] = pool.take(f"out_norm.{part}")
        scalars[f"linear.{part}"] = pool.take(f"linear.{part}")
        if f"norm.{part}" in pool:
            gated[f"norm.{part}"] = pool.take(f"norm.{part}")
        for ours, theirs in (("values", "layers"), ("gates", "gates")):
            for k in (0, 2, 4, 6):
                gated[f"{ours}.{k}.{part}"] = pool.take(f"final_layer.gated.{theirs}.{k}.{part}")
    return scalars, gated


def _charges(
    pool: TensorPool, arguments: Mapping[str, Any], numbers: list[int]
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments of `QET` besides those of its TensorNet, and the state of the equilibrium."""
    pool.discard("elec_pot.pi", "elec_pot.sqrt2")
    by_surroundings = bool(arguments.get("is_hardness_envs"))
    options = {
        "hardness": "surroundings" if by_surroundings else "element",
        "trainable_widths": bool(arguments.get("is_sigma_train")),
    }
    perceptrons = {"electronegativity": "chi_readout"}
    if by_surroundings:
        perceptrons["hardness.network"] = "hardness_readout"
    state = {
        f"{ours}.{k}.{part}": pool.take(f"{theirs}.layers.{k}.{part}")
        for ours, theirs in perceptrons.items()
        for k in (0, 2, 4)
        for part in ("weight", "bias")
    }
    tables = {"widths": "sigma"} | (
        {} if by_surroundings else {"hardness.values": "hardness_readout"}
    )
    for ours, theirs in tables.items():
        values = pool.take(theirs)
        if values.shape != (len(numbers),):
            raise ValueError(
                f"{pool.name}: {theirs} has the shape {tuple(values.shape)}: expected one number "
                f"for each of the {len(numbers)} elements of model.json"
            )
        state[ours] = torch.ones(max(numbers) + 1, dtype=values.dtype)
        state[ours][numbers] = values
    return options, state


def _radial(
    pool: TensorPool, arguments: Mapping[str, Any], cutoff: float
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Arguments of `TensorNet` for the radial basis, and the state of the basis."""
    kind = str(arguments.get("rbf_type", "Gaussian")).lower()
    size = int(arguments.get("num_rbf", 32))
    if kind == "sphericalbessel":
        if not arguments.get("use_smooth"):
            raise ValueError(
                f"{pool.name} uses the spherical Bessel basis that is not smooth, which is not "
                "supported: expected use_smooth = true"
            )
        return {"radial": "bessel", "radial_functions": int(arguments["max_n"])}, {}
    if kind == "gaussian":
        width = float(arguments.get("width", 0.5))
        if not math.isfinite(width):
            raise ValueError(f"{pool.name}: width is {width}: expected a finite number")
        state = {
            "radial.centres": pool.take("bond_expansion.rbf.centers"),
            "radial.coefficient": torch.tensor(-width),
        }
        return {"radial": "gauss", "radial_functions": size}, state
    if kind == "expnorm":
        state = {
            "radial.means": pool.take("bond_expansion.rbf.means"),
            "radial.betas": pool.take("bond_expansion.rbf.betas"),
        }
        return {"radial": "expnorm", "radial_functions": size, "trainable_radial": True}, state
    raise ValueError(
        f"{pool.name}: unknown radial basis {kind!r}: expected SphericalBessel, Gaussian or "
        "ExpNorm"
    )


FILES = ("model.json", "state.pt")
FORMAT = Format(
    "matgl folder",
    "folder",
    lambda content: True,  # no other folder has these files
    lambda content, name, request: read_matgl(
        content[FILES[0]], content[FILES[1]], name, elements=request.elements
    ),
    UNITS,
    FILES,
)
