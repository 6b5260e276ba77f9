"""A potential on several MPI ranks, each of which owns some of the atoms.

Communicators are mpi4py's, given by the program that the atoms come from; only arrays are sent,
nothing is pickled.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..models.committee import mean_prediction, members_of
from ..models.inference.backends import compile_partial
from ..models.parts import PartGraph, PartList
from .checks import check_elements, check_geometry, check_results
from .evaluator import Evaluator

MESSAGE = 2000
"""Largest number of bytes of an error's text that reach the other ranks."""


class RankResults(NamedTuple):
    """Results for the whole system, and for the own atoms of a rank."""

    energy: float
    """Energy of all atoms, eV."""
    virial: NDArray[np.float64]
    """(3, 3), eV, of all atoms."""
    energies: NDArray[np.float64]
    """(n,), eV, of the own atoms."""
    forces: NDArray[np.float64]
    """(n, 3), eV/Angstrom, on the own atoms."""


class RankEvaluator:
    """Evaluates a system whose atoms are divided among the ranks of a communicator.

    All ranks know all positions; each evaluates the energies of its own atoms, and the gradients
    are summed. This takes two sums of (N, 4) numbers per step, whatever the number of ranks.

    Parameters
    ----------
    evaluator
        The potential.
    comm
        Communicator of mpi4py.

    Raises
    ------
    ValueError
        If the potential cannot be divided.
    """

    def __init__(self, evaluator: Evaluator, comm: Any) -> None:
        self.evaluator, self.comm = evaluator, comm
        members: list[Any] = members_of(evaluator.potential)
        self.members: list[nn.Module] = [
            compile_partial(member, evaluator.backend) for member in members
        ]
        hops = 1 + max(len(member.representation.layers) for member in members)
        cutoff, skin = evaluator.neighbors.cutoff, evaluator.neighbors.skin
        self.neighbors = PartList(cutoff, hops, skin, evaluator.device)
        self._all = np.zeros(0, dtype=np.int64)
        self._elements_of: NDArray[np.int64] | None = None

    def evaluate(
        self,
        identifiers: NDArray[Any],
        numbers: NDArray[Any],
        positions: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        charge: float,
    ) -> RankResults:
        """Evaluate the system; all ranks call this together.

        Parameters
        ----------
        identifiers
            Different integers for all atoms, (n,) for the own ones of this rank.
        numbers, positions
            Atomic numbers (n,) and positions (n, 3), Angstrom, of the own atoms.
        cell, pbc, charge
            Of the whole system, see `PartList.graph`.

        Raises
        ------
        ValueError
            On all ranks, with the message of the first one that fails.
        """
        rows, everything = self._gather(identifiers, numbers, positions)
        atoms = len(everything)
        # Forces, then energy and virial, and the number of failed ranks.
        mine, energies = np.zeros(3 * atoms + 11), np.zeros(len(rows))
        message = ""
        try:
            if atoms == 0:
                raise ValueError("there are no atoms: expected at least one")
            own = np.zeros(atoms, dtype=bool)
            own[rows] = True
            self._add(mine, energies, rows, own, everything, cell, pbc, charge)
        except Exception as error:  # the other ranks wait for this one: all raise together
            message = str(error) or type(error).__name__
            mine[:], mine[-1] = 0, 1
        total = np.empty_like(mine)
        self.comm.Allreduce(mine, total)
        if total[-1]:
            raise ValueError(self._first_message(message))
        forces = total[: 3 * atoms].reshape(-1, 3)
        virial = total[-10:-1].reshape(3, 3)
        return RankResults(float(total[-11]), virial, energies, forces[rows])

    def _add(
        self,
        sums: NDArray[np.float64],
        energies: NDArray[np.float64],
        rows: NDArray[np.int64],
        own: NDArray[np.bool_],
        everything: NDArray[np.float64],
        cell: NDArray[np.float64],
        pbc: NDArray[np.bool_],
        charge: float,
    ) -> None:
        """Write this rank's share of the forces, the energy and the virial."""
        positions = everything[:, :3].copy()
        numbers = everything[:, 3].astype(np.int64)
        check_geometry(positions, cell, pbc)
        if self._elements_of is None or not np.array_equal(numbers, self._elements_of):
            check_elements(numbers, self.evaluator.potential.elements)
            self._elements_of = numbers
        if len(rows) == 0:
            return
        found = self.neighbors.graph(numbers, positions, cell, pbc, charge, own)
        energy, each, forces, virial = self._predict(found)
        place = np.empty(len(own), dtype=np.int64)
        place[found.atoms] = np.arange(len(found.atoms))
        energies[:] = each[place[rows]]
        sums[: 3 * len(own)].reshape(-1, 3)[found.atoms] = forces
        sums[-11], sums[-10:-1] = energy, virial.ravel()

    @torch.inference_mode(False)
    def _predict(self, found: PartGraph) -> tuple[Any, ...]:
        with torch.set_grad_enabled(True):
            mean = mean_prediction([member(found.graph, found.part) for member in self.members])
        energy, energies, forces, virial, _ = (t.cpu().numpy() for t in mean)
        check_results(found.graph, energy, forces)
        return float(energy[0]), energies, forces, virial[0]

    def _gather(
        self, identifiers: NDArray[Any], numbers: NDArray[Any], positions: NDArray[np.float64]
    ) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Rows of the own atoms; positions and atomic number of all atoms, (N, 4).

        Rows are in the order of the identifiers, which are collected once, and again when atoms
        have come or gone.
        """
        for _ in range(2):
            atoms = len(self._all)
            rows = np.searchsorted(self._all, identifiers)
            known = atoms > 0 and np.array_equal(self._all[rows % atoms], identifiers)
            mine, total = np.zeros(4 * atoms + 2), np.empty(4 * atoms + 2)
            if known:
                table = mine[:-2].reshape(-1, 4)
                table[rows, :3], table[rows, 3] = positions, numbers
            mine[-2:] = len(identifiers), 0 if known else 1
            self.comm.Allreduce(mine, total)
            if total[-1] == 0 and total[-2] == atoms:
                break
            self._all = self._all_identifiers(identifiers)
        return rows, total[:-2].reshape(-1, 4)

    def _all_identifiers(self, identifiers: NDArray[Any]) -> NDArray[np.int64]:
        counts = np.zeros(self.comm.Get_size(), dtype=np.int64)
        self.comm.Allgather(np.array([len(identifiers)], dtype=np.int64), counts)
        found = np.empty(int(counts.sum()), dtype=np.int64)
        self.comm.Allgatherv(identifiers.astype(np.int64), (found, counts))
        return np.sort(found)

    def _first_message(self, message: str) -> str:
        """The message of the first rank that has one."""
        buffer = np.zeros(MESSAGE, dtype=np.uint8)
        text = message.encode()[:MESSAGE]
        buffer[: len(text)] = np.frombuffer(text, dtype=np.uint8)
        texts = np.zeros((self.comm.Get_size(), MESSAGE), dtype=np.uint8)
        self.comm.Allgather(buffer, texts)
        for rank, bytes_ in enumerate(texts):
            if bytes_.any():
                said = bytes_.tobytes().rstrip(b"\0").decode(errors="ignore")
                return said if rank == self.comm.Get_rank() else f"MPI rank {rank}: {said}"
        return "an MPI rank failed"
