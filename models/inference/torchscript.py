"""Self-contained TorchScript modules for other programs that run a potential.

They hold only plain torch operators: the exported file needs neither tensormd nor Python.
"""

import copy
import io
import math
import os
import zipfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from ..committee import mean_prediction, members_of
from ..files import replacing
from ..graph import Graph
from ..heads.coulomb import WHY_NO_CELL
from ..neighbors import SKIN
from ..potential import Potential, Prediction
from ..units import kj_per_mol_in_ev, nm_in_angstrom
from .backends import compiling, script
from .tables import tabulated_potential
from .torchscript_pairs import all_pairs, neighbor_pairs

TARGETS = ("gromacs", "openmm", "portable")


class EdgeCache(nn.Module):
    """Neighbour pairs with a Verlet skin, kept between calls of a compiled module.

    Parameters
    ----------
    cutoff, skin
        Cutoff and Verlet skin, Angstrom; an infinite cutoff: all pairs of a molecule.

    Raises
    ------
    ValueError
        If the skin is negative.
    """

    points: Tensor
    cell: Tensor
    periodic: Tensor
    edge_index: Tensor
    edge_shift: Tensor

    def __init__(self, cutoff: float, skin: float) -> None:
        super().__init__()
        if not skin >= 0:
            raise ValueError(f"skin is {skin} A: expected zero or a positive length")
        self.all_pairs = cutoff == math.inf
        self.reach = 0.0 if self.all_pairs else cutoff + skin
        self.skin = skin
        self.why_no_cell = WHY_NO_CELL  # TorchScript reads no globals
        self.register_buffer("points", torch.full((0, 3), torch.nan, dtype=torch.float64))
        self.register_buffer("cell", torch.zeros(3, 3, dtype=torch.float64))
        self.register_buffer("periodic", torch.zeros(3, dtype=torch.bool))
        self.register_buffer("edge_index", torch.zeros(2, 0, dtype=torch.int64))
        self.register_buffer("edge_shift", torch.zeros(0, 3, dtype=torch.float64))

    def forward(self, points: Tensor, cell: Tensor, periodic: Tensor) -> tuple[Tensor, Tensor]:
        """Points (N, 3), cell (3, 3), periodic (3,) -> edge_index (2, E), edge_shift (E, 3)."""
        if not self.valid(points, cell, periodic):
            if not self.all_pairs:
                found = neighbor_pairs(points, cell, periodic, self.reach)
            elif bool(periodic.any()):
                raise RuntimeError(self.why_no_cell)
            else:
                found = all_pairs(points)
            self.edge_index, self.edge_shift = found
            self.points, self.cell, self.periodic = points, cell, periodic
        return self.edge_index, self.edge_shift

    def valid(self, points: Tensor, cell: Tensor, periodic: Tensor) -> bool:
        """Whether the kept pairs cover these positions."""
        if points.shape != self.points.shape or not torch.equal(periodic, self.periodic):
            return False
        if not torch.equal(cell, self.cell):
            return False
        if self.all_pairs:
            return True
        return bool((points - self.points).square().sum(1).max() <= self.skin**2 / 4)


class PortableEvaluator(nn.Module):
    """Mean energy and forces of one or more potentials, neighbour list included."""

    def __init__(self, members: Sequence[Potential], skin: float) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)
        self.edges = EdgeCache(max(member.cutoff for member in members), skin)

    def forward(
        self, numbers: Tensor, points: Tensor, cell: Tensor, periodic: Tensor, charge: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Energy (), eV, and forces (N, 3), eV/A, in float64."""
        if not torch.isfinite(points).all():
            nan = torch.full_like(points, torch.nan)
            return nan.sum(), nan
        edge_index, edge_shift = self.edges(points, cell, periodic)
        graph = Graph(
            numbers,
            points,
            (cell * periodic.unsqueeze(1)).unsqueeze(0),
            edge_index,
            edge_shift,
            torch.zeros_like(numbers),
            charge,
        )
        predictions: list[Prediction] = []
        for member in self.members:
            predictions.append(member(graph))
        mean = mean_prediction(predictions)
        return mean.energy[0], mean.forces


class PortableModule(nn.Module):
    """The module that a C++ program loads: structure -> energy and forces, in eV and Angstrom."""

    def __init__(self, members: Sequence[Potential], skin: float) -> None:
        super().__init__()
        self.evaluator = PortableEvaluator(members, skin)

    def forward(
        self,
        positions: Tensor,
        numbers: Tensor,
        box: Tensor,
        pbc: Tensor,
        charge: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """Energy (), eV, and forces (N, 3), eV/A, in the dtype of the positions.

        Parameters
        ----------
        positions
            (N, 3), Angstrom.
        numbers
            (N,) int64, atomic numbers.
        box
            (3, 3), rows are lattice vectors, Angstrom; only periodic ones are read.
        pbc
            (3,) bool, periodicity along each lattice vector.
        charge
            Total charge, e.
        """
        total = torch.full((1,), charge, dtype=torch.float64, device=positions.device)
        energy, forces = self.evaluator(numbers, positions.double(), box.double(), pbc, total)
        return energy.to(positions.dtype), forces.to(positions.dtype)


class OpenMMModule(nn.Module):
    """The module that TorchForce runs: positions in nm -> kJ/mol and kJ/mol/nm.

    Parameters
    ----------
    evaluator
        ``(numbers, points, cell, periodic, charge) -> (energy, forces)`` in eV and Angstrom:
        `PortableEvaluator`, or a module that calls an operator of the program that loads it.
    numbers
        Atomic numbers of the particles that the force acts on.
    charge
        Total charge, e.
    particles
        Indices of those particles among all of the System; None for all.
    periodic
        Whether the box is periodic, along all three vectors.
    """

    numbers: Tensor
    particles: Tensor
    charge: Tensor
    periodic: Tensor

    def __init__(
        self,
        evaluator: nn.Module,
        numbers: Sequence[int],
        *,
        charge: int = 0,
        particles: Sequence[int] | None = None,
        periodic: bool = False,
    ) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.subset = particles is not None
        index = range(len(numbers)) if particles is None else particles
        self.register_buffer("numbers", torch.tensor(list(numbers), dtype=torch.int64))
        self.register_buffer("particles", torch.tensor(list(index), dtype=torch.int64))
        self.register_buffer("charge", torch.tensor([float(charge)], dtype=torch.float64))
        self.register_buffer("periodic", torch.full((3,), periodic))
        self.nm_in_angstrom = nm_in_angstrom
        self.kj_per_mol_in_ev = kj_per_mol_in_ev

    def forward(
        self, positions: Tensor, box_vectors: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Energy (), kJ/mol, and forces (M, 3), kJ/mol/nm, on all M particles of the System."""
        points = positions.double() * self.nm_in_angstrom
        if self.subset:
            points = points.index_select(0, self.particles)
        if box_vectors is None:
            cell = torch.zeros(3, 3, dtype=torch.float64, device=points.device)
        else:
            cell = box_vectors.double() * self.nm_in_angstrom
        energy, forces = self.evaluator(self.numbers, points, cell, self.periodic, self.charge)
        forces = forces * (self.nm_in_angstrom / self.kj_per_mol_in_ev)
        if self.subset:
            everywhere = torch.zeros(positions.shape, dtype=forces.dtype, device=forces.device)
            forces = everywhere.index_copy(0, self.particles, forces)
        return energy / self.kj_per_mol_in_ev, forces.to(positions.dtype)


class GROMACSModule(nn.Module):
    """The module that GROMACS's NNPot interface loads: nm -> kJ/mol, with the gradient.

    Parameters
    ----------
    evaluator
        Energy and forces of a structure.
    charge
        Total charge, e.
    """

    charge: Tensor

    def __init__(self, evaluator: PortableEvaluator, charge: int = 0) -> None:
        super().__init__()
        self.evaluator = evaluator
        self.register_buffer("charge", torch.tensor([float(charge)], dtype=torch.float64))
        self.nm_in_angstrom = nm_in_angstrom
        self.kj_per_mol_in_ev = kj_per_mol_in_ev

    def forward(
        self,
        positions: Tensor,
        numbers: Tensor,
        box: Tensor | None = None,
        pbc: Tensor | None = None,
    ) -> Tensor:
        """Energy (), kJ/mol, float64; its gradient by the positions is that of the potential.

        Parameters
        ----------
        positions
            (N, 3), nm.
        numbers
            (N,), atomic numbers, of any integer type.
        box
            (3, 3), rows are lattice vectors, nm; None: no box.
        pbc
            (3,) bool, periodicity along each vector; None: all three of a box.
        """
        points = positions.detach().double() * self.nm_in_angstrom
        if box is None:
            cell, periodic = torch.zeros_like(points[:1]).expand(3, 3), torch.tensor(False)
        else:
            cell, periodic = box.double() * self.nm_in_angstrom, torch.tensor(True)
        periodic = periodic.to(points.device).expand(3)
        if pbc is not None:
            periodic = periodic & pbc
        energy, forces = self.evaluator(
            numbers.to(torch.int64), points, cell.contiguous(), periodic, self.charge
        )
        # The forces are known already: a term that is zero, with the right gradient, hands them to
        # GROMACS, which differentiates the energy.
        displacements = positions.double() - positions.detach().double()
        work = (forces * displacements).sum() * self.nm_in_angstrom
        return (energy - work) / self.kj_per_mol_in_ev


def scriptable_members(potential: nn.Module) -> list[Potential]:
    """The potentials of a committee, or the one potential, if TorchScript can compile them.

    Raises
    ------
    ValueError
        If a potential runs as torchmd-net's own module.
    """
    members = members_of(potential)
    for member in members:
        if not isinstance(member, Potential):
            raise ValueError(
                f"{getattr(member, 'architecture', type(member).__name__)} runs as "
                "torchmd-net's own module, which TorchScript cannot compile: use the Python "
                "engine or the ASE calculator"
            )
    return [member for member in members if isinstance(member, Potential)]


def export_torchscript(
    potential: nn.Module,
    path: str | os.PathLike[str],
    target: str = "portable",
    *,
    numbers: Sequence[int] | None = None,
    charge: int = 0,
    particles: Sequence[int] | None = None,
    periodic: bool = False,
    skin: float = SKIN,
    tables: bool = True,
) -> None:
    """Write a TorchScript file of plain torch operators.

    Parameters
    ----------
    potential
        A `Potential`, or a `Committee` of them, whose mean is exported.
    path
        File to write; it is written under a temporary name first, then renamed.
    target
        ``"portable"``: `PortableModule`, for any program with libtorch; ``"openmm"``:
        `OpenMMModule`, for TorchForce with ``setOutputsForces(True)``; ``"gromacs"``:
        `GROMACSModule`, for GROMACS 2025 and newer.
    charge
        Total charge, e, for the ``openmm`` and ``gromacs`` targets.
    numbers, particles, periodic
        Arguments of `OpenMMModule`, for the ``openmm`` target, which serves one topology.
    skin
        Verlet skin of the neighbour list inside, Angstrom.
    tables
        Whether tables replace radial networks (see `tabulated`): each pair takes fewer
        operations, and forces differ from the network's by at most 2e-5 eV/Angstrom. Networks
        that support no tables, such as TensorNet2, are exported as they are.

    Raises
    ------
    ValueError
        If the target is unknown, numbers are missing, or the architecture cannot be compiled.
    """
    members = copy.deepcopy(scriptable_members(potential))  # compiling freezes the weights
    if tables:
        with compiling():
            members = [
                tabulated_potential(member) if member.representation.has_tables else member
                for member in members
            ]
    if target == "portable":
        module: nn.Module = PortableModule(members, skin)
    elif target == "gromacs":
        module = GROMACSModule(PortableEvaluator(members, skin), charge)
    elif target == "openmm":
        if numbers is None:
            raise ValueError("the openmm target needs numbers: atomic numbers of its particles")
        module = OpenMMModule(
            PortableEvaluator(members, skin),
            numbers,
            charge=charge,
            particles=particles,
            periodic=periodic,
        )
    else:
        raise ValueError(f"unknown target {target!r}: expected one of {', '.join(TARGETS)}")
    buffer = io.BytesIO()
    torch.jit.save(script(module), buffer)  # type: ignore[no-untyped-call]
    with replacing(path) as temporary:
        _write_without_source_names(buffer, temporary)


def _write_without_source_names(saved: io.BytesIO, path: Path) -> None:
    """Leave out what TorchScript keeps for tracebacks: full names of this machine's files."""
    with zipfile.ZipFile(saved) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            if not name.endswith(".debug_pkl"):
                new.writestr(name, old.read(name))
