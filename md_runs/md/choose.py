"""Which engine runs: the one that the settings name."""

from __future__ import annotations

from pathlib import Path

from ase import Atoms

from ..runs.settings import MDSettings
from .ase_engine import ASEEngine
from .engine import Engine
from .ensembles import check_ensemble
from .openmm_engine import OpenMMEngine


def make_engine(atoms: Atoms, settings: MDSettings, topology: Path | None) -> Engine:
    """The engine that the settings name, for a structure with a calculator.

    Parameters
    ----------
    atoms
        ASE moves it in place; OpenMM takes a copy.
    settings
        Options of the run.
    topology
        The PDB or mmCIF file of the structure, which ``ml_atoms`` needs.

    Raises
    ------
    ValueError
        If structure and settings do not fit.
    """
    check_ensemble(atoms, settings)
    if settings.keep_velocities and not atoms.has("momenta"):
        raise ValueError("--keep-velocities: the structure has no velocities")
    if settings.engine == "openmm":
        return OpenMMEngine(atoms, settings, topology)
    return ASEEngine(atoms, settings)
