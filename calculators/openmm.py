"""Potentials as OpenMM forces.

Import torch before openmm (importing tensormd does).
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from ..models.checkpoint import load_potential
from ..models.committee import members_of
from ..models.inference import torch_operator as operator  # noqa: F401 (registers tensormd::evaluate)
from ..models.inference.backends import compile_potential, script, why_not_fused
from ..models.inference.torchscript import (
    Evaluator,
    OpenMMModule,
    OperatorEvaluator,
    scriptable_members,
)
from ..models.neighbors import NeighborList
from ..models.potential import parse_dtype
from ..models.units import kj_per_mol_in_ev, nm_in_angstrom
from .checks import check_elements, check_energies, parse_backend, parse_charge, parse_device
from .openmm_versions import choose_engine

if TYPE_CHECKING:
    import openmm

log = logging.getLogger(__name__)

SKIN_ANGSTROM = 1.0


def create_force(
    checkpoint: Any,
    topology_or_numbers: Any,
    *,
    atoms: Iterable[int] | None = None,
    charge: int = 0,
    engine: str = "auto",
    periodic: bool | None = None,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
) -> openmm.Force:
    """A potential as a force to add to an OpenMM System.

    Parameters
    ----------
    checkpoint
        A path, a registry name, a sequence of paths (a committee, whose mean acts) or a loaded
        potential.
    topology_or_numbers
        OpenMM Topology, or the atomic numbers of all particles of the System.
    atoms
        Particles it acts on, in this order; None for all.
    charge
        Total charge of those particles, e.
    engine
        ``"torchforce"`` (compiled by TorchScript, neighbour list inside), ``"python"``
        (OpenMM's PythonForce) or ``"auto"``: TorchForce where it works. The choice is logged
        and shown by ``tensormd doctor``.
    periodic
        Whether the System's box is periodic for the potential, in all three directions; None
        takes it from the topology. The box may be smaller than the cutoff.
    device
        Of the ``python`` engine; TorchForce runs where OpenMM's platform runs.
    dtype
        ``"float32"`` or ``"float64"``, of weights and arithmetic.
    backend
        ``"fused"``: compiled kernels with radial tables, within 2e-5 eV/A of the network;
        ``"reference"``: plain torch operators, compiled by TorchScript; ``"auto"``: fused where
        it exists, in float32. The choice is logged.

    Returns
    -------
    openmm.Force
        Energies in kJ/mol, forces in kJ/mol/nm.

    Raises
    ------
    ValueError
        For elements the model does not know, indices out of range or given twice, a charge
        that is no integer, or an engine or a backend that cannot run here.
    """
    engine, backend = choose_engine(engine), parse_backend(backend)
    numbers = _atomic_numbers(topology_or_numbers)
    particles = None if atoms is None else _checked_indices(atoms, len(numbers))
    if particles is not None:
        numbers = numbers[particles]
    charge = parse_charge(charge)
    if periodic is None:
        periodic = _has_box(topology_or_numbers)
    potential = load_potential(checkpoint)
    if potential is checkpoint:
        potential = copy.deepcopy(potential)
    check_elements(numbers, potential.elements)
    check_energies(potential)
    potential = potential.to(parse_dtype(dtype)).eval().requires_grad_(False)

    if engine == "torchforce" and not _scriptable(potential):
        engine = "python"
        log.info("%s cannot be compiled by TorchScript", potential.architecture)
    log.info("tensormd runs %s in OpenMM through %s", potential.architecture, engine)
    if engine == "torchforce":
        return _torch_force(potential, numbers, charge, particles, periodic, backend)
    return _python_force(potential, numbers, charge, particles, periodic, device, backend)


def _torch_force(
    potential: nn.Module,
    numbers: NDArray[np.int64],
    charge: int,
    particles: list[int] | None,
    periodic: bool,
    backend: str,
) -> openmm.Force:
    import openmmtorch

    module = OpenMMModule(
        _evaluator(potential, backend),
        numbers.tolist(),
        charge=charge,
        particles=particles,
        periodic=periodic,
    )
    force = openmmtorch.TorchForce(script(module))
    force.setOutputsForces(True)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def _evaluator(potential: nn.Module, backend: str) -> nn.Module:
    """What TorchForce asks for energy and forces: the fused operator, or plain operators."""
    problem = why_not_fused(potential, backend)
    if problem is None:
        try:
            return OperatorEvaluator(potential, SKIN_ANGSTROM)
        except ValueError as error:  # no file can hold it
            if backend == "fused":
                raise
            problem = str(error)
    log.info("TorchForce runs plain torch operators: %s", problem)
    return Evaluator(scriptable_members(potential), SKIN_ANGSTROM)


def _python_force(
    potential: nn.Module,
    numbers: NDArray[np.int64],
    charge: int,
    particles: list[int] | None,
    periodic: bool,
    device: str,
    backend: str,
) -> openmm.Force:
    import openmm

    evaluator = PythonEvaluator(potential, numbers, charge, particles, periodic, device, backend)
    force = openmm.PythonForce(evaluator)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


class PythonEvaluator:
    """What PythonForce calls: a State in, energy (kJ/mol) and forces (kJ/mol/nm) out.

    OpenMM pickles it to serialise a System: it carries the weights, not the compiled module.
    """

    def __init__(
        self,
        potential: nn.Module,
        numbers: NDArray[np.int64],
        charge: int,
        particles: list[int] | None,
        periodic: bool,
        device: str,
        backend: str,
    ) -> None:
        self.device = parse_device(device)
        self.potential = potential.to(self.device)
        self.numbers = numbers
        self.charge = charge
        self.particles = slice(None) if particles is None else particles
        self.periodic = periodic
        self.neighbors = NeighborList(float(potential.cutoff), SKIN_ANGSTROM, self.device)  # type: ignore[arg-type]
        self.backend = backend
        why_not_fused(potential, backend)  # now, not in the first step
        self._compiled: list[nn.Module] | None = None

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        """Energy and forces of the particles in an OpenMM State."""
        if self._compiled is None:
            self._compiled = [
                compile_potential(member, self.backend) for member in members_of(self.potential)
            ]
        everywhere = np.array(state.getPositions(asNumpy=True)._value) * nm_in_angstrom
        positions = everywhere[self.particles]
        forces = np.zeros_like(everywhere)
        if not np.isfinite(positions).all():
            return np.nan, forces + np.nan
        cell = None
        if self.periodic:
            cell = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value) * nm_in_angstrom
        graph = self.neighbors.graph(self.numbers, positions, cell, self.periodic, self.charge)
        with torch.set_grad_enabled(True):  # forces are gradients, under the caller's no_grad too
            predictions = [member(graph) for member in self._compiled]
        energy = sum(float(p.energy[0]) for p in predictions) / len(predictions)
        forces[self.particles] = sum(p.forces.cpu().numpy() for p in predictions)
        factor = nm_in_angstrom / kj_per_mol_in_ev / len(predictions)
        return energy / kj_per_mol_in_ev, forces * factor

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}


def _scriptable(potential: nn.Module) -> bool:
    try:
        scriptable_members(potential)
    except ValueError:
        return False
    return True


def _atomic_numbers(topology_or_numbers: Any) -> NDArray[np.int64]:
    if not hasattr(topology_or_numbers, "atoms"):
        numbers = np.asarray(topology_or_numbers)
        if numbers.ndim != 1 or not np.issubdtype(numbers.dtype, np.integer):
            raise ValueError(
                f"atomic numbers are {topology_or_numbers!r}: expected a list of integers, or an "
                "OpenMM Topology"
            )
        return numbers.astype(np.int64)
    # A virtual site has no element: it may exist, as long as the model does not act on it.
    elements = [atom.element for atom in topology_or_numbers.atoms()]
    return np.array([0 if e is None else e.atomic_number for e in elements], dtype=np.int64)


def _has_box(topology_or_numbers: Any) -> bool:
    get = getattr(topology_or_numbers, "getPeriodicBoxVectors", None)
    return get is not None and get() is not None


def _checked_indices(atoms: Iterable[int], total: int) -> list[int]:
    indices = [int(index) for index in atoms]
    if not indices:
        raise ValueError("atoms is empty: expected the particles the potential acts on, or None")
    outside = [index for index in indices if not 0 <= index < total]
    if outside:
        raise ValueError(f"particle {outside[0]} is out of range: the System has {total}")
    seen: set[int] = set()
    for index in indices:
        if index in seen:
            raise ValueError(f"particle {index} is listed twice")
        seen.add(index)
    return indices
