"""Conversion of tensors of other programs' TensorNets to our names and order.

torchmd-net 3, older torchmd-net, matgl and modelforge have the same network. They differ in names
and in the output order of the layers that give one factor for each of I, A and S: [3, F] (three
blocks of channels; torchmd-net 3 and this package) or [F, 3].
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..potential import Potential
from .build import TensorPool, build_potential


def by_blocks(tensor: Tensor, name: str) -> Tensor:
    """Reorder outputs from [F, 3] to [3, F]: (3F, ...) -> (3F, ...).

    Raises
    ------
    ValueError
        If the number of outputs is not a multiple of three; ``name`` is the name of the file.
    """
    outputs = tensor.shape[0] if tensor.dim() else 0
    if outputs == 0 or outputs % 3:
        raise ValueError(
            f"{name}: a layer for I, A and S has the shape {tuple(tensor.shape)}: expected a "
            "multiple of three outputs"
        )
    return tensor.reshape(outputs // 3, 3, -1).transpose(0, 1).reshape(tensor.shape)


def interleaved_outputs(tensor: Tensor) -> Tensor:
    """Inverse of `by_blocks`: [3, F] -> [F, 3]."""
    return tensor.reshape(3, tensor.shape[0] // 3, -1).transpose(0, 1).reshape(tensor.shape)


def embedding_state(pool: TensorPool, prefix: str, *, interleaved: bool) -> dict[str, Tensor]:
    """State of `TensorEmbedding` from torchmd-net's names under ``prefix``.

    Parameters
    ----------
    pool
        Tensors of the file.
    prefix
        Beginning of the names.
    interleaved
        Whether the last scalar layer has the output order [F, 3].
    """
    state = {"embedding.species.weight": pool.take(f"{prefix}emb.weight")}
    for part in ("weight", "bias"):
        state[f"embedding.species_pair.{part}"] = pool.take(f"{prefix}emb2.{part}")
        state[f"embedding.radial.{part}"] = torch.cat(
            [pool.take(f"{prefix}distance_proj{k}.{part}") for k in (1, 2, 3)]
        )
        state[f"embedding.norm.{part}"] = pool.take(f"{prefix}init_norm.{part}")
        state[f"embedding.gate.0.{part}"] = pool.take(f"{prefix}linears_scalar.0.{part}")
        last = pool.take(f"{prefix}linears_scalar.1.{part}")
        state[f"embedding.gate.2.{part}"] = by_blocks(last, pool.name) if interleaved else last
    state["embedding.mix.weight"] = _stack(pool, [f"{prefix}linears_tensor.{k}" for k in range(3)])
    return state


def interaction_state(
    pool: TensorPool, prefix: str, layer: int, *, interleaved: bool
) -> dict[str, Tensor]:
    """State of one `Interaction` from torchmd-net's names under ``prefix``."""
    state = {}
    for part in ("weight", "bias"):
        for k in range(3):
            tensor = pool.take(f"{prefix}linears_scalar.{k}.{part}")
            if k == 2 and interleaved:
                tensor = by_blocks(tensor, pool.name)
            state[f"layers.{layer}.radial.{2 * k}.{part}"] = tensor
    names = [f"{prefix}linears_tensor.{k}" for k in range(6)]
    state[f"layers.{layer}.mix_in.weight"] = _stack(pool, names[:3])
    state[f"layers.{layer}.mix_out.weight"] = _stack(pool, names[3:])
    return state


def _stack(pool: TensorPool, names: list[str]) -> Tensor:
    matrices = [pool.take(f"{name}.weight") for name in names]
    if len({matrix.shape for matrix in matrices}) != 1:
        shapes = ", ".join(f"{n} {tuple(m.shape)}" for n, m in zip(names, matrices, strict=True))
        raise ValueError(f"{pool.name}: matrices of one size expected, found {shapes}")
    return torch.stack(matrices)


def finish(
    pool: TensorPool,
    *,
    architecture: str = "TensorNet",
    network: Mapping[str, Any],
    readout: Mapping[str, Any],
    representation: Mapping[str, Tensor],
    head: Mapping[str, Tensor],
    references: Tensor,
    scale: Tensor | float,
    mean: Tensor | float,
    elements: list[int],
    units: tuple[str, str],
    metadata: dict[str, Any],
    repulsion: Mapping[str, Any] | None = None,
    repulsion_state: Mapping[str, Tensor] = MappingProxyType({}),
    coulomb: Mapping[str, Any] | None = None,
) -> Potential:
    """Build the potential, after checking that every tensor of the pool was used.

    Raises
    ------
    ValueError
        If tensors are left or do not fit, or the scale or mean has several values.
    """
    pool.finish()
    state = {f"representation.{key}": tensor.clone() for key, tensor in representation.items()}
    state |= {f"readout.{key}": tensor.clone() for key, tensor in head.items()}
    state |= {f"repulsion.{key}": tensor.clone() for key, tensor in repulsion_state.items()}
    state["atomic_scale.references"] = references.double().clone()
    for key, value in (("scale", scale), ("mean", mean)):
        number = torch.as_tensor(value, dtype=torch.float64)
        if number.numel() != 1:
            raise ValueError(
                f"{pool.name}: the {key} of its energies has {number.numel()} values: expected "
                "one; a model of several outputs is no potential"
            )
        state[f"atomic_scale.{key}"] = number.reshape(()).clone()
    return build_potential(
        name=pool.name,
        architecture=architecture,
        network=network,
        readout={"channels": network["channels"], **readout},
        repulsion=repulsion,
        coulomb=coulomb,
        tensors=state,
        elements=elements,
        units=units,
        metadata=metadata,
    )
