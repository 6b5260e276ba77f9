"""Weights of the fused pass, cast and arranged for torch and CUDA."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ....maths.cartesian import COMPONENTS
from ..weights import InteractionWeights, TensorNetWeights, with_slopes


def pack_weights(
    weights: TensorNetWeights, dtype: torch.dtype, device: torch.device | str
) -> TensorNetWeights:
    """Arrange the weights as the fused pass reads them.

    Slopes are appended to the tables (`with_slopes`), matrices of irreps become matrices of
    components (`by_component`), and every tensor is cast from float64, moved to the device and
    made contiguous.
    """
    spacing = (weights.cutoff - weights.lower) / weights.intervals

    def cast(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device, dtype).contiguous()
        if isinstance(value, list):
            return [cast(item) for item in value]
        return type(value)(*map(cast, value)) if isinstance(value, tuple) else value

    def of_layer(layer: InteractionWeights) -> InteractionWeights:
        return layer._replace(
            table=with_slopes(layer.table, spacing),
            mix_in=by_component(layer.mix_in, weights.irreps),
            mix_out=by_component(layer.mix_out, weights.irreps),
        )

    packed: TensorNetWeights = cast(
        weights._replace(
            table=with_slopes(weights.table, spacing),
            mix=by_component(weights.mix, weights.irreps),
            layers=[of_layer(layer) for layer in weights.layers],
        )
    )
    return packed


def by_component(weight: Tensor, irreps: str = "IAS") -> Tensor:
    """Repeat the matrices of I, A and S for each component: one product instead of three."""
    sizes = [COMPONENTS[irrep] for irrep in irreps]
    return torch.cat([weight[k : k + 1].expand(n, -1, -1) for k, n in enumerate(sizes)])
