"""`torch.ops.tensormd.evaluate`: a potential as one operator of torch.

What cannot call Python can call an operator: TorchScript (and through it TorchForce) and functions
compiled by ``torch.compile``. Importing this module, or ``tensormd.calculators``, registers it; a
TorchScript file that uses it can be read only where that was done.
"""

from __future__ import annotations

import copy
import logging
import math
import threading
from collections import OrderedDict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..checkpoint.native import potential_from_bytes, potential_to_bytes
from ..committee import members_of
from ..neighbors import NeighborList
from .backends import compile_potential
from .kernels import fused_problem

log = logging.getLogger("tensormd")

MOST_MODELS = 8
MOST_SYSTEMS = 16

SCHEMA = (
    "evaluate(Tensor model, Tensor numbers, Tensor positions, Tensor cell, Tensor pbc, "
    "Tensor charge, float skin=1.0) -> (Tensor, Tensor)"
)


def evaluate(
    model: Tensor,
    numbers: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    charge: Tensor,
    skin: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Energy and forces of one system, by fused kernels where they exist.

    The model is decoded and compiled at the first call, and kept, with the neighbour list, as long
    as the same tensors come with the next ones: not copies of them. The result cannot be
    differentiated: forces are part of it.

    Parameters
    ----------
    model
        (bytes,) uint8: what `save_potential` writes (`model_tensor`).
    numbers
        (N,) int64, atomic numbers.
    positions
        (N, 3), Angstrom, anywhere in space.
    cell
        (3, 3), rows are lattice vectors, Angstrom; read where ``pbc``.
    pbc
        (3,) bool.
    charge
        (1,), total charge, e.
    skin
        Of the neighbour list, Angstrom.

    Returns
    -------
    Energy (), eV, and forces (N, 3), eV/A, float64, on the device of the positions; not a number
    where a position is not finite.

    Raises
    ------
    ValueError
        If the model cannot be read or does not know an element, or for impossible cells.
    """
    points = _array(positions)
    # A sum is found sooner than which of its terms are not finite.
    if not math.isfinite(points.sum()) and not np.isfinite(points).all():
        nan = torch.full_like(positions, torch.nan, dtype=torch.float64)
        return nan.new_full((), torch.nan), nan
    return _system_of(model, numbers, skin)(points, _array(cell), _array(pbc), float(charge))


def model_tensor(potential: nn.Module) -> Tensor:
    """The bytes of a potential or committee, as the operator takes them, (bytes,) uint8.

    Raises
    ------
    ValueError
        If the potential cannot be saved.
    """
    return torch.frombuffer(bytearray(potential_to_bytes(potential, "model")), dtype=torch.uint8)


class _Model:
    """A decoded model, with the tensor it was decoded from, whose address it is known by."""

    def __init__(self, source: Tensor, device: torch.device) -> None:
        self.source = source
        self.potential = potential_from_bytes(source.cpu().numpy().tobytes(), "model")
        self.potential.to(device).eval().requires_grad_(False)
        self.members = [_compiled(member) for member in members_of(self.potential)]


class _System:
    """Evaluates one system, whose neighbour list it keeps."""

    def __init__(self, model: _Model, numbers: Tensor, device: torch.device, skin: float) -> None:
        unknown = sorted(set(numbers.tolist()) - set(model.potential.elements))
        if unknown:
            raise ValueError(
                f"the model does not know atomic number {unknown[0]}: expected one of "
                f"{model.potential.elements}"
            )
        self.numbers, self.device = numbers, device
        self._lock = threading.Lock()
        self._numbers = numbers.cpu().numpy()
        self._neighbors = NeighborList(float(model.potential.cutoff), skin, device)
        # Copies share weights, but not what is kept for a list of neighbours.
        self._members = [
            each if isinstance(each, torch.jit.ScriptModule) else copy.copy(each)
            for each in model.members
        ]

    def __call__(
        self, points: NDArray[Any], cell: NDArray[Any], pbc: NDArray[Any], charge: float
    ) -> tuple[Tensor, Tensor]:
        with self._lock:
            graph = self._neighbors.graph(self._numbers, points, cell, pbc, charge)
            with torch.set_grad_enabled(True):
                predictions = [member(graph) for member in self._members]
        if len(predictions) == 1:
            return predictions[0].energy.reshape(()), predictions[0].forces
        energy = torch.stack([p.energy for p in predictions]).mean()
        return energy, torch.stack([p.forces for p in predictions]).mean(0)


_lock = threading.Lock()
_Name = tuple[int, int, int, torch.device]
_models: OrderedDict[_Name, _Model] = OrderedDict()
_systems: OrderedDict[tuple[_Name, _Name, float], _System] = OrderedDict()


def _system_of(model: Tensor, numbers: Tensor, skin: float) -> _System:
    """The system of these very tensors; the ones used longest ago are forgotten.

    Tensors are known by their address, which stays theirs while they are kept here.
    """
    name = _name(model)
    key = (name, _name(numbers), skin)
    with _lock:
        system = _systems.get(key)
        if system is None:
            decoded = _models.get(name)
            if decoded is None:
                decoded = _models[name] = _Model(model, numbers.device)
            system = _systems[key] = _System(decoded, numbers, numbers.device, skin)
            _models.move_to_end(name)
            while len(_models) > MOST_MODELS:
                _forget(_models.popitem(last=False)[0])
            while len(_systems) > MOST_SYSTEMS:
                _systems.popitem(last=False)
        _systems.move_to_end(key)
    return system


def _forget(name: _Name) -> None:
    """A model's systems go with it: without it its address may become another's."""
    for key in [key for key in _systems if key[0] == name]:
        del _systems[key]


def _name(tensor: Tensor) -> _Name:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.numel(), version, tensor.device


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def _compiled(potential: nn.Module) -> nn.Module:
    problem = fused_problem(potential)
    if problem is not None:
        log.info("tensormd::evaluate runs plain torch operators: %s", problem)
    return compile_potential(potential, "reference" if problem else "fused")


def _fake(
    model: Tensor,
    numbers: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    charge: Tensor,
    skin: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes, for ``torch.compile``."""
    forces = torch.empty_like(positions, dtype=torch.float64)
    return forces.new_empty(()), forces


def _with_autograd(
    keyset: torch._C.DispatchKeySet,
    model: Tensor,
    numbers: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    charge: Tensor,
    skin: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """What the dispatcher calls first: below, where kernels are, nothing can be differentiated.

    Forces of plain torch operators, and of the short-range repulsion, are gradients.
    """
    traced = keyset.has(torch._C.DispatchKey.Python) or positions.is_meta
    if not traced:
        return evaluate(model, numbers, positions, cell, pbc, charge, skin)
    with torch._C._AutoDispatchBelowAutograd():
        result: tuple[Tensor, Tensor] = torch.ops.tensormd.evaluate.default(
            model, numbers, positions, cell, pbc, charge, skin
        )
    return result


_LIBRARY = torch.library.Library("tensormd", "DEF")  # type: ignore[no-untyped-call]
_LIBRARY.define(SCHEMA)  # type: ignore[no-untyped-call]
for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("evaluate", evaluate, _device)  # type: ignore[no-untyped-call]
_LIBRARY.impl("evaluate", _with_autograd, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
torch.library.register_fake("tensormd::evaluate", _fake, lib=_LIBRARY)
