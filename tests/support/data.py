"""Locations of data that some tests need but the repository does not contain."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.paths import ROOT

FOLDER = Path(os.environ.get("TENSORMD_DATA", ROOT.parent / "shared" / "data"))


def data_file(name: str) -> Path:
    """A file of the data folder; the test that asks is skipped where it is absent."""
    path = FOLDER / name
    if not path.exists():
        pytest.skip(f"{name} is not in {FOLDER} (set TENSORMD_DATA to the folder of test data)")
    return path
