"""Potentials as forces in LAMMPS, through ``fix external``.

Nothing of LAMMPS is imported: the user's own ``lammps`` object is called. Positions, image flags
and the box are read at every step, so that every box and every fix that changes it will do.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from ase.data import atomic_numbers
from numpy.typing import NDArray

from ..models.neighbors import SKIN
from ..models.units import kcal_per_mol_in_ev
from .checks import check_elements, check_energies, parse_charge
from .evaluator import Checkpoint, Evaluator, Structure
from .ranks import RankEvaluator

log = logging.getLogger(__name__)

ENERGY_UNITS_IN_EV = {"metal": 1.0, "real": kcal_per_mol_in_ev}
"""Units of LAMMPS that have Angstrom, by their unit of energy."""
BITS = {4: 10, 8: 21}
"""Bits of an image flag, by the bytes of the integer that holds three."""
RUNNERS = ("command", "commands_list", "commands_string", "file")
"""Methods of a ``lammps`` object that may run steps."""


def attach_lammps(
    lmp: Any,
    checkpoint: Checkpoint,
    elements: Sequence[str | int],
    *,
    charge: int = 0,
    device: str = "auto",
    dtype: str = "float32",
    backend: str = "auto",
    skin: float = SKIN,
    units: tuple[str, str] | None = None,
    coulomb_cutoff: float | None = None,
    per_atom: bool = False,
    fix: str = "tensormd",
) -> LAMMPSForce:
    """Let a potential act on all atoms of a LAMMPS simulation.

    On several MPI ranks each evaluates the atoms of its own domain, with the atoms around that
    its network needs; the sums are the forces of one rank, without approximation. All ranks
    have to call this function.

    Parameters
    ----------
    lmp
        A ``lammps.lammps`` object with a box, in ``metal`` or ``real`` units.
    checkpoint
        A path, a registry name, a sequence of paths (a committee, of which the mean is used) or a
        loaded potential.
    elements
        Symbol or atomic number of each atom type, in order.
    charge
        Total charge, e.
    device
        ``"auto"`` (CUDA if available), ``"cpu"``, ``"cuda"``, ``"cuda:1"``.
    dtype
        Precision of weights and arithmetic, ``"float32"`` or ``"float64"``.
    backend
        ``"fused"``: compiled kernels with radial tables, within 2e-5 eV/A of the network;
        ``"reference"``: plain torch operators; ``"auto"``: fused where it exists, in float32.
    skin
        Verlet skin of the potential's own neighbour list, Angstrom.
    units
        The checkpoint's units of length and energy, needed if its file does not state them.
    coulomb_cutoff
        Cutoff of the Coulomb energy, Angstrom, of a TensorNet2; None: that of the checkpoint.
    per_atom
        Whether to give LAMMPS the energy of each atom too (``compute pe/atom``).
    fix
        ID of the fix that is made.

    Returns
    -------
    LAMMPSForce
        The force, with the evaluator that it calls.

    Raises
    ------
    ValueError
        If the units are others, a type has no element or one that the model does not know, the
        simulation has no box, the ID of the fix is taken, or the potential cannot
        be divided among the ranks. An error during a run stops LAMMPS, and the method of ``lmp``
        that ran it raises it, on all ranks.
    """
    style = lmp.extract_global("units")
    if style not in ENERGY_UNITS_IN_EV:
        raise ValueError(
            f"the units of LAMMPS are {style!r}: expected {' or '.join(ENERGY_UNITS_IN_EV)}, "
            "which have Angstrom; write 'units metal' before the box is made"
        )
    if not lmp.extract_setting("box_exist"):
        raise ValueError("LAMMPS has no box: create it, or read it, before attach_lammps")
    if lmp.has_id("fix", fix):
        raise ValueError(f"there is a fix {fix!r} already: unfix it, or give another fix=")
    numbers = _numbers_of_types(elements, lmp.extract_global("ntypes"))
    ranks, comm = lmp.extract_setting("world_size"), lmp.get_mpi_comm()
    if ranks > 1 and comm is None:
        raise ValueError(f"LAMMPS runs on {ranks} MPI ranks: pip install mpi4py")
    evaluator = Evaluator(
        checkpoint,
        device=device,
        dtype=dtype,
        backend=backend,
        skin=skin,
        units=units,
        coulomb_cutoff=coulomb_cutoff,
    )
    check_elements(numbers[1:], evaluator.potential.elements)
    check_energies(evaluator.potential)
    charge = parse_charge(charge)
    evaluator.check_charge(charge)
    by_ranks = RankEvaluator(evaluator, comm) if ranks > 1 else None
    force = LAMMPSForce(lmp, evaluator, by_ranks, numbers, charge, per_atom, fix)
    force.attach()
    log.info("tensormd runs %s in LAMMPS on %d rank(s)", evaluator.potential.architecture, ranks)
    return force


class LAMMPSForce:
    """The callback of a ``fix external``; see `attach_lammps`."""

    def __init__(
        self,
        lmp: Any,
        evaluator: Evaluator,
        ranks: RankEvaluator | None,
        numbers: NDArray[np.int64],
        charge: int,
        per_atom: bool,
        fix: str,
    ) -> None:
        self.evaluator = evaluator
        """The potential and its neighbour list."""
        self._lmp, self._ranks, self._fix = lmp, ranks, fix
        self._numbers, self._charge, self._per_atom = numbers, charge, per_atom
        self._energy_in_ev = ENERGY_UNITS_IN_EV[lmp.extract_global("units")]
        self._bits = BITS[lmp.extract_setting("imageint")]
        self._failure: Exception | None = None

    def attach(self) -> None:
        """Make the fix, and let the methods that run steps raise what its callback cannot."""
        lmp, fix = self._lmp, self._fix
        lmp.command(f"fix {fix} all external pf/callback 1 1")
        lmp.command(f"fix_modify {fix} energy yes virial yes")
        lmp.set_fix_external_callback(fix, self._callback, None)
        for name in RUNNERS:
            setattr(lmp, name, self._raising(getattr(lmp, name)))

    def _raising(self, run: Callable[..., Any]) -> Callable[..., Any]:
        """A method of LAMMPS that raises an error of the callback."""

        @functools.wraps(run)
        def runner(*arguments: Any, **options: Any) -> Any:
            self._failure = None
            result = run(*arguments, **options)
            if self._failure is not None:
                raise self._failure
            return result

        return runner

    def _callback(
        self,
        _: None,
        step: int,
        count: int,
        tags: NDArray[Any] | None,
        x: NDArray[np.float64] | None,
        forces: NDArray[np.float64] | None,
    ) -> None:
        # Python drops exceptions of a function that C has called: LAMMPS is told to stop.
        try:
            self._evaluate(count, tags, x, forces)
        except Exception as error:  # whatever it is, the runner raises it
            if forces is not None:
                forces[:] = 0
            self._failure = error
            self._lmp.force_timeout()

    def _evaluate(
        self,
        count: int,
        tags: NDArray[Any] | None,
        x: NDArray[np.float64] | None,
        forces: NDArray[np.float64] | None,
    ) -> None:
        if tags is None or x is None or forces is None:  # a domain without atoms
            tags, x, forces = np.zeros(0, np.int64), np.zeros((0, 3)), np.zeros((0, 3))
        if (tags < 1).any():
            raise ValueError("the atoms have no IDs: leave out 'atom_modify id no'")
        box, pbc = self._box()
        points = x + self._images(count) @ box
        numbers = self._numbers[self._lmp.numpy.extract_atom("type")[:count]] if count else tags
        if self._ranks is not None:
            found = self._ranks.evaluate(tags, numbers, points, box, pbc, self._charge)
            energy, virial, energies, on_atoms = found
        else:
            order = np.argsort(tags)  # LAMMPS sorts its atoms now and then
            cell = box * pbc[:, None]
            structure = Structure(numbers[order], points[order], cell, pbc, self._charge)
            whole = self.evaluator.evaluate(self.evaluator.graph(structure))
            energy, virial = float(whole.energy[0]), whole.virial[0]
            energies, on_atoms = np.empty(count), np.empty((count, 3))
            energies[order], on_atoms[order] = whole.energies, whole.forces
        forces[:] = on_atoms / self._energy_in_ev
        self._lmp.fix_external_set_energy_global(self._fix, energy / self._energy_in_ev)
        xx_yy_zz_xy_xz_yz = virial[[0, 1, 2, 0, 0, 1], [0, 1, 2, 1, 2, 2]] / self._energy_in_ev
        self._lmp.fix_external_set_virial_global(self._fix, xx_yy_zz_xy_xz_yz.tolist())
        if self._per_atom:
            each = (energies / self._energy_in_ev).tolist()
            self._lmp.fix_external_set_energy_peratom(self._fix, each)

    def _box(self) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        """Box vectors as rows, (3, 3), Angstrom, and periodicity."""
        low, high, xy, yz, xz, periodic, _ = self._lmp.extract_box()
        box = np.diag(np.subtract(high, low))
        box[1, 0], box[2, 0], box[2, 1] = xy, xz, yz
        return box, np.array(periodic, dtype=bool)

    def _images(self, count: int) -> NDArray[np.int64]:
        """Number of boxes that each atom has crossed, (N, 3): so positions are continuous."""
        if count == 0:
            return np.zeros((0, 3), np.int64)
        packed = self._lmp.numpy.extract_atom("image")[:count].astype(np.int64)
        mask, half = (1 << self._bits) - 1, 1 << (self._bits - 1)
        flags = [(packed >> (k * self._bits)) & mask for k in range(3)]
        return np.stack(flags, axis=1) - half


def _numbers_of_types(elements: Sequence[str | int], types: int) -> NDArray[np.int64]:
    """Atomic number of each type; the first entry stands for no type, as LAMMPS counts from 1."""
    if isinstance(elements, str):
        raise ValueError(f"elements is {elements!r}: expected a list, such as ['Mg', 'O']")
    if len(elements) != types:
        raise ValueError(
            f"elements are {list(elements)}, and LAMMPS has {types} atom type(s): expected one "
            "element for each type, in order"
        )
    numbers = [0]
    for kind, element in enumerate(elements, start=1):
        number = atomic_numbers.get(element) if isinstance(element, str) else element
        if isinstance(number, bool) or not isinstance(number, (int, np.integer)) or number < 1:
            raise ValueError(
                f"the element of atom type {kind} is {element!r}: expected a symbol such as 'O' "
                "or an atomic number"
            )
        numbers.append(int(number))
    return np.array(numbers)
