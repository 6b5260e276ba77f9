"""State dicts of modelforge's TensorNet, in nm and kJ/mol.

Sizes, cutoff and radial functions are inferred from the tensors. The symmetry group and the
activation function cannot be inferred: they are arguments.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import PurePath

import torch
from torch import Tensor

from ..potential import Potential
from .build import TensorPool
from .files import require_finite, state_dict_of
from .formats import Format
from .layout import embedding_state, finish, interaction_state

UNITS = ("nm", "kj/mol")
MARK = "representation_module.atomic_number_i_embedding_layer.weight"

EMBEDDING_NAMES = {
    "rsf_projections.I": "distance_proj1",
    "rsf_projections.A": "distance_proj2",
    "rsf_projections.S": "distance_proj3",
    "atomic_number_i_embedding_layer": "emb",
    "atomic_number_ij_embedding_layer": "emb2",
    "batch_layer_normalization": "init_norm",
}
LAYER_NAMES = {"mlp_scalar": "linears_scalar", "linear_layer": "linears_tensor"}


def is_modelforge(tensors: Mapping[str, Tensor]) -> bool:
    """Whether a state dict belongs to modelforge's TensorNet."""
    return any(key.endswith(MARK) for key in tensors)


def read_modelforge(
    tensors: Mapping[str, Tensor],
    name: str,
    *,
    elements: Iterable[int] | None = None,
    group: str = "O(3)",
    activation: str = "silu",
) -> Potential:
    """Read the potential of a state dict.

    Parameters
    ----------
    tensors
        State dict of modelforge's network, with or without its wrapper.
    name
        Name of the file, for error messages and the metadata.
    elements
        Atomic numbers that the model knows; None: all rows of the embedding.
    group, activation
        Options of the model; the defaults are modelforge's.

    Raises
    ------
    ValueError
        If tensors are missing, or the model has a minimum interaction radius.
    """
    require_finite(tensors, name)
    prefix = next(key for key in tensors if key.endswith(MARK)).removesuffix(MARK)
    core = {k.removeprefix(prefix): t for k, t in tensors.items() if k.startswith(prefix)}
    outside = {k: t for k, t in tensors.items() if not k.startswith(prefix) or not prefix}
    renamed = {_torchmdnet_name(k): t for k, t in core.items() if _is_core(k)}
    pool = TensorPool(renamed, name, _modelforge_name)

    cutoff = float(pool.take("cutoff_module.cutoff"))
    pool.discard(*(key for key in pool.names() if key.endswith(".cutoff_module.cutoff")))
    centres = pool.take("radial_symmetry_function.radial_basis_centers")
    factors = pool.take("radial_symmetry_function.radial_scale_factor")
    _check_no_minimum_radius(float(centres[0]), cutoff, name)
    layers = 1 + max(
        (int(key.split(".")[1]) for key in pool.names() if key.startswith("layers.")), default=-1
    )
    state = {"radial.means": centres, "radial.betas": factors.double().pow(-2).to(factors.dtype)}
    state |= embedding_state(pool, "", interleaved=True)
    for layer in range(layers):
        state |= interaction_state(pool, f"layers.{layer}.", layer, interleaved=True)
    channels = state["embedding.norm.weight"].shape[0]
    # Its directions are r_j - r_i, ours r_i - r_j: this flips the sign of A (the middle block).
    for part in ("weight", "bias"):
        radial = state[f"embedding.radial.{part}"].clone()
        radial[channels : 2 * channels] *= -1
        state[f"embedding.radial.{part}"] = radial
    weight, bias = (
        pool.take(f"output_layers.per_atom_energy.dense.{p}") for p in ("weight", "bias")
    )
    if weight.dim() != 2 or bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{name}: the layer of per_atom_energy has a weight {tuple(weight.shape)} and a bias "
            f"{tuple(bias.shape)}: expected one bias for each row"
        )
    head = {
        "norm.weight": pool.take("perform_layer_normalization.weight"),
        "norm.bias": pool.take("perform_layer_normalization.bias"),
        # modelforge sums the outputs of its dense layer: sum the weights instead.
        "head.linear.weight": weight.sum(0, keepdim=True),
        "head.linear.bias": bias.sum(0, keepdim=True),
    }
    pool.discard(*(key for key in pool.names() if key.startswith("output_layers.")))
    table = state["embedding.species.weight"]
    references = torch.zeros(len(table), dtype=torch.float64)
    references[1:] = _statistic(outside, "mean", 0.0)  # modelforge adds the mean to every atom
    chosen = range(1, len(table)) if elements is None else sorted({int(z) for z in elements})
    short = PurePath(name).name
    return finish(
        pool,
        network={
            "channels": channels,
            "layers": layers,
            "radial_functions": len(centres),
            "radial": "expnorm",
            "activation": activation,
            "cutoff": cutoff,
            "max_number": len(table),
            "group": group,
            "self_interaction": False,
        },
        readout={"head": "linear"},
        representation=state,
        head=head,
        references=references,
        scale=_statistic(outside, "stddev", 1.0),
        mean=0.0,
        elements=list(chosen),
        units=UNITS,
        metadata={
            "name": short,
            "source": {"format": "modelforge state dict", "file": short},
            "units_stated": True,
            "elements_stated": elements is not None,
            "trained_with_charge": True,
            "assumed": {"group": group, "activation": activation},
            "reference_energies": "not included: modelforge adds none at inference",
        },
    )


def _is_core(key: str) -> bool:
    return key.startswith(
        (
            "representation_module.",
            "interaction_modules.",
            "output_layers.",
            "perform_layer_normalization.",
        )
    )


def _torchmdnet_name(key: str) -> str:
    if key.startswith("representation_module."):
        key = key.removeprefix("representation_module.")
        for theirs, ours in EMBEDDING_NAMES.items():
            if key.startswith(f"{theirs}."):
                return ours + key.removeprefix(theirs)
        return key
    if key.startswith("interaction_modules."):
        key = "layers." + key.removeprefix("interaction_modules.")
        for theirs, ours in LAYER_NAMES.items():
            key = key.replace(f".{theirs}.", f".{ours}.")
    return key


def _modelforge_name(key: str) -> str:
    """Inverse of `_torchmdnet_name`."""
    if key.startswith(("output_layers.", "perform_layer_normalization.")):
        return key
    if key.startswith("layers."):
        for theirs, ours in LAYER_NAMES.items():
            key = key.replace(f".{ours}.", f".{theirs}.")
        return "interaction_modules." + key.removeprefix("layers.")
    for theirs, ours in EMBEDDING_NAMES.items():
        if key.startswith(f"{ours}."):
            key = theirs + key.removeprefix(ours)
    return f"representation_module.{key}"


def _check_no_minimum_radius(first: float, cutoff: float, name: str) -> None:
    # The first centre is exp(-(cutoff - minimum) / length), where length is 0.1 nm or 1 nm.
    if any(math.isclose(first, math.exp(-cutoff / length), rel_tol=1e-3) for length in (0.1, 1)):
        return
    raise ValueError(
        f"{name}: the first centre of its radial functions is {first:g}: expected "
        f"{math.exp(-cutoff / 0.1):g}, that of a model without a minimum interaction radius; "
        "modelforge's minimum radius is not supported"
    )


def _statistic(tensors: Mapping[str, Tensor], kind: str, default: float) -> float:
    """Mean or standard deviation of the energy per atom, if the file has it."""
    found = [key for key in tensors if key.endswith(f".{kind}")]
    found = [key for key in found if "per_atom_energy" in key] or found
    return float(tensors[found[0]].double().reshape(-1)[0]) if found else default


FORMAT = Format(
    "modelforge state dict",
    "torch",
    lambda content: is_modelforge(state_dict_of(content)),
    lambda content, name, request: read_modelforge(
        state_dict_of(content), name, elements=request.elements
    ),
    UNITS,
)
