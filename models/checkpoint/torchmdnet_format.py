"""Checkpoints of torchmd-net: Lightning files written by ``torchmd-train``.

A TensorNet with the `Scalar` output and a TensorNet2 become our own `Potential`; all other models
that give an energy run as torchmd-net's module inside `TorchMDNetPotential`.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Mapping
from pathlib import PurePath
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..networks.torchmdnet import ARCHITECTURES, TorchMDNetPotential, parse_priors
from ..potential import Potential
from . import torchmdnet_tensornet2
from .build import TensorPool
from .files import require_finite
from .formats import Format, Request, agreed
from .layout import by_blocks, embedding_state, finish, interaction_state

# Older names of architectures; the released aceff_v2.0.ckpt has the first one.
OLD_MODEL_NAMES = {"tensornetv2_alt": "tensornet2", "tensornet-nqe": "tensornet2"}

# Values of hyper-parameters that are missing in files older than the option.
DEFAULTS: dict[str, Any] = {
    "precision": 32,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "cutoff_lower": 0.0,
    "max_z": 100,
    "equivariance_invariance_group": "O(3)",
    "output_model": "Scalar",
    "reduce_op": "add",
    "aggr": "add",
    "neighbor_embedding": True,
    "attn_activation": "silu",
    "num_heads": 8,
    "distance_influence": "both",
    "vector_cutoff": False,
    "prior_model": None,
    "prior_args": None,
    "atom_filter": -1,
    "q_dim": 0,
    "q_weights": [],
    "repulsion": False,
    "coulomb_cutoff": None,
    "output_mlp_num_layers": 0,
}
REQUIRED = ("model", "embedding_dimension", "num_layers", "num_rbf", "cutoff_upper")

# Hyper-parameters of the training, which are kept in the metadata.
TRAINING = (
    "dataset",
    "dataset_arg",
    "batch_size",
    "lr",
    "num_epochs",
    "y_weight",
    "neg_dy_weight",
    "train_loss",
    "train_size",
    "val_size",
    "test_size",
    "seed",
    "standardize",
)

NOTE = "tensormd"
"""Key under which `write_torchmdnet_checkpoint` adds elements, units and metadata."""

BOHR_M = 5.29177210903e-11  # torchmd-net's own values, with which weights were trained
COULOMB_J_M = 2.30707755e-28


class Note(NamedTuple):
    """Additional information in a checkpoint that this package wrote."""

    elements: list[int]
    """Atomic numbers."""
    units: tuple[str, str]
    """Units of length and energy."""
    metadata: dict[str, Any]


def is_torchmdnet(content: Any) -> bool:
    """Whether the contents of a torch file are a torchmd-net checkpoint."""
    return isinstance(content, Mapping) and {"state_dict", "hyper_parameters"} <= content.keys()


def noted(content: Mapping[str, Any], name: str) -> Note | None:
    """Additional information in the file, if this package wrote it, or None.

    Raises
    ------
    ValueError
        If the information is damaged.
    """
    note = content.get(NOTE)
    if note is None:
        return None
    try:
        length, energy = map(str, note["units"])
        return Note([int(z) for z in note["elements"]], (length, energy), dict(note["metadata"]))
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: its note of tensormd is damaged ({error!r}): write the file again"
        ) from error


def read_torchmdnet(
    content: Mapping[str, Any],
    name: str,
    *,
    units: tuple[str, str],
    units_stated: bool,
    elements: Iterable[int] | None = None,
) -> Potential | TorchMDNetPotential:
    """Read the potential of a torchmd-net checkpoint.

    Parameters
    ----------
    content
        Result of ``torch.load``.
    name
        Name of the file, for error messages and the metadata.
    units
        Units of length and energy, which the file does not state.
    units_stated
        Whether the units are known, not assumed.
    elements
        Atomic numbers that the model knows; None: those with an atomic reference energy or, if
        there are none, all rows of the embedding.

    Raises
    ------
    ValueError
        If the model does not give an energy, is incomplete, or has an architecture that
        torchmd-net does not know.
    """
    raw = content["hyper_parameters"]
    raw = vars(raw) if isinstance(raw, argparse.Namespace) else raw
    if not isinstance(raw, Mapping):
        raise ValueError(
            f"{name}: its hyper_parameters are a {type(raw).__name__}: expected a dict"
        )
    arguments = _arguments(raw, name)
    # The output order of the scalar layers changed when this option was removed. Nothing else in
    # a file tells, so the caller's options do not matter.
    interleaved = "check_errors" in raw and arguments["model"] in ("tensornet", "tensornet2")
    tensors = _tensors(content["state_dict"], name)
    require_finite(tensors, name, TorchMDNetPotential.allowed_nan(tensors))

    priors = parse_priors(arguments, tensors, name)
    known, stated = _elements(elements, priors, tensors, arguments, name)
    metadata: dict[str, Any] = {
        "name": str(raw.get("name") or PurePath(name).name),
        "source": {
            "format": "torchmd-net checkpoint",
            "file": PurePath(name).name,
            "layout": "[F, 3]" if interleaved else "[3, F]",
            "model": arguments["model"],
        },
        "units_stated": units_stated,
        "elements_stated": stated,
        "trained_with_charge": bool(raw.get("charge", False)),
        "training": {k: raw[k] for k in TRAINING if _is_plain(raw.get(k)) and k in raw},
    }
    if raw.get("remove_ref_energy"):
        metadata["reference_energies"] = "removed before training: energies are relative to atoms"

    if _runs_natively(arguments, priors):
        return _native(arguments, priors, tensors, name, interleaved, known, units, metadata)
    if interleaved:
        tensors = _remix(tensors, arguments, name)
    try:
        return TorchMDNetPotential(
            arguments,
            tensors,
            elements=known,
            length_unit=units[0],
            energy_unit=units[1],
            metadata=metadata,
        ).eval()
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from error


def _arguments(raw: Mapping[str, Any], name: str) -> dict[str, Any]:
    missing = [key for key in REQUIRED if key not in raw]
    if missing:
        raise ValueError(
            f"{name}: its hyper_parameters lack {', '.join(missing)}: expected a checkpoint "
            "written by torchmd-train"
        )
    model = OLD_MODEL_NAMES.get(str(raw["model"]), str(raw["model"]))
    if model not in ARCHITECTURES:
        raise ValueError(
            f"{name}: unknown architecture {model!r}: expected one of torchmd-net's "
            f"{', '.join(ARCHITECTURES)}"
        )
    keys = [*REQUIRED, *DEFAULTS, "coulomb_max_num_neighbors", "coulomb_neighbor_strategy"]
    arguments = DEFAULTS | {key: raw[key] for key in keys if key in raw} | {"model": model}
    arguments["cutoff_lower"] = float(arguments["cutoff_lower"])
    arguments["cutoff_upper"] = float(arguments["cutoff_upper"])
    # torchmd-net names the heads of its equivariant transformer itself.
    arguments["output_model"] = str(arguments["output_model"]).removeprefix("Equivariant")
    return arguments


def _tensors(state: Any, name: str) -> dict[str, Tensor]:
    """State dict under the names of torchmd-net 3, without the boxes of neighbour lists."""
    if not isinstance(state, Mapping) or not all(
        isinstance(t, Tensor) and isinstance(k, str) for k, t in state.items()
    ):
        raise ValueError(f"{name}: its state_dict is no dict of tensors: expected the weights")
    tensors = {}
    for key, tensor in state.items():
        key = key.removeprefix("model.")
        # torchmd-net pull request 314 moved the layers of every MLP one level down.
        key = re.sub(
            r"output_model.output_network.(\d+).update_net.(\d+).",
            r"output_model.output_network.\1.update_net.layers.\2.",
            key,
        )
        key = re.sub(
            r"output_model.output_network.([02]).(weight|bias)",
            r"output_model.output_network.layers.\1.\2",
            key,
        )
        # Before there were lists of priors, there was at most one.
        key = re.sub(r"^prior_model\.(initial_atomref|atomref)\b", r"prior_model.0.\1", key)
        if re.search(r"\.distances?\.box$", key):
            continue  # the cell comes with the atoms
        tensors[key] = tensor.float() if tensor.dtype == torch.float16 else tensor
    return tensors


def _is_plain(value: Any) -> bool:
    if isinstance(value, Mapping):
        return all(isinstance(k, str) and _is_plain(v) for k, v in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(v) for v in value)
    return isinstance(value, (str, int, float, bool))


def _elements(
    given: Iterable[int] | None,
    priors: list[tuple[str, dict[str, Any]]],
    tensors: Mapping[str, Tensor],
    arguments: Mapping[str, Any],
    name: str,
) -> tuple[list[int], bool]:
    """Atomic numbers that the model knows, and whether they are stated."""
    limit = int(arguments["max_z"])
    tables = {
        i: tensors[key]
        for i, (kind, _) in enumerate(priors)
        if kind in ("Atomref", "LearnableAtomref")
        and (key := f"prior_model.{i}.atomref.weight") in tensors
    }
    for i, (kind, options) in enumerate(priors):
        if kind in ("Atomref", "LearnableAtomref") and options.get("enable", True) and i in tables:
            limit = min(limit, len(tables[i]))
    possible = set(range(1, limit))
    for i, (kind, _) in enumerate(priors):
        key = f"prior_model.{i}.{'atomic_number' if kind == 'ZBL' else 'Z_map'}"
        if kind in ("ZBL", "D2") and key in tensors:
            possible &= _identity(tensors[key], kind, name)
    if given is not None:
        chosen = sorted({int(z) for z in given})
        if not chosen or not set(chosen) <= possible:
            outside = [z for z in chosen if z not in possible]
            raise ValueError(
                f"{name}: elements has {outside or 'nothing'}: expected atomic numbers among "
                f"those that the model has a place for ({min(possible)} to {max(possible)})"
            )
        return chosen, True
    rows: set[int] = set()
    for table in tables.values():
        rows |= set(torch.nonzero(table.reshape(len(table), -1).abs().sum(1)).flatten().tolist())
    referenced = sorted(rows & possible)
    return (referenced, True) if referenced else (sorted(possible), False)


def _identity(numbers: Tensor, kind: str, name: str) -> set[int]:
    """Atomic numbers z with numbers[z] == z; raises a ValueError for other elements."""
    values = numbers.tolist()
    wrong = {z: n for z, n in enumerate(values) if n not in (0, z)}
    if wrong:
        z, number = next(iter(wrong.items()))
        raise ValueError(
            f"{name}: its {kind} prior says that atoms of type {z} are element {number}: this "
            "model numbers atoms by a type of its own, and only atomic numbers are supported"
        )
    return {z for z in range(1, len(values)) if values[z] == z}


def _runs_natively(
    arguments: Mapping[str, Any],
    priors: list[tuple[str, dict[str, Any]]],
) -> bool:
    kinds = [kind for kind, _ in priors]
    ours = (arguments["model"], arguments["output_model"]) == ("tensornet", "Scalar")
    return (
        (ours or torchmdnet_tensornet2.is_native(arguments))
        and arguments["reduce_op"] in ("add", "sum")
        and arguments["atom_filter"] <= -1
        and set(kinds) <= {"Atomref", "LearnableAtomref", "ZBL"}
        and kinds.count("ZBL") + bool(arguments["repulsion"]) <= 1
    )


def _native(
    arguments: Mapping[str, Any],
    priors: list[tuple[str, dict[str, Any]]],
    tensors: Mapping[str, Tensor],
    name: str,
    interleaved: bool,
    elements: list[int],
    units: tuple[str, str],
    metadata: dict[str, Any],
) -> Potential:
    pool = TensorPool(tensors, name)
    prefix = "representation_model."
    radial = str(arguments["rbf_type"])
    if radial == "expnorm":
        state = {
            "radial.means": pool.take(f"{prefix}distance_expansion.means"),
            "radial.betas": pool.take(f"{prefix}distance_expansion.betas"),
        }
    else:
        state = {
            "radial.centres": pool.take(f"{prefix}distance_expansion.offset"),
            "radial.coefficient": pool.take(f"{prefix}distance_expansion.coeff"),
        }
    state |= embedding_state(pool, f"{prefix}tensor_embedding.", interleaved=interleaved)
    second = arguments["model"] == "tensornet2"
    hidden = torchmdnet_tensornet2.hidden_layers(arguments) if second else 0
    for layer in range(int(arguments["num_layers"])):
        state |= interaction_state(
            # The layers of TensorNet2 never had the old order.
            pool, f"{prefix}layers.{layer}.", layer, interleaved=interleaved and not second
        )  # fmt: skip
    head = {}
    for part in ("weight", "bias"):
        head[f"norm.{part}"] = pool.take(f"{prefix}out_norm.{part}")
        head[f"head.network.0.{part}"] = pool.take(f"{prefix}linear.{part}")
        for k in range(0, 2 * hidden + 4, 2):
            key = f"output_model.output_network.layers.{k}.{part}"
            head[f"head.network.{k + 2}.{part}"] = pool.take(key)

    references, repulsion = _take_priors(pool, priors, int(arguments["max_z"]))
    scale = pool.take("std") if "std" in pool else 1.0
    mean = pool.take("mean") if "mean" in pool else 0.0
    more = torchmdnet_tensornet2.Parts()
    if second:
        std = float(torch.as_tensor(scale).reshape(-1)[0])
        more = torchmdnet_tensornet2.take(pool, arguments, std)
    return finish(
        pool,
        architecture="TensorNet2" if second else "TensorNet",
        network={
            "channels": int(arguments["embedding_dimension"]),
            "layers": int(arguments["num_layers"]),
            "radial_functions": int(arguments["num_rbf"]),
            "radial": radial,
            "trainable_radial": bool(arguments["trainable_rbf"]),
            "activation": str(arguments["activation"]),
            "cutoff": arguments["cutoff_upper"],
            "cutoff_lower": arguments["cutoff_lower"],
            "max_number": int(arguments["max_z"]),
            "group": str(arguments["equivariance_invariance_group"]),
            **(more.network if second else {"self_interaction": True}),
        },
        readout={
            "head": "mlp",
            "activation": str(arguments["activation"]),
            "hidden_layers": hidden,
        },
        representation=state | more.state,
        head=head,
        references=references,
        scale=scale,
        mean=mean,
        repulsion=more.repulsion or repulsion,
        repulsion_state=more.repulsion_state,
        coulomb=more.coulomb,
        elements=elements,
        units=units,
        metadata=metadata,
    )


def _take_priors(
    pool: TensorPool, priors: list[tuple[str, dict[str, Any]]], max_number: int
) -> tuple[Tensor, dict[str, float] | None]:
    """Sum of the reference energies by atomic number, and arguments of `ZBLRepulsion` or None."""
    references = torch.zeros(max_number, dtype=torch.float64)
    repulsion = None
    for i, (kind, options) in enumerate(priors):
        if kind == "ZBL":
            pool.discard(f"prior_model.{i}.atomic_number")
            length_m, energy_j = float(options["distance_scale"]), float(options["energy_scale"])
            repulsion = {
                "cutoff": float(options["cutoff_distance"]),
                "coulomb": COULOMB_J_M / energy_j / length_m,
                "screening_length": 0.8854 * BOHR_M / length_m,
            }
            continue
        table = pool.take(f"prior_model.{i}.atomref.weight")
        pool.discard(f"prior_model.{i}.initial_atomref")
        if options.get("enable", True):
            rows = table.reshape(-1).double()[:max_number]
            references[: len(rows)] += rows
    return references, repulsion


def _remix(
    tensors: Mapping[str, Tensor], arguments: Mapping[str, Any], name: str
) -> dict[str, Tensor]:
    """Reorder old tensors as torchmd-net 3 expects them."""
    remixed = dict(tensors)
    prefixes = ["representation_model.tensor_embedding.linears_scalar.1"]
    if arguments["model"] == "tensornet":
        layers = range(int(arguments["num_layers"]))
        prefixes += [f"representation_model.layers.{i}.linears_scalar.2" for i in layers]
    for prefix in prefixes:
        for part in ("weight", "bias"):
            key = f"{prefix}.{part}"
            if key not in remixed:
                raise ValueError(f"{name} has no tensor {key}: the checkpoint is incomplete")
            remixed[key] = by_blocks(remixed[key], name)
    return remixed


ASSUMED_UNITS = ("angstrom", "ev")


def _read(
    content: Mapping[str, Any], name: str, request: Request
) -> Potential | TorchMDNetPotential:
    note = noted(content, name)
    stated = request.units if note is None else agreed(note.units, request.units, name)
    potential = read_torchmdnet(
        content,
        name,
        units=stated or ASSUMED_UNITS,
        units_stated=stated is not None,
        elements=request.elements or (note and note.elements),
    )
    if stated is None:
        request.assumed.append(name)
    if note is not None:
        potential.metadata = note.metadata | {"source": potential.metadata["source"]}
    return potential


FORMAT = Format("torchmd-net checkpoint", "torch", is_torchmdnet, _read, units=None)
