"""The openmm-ml plugin: ``MLPotential("tensormd", modelPath="model.ckpt")``.

openmm-ml finds it by the entry point ``openmmml.potentials`` and imports it in every process that
imports openmm-ml, whichever potential runs there. What needs torch is therefore imported inside
the functions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import openmm
import openmm.app
from openmmml.mlpotential import MLPotentialImpl, MLPotentialImplFactory

OPTIONS = (
    "charge",
    "engine",
    "device",
    "dtype",
    "backend",
    "coulomb_cutoff",
    "useCoulombCutoff",
)
DEFAULT_CUTOFF_NM = 1.2
"""Cutoff of ``useCoulombCutoff=True`` alone, nm, as in openmm-ml."""


class TensormdFactory(MLPotentialImplFactory):
    """Factory that openmm-ml calls for the name ``tensormd``."""

    def createImpl(self, name: str, **args: Any) -> TensormdImpl:  # noqa: N802
        """Create the implementation for one model, ``modelPath``.

        Raises
        ------
        ValueError
            If ``modelPath`` is missing, cannot be read, or another option is given.
        """
        model = args.pop("modelPath", None)
        if model is None:
            raise ValueError(
                "modelPath is missing: expected MLPotential('tensormd', modelPath='model.ckpt')"
            )
        if args:
            raise ValueError(f"unknown option {sorted(args)[0]!r}: expected modelPath")
        return TensormdImpl(model)


class TensormdImpl(MLPotentialImpl):
    """Adds the potential's force to a System.

    Parameters
    ----------
    model
        A path, a registry name, a sequence of paths or a loaded potential.
    """

    def __init__(self, model: Any) -> None:
        from ..models.checkpoint import load_potential

        self.potential = load_potential(model)

    def addForces(  # noqa: N802
        self,
        topology: openmm.app.Topology,
        system: openmm.System,
        atoms: Iterable[int] | None,
        forceGroup: int,  # noqa: N803
        **args: Any,
    ) -> None:
        """Add one force for ``atoms`` (None: all); options are those of `create_force`.

        The link atoms of openmm-ml 1.8 are among the atoms of the topology, which it has copied.

        ``useCoulombCutoff`` is openmm-ml's own: False sums over all pairs, True cuts off without a
        box too; by default there is a cutoff in a box only.

        Raises
        ------
        ValueError
            If an option is unknown, or as in `create_force`.
        """
        from .openmm import create_force

        # createMixedSystem passes the options of its embedding to every potential.
        for option in ("mlLongRange", "linkAtomDistances"):
            args.pop(option, None)
        unknown = sorted(set(args) - set(OPTIONS))
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}: expected {', '.join(OPTIONS)}")
        periodic = (
            topology.getPeriodicBoxVectors() is not None or system.usesPeriodicBoundaryConditions()
        )
        args["coulomb_cutoff"] = _coulomb_cutoff(
            args.get("coulomb_cutoff"), args.pop("useCoulombCutoff", None), periodic
        )
        force = create_force(self.potential, topology, atoms=atoms, periodic=periodic, **args)
        force.setForceGroup(forceGroup)
        system.addForce(force)

    def getMLLongRange(self) -> bool:  # noqa: N802
        """Whether interactions are long-ranged: never, all end at the cutoff."""
        return False


def _coulomb_cutoff(cutoff: Any, used: bool | None, periodic: bool) -> Any:
    """The option of `create_force` from those that openmm-ml's own torchmd-net takes."""
    if used is None and cutoff is not None and not periodic:
        raise ValueError(
            f"coulomb_cutoff is {cutoff}, but there is no box, where openmm-ml uses none: leave "
            "it out, or pass useCoulombCutoff=True"
        )
    if used is False:
        if cutoff is not None:
            raise ValueError("useCoulombCutoff is False: leave coulomb_cutoff out")
        return math.inf
    return DEFAULT_CUTOFF_NM if used and cutoff is None else cutoff
