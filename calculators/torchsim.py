"""Potentials as models of torch-sim, for batches of structures."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.graph import FloatArray, Graph
from ..models.neighbors import SKIN
from .checks import check_energies, parse_charge
from .evaluator import Checkpoint, Evaluator, Structure

if TYPE_CHECKING:
    from torch_sim import SimState

_problem: ImportError | None = None
try:
    from torch_sim.models.interface import ModelInterface
except ImportError as error:  # the module can be imported without it, to look its names up
    ModelInterface, _problem = nn.Module, error


class TensormdModel(ModelInterface):
    """A potential for the batches of structures that torch-sim relaxes and simulates.

    Parameters
    ----------
    checkpoint
        A path, a registry name, a sequence of paths (a committee) or a loaded potential.
    device
        ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    dtype
        Precision of weights and arithmetic, ``"float32"`` or ``"float64"``. ``model.dtype``, that
        of the states that torch-sim makes, is float64 either way; results have the dtype of the
        state that they are for.
    backend
        ``"fused"``, ``"reference"`` or ``"auto"``, as in `PotentialCalculator`.
    skin
        Verlet skin of the batch's neighbour list, Angstrom.
    charge
        Total charge of each structure, e; None reads ``state.system_extras["charge"]`` (S,), or
        takes 0 if it is absent. torch-sim reads it from ``atoms.info`` with
        ``system_extras_map={"charge": "charge"}``.
    units
        The checkpoint's units of length and energy, needed if its file does not state them.
    coulomb_cutoff
        Cutoff of the Coulomb energy, Angstrom, of a TensorNet2; None: that of the checkpoint.
    compute_forces, compute_stress
        Whether results hold forces, and stresses.

    Raises
    ------
    ImportError
        If torch-sim is not installed.
    ValueError
        If the checkpoint cannot be read, was not trained on energies, or an option is invalid; in
        `forward`, if the model does not know an element or a geometry is impossible.
    """

    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype = "float32",
        backend: str = "auto",
        skin: float = SKIN,
        charge: int | None = None,
        units: tuple[str, str] | None = None,
        coulomb_cutoff: float | None = None,
        compute_forces: bool = True,
        compute_stress: bool = True,
    ) -> None:
        if _problem is not None:
            raise ImportError(
                f"torch-sim is needed ({_problem}), with Python 3.12 or newer: "
                "pip install 'tensormd[torchsim]'"
            ) from _problem
        super().__init__()
        self.evaluator = Evaluator(
            checkpoint,
            device=device,
            dtype=dtype,
            backend=backend,
            skin=skin,
            units=units,
            coulomb_cutoff=coulomb_cutoff,
        )
        check_energies(self.evaluator.potential)
        self.charge = None if charge is None else parse_charge(charge)
        self._device, self._dtype = self.evaluator.device, torch.float64
        self._compute_forces, self._compute_stress = compute_forces, compute_stress
        self._list: _List | None = None

    @property
    def compute_forces(self) -> bool:
        """Whether results hold forces."""
        return self._compute_forces

    @compute_forces.setter
    def compute_forces(self, value: bool) -> None:
        self._compute_forces = value

    @property
    def compute_stress(self) -> bool:
        """Whether results hold stresses."""
        return self._compute_stress

    @compute_stress.setter
    def compute_stress(self, value: bool) -> None:
        self._compute_stress = value

    def forward(self, state: SimState, **options: Any) -> dict[str, Tensor]:
        """Energies (S,), eV, forces (N, 3), eV/A, and stresses (S, 3, 3), eV/A^3, of S systems.

        The stress has ASE's sign; that of a molecule, which has no volume, is zero. A committee
        adds ``energy_std`` (S,) and ``forces_std`` (N, 3).

        Raises
        ------
        ValueError
            If the model does not know an element, a geometry is impossible, or an option is given.
        """
        if options:
            raise ValueError(f"unknown option {sorted(options)[0]!r}: expected the state alone")
        batch = _Batch.of(state, self._charges(state))
        found = self.evaluator.evaluate(self._graph(batch))
        results = {"energy": found.energy}
        if self._compute_forces:
            results["forces"] = found.forces
        if self._compute_stress:
            volumes = np.abs(np.linalg.det(batch.cells)) if batch.pbc.any() else np.zeros(1)
            inverse = np.divide(1, volumes, out=np.zeros_like(volumes), where=volumes > 0)
            results["stress"] = -found.virial * inverse[:, None, None]
        if found.energy_std is not None and found.forces_std is not None:
            results |= {"energy_std": found.energy_std, "forces_std": found.forces_std}
        return {name: torch.from_numpy(each).to(state.positions) for name, each in results.items()}

    def _charges(self, state: SimState) -> FloatArray:
        if self.charge is None and state.has_extras("charge"):
            charges = _array(state.charge).reshape(-1)
            if len(charges) != state.n_systems:
                raise ValueError(
                    f"charge has {len(charges)} values: expected one for each of the "
                    f"{state.n_systems} systems"
                )
            return np.array([float(parse_charge(charge)) for charge in charges])
        return np.full(state.n_systems, float(self.charge or 0))

    def _graph(self, batch: _Batch) -> Graph:
        known = self._list
        if known is None or not known.serves(batch, self.evaluator.neighbors.skin):
            structures = batch.structures()
            if known is None or not known.batch.has_the_atoms_of(batch):
                for one in structures:
                    self.evaluator.check_domain(
                        Atoms(one.numbers, one.positions, cell=one.cell, pbc=one.pbc)
                    )
            graph = self.evaluator.batch(structures, self.evaluator.neighbors.skin)
            known = self._list = _List(batch, graph)
        now = torch.from_numpy(batch.positions).to(self._device)
        return known.graph._replace(positions=now)


class _Batch(NamedTuple):
    """A state as arrays of its own."""

    numbers: NDArray[np.int64]
    system: NDArray[np.int64]
    positions: FloatArray
    cells: FloatArray
    """(S, 3, 3), rows are lattice vectors."""
    pbc: NDArray[np.bool_]
    charges: FloatArray

    @classmethod
    def of(cls, state: SimState, charges: FloatArray) -> _Batch:
        return cls(
            _array(state.atomic_numbers).astype(np.int64),
            _array(state.system_idx).astype(np.int64),
            _array(state.positions),
            np.ascontiguousarray(_array(state.row_vector_cell)),
            _array(state.pbc).astype(bool),
            charges,
        )

    def structures(self) -> list[Structure]:
        ends = np.searchsorted(self.system, np.arange(1, len(self.cells)))
        parts = zip(np.split(self.numbers, ends), np.split(self.positions, ends), strict=True)
        return [
            Structure(numbers, positions, cell, self.pbc, charge)
            for (numbers, positions), cell, charge in zip(
                parts, self.cells, self.charges.tolist(), strict=True
            )
        ]

    def has_the_atoms_of(self, other: _Batch) -> bool:
        """Whether the systems have the same elements, in this order."""
        return np.array_equal(self.numbers, other.numbers) and np.array_equal(
            self.system, other.system
        )


class _List(NamedTuple):
    """The neighbour list of a batch."""

    batch: _Batch
    """The batch that it was made for."""
    graph: Graph

    def serves(self, new: _Batch, skin: float) -> bool:
        """Whether no edge of a batch is missing."""
        old = self.batch
        if not (
            old.has_the_atoms_of(new)
            and np.array_equal(old.cells, new.cells)
            and np.array_equal(old.pbc, new.pbc)
            and np.array_equal(old.charges, new.charges)
        ):
            return False
        moved = new.positions - old.positions
        return bool(np.einsum("ij,ij->i", moved, moved).max(initial=0.0) <= skin**2 / 4)


def _array(tensor: Tensor) -> NDArray[Any]:
    """A copy in float64: the state is the caller's."""
    return tensor.detach().cpu().to(torch.float64, copy=True).numpy()
