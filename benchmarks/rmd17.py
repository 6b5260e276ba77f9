"""Locates the files of revised MD17 for the training benchmarks."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

MOLECULES = (
    *("aspirin", "azobenzene", "benzene", "ethanol", "malonaldehyde"),
    *("naphthalene", "paracetamol", "salicylic", "toluene", "uracil"),
)
CUTOFF = 4.5


def add_data_option(parser: argparse.ArgumentParser) -> None:
    """Add the option ``--data``, with the environment variable TENSORMD_DATA as default."""
    parser.add_argument(
        "--data",
        type=Path,
        default=os.environ.get("TENSORMD_DATA"),
        metavar="DIR",
        help="folder of rmd17_MOLECULE_train_01.npz and _test_01.npz, or its parent folder "
        "(default: $TENSORMD_DATA)",
    )


def data_files(folder: Path | None, molecule: str) -> tuple[Path, Path]:
    """Training and test frames of a molecule, split 1.

    Raises
    ------
    ValueError
        If a file is missing; the message names its source.
    """
    if folder is None:
        raise ValueError("no folder of data: give --data DIR or set TENSORMD_DATA")
    folder = Path(folder)
    if (folder / "rmd17").is_dir():
        folder = folder / "rmd17"
    paths = [folder / f"rmd17_{molecule}_{part}_01.npz" for part in ("train", "test")]
    for path in paths:
        if not path.exists():
            raise ValueError(
                f"{path} is not there: expected the frames of split 1 of revised MD17 "
                "(Christensen & von Lilienfeld 2020, arXiv:2007.09593): nuclear_charges, coords, "
                "energies, forces"
            )
    return paths[0], paths[1]
