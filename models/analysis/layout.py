"""Orders of a network's features, and access to the features between layers.

An order is one irreducible representation: I, A and S of TensorNet, a degree l of TDN. X^0 are the
features after the embedding, X^k those after layer k. They are accessed by hooks, so that analyses
use exactly what the network computes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..inference.tables import TabulatedPotential
from ..networks.base import Irrep
from ..potential import Potential

Change = Callable[[int, Tensor], Tensor]


@dataclass(frozen=True)
class Layout:
    """Orders of the features, and the layers after which features are accessed."""

    orders: tuple[Irrep, ...]
    axis: int
    """Axis of the components: 0 in TensorNet's (9, N, F), 1 in TDN's (N, d, C)."""
    layers: tuple[str, ...]
    """Names of X^0, X^1, ..."""

    @property
    def removable(self) -> tuple[Irrep, ...]:
        """All orders except scalars, without which there is no energy."""
        return tuple(order for order in self.orders if order.degree > 0)

    def order(self, name: str) -> Irrep:
        """Removable order of that name; ``2`` means ``l=2``.

        Raises
        ------
        ValueError
            If there is no such order, or it is the scalars.
        """
        found = [o for o in self.orders if name in (o.name, o.name.removeprefix("l="))]
        names = ", ".join(o.name for o in self.removable) or "none"
        if not found:
            raise ValueError(f"the network has no order {name}: those to remove are {names}")
        if found[0].degree == 0:
            raise ValueError(
                f"{name} is the scalars, which the energy is made of: orders to remove are {names}"
            )
        return found[0]

    def part(self, x: Tensor, order: Irrep) -> Tensor:
        """Components of one order."""
        return x.narrow(self.axis, order.first, order.size)

    def only(self, x: Tensor, order: Irrep) -> Tensor:
        """Features with all other orders set to zero."""
        return x * self._mask(x, [order])

    def without(self, x: Tensor, orders: Iterable[Irrep]) -> Tensor:
        """Features with these orders set to zero."""
        return x * (1 - self._mask(x, orders))

    def contract(self, x: Tensor, y: Tensor) -> Tensor:
        """Product of two features, summed over the components of each order: (orders, N, C)."""
        products = x * y
        return torch.stack([self.part(products, order).sum(self.axis) for order in self.orders])

    def _mask(self, x: Tensor, orders: Iterable[Irrep]) -> Tensor:
        mask = x.new_zeros([x.shape[self.axis] if d == self.axis else 1 for d in range(x.dim())])
        for order in orders:
            self.part(mask, order).fill_(1.0)
        return mask


def layout_of(potential: nn.Module) -> Layout:
    """Orders of a potential's network.

    Raises
    ------
    ValueError
        If it is a committee, a potential with tables, or another program's module.
    """
    if isinstance(potential, TabulatedPotential) or not isinstance(potential, Potential):
        raise ValueError(
            f"a {type(potential).__name__} has no orders to measure: expected one potential with "
            "a network, such as TensorNet or TDN (of a committee its members one by one)"
        )
    network = potential.representation
    if network.charge_levels:
        raise ValueError(
            f"the orders of a {type(network).__name__} cannot be measured: every layer predicts "
            "charges from its features, which act beside them; expected a TensorNet or a TDN"
        )
    features = network.feature_layout()
    layers = ("embedding", *(f"layer {k + 1}" for k in range(len(network.layers))))
    return Layout(features.irreps, features.axis, layers)


@contextmanager
def changed(potential: Potential, change: Change) -> Iterator[None]:
    """Replace every X^k by ``change(k, X^k)`` within the block.

    X^k is the input of layer k + 1 or, after the last layer, of the readout.
    """
    network = potential.representation
    handles = []

    def before(k: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            return change(k, arguments[0]), *arguments[1:]

        return hook

    def after(module: nn.Module, arguments: tuple[Any, ...], x: Tensor) -> Tensor:
        return change(len(network.layers), x)

    try:
        for k, layer in enumerate(network.layers):
            handles.append(layer.register_forward_pre_hook(before(k)))
        handles.append(network.register_forward_hook(after))
        yield
    finally:
        for handle in handles:
            handle.remove()
