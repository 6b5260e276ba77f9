"""What calculations of one structure share: preparation, and a run folder written at the end."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ase import Atoms
from ase.optimize import LBFGS
from numpy.typing import NDArray

from ...calculators.checks import check_elements
from ..md.launch import resolve_model
from ..runs.errors import RunStopped
from ..runs.folder import RunFolder, refuse_existing
from ..runs.models import input_record, load_calculator
from ..runs.settings import ModelSettings, to_json
from ..runs.structures import frame_text, read_structure, runnable, stem_of
from ..runs.versions import versions

REMEDY = "choose another folder with -o"
STRESSED = 0.5
"""Stress of a cell, GPa, above which a warning says to relax it first."""


@dataclass(frozen=True)
class Job:
    """A structure with its calculator, and where the results go."""

    atoms: Atoms
    path: Path
    record: dict[str, Any]
    """Content of config.json besides the kind and the settings."""


def prepare(
    source: str,
    model: ModelSettings,
    out: Path | None,
    suffix: str,
    check: Callable[[Atoms], None],
) -> Job:
    """Read a structure and load its model, with all checks before anything is computed.

    Parameters
    ----------
    source
        ``file`` or ``file@index``.
    model
        The model.
    out
        Run folder; None: the file's name with ``suffix``.
    suffix
        End of the default name.
    check
        Raises a ValueError if the calculation is not for the structure.

    Raises
    ------
    ValueError, OSError
        For inputs that cannot be used.
    """
    atoms = read_structure(source)
    path = Path(f"{stem_of(source)}_{suffix}") if out is None else out
    refuse_existing(path, REMEDY)
    check(atoms)
    model = resolve_model(model, [atoms])
    calculator, record = load_calculator(model)
    check_elements(atoms.numbers, calculator.potential.elements)
    atoms.calc = calculator
    return Job(atoms, path, input_record(source, atoms, model, record))


def check_crystal(atoms: Atoms, what: str) -> None:
    """Raise a ValueError, beginning with ``what``, if a structure is not periodic everywhere."""
    if not atoms.pbc.all():
        raise ValueError(
            f"{what} a structure that is periodic in all three directions: pbc is "
            f"{atoms.pbc.tolist()}"
        )


def converge(atoms: Atoms, fmax: float, steps: int, what: str) -> None:
    """Relax the atoms in place.

    Raises
    ------
    RunStopped
        If the forces do not come below ``fmax``, eV/A.
    """
    if not LBFGS(atoms, logfile=None).run(fmax=fmax, steps=steps):
        largest = float(np.linalg.norm(atoms.get_forces(), axis=1).max())
        raise RunStopped(
            f"{what} did not converge in {steps} steps (fmax {largest:.4f} eV/A, wanted "
            f"{fmax:g}): nothing was written; relax it first, or allow more --steps"
        )


def write_run(
    path: Path | str,
    kind: str,
    settings: Any,
    record: dict[str, Any],
    start: Atoms,
    frames: Sequence[Atoms],
    results: dict[str, Any],
    hessian: NDArray[np.float64] | None = None,
    extra: Mapping[str, str] | None = None,
) -> None:
    """Write a run folder.

    Parameters
    ----------
    path
        New folder.
    kind
        What the report calls it.
    settings, record
        Content of config.json.
    start
        The structure as it was given.
    frames
        Structures with results, `with_results`.
    results
        Plain data, for results.json.
    hessian
        Second derivatives, (3N, 3N), eV/A^2, for hessian.npz.
    extra
        Text of further files, by their names.
    """
    with RunFolder.create(path, REMEDY) as folder:
        folder.write_start(runnable(start))
        content = {"kind": kind, "settings": to_json(settings), "versions": versions(), **record}
        folder.write_config(content)
        folder.write_frames("".join(frame_text(frame) for frame in frames))
        if hessian is not None:
            folder.write_hessian(hessian)
        for name, text in (extra or {}).items():
            folder.write_text(name, text)
        folder.write_results(results)
