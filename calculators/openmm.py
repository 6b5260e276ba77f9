"""Potentials as OpenMM forces."""

from __future__ import annotations

import logging
import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from ..models.checkpoint import load_potential
from ..models.committee import has_coulomb, members_of
from ..models.inference.backends import script
from ..models.inference.torchscript import OpenMMModule, PortableEvaluator, scriptable_members
from ..models.units import kj_per_mol_in_ev, nm_in_angstrom
from .checks import check_elements, check_energies, parse_charge
from .domain import molecules_of_bonds
from .evaluator import Checkpoint, Evaluator, Structure
from .openmm_topology import atomic_numbers, bonds_of_region, has_box
from .openmm_versions import choose_force_class
from .torch_operator import OperatorEvaluator

if TYPE_CHECKING:
    import openmm

log = logging.getLogger(__name__)

BOX_COULOMB_CUTOFF = 12.0
"""Cutoff in a box of a model whose file has none, A, as in openmm-ml."""


def create_force(
    checkpoint: Checkpoint,
    topology_or_numbers: Any,
    *,
    atoms: Iterable[int] | None = None,
    charge: int = 0,
    engine: str = "auto",
    periodic: bool | None = None,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
    coulomb_cutoff: Any = None,
) -> openmm.Force:
    """A potential as a force to add to an OpenMM System.

    Parameters
    ----------
    checkpoint
        A path, a registry name, a sequence of paths (a committee, of which the mean is used) or a
        loaded potential.
    topology_or_numbers
        OpenMM Topology, or the atomic numbers of all particles of the System.
    atoms
        Indices of the particles that the force acts on, in this order; None for all. Link atoms
        of openmm-ml, which are virtual sites of the System, are particles like others.
    charge
        Total charge of those particles, e.
    engine
        ``"torchforce"`` (compiled by TorchScript, neighbour list inside), ``"python"``
        (OpenMM's PythonForce) or ``"auto"``: TorchForce where it works. The choice is logged
        and shown by ``tensormd doctor``.
    periodic
        Whether the potential treats the System's box as periodic, in all three directions; None
        takes it from the topology. The box may be smaller than the cutoff.
    device
        Device of the ``python`` engine; TorchForce runs where OpenMM's platform runs.
    dtype
        Precision of weights and arithmetic, ``"float32"`` or ``"float64"``.
    backend
        ``"fused"``: compiled kernels with radial tables, within 2e-5 eV/A of the network;
        ``"reference"``: plain torch operators, compiled by TorchScript; ``"auto"``: fused where
        it exists, in float32. The choice is logged.
    coulomb_cutoff
        Cutoff of a Coulomb energy of predicted charges (TensorNet2), nm or an OpenMM quantity,
        with a reaction field beyond it; infinity: all pairs of a molecule. None, as in openmm-ml:
        without a box all pairs, in a box the checkpoint's own cutoff or, if it has none, 1.2 nm.
        The choice is logged.

    Returns
    -------
    openmm.Force
        Energies in kJ/mol, forces in kJ/mol/nm.

    Raises
    ------
    ValueError
        If the model does not know an element, an index is out of range or repeated, ``atoms``
        cut a bond of the topology that has no link atom, the charge is not an integer, the
        Coulomb cutoff cannot be, or the engine or backend cannot run here.
    """
    force_class = choose_force_class(engine)
    numbers = atomic_numbers(topology_or_numbers)
    particles = None if atoms is None else _checked_indices(atoms, len(numbers))
    if particles is not None:
        numbers = numbers[particles]
    bonds = bonds_of_region(topology_or_numbers, particles)
    charge = parse_charge(charge)
    if periodic is None:
        periodic = has_box(topology_or_numbers)
    potential = load_potential(checkpoint)
    check_elements(numbers, potential.elements)
    check_energies(potential)
    if force_class == "torchforce" and not _scriptable(potential):
        force_class = "python"
        log.info("%s cannot be compiled by TorchScript", potential.architecture)
    cutoff = _coulomb_cutoff(potential, coulomb_cutoff, periodic)
    evaluator = Evaluator(
        potential,
        device="cpu" if force_class == "torchforce" else device,  # OpenMM moves a TorchForce
        dtype=dtype,
        backend=backend,
        coulomb_cutoff=cutoff,
    )
    evaluator.check_charge(charge, periodic)
    evaluator.check_domain(molecules_of_bonds(numbers, bonds))
    log.info("tensormd runs %s in OpenMM through %s", potential.architecture, force_class)
    make_force = _torch_force if force_class == "torchforce" else _python_force
    force = make_force(evaluator, numbers, charge, particles, periodic)
    force.setUsesPeriodicBoundaryConditions(periodic)
    return force


def _coulomb_cutoff(potential: nn.Module, given: Any, periodic: bool) -> float | None:
    """Cutoff of the Coulomb energy, Angstrom; None if there is none.

    Raises
    ------
    ValueError
        If all pairs of a periodic box are wanted.
    """
    if given is not None:
        cutoff = _length_in_angstrom(given)
        if periodic and cutoff == math.inf:
            raise ValueError(
                "coulomb_cutoff is infinite, but the box is periodic: expected a length such as "
                "1.2 nm, or periodic=False"
            )
        return cutoff
    own = [float(m.coulomb_cutoff) for m in members_of(potential) if has_coulomb(m)]  # type: ignore[arg-type]
    if not own:
        return None
    cutoff = math.inf
    if periodic:
        cutoff = max((each for each in own if each < math.inf), default=BOX_COULOMB_CUTOFF)
    log.info(
        "the Coulomb energy is %s",
        "that of all pairs" if cutoff == math.inf
        else f"cut off at {cutoff:g} A, with a reaction field beyond",
    )  # fmt: skip
    return cutoff


def _length_in_angstrom(length: Any) -> float:
    """A length in nm, or an OpenMM quantity, in Angstrom."""
    from openmm import unit

    if unit.is_quantity(length):
        return float(length.value_in_unit(unit.angstrom))
    return float(length) * nm_in_angstrom


def _torch_force(
    evaluator: Evaluator,
    numbers: NDArray[np.int64],
    charge: int,
    particles: list[int] | None,
    periodic: bool,
) -> openmm.Force:
    import openmmtorch

    module = OpenMMModule(
        _script_evaluator(evaluator),
        numbers.tolist(),
        charge=charge,
        particles=particles,
        periodic=periodic,
    )
    force = openmmtorch.TorchForce(script(module))
    force.setOutputsForces(True)
    return force


def _script_evaluator(evaluator: Evaluator) -> nn.Module:
    """The evaluator as a TorchScript module: the fused operator, or plain torch operators."""
    problem, skin = evaluator.why_not_fused, evaluator.neighbors.skin
    if problem is None:
        try:
            return OperatorEvaluator(evaluator.potential, skin)
        except ValueError as error:  # it cannot be saved to a file
            if evaluator.backend == "fused":
                raise
            problem = str(error)
    log.info("TorchForce runs plain torch operators: %s", problem)
    return PortableEvaluator(scriptable_members(evaluator.potential), skin)


def _python_force(
    evaluator: Evaluator,
    numbers: NDArray[np.int64],
    charge: int,
    particles: list[int] | None,
    periodic: bool,
) -> openmm.Force:
    import openmm

    if particles is None or not hasattr(openmm.PythonForce, "setParticles"):
        return openmm.PythonForce(PythonEvaluator(evaluator, numbers, charge, particles, periodic))
    # OpenMM 8.6 copies these particles only.
    force = openmm.PythonForce(PythonEvaluator(evaluator, numbers, charge, None, periodic))
    force.setParticles(particles)
    return force


class PythonEvaluator:
    """The callable of a PythonForce: State -> energy (kJ/mol) and forces (kJ/mol/nm).

    OpenMM pickles it to serialise a System: it carries the weights, not the compiled module.
    """

    def __init__(
        self,
        evaluator: Evaluator,
        numbers: NDArray[np.int64],
        charge: int,
        particles: list[int] | None,
        periodic: bool,
    ) -> None:
        self.evaluator = evaluator
        self.numbers = numbers
        self.charge = charge
        self.particles = slice(None) if particles is None else particles
        self.pbc = np.full(3, periodic)

    def __call__(self, state: openmm.State) -> tuple[float, NDArray[np.float64]]:
        """Energy, kJ/mol, and forces (M, 3), kJ/mol/nm, on all M particles of a State."""
        positions = np.array(state.getPositions(asNumpy=True)._value) * nm_in_angstrom
        cell = np.zeros((3, 3))  # the State of a molecule has no box
        if self.pbc.all():
            cell = np.array(state.getPeriodicBoxVectors(asNumpy=True)._value) * nm_in_angstrom
        structure = Structure(self.numbers, positions[self.particles], cell, self.pbc, self.charge)
        energy, forces = self.evaluator.energy_and_forces(structure)
        everywhere = np.zeros_like(positions)
        everywhere[self.particles] = forces.cpu().numpy() * (nm_in_angstrom / kj_per_mol_in_ev)
        return float(energy) / kj_per_mol_in_ev, everywhere


def _scriptable(potential: nn.Module) -> bool:
    try:
        scriptable_members(potential)
    except ValueError:
        return False
    return True


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
