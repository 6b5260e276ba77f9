"""The evaluator of a potential, on which the adapters of all programs are built.

An adapter translates the structures and units of its program; loading, checks, the neighbour list,
kernels and the mean over a committee are here.
"""

from __future__ import annotations

import copy
import functools
import os
import queue
import warnings
from collections.abc import Callable, Collection, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from ase import Atoms
from numpy.typing import NDArray
from torch import Tensor, nn

from ..models.checkpoint import load_potential
from ..models.checkpoint.description import finite_cutoff
from ..models.committee import (
    combine,
    mean,
    mean_prediction,
    members_of,
    with_coulomb_cutoff,
)
from ..models.graph import Graph, batch_graphs, within
from ..models.inference.backends import (
    compile_potential,
    implementation_of,
    list_cutoff,
    runs_as,
    why_not_fused,
)
from ..models.inference.forks import use_one_thread_in_forks
from ..models.inference.heat_flux import HeatFlux, heat_flux
from ..models.inference.hessian import hessian
from ..models.inference.kernels.potential import FusedPotential
from ..models.inference.tables import TableInfo
from ..models.inference.threads import most_threads
from ..models.neighbors import SKIN, NeighborList, all_pairs
from ..models.potential import Prediction, parse_dtype
from .checks import (
    all_finite,
    check_elements,
    check_geometry,
    check_results,
    parse_backend,
    parse_device,
    symbols,
    warn_of_charge,
    warn_of_charged_cell,
)
from .domain import DOMAIN, Molecules, doubts

ATOMS_AT_ONCE = 512
"""Atoms of a batch that one of several threads evaluates; fewer leave work to Python, more do not
fit a core's cache."""

Checkpoint = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | nn.Module


Function = TypeVar("Function", bound=Callable[..., Any])


def outside_inference_mode(function: Function) -> Function:
    """Decorator: leave a caller's inference mode, in which tensors are made without gradients."""
    outside = torch.inference_mode(False)(function)

    @functools.wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if torch.is_inference_mode_enabled():
            return outside(*args, **kwargs)
        return function(*args, **kwargs)  # at no cost

    return run  # type: ignore[return-value]


class Structure(NamedTuple):
    """The atoms of one system, in the order that `NeighborList.graph` takes."""

    numbers: NDArray[Any]
    """(N,) atomic numbers."""
    positions: NDArray[Any]
    """(N, 3), Angstrom, anywhere in space."""
    cell: NDArray[Any]
    """(3, 3), rows are lattice vectors, Angstrom; only periodic ones are read."""
    pbc: NDArray[np.bool_]
    """(3,), periodicity along each lattice vector."""
    charge: float
    """Total charge, e."""


class Evaluation(NamedTuple):
    """Results for the B systems of a graph, float64; for a committee, its mean."""

    energy: NDArray[np.float64]
    """(B,), eV."""
    energies: NDArray[np.float64]
    """(N,), eV, per atom."""
    forces: NDArray[np.float64]
    """(N, 3), eV/Angstrom."""
    virial: NDArray[np.float64]
    """(B, 3, 3), eV: -dE/dstrain, symmetric."""
    virials: NDArray[np.float64]
    """(N, 3, 3), eV, shares of the atoms in the virial, symmetric."""
    energy_std: NDArray[np.float64] | None = None
    """(B,), eV: sample standard deviation over the members of a committee."""
    forces_std: NDArray[np.float64] | None = None
    """(N, 3), eV/Angstrom: the same for each force component."""


class Evaluator:
    """A potential or committee on a device, with its backend and one system's neighbour list.

    It is compiled at its first evaluation. Copies and pickles carry the weights, not the compiled
    modules.

    Parameters
    ----------
    checkpoint
        A path, a registry name, a sequence of paths (a committee) or a loaded potential, which
        is copied.
    device
        ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    dtype
        Precision of weights and arithmetic, ``"float32"`` or ``"float64"``; None: as in the
        checkpoint.
    backend
        ``"fused"``, ``"reference"`` or ``"auto"``: see `compile_potential`.
    skin
        Verlet skin of the neighbour list, Angstrom.
    units
        The checkpoint's units of length and energy, needed if its file does not state them.
    coulomb_cutoff
        Cutoff of a Coulomb energy of predicted charges, Angstrom, with a reaction field beyond
        it; infinity: all pairs of a molecule; None: as in the checkpoint.

    Raises
    ------
    ValueError
        If the checkpoint cannot be read, an option is invalid, or ``"fused"`` is requested and
        there are no fused kernels for the potential.
    """

    # Gradients need tensors made outside of a caller's inference mode; so it is left in each
    # method that makes any.
    @outside_inference_mode
    def __init__(
        self,
        checkpoint: Checkpoint,
        *,
        device: str | torch.device = "auto",
        dtype: str | torch.dtype | None = "float32",
        backend: str = "auto",
        skin: float = SKIN,
        units: tuple[str, str] | None = None,
        coulomb_cutoff: float | None = None,
    ) -> None:
        self.device = parse_device(device)
        precision = None if dtype is None else parse_dtype(dtype)
        self.backend = parse_backend(backend)
        potential = load_potential(checkpoint, units=units)
        if potential is checkpoint:
            potential = copy.deepcopy(potential)  # the caller's own stays as it is
        if coulomb_cutoff is not None:
            potential = with_coulomb_cutoff(potential, coulomb_cutoff)  # type: ignore[assignment]
        self.potential = potential.to(self.device, precision).eval().requires_grad_(False)
        why_not_fused(self.potential, self.backend)  # an error, if they are asked for in vain
        cutoff = list_cutoff(self.potential, self.backend)
        self.neighbors = NeighborList(cutoff, skin, self.device)
        self._members: list[nn.Module] | None = None
        self._charges: set[float] = {0.0}  # that were warned of, if there was a reason
        self._boxes_warned = False
        self._general = any(
            member.metadata.get("domain") == DOMAIN  # type: ignore[union-attr, operator]
            for member in members_of(potential)
        )
        """Whether structures are to be compared with the data of the general potential."""

    def check_charge(self, charge: float, periodic: bool = False) -> None:
        """Warn of a charge that the potential may never have seen, and of a charged cell.

        The first warning comes once for each charge, the second once.
        """
        if charge not in self._charges:
            self._charges.add(charge)
            warn_of_charge(self.potential, int(charge))
        if charge and periodic and not self._boxes_warned:
            self._boxes_warned = warn_of_charged_cell(self.potential, int(charge))

    def check_domain(self, structure: Atoms | Molecules) -> None:
        """Warn once of a structure that is unlike the data of the general potential."""
        if self._general and (reasons := doubts(structure)):
            self._general = False
            formula = Atoms(numbers=structure.numbers).get_chemical_formula()
            warnings.warn(
                f"{formula} is unlike the data of this model ({'; '.join(reasons)}): results are "
                "unverified",
                UserWarning,
                stacklevel=3,
            )

    @property
    def why_not_fused(self) -> str | None:
        """Reason why fused kernels do not run; None if they do, or have not been tried yet."""
        return why_not_fused(self.potential, self.backend)

    @property
    def members(self) -> list[nn.Module]:
        """The potential, or the members of the committee, compiled."""
        if self._members is None:
            self._members = [
                compile_potential(member, self.backend) for member in members_of(self.potential)
            ]
        return self._members

    # From structures to graphs

    @outside_inference_mode
    def graph(self, structure: Structure, changed: Collection[str] | None = None) -> Graph:
        """The graph of a structure, using and updating the kept neighbour list.

        Parameters
        ----------
        structure
            Any structure; the list is rebuilt if it does not cover it.
        changed
            Fields of the structure to check, because they changed; None: all.

        Raises
        ------
        ValueError
            If the potential does not know an element or the geometry is impossible.
        """
        return self._graph(structure, self.neighbors, changed)

    @outside_inference_mode
    def batch(self, structures: Iterable[Structure], skin: float = 0.0) -> Graph:
        """One graph of many structures; the kept neighbour list does not change.

        ``skin``, Angstrom, is added to the cutoff of its edges.

        Raises
        ------
        ValueError
            As in `graph`.
        """
        neighbors = NeighborList(self.neighbors.cutoff, skin, self.device)
        return batch_graphs([self._graph(structure, neighbors) for structure in structures])

    def _graph(
        self,
        structure: Structure,
        neighbors: NeighborList,
        changed: Collection[str] | None = None,
    ) -> Graph:
        numbers, positions, cell, pbc, charge = structure
        if changed is None or "pbc" in changed or "charge" in changed:
            self.check_charge(charge, bool(pbc.any()))
        if changed is None or "numbers" in changed:
            check_elements(numbers, self.potential.elements)
        if changed is None or "cell" in changed or "pbc" in changed:
            check_geometry(positions, cell, pbc)
        try:
            return neighbors.graph(*structure)
        except ValueError:
            check_geometry(positions, cell, pbc)  # a better message, if it is for that
            raise

    # From graphs to results

    def evaluate(self, graph: Graph) -> Evaluation:
        """Energies, forces and virials of the systems of a graph.

        Raises
        ------
        ValueError
            If an energy or a force is not finite; the message gives the likely cause.
        """
        if len(self.members) > 1:
            together = combine(self.predictions(graph))
            found = Evaluation(*_arrays((*together.mean, *together[1:])))
        elif hasattr(self.members[0], "arrays"):
            found = self._arrays_of_kernels(graph)
        else:
            found = Evaluation(*_arrays(self.predictions(graph)[0]))
        check_results(graph, found.energy, found.forces)
        return found

    @outside_inference_mode
    def _arrays_of_kernels(self, graph: Graph) -> Evaluation:
        return Evaluation(*self.members[0].arrays(graph))  # type: ignore[operator]

    def evaluate_many(self, structures: Sequence[Structure]) -> Evaluation:
        """Results of one or more structures, in the given order; the kept list does not change.

        Fused kernels on a CPU evaluate batches side by side, in as many threads as torch has, and
        give each structure the results that it has alone, to the last bit. All else, and fewer
        structures than threads, are one batch.

        Raises
        ------
        ValueError
            As in `graph` and `evaluate`.
        """
        team = self.team(0.0)
        batches = _batches(structures, len(team))
        if len(batches) < len(team) or len(team) == 1:
            return self.evaluate(self.batch(structures))
        idle: queue.SimpleQueue[Evaluator] = queue.SimpleQueue()
        for each in team:
            idle.put(each)

        def run(batch: Sequence[Structure]) -> Evaluation:
            evaluator = idle.get()
            try:
                return evaluator.evaluate(evaluator.batch(batch))
            finally:
                idle.put(evaluator)

        with ThreadPoolExecutor(len(team)) as pool:
            found = list(pool.map(run, batches))
        columns = (None if c[0] is None else np.concatenate(c) for c in zip(*found, strict=True))
        return Evaluation(*columns)  # type: ignore[arg-type]

    @outside_inference_mode
    def energy_and_forces(self, structure: Structure) -> tuple[Tensor, Tensor]:
        """Energy (), eV, and forces (N, 3), eV/Angstrom, with the kept neighbour list.

        For programs that detect NaN but cannot handle an exception: if a position is not finite,
        all results are NaN. The elements must have been checked before.
        """
        if not all_finite(structure.positions):
            nan = torch.full(
                structure.positions.shape, torch.nan, dtype=torch.float64, device=self.device
            )
            return nan.new_full((), torch.nan), nan
        prediction = self.predict(self.neighbors.graph(*structure))
        return prediction.energy[0], prediction.forces

    def predict(self, graph: Graph) -> Prediction:
        """The prediction for a graph; for a committee, its mean."""
        return mean_prediction(self.predictions(graph))

    @outside_inference_mode
    def predictions(self, graph: Graph) -> list[Prediction]:
        """The prediction of each member for a graph."""
        with torch.set_grad_enabled(True):  # forces are gradients, even under no_grad
            return [
                member(graph if isinstance(member, FusedPotential) else self._whole(graph))
                for member in self.members
            ]

    @outside_inference_mode
    def properties(self, graph: Graph, names: Sequence[str]) -> dict[str, NDArray[np.float64]]:
        """Properties that the network's own heads predict for a graph, or fused kernels.

        Shape (B, ...) for properties of the system, (N, ...) for those of each atom; units as in
        the table of `quantities`.

        Raises
        ------
        ValueError
            If a result is not finite; the message gives the likely cause.
        """
        use_one_thread_in_forks()
        found = []
        with torch.no_grad():
            for member, compiled in zip(members_of(self.potential), self.members, strict=True):
                if set(names) <= set(getattr(compiled, "computes", ())):
                    found.append(compiled.properties(graph, names))  # type: ignore[operator]
                    continue
                near, vectors = within(graph, float(member.cutoff))  # type: ignore[arg-type]
                found.append(member.properties(near, vectors, names=names))  # type: ignore[operator]
        means = {name: mean([each[name] for each in found]).cpu().numpy() for name in names}
        check_results(graph, *means.values())
        return means

    @outside_inference_mode
    def hessian(self, graph: Graph) -> NDArray[np.float64]:
        """Second derivatives of the energy of the network itself, (3N, 3N), eV/Angstrom^2."""
        use_one_thread_in_forks()
        members = members_of(self.potential)
        graph = self._whole(graph)
        return mean([hessian(each.total_energy, graph) for each in members]).cpu().numpy()  # type: ignore[arg-type]

    @outside_inference_mode
    def heat_flux(
        self, graph: Graph, velocities: NDArray[np.float64], masses: NDArray[np.float64]
    ) -> HeatFlux:
        """Heat flux from the network itself; velocities (N, 3) and masses (N,) in ASE's units."""
        use_one_thread_in_forks()
        members: list[Any] = members_of(self.potential)
        graph = self._whole(graph)
        v, m = (torch.from_numpy(x).to(self.device) for x in (velocities, masses))
        return HeatFlux(*mean([heat_flux(each, graph, v, m) for each in members]).cpu().numpy())

    def _whole(self, graph: Graph) -> Graph:
        """The graph with all pairs, of which fused kernels need no list."""
        if self.neighbors.cutoff < float(self.potential.cutoff):
            return all_pairs(graph)
        return graph

    # The evaluator itself

    def team(self, skin: float) -> list[Evaluator]:
        """Evaluators that share the weights, for threads that work side by side, one each.

        One for each thread of torch that has a core, where fused kernels run on a CPU, whose
        results do not depend on the number of threads and which leave Python to the others
        meanwhile; otherwise one.
        """
        beside = all(hasattr(member, "threads") for member in self.members)
        team = [self.twin(skin) for _ in range(most_threads() if beside else 1)]
        if len(team) > 1:
            for evaluator in team:
                for member in evaluator.members:
                    member.threads = 1  # type: ignore[assignment]
        return team

    @outside_inference_mode
    def twin(self, skin: float) -> Evaluator:
        """An evaluator of another system that shares the weights and the compiled modules."""
        twin = copy.copy(self)
        twin.neighbors = NeighborList(self.neighbors.cutoff, skin, self.device)
        # A copy of a fused potential shares its weights, but not its memory for one list.
        twin._members = [
            member if isinstance(member, torch.jit.ScriptModule) else copy.copy(member)
            for member in self.members
        ]
        return twin

    def info(self) -> dict[str, Any]:
        """Architecture, engine, device, tables and metadata of the weights."""
        return {
            "architecture": self.potential.architecture,
            "members": len(self.members),
            "parameters": sum(p.numel() for p in self.potential.parameters()),
            "elements": symbols(self.potential.elements),
            "cutoff_angstrom": finite_cutoff(self.potential.cutoff),
            "device": str(self.device),
            "backend": self.backend,
            "engine": " + ".join(sorted({implementation_of(member) for member in self.members})),
            "why_not_fused": self.why_not_fused,
            "threads": self._describe_threads(),
            "runs_as": sorted({runs_as(member) for member in members_of(self.potential)}),
            "tables": [
                _table(member.table_info)  # type: ignore[arg-type]
                for member in self.members
                if hasattr(member, "table_info")
            ],
            "metadata": self.potential.metadata,
        }

    def _describe_threads(self) -> str | None:
        """Number of CPU threads, and why; None on other devices."""
        if self.device.type != "cpu":
            return None
        each = {
            member.describe_threads()  # type: ignore[operator]
            if hasattr(member, "describe_threads")
            else f"{torch.get_num_threads()}, the number of torch"
            for member in self.members
        }
        return "; ".join(sorted(each))

    def __getstate__(self) -> dict[str, Any]:
        # Compiled modules cannot be pickled: they are rebuilt on first use.
        return {**self.__dict__, "_members": None}


def _batches(structures: Sequence[Structure], threads: int) -> list[Sequence[Structure]]:
    """Consecutive structures of about `ATOMS_AT_ONCE` atoms, or fewer to give all threads some."""
    ends = np.cumsum([len(structure.numbers) for structure in structures])
    count = max(-(-int(ends[-1]) // ATOMS_AT_ONCE), threads)
    bounds = np.searchsorted(ends, ends[-1] * np.arange(1, count) / count) + 1
    parts = np.split(np.arange(len(structures)), bounds)
    return [structures[part[0] : part[-1] + 1] for part in parts if len(part)]


def _arrays(tensors: Iterable[Tensor]) -> list[NDArray[np.float64]]:
    return [tensor.cpu().numpy() for tensor in tensors]


def _table(info: TableInfo) -> dict[str, float]:
    return {
        "intervals": info.intervals,
        "error_ev_per_angstrom": info.error,
        "bound_ev_per_angstrom": info.bound,
    }
