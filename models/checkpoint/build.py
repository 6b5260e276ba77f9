"""Building a `Potential` from named tensors, the last step of every reader."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..heads.coulomb import CoulombEnergy
from ..heads.repulsion import repulsion_from
from ..maths.double import DoubleConstants
from ..networks import NETWORKS
from ..potential import Potential
from ..quantities import HEADS
from ..state import check_fit

MAX_LAYERS = 1000


class TensorPool:
    """Tensors of another program's file, taken one by one by name.

    Missing, misshapen or unused tensors raise a `ValueError` that names the file.

    Parameters
    ----------
    tensors
        Tensors by the names that readers use.
    name
        Name of the file.
    spell
        Function from these names to those in the file, for messages; None if they are equal.
    """

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        name: str,
        spell: Callable[[str], str] | None = None,
    ) -> None:
        self.name = name
        self._spell = spell or str
        self._left = dict(tensors)

    def __contains__(self, key: object) -> bool:
        return key in self._left

    def names(self) -> list[str]:
        """Names of the tensors that are not yet taken."""
        return list(self._left)

    def take(self, key: str) -> Tensor:
        """Remove the tensor of that name from the pool, and return it.

        Raises
        ------
        ValueError
            If there is no such tensor.
        """
        if key not in self._left:
            raise ValueError(
                f"{self.name} has no tensor {self._spell(key)}: expected the complete state "
                "dict of the model that its hyper-parameters describe"
            )
        return self._left.pop(key)

    def discard(self, *keys: str) -> None:
        """Remove tensors that are not needed."""
        for key in keys:
            self._left.pop(key, None)

    def finish(self) -> None:
        """Check that every tensor was used.

        Raises
        ------
        ValueError
            If tensors are left.
        """
        if self._left:
            raise ValueError(
                f"{self.name} has {len(self._left)} tensors that the model it describes does "
                f"not have, {self._spell(min(self._left))} among them: expected the state dict "
                "of that model alone"
            )


class _Unfilled(TorchFunctionMode):
    """Leaves new weights as they are: to fill them on the meta device imports a compiler, 1 s."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.__name__ in _FILL:
            return args[0] if args else kwargs["tensor"]
        if func is torch.linspace:
            return torch.empty(args[2] if len(args) > 2 else kwargs.pop("steps"), **kwargs)
        return func(*args, **kwargs)


_FILL = ("normal_", "uniform_", "kaiming_uniform_", "xavier_uniform_")


def build_potential(
    *,
    name: str,
    architecture: str,
    network: Mapping[str, Any],
    readout: Mapping[str, Any],
    repulsion: Mapping[str, Any] | None,
    tensors: Mapping[str, Tensor],
    elements: Iterable[int],
    units: tuple[str, str],
    metadata: dict[str, Any],
    heads: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    coulomb: Mapping[str, Any] | None = None,
) -> Potential:
    """Build a `Potential` from its description and tensors.

    Parameters
    ----------
    name
        Name of the file, for error messages.
    architecture
        Key of ``NETWORKS``.
    network, readout, repulsion
        Arguments of the representation, its readout and its repulsion (None: no repulsion).
    tensors
        State dict of the potential; all weights must have the same dtype.
    elements
        Atomic numbers that the model knows.
    units
        Names of the units of length and energy.
    metadata
        Metadata of the potential.
    heads
        Arguments of the readouts of other properties, by name.
    coulomb
        Arguments of `CoulombEnergy`; None: no Coulomb energy.

    Raises
    ------
    ValueError
        If the description is not valid or the tensors do not fit it.
    """
    if architecture not in NETWORKS:
        raise ValueError(
            f"{name}: unknown architecture {architecture!r}: expected one of "
            f"{', '.join(NETWORKS)}; a newer tensormd may know it"
        )
    kind = NETWORKS[architecture]
    layers = network.get("layers", 0)
    if not isinstance(layers, int) or not 0 <= layers <= MAX_LAYERS:
        raise ValueError(f"{name}: layers is {layers!r}: expected 0 to {MAX_LAYERS}")
    for key in ("references", "scale", "mean"):
        if f"atomic_scale.{key}" not in tensors:
            raise ValueError(f"{name} has no tensor atomic_scale.{key}: the file is incomplete")
    references = tensors["atomic_scale.references"]
    for head in heads:
        if head not in HEADS:
            raise ValueError(
                f"{name}: unknown head {head!r}: expected one of {', '.join(HEADS)}; a newer "
                "tensormd may know it"
            )
    try:
        # The meta device uses no memory and draws no random numbers: the file has the weights.
        with torch.device("meta"), _Unfilled():
            representation = kind.network(**kind.complete(network))
            energy = kind.readout(**readout)
            others = {name: HEADS[name](representation, **heads[name]) for name in heads}
        potential = Potential(
            representation,
            energy,
            elements=elements,
            references=torch.zeros(references.numel(), dtype=torch.float64),
            repulsion=None if repulsion is None else repulsion_from(repulsion),
            coulomb=None if coulomb is None else CoulombEnergy(**coulomb),
            length_unit=units[0],
            energy_unit=units[1],
            metadata=metadata,
            heads=others,
        )
    except (ArithmeticError, TypeError, ValueError, RuntimeError) as error:
        raise ValueError(f"{name}: its description makes no model: {error}") from error
    _check_fit(potential, tensors, name)
    potential.load_state_dict(tensors, assign=True)
    return potential.eval()


def _check_fit(potential: nn.Module, tensors: Mapping[str, Tensor], name: str) -> None:
    check_fit(potential.state_dict(), tensors, name)
    constants = tuple(
        f"{key}."
        for key, module in potential.named_modules()
        if isinstance(module, DoubleConstants)
    )
    dtypes = {tensor.dtype for key, tensor in tensors.items() if not key.startswith(constants)}
    if len(dtypes) != 1 or not dtypes <= {torch.float32, torch.float64}:
        raise ValueError(
            f"{name}: its weights are {', '.join(sorted(map(str, dtypes)))}: expected all "
            "torch.float32 or all torch.float64"
        )
