"""Frames of a run about which the members of a committee disagree."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from ase import Atoms

from ..runs.folder import DOUBTFUL, RunFolder
from ..runs.structures import frame_text


def check_doubt(calculator: Any, threshold: float | None) -> None:
    """Raise a ValueError if a threshold is given, but nobody disagrees."""
    if threshold is not None and "forces_std" not in calculator.implemented_properties:
        raise ValueError(
            f"--doubt {threshold:g} needs a committee, whose members may disagree: give several "
            "models, -m one.ckpt -m two.ckpt"
        )


def doubt_of(forces_std: Any) -> float:
    """The largest standard deviation of a force component, eV/A; ``forces_std`` is (N, 3)."""
    return float(np.max(forces_std))


class Doubt:
    """Keeps doubtful frames in a run folder, and warns of the first.

    Parameters
    ----------
    folder
        With its streams open.
    threshold
        Largest `doubt_of` that is no doubt, eV/A.
    stop
        Whether a doubtful frame ends the run.
    """

    def __init__(self, folder: RunFolder, threshold: float, stop: bool) -> None:
        self.folder, self.threshold, self.stop = folder, threshold, stop

    def see(self, frame: Atoms, forces_std: Any, step: int) -> str:
        """Keep a frame if it is doubtful.

        Returns
        -------
        str
            Why the run is to end; empty if it goes on.
        """
        doubt = doubt_of(forces_std)
        if doubt <= self.threshold:
            return ""
        stream = self.folder.doubtful
        assert stream is not None
        first = stream.length == 0
        kept = frame.copy()
        kept.calc = frame.calc
        kept.info["doubt_ev_per_a"] = doubt
        kept.arrays["forces_std"] = np.array(forces_std)
        stream.append(frame_text(kept))
        atom = int(np.argmax(np.max(forces_std, axis=1)))
        what = (
            f"the members disagree by {doubt:.3g} eV/A about the force on atom {atom} at step "
            f"{step}, more than --doubt {self.threshold:g}"
        )
        if first and not self.stop:
            warnings.warn(
                f"{what}; frames such as this one are in {stream.path}", UserWarning, stacklevel=2
            )
        return f"{what}; the frame is in {self.folder.path / DOUBTFUL}" if self.stop else ""
