"""Which orders the features of a network have, and how to read and change them on the way.

An order is one irreducible representation: I, A and S of TensorNet, a degree l of TDN. The
features X^0 are those of the embedding, X^k those that layer k gives; they are reached by hooks,
so that whatever the network computes is what is measured.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..inference.tables import TabulatedPotential
from ..potential import Potential

Change = Callable[[int, Tensor], Tensor]


class Order(NamedTuple):
    """One irreducible representation among the components of the features."""

    name: str
    """``I``, ``A``, ``S`` or ``l=0``, ``l=1``, ..."""
    degree: int
    """l; its components are 2 l + 1."""
    first: int
    """Its first component."""

    @property
    def size(self) -> int:
        """Number of components."""
        return 2 * self.degree + 1


@dataclass(frozen=True)
class Layout:
    """Orders of the features, and the places where there are features."""

    orders: tuple[Order, ...]
    axis: int
    """Of the components: 0 in TensorNet's (9, N, F), 1 in TDN's (N, d, C)."""
    layers: tuple[str, ...]
    """Names of X^0, X^1, ..."""

    @property
    def removable(self) -> tuple[Order, ...]:
        """All but scalars, without which there is no energy."""
        return tuple(order for order in self.orders if order.degree > 0)

    def order(self, name: str) -> Order:
        """The removable order of that name; ``2`` is as good as ``l=2``.

        Raises
        ------
        ValueError
            If there is none, or it is the scalars.
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

    def part(self, x: Tensor, order: Order) -> Tensor:
        """The components of one order."""
        return x.narrow(self.axis, order.first, order.size)

    def only(self, x: Tensor, order: Order) -> Tensor:
        """The same features with all other orders zero."""
        return x * self._mask(x, [order])

    def without(self, x: Tensor, orders: Iterable[Order]) -> Tensor:
        """The same features with these orders zero."""
        return x * (1 - self._mask(x, orders))

    def contract(self, x: Tensor, y: Tensor) -> Tensor:
        """Product of two features summed over the components of each order: (orders, N, C)."""
        products = x * y
        return torch.stack([self.part(products, order).sum(self.axis) for order in self.orders])

    def _mask(self, x: Tensor, orders: Iterable[Order]) -> Tensor:
        mask = x.new_zeros([x.shape[self.axis] if d == self.axis else 1 for d in range(x.dim())])
        for order in orders:
            self.part(mask, order).fill_(1.0)
        return mask


def layout_of(potential: nn.Module) -> Layout:
    """Orders of a TensorNet or a TDN.

    Raises
    ------
    ValueError
        For any other network, and for a committee.
    """
    if isinstance(potential, TabulatedPotential) or not isinstance(potential, Potential):
        raise ValueError(
            f"a {type(potential).__name__} has no orders to measure: expected one TensorNet or "
            "TDN (of a committee its members one by one)"
        )
    network: Any = potential.representation
    layers = ("embedding", *(f"layer {k + 1}" for k in range(len(network.layers))))
    if potential.architecture == "TensorNet":
        names, degrees = "IAS", dict(zip("IAS", (0, 1, 2), strict=True))
        kept = [(name, degrees[name]) for name in names if name in kept_irreps(network)]
        return Layout(_orders(kept), 0, layers)
    if potential.architecture == "TDN":
        return Layout(_orders([(f"l={d}", d) for d in kept_degrees(network)]), 1, layers)
    raise ValueError(
        f"{potential.architecture} has no orders that are known: expected a TensorNet or a TDN"
    )


def kept_irreps(network: nn.Module) -> str:
    """Of a TensorNet: those of I, A and S that it has."""
    config: dict[str, Any] = network.config  # type: ignore[assignment]
    return str(config.get("irreps", "IAS"))


def kept_degrees(network: nn.Module) -> tuple[int, ...]:
    """Of a TDN: the degrees that it has."""
    config: dict[str, Any] = network.config  # type: ignore[assignment]
    degrees = config.get("degrees")
    return tuple(range(config["lmax"] + 1)) if degrees is None else tuple(degrees)


def _orders(named: Iterable[tuple[str, int]]) -> tuple[Order, ...]:
    orders: list[Order] = []
    first = 0
    for name, degree in named:
        orders.append(Order(name, degree, first))
        first += orders[-1].size
    return tuple(orders)


@contextmanager
def changed(potential: Potential, change: Change) -> Iterator[None]:
    """Within the block every X^k is replaced by ``change(k, X^k)``.

    X^k is what layer k + 1 is given, or, after the last layer, the readout.
    """
    network: Any = potential.representation
    # Interaction of TensorNet: (graph, x, ...); Block of TDN: (x, ...).
    place = 1 if potential.architecture == "TensorNet" else 0
    handles = []

    def before(k: int) -> Callable[[nn.Module, tuple[Any, ...]], tuple[Any, ...]]:
        def hook(module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
            x = change(k, arguments[place])
            return (*arguments[:place], x, *arguments[place + 1 :])

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
