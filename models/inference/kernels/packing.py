"""Weights of the fused pass, cast and laid out for torch and CUDA."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ...maths.cartesian import COMPONENTS
from .weights import TensorNetWeights


def pack_weights(
    weights: TensorNetWeights, dtype: torch.dtype, device: torch.device | str
) -> TensorNetWeights:
    """The weights as the pass reads them.

    Tables get their slopes beside them (`with_slopes`), matrices of irreps become matrices of
    components (`by_component`); every tensor is cast from float64, moved and made contiguous.
    """
    spacing = (weights.cutoff - weights.lower) / weights.intervals
    packed = dataclasses.replace(
        weights,
        table=with_slopes(weights.table, spacing),
        mix=by_component(weights.mix, weights.irreps),
        layers=[
            dataclasses.replace(
                layer,
                table=with_slopes(layer.table, spacing),
                mix_in=by_component(layer.mix_in, weights.irreps),
                mix_out=by_component(layer.mix_out, weights.irreps),
            )
            for layer in weights.layers
        ],
    )
    cast: TensorNetWeights = _map(packed, lambda t: t.to(device, dtype).contiguous())
    return cast


def by_component(weight: Tensor, irreps: str = "IAS") -> Tensor:
    """Matrices of I, A and S -> of the nine components: one product instead of three."""
    sizes = [COMPONENTS[irrep] for irrep in irreps]
    return torch.cat([weight[k : k + 1].expand(n, -1, -1) for k, n in enumerate(sizes)])


def with_slopes(table: Tensor, spacing: float) -> Tensor:
    """B-spline coefficients and, beside them, the differences to the next row over h.

    (intervals + 3, K) -> (intervals + 3, 2K); see `equations.spline`.
    """
    slopes = torch.zeros_like(table)
    slopes[:-1] = table.diff(dim=0) / spacing
    return torch.cat([table, slopes], dim=1)


def _map(value: Any, function: Callable[[Tensor], Any]) -> Any:
    """The same dataclass with ``function`` applied to every tensor."""
    if isinstance(value, Tensor):
        return function(value)
    if isinstance(value, list):
        return [_map(item, function) for item in value]
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {
            f.name: _map(getattr(value, f.name), function) for f in dataclasses.fields(value)
        }
        return type(value)(**fields)
    return value
