"""The pass as one function of tensors, numbers and strings: what an operator can be made of."""

import functools
from typing import Any

import torch
from torch import Tensor

from .packing import parse_description, restore_weights
from .step import Operators, StepInputs, TorchOperators, tensornet_step


def flat_step(
    positions: Tensor,
    cell: Tensor,
    system: Tensor,
    numbers: Tensor,
    charge: Tensor,
    offsets: Tensor,
    senders: Tensor,
    shift: Tensor,
    reverse: Tensor,
    weights: list[Tensor],
    description: str,
    length: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """`step.tensornet_step` with the operators of the device, fit for ``torch.library``.

    Parameters
    ----------
    positions, cell, system, numbers, charge, offsets, senders, shift, reverse
        The fields of `step.StepInputs`.
    weights, description
        Of `packing.flatten_weights`, of packed weights.
    length
        The network's unit of length, Angstrom.

    Returns
    -------
    The fields of `step.StepResult`.
    """
    inputs = StepInputs(positions, cell, system, numbers, charge, offsets, senders, shift, reverse)
    restored = restore_weights(weights, _parsed(description))
    with torch.cuda.device_of(positions):  # type: ignore[no-untyped-call]
        result = tensornet_step(inputs, restored, length, _operators(positions.device.type))
    return result.outputs, result.forces, result.virial


@functools.cache
def _operators(device: str) -> Operators:
    if device != "cuda":
        return TorchOperators()
    from .triton_operators import TritonOperators

    return TritonOperators()


@functools.lru_cache(maxsize=16)
def _parsed(description: str) -> dict[str, Any]:
    return parse_description(description)
