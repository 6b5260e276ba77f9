"""`torch.ops.tensormd.evaluate`: a potential as one torch operator.

Code that cannot call Python can call an operator: TorchScript (and through it TorchForce) and
functions compiled by ``torch.compile``. Importing this module, or ``tensormd.calculators``,
registers it; a process must do so before it loads a TorchScript file that uses the operator.
"""

import logging
import threading
from collections import OrderedDict
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.checkpoint.native import potential_from_bytes, potential_to_bytes
from ..models.committee import members_of
from ..models.inference.kernels import fused_problem
from ..models.neighbors import SKIN
from .checks import check_elements
from .evaluator import Evaluator, Structure

log = logging.getLogger("tensormd")

MOST_MODELS = 8
MOST_SYSTEMS = 16

SCHEMA = (
    "evaluate(Tensor model, Tensor numbers, Tensor positions, Tensor cell, Tensor pbc, "
    f"Tensor charge, float skin={SKIN}) -> (Tensor, Tensor)"
)


def evaluate(
    model: Tensor,
    numbers: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    charge: Tensor,
    skin: float = SKIN,
) -> tuple[Tensor, Tensor]:
    """Energy and forces of one system, by fused kernels where they exist.

    The model is decoded and compiled at the first call. It is kept, with the neighbour list, as
    long as later calls pass the same tensors, not copies of them. The result cannot be
    differentiated; forces are part of it.

    Parameters
    ----------
    model
        (bytes,) uint8, a file of `save_potential` (see `model_tensor`).
    numbers
        (N,) int64, atomic numbers.
    positions
        (N, 3), Angstrom, anywhere in space.
    cell
        (3, 3), rows are lattice vectors, Angstrom; only periodic ones are read.
    pbc
        (3,) bool, periodicity along each lattice vector.
    charge
        (1,), total charge, e.
    skin
        Verlet skin of the neighbour list, Angstrom.

    Returns
    -------
    Energy (), eV, and forces (N, 3), eV/A, float64, on the device of the positions; all NaN if a
    position is not finite.

    Raises
    ------
    ValueError
        If the model cannot be read or does not know an element, or the cell is impossible.
    """
    system = _system_of(model, numbers, skin)
    return system(_array(positions), _array(cell), _array(pbc), float(charge))


def model_tensor(potential: nn.Module) -> Tensor:
    """A potential or committee as the operator takes it: the bytes of its file, (bytes,) uint8.

    Raises
    ------
    ValueError
        If the potential cannot be saved.
    """
    return torch.frombuffer(bytearray(potential_to_bytes(potential, "model")), dtype=torch.uint8)


class OperatorEvaluator(nn.Module):
    """Energy and forces from the operator, for TorchScript; same interface as `PortableEvaluator`.

    Parameters
    ----------
    potential
        A potential or a committee.
    skin
        Verlet skin of the neighbour list, Angstrom.

    Raises
    ------
    ValueError
        If the potential cannot be written to a file.
    """

    model: Tensor

    def __init__(self, potential: nn.Module, skin: float) -> None:
        super().__init__()
        self.skin = float(skin)
        self.register_buffer("model", model_tensor(potential))

    def forward(
        self, numbers: Tensor, points: Tensor, cell: Tensor, periodic: Tensor, charge: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energy (), eV, and forces (N, 3), eV/A, in float64."""
        energy, forces = torch.ops.tensormd.evaluate(
            self.model, numbers, points, cell, periodic, charge, self.skin
        )
        return energy, forces


class _Model:
    """A decoded model and its source tensor, whose address identifies it."""

    def __init__(self, source: Tensor, device: torch.device) -> None:
        self.source = source
        potential = potential_from_bytes(source.cpu().numpy().tobytes(), "model").to(device)
        self.evaluator = Evaluator(
            potential, device=device, dtype=None, backend=_backend_for(potential)
        )


class _System:
    """Evaluates one system and keeps its neighbour list."""

    def __init__(self, model: _Model, numbers: Tensor, skin: float) -> None:
        self.numbers = numbers  # kept alive: its address identifies the system
        self._numbers = _array(numbers)
        check_elements(self._numbers, model.evaluator.potential.elements)
        self._evaluator = model.evaluator.twin(skin)
        self._lock = threading.Lock()

    def __call__(
        self, positions: NDArray[Any], cell: NDArray[Any], pbc: NDArray[Any], charge: float
    ) -> tuple[Tensor, Tensor]:
        structure = Structure(self._numbers, positions, cell, pbc, charge)
        with self._lock:
            return self._evaluator.energy_and_forces(structure)


_lock = threading.Lock()
_Name = tuple[int, int, int, torch.device]
_models: OrderedDict[_Name, _Model] = OrderedDict()
_systems: OrderedDict[tuple[_Name, _Name, float], _System] = OrderedDict()


def _system_of(model: Tensor, numbers: Tensor, skin: float) -> _System:
    """The system of exactly these tensors; the least recently used ones are dropped.

    Tensors are identified by their address, which is not reused while they are kept here.
    """
    name = _name(model)
    key = (name, _name(numbers), skin)
    with _lock:
        system = _systems.get(key)
        if system is None:
            decoded = _models.get(name)
            if decoded is None:
                decoded = _models[name] = _Model(model, numbers.device)
            system = _systems[key] = _System(decoded, numbers, skin)
            _models.move_to_end(name)
            while len(_models) > MOST_MODELS:
                _forget(_models.popitem(last=False)[0])
            while len(_systems) > MOST_SYSTEMS:
                _systems.popitem(last=False)
        _systems.move_to_end(key)
    return system


def _forget(name: _Name) -> None:
    """Drop the systems of a model: once it is freed, its address may be reused."""
    for key in [key for key in _systems if key[0] == name]:
        del _systems[key]


def _name(tensor: Tensor) -> _Name:
    version = 0 if tensor.is_inference() else tensor._version
    return tensor.data_ptr(), tensor.numel(), version, tensor.device


def _array(tensor: Tensor) -> NDArray[Any]:
    return tensor.detach().cpu().numpy()


def _backend_for(potential: nn.Module) -> str:
    """``fused`` if every member has fused kernels, in float64 too; otherwise ``auto``."""
    problems = [p for member in members_of(potential) if (p := fused_problem(member)) is not None]
    for problem in problems:
        log.info("tensormd::evaluate runs plain torch operators: %s", problem)
    return "auto" if problems else "fused"


def _fake(
    model: Tensor,
    numbers: Tensor,
    positions: Tensor,
    cell: Tensor,
    pbc: Tensor,
    charge: Tensor,
    skin: float = SKIN,
) -> tuple[Tensor, Tensor]:
    """Shapes and dtypes of the results, for ``torch.compile``."""
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
    skin: float = SKIN,
) -> tuple[Tensor, Tensor]:
    """The implementation that the dispatcher calls first.

    Below this level, where kernels run, autograd is off; but the forces of plain torch operators
    and of the short-range repulsion are gradients.
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
