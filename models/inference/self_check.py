"""Compares fused kernels with the network itself before a machine trusts them."""

from __future__ import annotations

import copy
import functools
import hashlib
import logging
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import nn

from ..graph import Graph
from ..neighbors import NeighborList
from ..potential import Potential
from .kernels.potential import FusedPotential

log = logging.getLogger("tensormd")

ATOMS = 40
SPACING = 2.0  # Angstrom, of the grid that the atoms are moved from
RELATIVE, ABSOLUTE = 2e-3, 2e-4
"""Bound of the errors: a share of the largest component of the forces, and eV/A beside it.

Tables and float32 leave a hundredth of it; a wrong sign or a lost term leaves far more."""

_failures: dict[str, str] = {}
"""Problems found by this process, by `_key`."""


class Comparison(NamedTuple):
    """Largest differences between fused kernels and the network itself."""

    forces: float
    """Of a component of a force, eV/A."""
    energies: float
    """Of the energy of an atom, eV."""
    virial: float
    """Of a component of the virial, eV."""
    bound: float
    """Largest difference of forces (eV/A) and energies (eV) that tables and rounding explain."""

    @property
    def problem(self) -> str | None:
        """The first quantity that is wrong, or None."""
        bounds = {"forces": self.bound, "energies": self.bound, "virial": ATOMS * self.bound}
        for name, bound in bounds.items():
            error = getattr(self, name)
            if not error <= bound:  # NaN is wrong, too
                unit = "eV/A" if name == "forces" else "eV"
                return (
                    f"their {name} of {ATOMS} atoms differ from those of the network itself by "
                    f"{error:.3g} {unit} (at most {bound:.3g} is expected)"
                )
        return None


def compare(fused: nn.Module, potential: Potential) -> Comparison:
    """Evaluate a cluster of atoms with fused kernels and with the network itself."""
    graph = cluster(potential)
    found, expected = copy.copy(fused)(graph), copy.deepcopy(potential).eval()(graph)
    errors = {
        name: float((getattr(found, name) - getattr(expected, name)).detach().abs().max())
        for name in ("forces", "energies", "virial")
    }
    largest = float(expected.forces.detach().abs().max())
    return Comparison(**errors, bound=RELATIVE * largest + ABSOLUTE)


def cluster(potential: Potential) -> Graph:
    """Atoms of all elements of a potential, irregular and without symmetry."""
    random = np.random.default_rng(0)
    spacing = min(SPACING, 0.6 * float(potential.cutoff))
    grid = spacing * np.stack(np.meshgrid(*[np.arange(4)] * 3), -1).reshape(-1, 3)[:ATOMS]
    positions = grid + spacing * random.uniform(-0.15, 0.15, grid.shape)
    elements = list(potential.elements)
    numbers = random.permutation([elements[k % len(elements)] for k in range(ATOMS)])
    device = next(potential.parameters()).device
    return NeighborList(float(potential.cutoff), device=device).graph(numbers, positions)


def find_problem(fused: FusedPotential, potential: Potential) -> str | None:
    """Reason not to use fused kernels on this machine, or None; logs a warning of it once.

    The comparison is made once for each kind of network, version of the kernels and processor,
    and kept beside the compiled kernels; on other devices it is made for every potential.
    """
    key = _key(potential)
    if key in _failures:
        return _failures[key]
    mark = None if fused.kernel_folder is None else fused.kernel_folder / f"checked-{key}"
    if mark is not None and mark.exists():
        return None
    try:
        problem = compare(fused, potential).problem
    except Exception as error:  # of whatever kind: the reference has to run in its place
        lines = str(error).strip().splitlines()
        problem = f"they fail with {type(error).__name__}: {lines[0] if lines else ''}"
    if problem is None:
        if mark is not None:
            _keep(mark)
        return None
    _failures[key] = problem
    _warn(f"{fused.engine} of {potential.architecture}", problem)
    return problem


def known_problem(potential: nn.Module) -> str | None:
    """What `find_problem` has found in this process for potentials of this kind."""
    if not _failures or not isinstance(potential, Potential):
        return None
    return _failures.get(_key(potential))


@functools.cache
def _warn(kernels: str, problem: str) -> None:
    log.warning(
        "the %s are not used, because %s; plain torch operators run instead, ten or more times "
        "slower. Please report it with the output of `tensormd doctor --json`",
        kernels, problem,
    )  # fmt: skip


def _keep(mark: Path) -> None:
    try:
        mark.touch()
    except OSError as error:
        log.debug("%s cannot be written (%s): the next process compares again", mark, error)


def _key(potential: Potential) -> str:
    """Digest of all that decides which compiled code runs: everything but the weights."""
    network, readout = potential.representation, potential.readout
    about = (
        potential.architecture, network.config, readout.config, str(potential.dtype),
        next(network.parameters()).device.type,
        None if potential.coulomb is None else potential.coulomb.config,
    )  # fmt: skip
    return hashlib.sha256(repr(about).encode()).hexdigest()[:24]
