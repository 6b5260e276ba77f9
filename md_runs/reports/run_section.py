"""The part of a page that every run of a structure has: title, numbers, scene, figures."""

from __future__ import annotations

from typing import Any

import numpy as np

from .page import Figure, Section
from .scene import Scene

Numbers = list[tuple[str, str, float | None, str]]
"""Key for --json, words, value, unit."""


def run_section(
    kind: str,
    what: str,
    config: dict[str, Any],
    numbers: Numbers,
    shown: list[Figure],
    scene: Scene,
) -> tuple[Section, dict[str, Any]]:
    """The section of a run on a page, and its numbers by key.

    Parameters
    ----------
    kind, what
        Title and subtitle.
    config
        Content of the run's config.json.
    numbers
        Key numbers.
    shown
        Figures.
    scene
        Structures to turn and to play.
    """
    formula = config.get("structure", {}).get("formula", "")
    section = Section(
        title=f"{kind}: {formula}" if formula else kind,
        subtitle=what,
        numbers=[
            (words, _shorten(value), unit)
            for _, words, value, unit in numbers
            if value is not None
        ],
        figures=shown,
        config=config,
        scene=scene,
    )
    return section, {key: _plain(value) for key, _, value, _ in numbers}


def _plain(value: float | None) -> float | int | None:
    if value is None:
        return None
    return int(value) if float(value).is_integer() else float(value)


def _shorten(value: float) -> str:
    if float(value).is_integer() and abs(value) < 1e9:
        return f"{int(value):,}"
    if abs(value) >= 1000:
        return f"{value:,.4f}" if abs(value) < 1e5 else f"{value:,.2f}"
    return f"{value:.4g}" if np.isfinite(value) else str(value)
