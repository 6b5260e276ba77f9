"""Numbers of intervals of tables that earlier processes have found: finding them takes a second.

They are kept by a digest of the weights, of the bound and of the code that decides on them.
"""

from __future__ import annotations

import functools
import hashlib
import json
import logging
from pathlib import Path

from ..files import cache_folder, write_atomically
from ..potential import Potential

log = logging.getLogger("tensormd")

MODELS = Path(__file__).parents[1]
SOURCES = ("maths/*.py", "networks/*.py", "heads/*.py", "potential.py", "inference/table*.py")


def recall(potential: Potential, bound: float) -> tuple[int, float] | None:
    """Intervals, and the error that they leave, of a table built before; None if there is none."""
    file = _file(potential, bound)
    try:
        intervals, error = json.loads(file.read_text())
        return int(intervals), float(error)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as problem:
        log.debug("%s cannot be read (%s): intervals are chosen anew", file, problem)
        return None


def remember(potential: Potential, bound: float, intervals: int, error: float) -> None:
    """Keep what `recall` returns, where the cache folder can be written."""
    file = _file(potential, bound)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(file, json.dumps([intervals, error]).encode())
    except OSError as problem:
        log.debug("%s: the next process chooses intervals again", problem)


def _file(potential: Potential, bound: float) -> Path:
    digest = hashlib.sha256(_sources_digest())
    about = (
        bound, potential.architecture, potential.representation.config, potential.readout.config,
        potential.elements, potential.length_unit, potential.energy_unit, potential.cutoff,
        None if potential.coulomb is None else potential.coulomb.config,
    )  # fmt: skip
    digest.update(repr(about).encode())
    for name, tensor in sorted(potential.state_dict().items()):
        digest.update(name.encode() + tensor.detach().cpu().numpy().tobytes())
    return cache_folder() / "tables" / digest.hexdigest()[:24]


@functools.cache
def _sources_digest() -> bytes:
    digest = hashlib.sha256()
    for pattern in SOURCES:
        for file in sorted(MODELS.glob(pattern)):
            digest.update(file.name.encode() + file.read_bytes())
    return digest.digest()
