"""Frames of a run as a scene to turn and to play, inside the page: 3Dmol.js, which ships.

3Dmol.js 2.5.5 (Rego & Koes, Bioinformatics 31, 1322 (2015)), BSD-3-Clause, is the file of its npm
package; its licence stands beside it, and in every page that holds it. Nothing is loaded from the
network.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from itertools import product
from pathlib import Path

import numpy as np
from ase import Atoms

from .analysis import superpose

FOLDER = Path(__file__).parent
MOST_NUMBERS = 600_000
"""Largest number of coordinates in a page, about 4 MB; longer trajectories lose frames."""
FEW_ATOMS = 20
"""Cells of at most so many atoms are shown several times."""
SHORTEST = 6.0
"""Such cells are repeated until no periodic edge is shorter, A."""
STYLE = """
.scene { position: relative; height: 24rem; background: #fff; }
.scene canvas { outline: none; }
.scene button { position: absolute; inset: 0; margin: auto; width: 10rem; height: 2.5rem; }
.controls { display: flex; gap: .75rem; align-items: center; padding: .5rem .9rem;
            border-top: 1px solid var(--line); }
.controls input { flex: 1; min-width: 0; }
.controls output { font-variant-numeric: tabular-nums; font-size: .88rem; color: var(--soft);
                   min-width: 7rem; text-align: right; }
"""


@dataclass(frozen=True)
class Scene:
    """Frames to show."""

    frames: Sequence[Atoms]
    labels: Sequence[str]
    """Words for each frame, such as its time."""


def scene_html(scene: Scene, at_once: bool) -> str:
    """Markup of a scene; `library_html` has to stand behind it in the page.

    Parameters
    ----------
    scene
        Frames and labels.
    at_once
        Whether it is drawn when the page opens, or when a button is pressed: browsers draw some
        ten scenes at most.
    """
    kept = _evenly(len(scene.frames), len(scene.frames[0]))
    frames = [scene.frames[k] for k in kept]
    repeats = _repeats(frames[0])
    data = {
        "symbols": frames[0].repeat(repeats).get_chemical_symbols(),
        "frames": [np.round(xyz, 3).ravel().tolist() for xyz in _positions(frames, repeats)],
        "cells": [_edges(atoms) for atoms in frames],
        "labels": [scene.labels[k] for k in kept],
    }
    text = json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
    caption = "Drag to turn, scroll or pinch to zoom."
    if np.prod(repeats) > 1:
        caption += f" The cell is shown {' by '.join(map(str, repeats))} times."
    return f"""<figure><div class="scene" data-start="{"page" if at_once else "button"}"></div>
<div class="controls" hidden><button type="button" aria-label="play or pause">▶</button>
<input type="range" min="0" value="0" aria-label="frame"><output></output></div>
<script type="application/json">{text}</script>
<figcaption>{escape(caption)}</figcaption></figure>"""


def library_html() -> str:
    """3Dmol.js with its licence, and the script that draws the scenes of a page."""
    licence = (FOLDER / "3Dmol-LICENSE").read_text().replace("*/", "* /")
    library = (FOLDER / "3Dmol-min.js").read_text()
    return (
        f"<script>\n/*\n{licence}\n*/\n{library}\n</script>\n"
        f"<script>\n{(FOLDER / 'scene.js').read_text()}</script>"
    )


def _evenly(frames: int, atoms: int) -> list[int]:
    most = max(MOST_NUMBERS // (3 * atoms), 1)
    if frames <= most:
        return list(range(frames))
    return sorted(set(np.linspace(0, frames - 1, most).round().astype(int).tolist()))


def _repeats(atoms: Atoms) -> tuple[int, int, int]:
    """How often the cell is shown along each of its vectors."""
    lengths = atoms.cell.lengths()
    if len(atoms) > FEW_ATOMS:
        return (1, 1, 1)
    a, b, c = (
        max(int(np.ceil(SHORTEST / length)), 1) if periodic else 1
        for length, periodic in zip(lengths, atoms.pbc, strict=True)
    )
    return (a, b, c)


def _positions(frames: Sequence[Atoms], repeats: tuple[int, int, int]) -> list[np.ndarray]:
    """Positions to show; molecules without their motion as a whole."""
    if frames[0].pbc.any():
        return [atoms.repeat(repeats).positions for atoms in frames]
    first = frames[0].positions
    return [superpose(atoms.positions, first, frames[0].get_masses()) for atoms in frames]


def _edges(atoms: Atoms) -> list[list[float]]:
    """Both ends of the twelve edges of the cell, A; none of a molecule."""
    if not atoms.pbc.any():
        return []
    found = []
    for axis in range(3):
        for corner in product((0, 1), repeat=3):
            if not corner[axis]:
                ends = np.array([corner, corner], dtype=float)
                ends[1, axis] = 1
                found.append(np.round(ends @ atoms.cell.array, 3).ravel().tolist())
    return found
