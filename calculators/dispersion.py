"""Dispersion, which a potential of a functional without it lacks: D3 of Grimme.

The energy and its derivatives come from simple-dftd3 (the package ``dftd3``, LGPL-3.0-or-later).
"""

from __future__ import annotations

import difflib
import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from ase.geometry import complete_cell
from numpy.typing import NDArray
from torch import nn

from ..models.committee import members_of
from ..models.units import bohr_in_angstrom, hartree_in_ev
from .evaluator import Evaluation, Structure

if TYPE_CHECKING:
    from dftd3.interface import DispersionModel, RationalDampingParam

INSTALL = "pip install 'tensormd[dispersion]'"


class Dispersion:
    """D3 with the damping of Becke and Johnson, D3(BJ), between pairs of atoms.

    Parameters
    ----------
    functional
        Name of the density functional that the potential was trained on, whose parameters are
        taken: ``"pbe"``, ``"wb97x"``, ``"r2scan"``, ...

    Raises
    ------
    ValueError
        If there are no parameters of such a functional, or dftd3 is not installed.

    Notes
    -----
    E = - 1/2 sum_AB [s6 C6 / (r^6 + R^6) + s8 C8 / (r^8 + R^8)], R = a1 sqrt(C8 / C6) + a2, up to
    60 bohr (Grimme, Ehrlich & Goerigk, J. Comput. Chem. 32, 1456 (2011)). C6 and C8 depend on
    coordination numbers. There is no three-body term (s9 = 0), as in most programs' D3(BJ).
    """

    def __init__(self, functional: str) -> None:
        if importlib.util.find_spec("dftd3") is None:
            raise ValueError(f"dispersion needs the package dftd3: {INSTALL}")
        self.functional = functional.strip().lower()
        try:
            self._parameters()
        except RuntimeError:
            raise ValueError(
                f"dispersion is {functional!r}: expected a functional with parameters of D3(BJ), "
                f"{_near(self.functional)}"
            ) from None

    def add(self, found: Evaluation, structures: Sequence[Structure]) -> Evaluation:
        """Results of a potential with energies, forces and virials of the dispersion added.

        Parameters
        ----------
        found
            Results of the structures, in their order. Energies and virials of atoms stay as they
            are.
        structures
            The structures.
        """
        energy, forces = found.energy.copy(), found.forces.copy()
        virial, end = found.virial.copy(), 0
        for b, structure in enumerate(structures):
            part = slice(end, end + len(structure.numbers))
            end = part.stop
            own = self._model(structure).get_dispersion(self._parameters(), grad=True)
            energy[b] += own["energy"] * hartree_in_ev
            forces[part] -= own["gradient"] * (hartree_in_ev / bohr_in_angstrom)
            virial[b] -= own["virial"] * hartree_in_ev
        return found._replace(energy=energy, forces=forces, virial=virial)

    def hessian(self, structure: Structure) -> NDArray[np.float64]:
        """Second derivatives of the dispersion energy, (3N, 3N), eV/A^2."""
        found = self._model(structure).get_hessian(self._parameters())
        return np.asarray(found["hessian"]) * (hartree_in_ev / bohr_in_angstrom**2)

    def _parameters(self) -> RationalDampingParam:
        from dftd3.interface import RationalDampingParam

        return RationalDampingParam(method=self.functional, atm=False)

    def _model(self, structure: Structure) -> DispersionModel:
        from dftd3.interface import DispersionModel

        positions, cell = structure.positions, None
        if structure.pbc.any():
            positions, cell = _inside(structure)
            cell /= bohr_in_angstrom
        try:
            return DispersionModel(
                np.asarray(structure.numbers), positions / bohr_in_angstrom, cell, structure.pbc
            )
        except RuntimeError as error:
            raise ValueError(f"dispersion of this structure: {error}") from None


def _inside(structure: Structure) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Positions (N, 3) inside a cell (3, 3) of the same periodic structure, A.

    The library wraps atoms along directions that are not periodic too.
    """
    cell: NDArray[np.float64] = complete_cell(structure.cell * structure.pbc[:, None])
    scaled = structure.positions @ np.linalg.inv(cell)
    scaled -= np.where(structure.pbc, np.floor(scaled), scaled.min(axis=0))
    positions = scaled @ cell
    cell[~structure.pbc] *= 1.0 + scaled[:, ~structure.pbc].max(initial=0.0)
    return positions, cell


def refuse_twice(potential: nn.Module) -> None:
    """Raise a ValueError if the energies of a potential hold dispersion already.

    ``metadata["dispersion"]`` says it.
    """
    for member in members_of(potential):
        metadata: dict[str, Any] = member.metadata  # type: ignore[assignment]
        if metadata.get("dispersion") is True:
            raise ValueError(
                f"the energies that {metadata.get('name', 'the checkpoint')} was trained on hold "
                "dispersion already: it would count twice; leave dispersion out"
            )


def _near(functional: str) -> str:
    """Functionals with similar names, or common ones."""
    from dftd3.interface import RationalDampingParam
    from dftd3.parameters import get_all_damping_params

    near = difflib.get_close_matches(functional, get_all_damping_params(["bj"]), n=6, cutoff=0.5)
    known = []
    for name in near:
        try:
            RationalDampingParam(method=name, atm=False)
        except RuntimeError:
            continue  # a synonym of the library's data base only
        known.append(name)
    return f"such as {', '.join(known or ('pbe', 'pbe0', 'b3lyp', 'r2scan', 'wb97x'))}"
