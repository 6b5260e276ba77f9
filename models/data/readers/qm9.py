"""QM9 from the PyPI package qm9pack: tables in csv files."""

from __future__ import annotations

import csv
import importlib.util
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..units import DataUnits
from .structure import Keys, PathLike, Selection, Structure

QM9_UNITS = DataUnits(energy="hartree", dipole="debye", polarizability="bohr^3")
QM9_COLUMNS = {
    "energy": "InternalEnergy_0K_au",
    "dipole_norm": "Dipole_debye",
    "polarizability_isotropic": "Polarizability_bohr3",
    "polarizability_anisotropy": "A_xx",
}
"""Default columns of labels; ``keys`` gives others."""
NUMBERS = {"H": 1, "C": 6, "N": 7, "O": 8, "F": 9}
_TENSORS = "qm9_polarizability.csv"


def qm9_folder(path: PathLike) -> Path:
    """Folder of the csv files: ``path``, or that of the package for ``qm9``.

    The package is not imported.

    Raises
    ------
    ModuleNotFoundError
        If the package is not installed.
    ValueError
        If the files are missing.
    """
    folder = Path(path)
    if str(path) == "qm9" and not folder.exists():
        found = importlib.util.find_spec("qm9pack")
        if found is None or not found.submodule_search_locations:
            raise ModuleNotFoundError(
                "QM9 is in the package qm9pack, which is not installed: pip install "
                "'tensormd[datasets]', or give the folder of its csv files"
            )
        folder = Path(next(iter(found.submodule_search_locations))) / "data"
    if not has_qm9(folder):
        raise ValueError(f"{folder} has no qm9_part1.csv: expected the data of qm9pack")
    return folder


def has_qm9(folder: Path) -> bool:
    """Whether a folder has the csv files."""
    return (folder / "qm9_part1.csv").is_file()


def qm9_structures(
    path: PathLike, selection: Selection, units: DataUnits, keys: Keys
) -> Iterator[tuple[int, Structure]]:
    """Yield molecules and their numbers from 0, in the order of the files.

    Labels are an energy (U0, or another column in hartree named by ``keys``), the length of the
    dipole moment, and the isotropic part and anisotropy of the polarizability. The tensor itself
    is not a label, because its axes are not those of the geometry: see the documentation of data
    sets. Only the selected lines are parsed.

    Raises
    ------
    ModuleNotFoundError, ValueError
        If the package or the files are missing, or a column or a number is missing.
    """
    folder = qm9_folder(path)
    columns = _columns(keys)
    parts = sorted(folder.glob("qm9_part*.csv"), key=lambda p: (len(p.name), p.name))
    counts = [_count(part) for part in parts]
    wanted = selection.of(sum(counts), path)
    tensors = columns.get("polarizability_anisotropy") is not None
    rows = list(_rows(parts, counts, wanted, path))
    invariants = _anisotropies(folder, rows) if tensors else {}
    for k, row in rows:
        molecule = row["XYZ_file"]
        name = f"frame {k} of {path} ({molecule})"
        labels: dict[str, Any] = {
            label: _number(row, column, name)
            for label, column in columns.items()
            if label != "polarizability_anisotropy" and column is not None
        }
        if tensors:
            if molecule not in invariants:
                raise ValueError(
                    f"{name} has no line in {_TENSORS}: leave the label out by keys "
                    "{polarizability_anisotropy: null}"
                )
            labels["polarizability_anisotropy"] = invariants[molecule]
        numbers, positions = _geometry(row, name)
        yield k, Structure(name, numbers, positions, labels)


def anisotropy(tensor: NDArray[np.float64]) -> NDArray[np.float64]:
    """sqrt(3/2) times the Frobenius norm of the traceless part of tensors (..., 3, 3).

    This is the usual definition, sqrt of ((xx - yy)^2 + (yy - zz)^2 + (zz - xx)^2) / 2 in the
    principal axes. For an axial molecule it is the difference of the two principal values.
    """
    mean = np.trace(tensor, axis1=-2, axis2=-1)[..., None, None] / 3
    return np.sqrt(1.5) * np.linalg.norm(tensor - mean * np.eye(3), axis=(-2, -1))


def _columns(keys: Keys) -> dict[str, str | None]:
    columns: dict[str, str | None] = dict(QM9_COLUMNS)
    for label, column in keys.items():
        if label not in columns:
            raise ValueError(f"keys: QM9 has no {label!r}: expected {', '.join(QM9_COLUMNS)}")
        if column is not None and not isinstance(column, str):
            raise ValueError(f"keys: {label} is {column!r}: expected the name of a column")
        if column is not None and label != "energy" and column != QM9_COLUMNS[label]:
            raise ValueError(
                f"keys: {label} is {column!r}: expected {QM9_COLUMNS[label]}, or null to leave "
                "it out"
            )
        if label == "energy" and column is not None and not column.endswith("_au"):
            raise ValueError(f"keys: energy is {column!r}: expected a column in hartree (.._au)")
        columns[label] = column
    return columns


def _count(part: Path) -> int:
    """Number of lines of a table, without the header."""
    with part.open("rb") as stream:
        return sum(1 for _ in stream) - 1


def _rows(
    parts: Iterable[Path], counts: Iterable[int], wanted: list[int], path: PathLike
) -> Iterator[tuple[int, dict[str, str]]]:
    """Parse the ``wanted`` lines (ascending)."""
    queue = iter(wanted)
    following = next(queue, None)
    first = 0
    for part, count in zip(parts, counts, strict=True):
        with part.open(encoding="utf-8", newline="") as stream:
            head = next(csv.reader([stream.readline()]))
            for k, line in enumerate(stream, start=first):
                if following is None or following >= first + count:
                    break
                if k != following:
                    continue
                values = next(csv.reader([line]))
                if len(values) != len(head):
                    raise ValueError(
                        f"frame {k} of {path} ({part.name}) has {len(values)} columns: expected "
                        f"{len(head)}"
                    )
                yield k, dict(zip(head, values, strict=True))
                following = next(queue, None)
        first += count


def _anisotropies(folder: Path, rows: list[tuple[int, dict[str, str]]]) -> dict[str, float]:
    """Anisotropies of the polarizability, bohr^3, by name of the molecule."""
    wanted = {row["XYZ_file"] for _, row in rows}
    file = folder / _TENSORS
    if not file.is_file():
        raise ValueError(
            f"{folder} has no {_TENSORS}: leave the label out by keys "
            "{polarizability_anisotropy: null}"
        )
    with file.open(encoding="utf-8", newline="") as stream:
        head = next(csv.reader([stream.readline()]))
        found = [row for row in csv.reader(stream) if row and row[0] in wanted]
    try:
        at = {c: head.index(f"A_{c}") for c in ("xx", "xy", "xz", "yy", "yz", "zz")}
        order = ["xx", "xy", "xz", "xy", "yy", "yz", "xz", "yz", "zz"]
        values = np.array([[float(row[at[c]]) for c in order] for row in found])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{file} is damaged: {error}") from None
    sizes = anisotropy(values.reshape(-1, 3, 3))
    return {row[0]: float(size) for row, size in zip(found, sizes, strict=True)}


def _number(row: dict[str, str], column: str, name: str) -> float:
    try:
        return float(row[column])
    except KeyError:
        has = ", ".join(key for key in row if key.endswith("_au"))
        raise ValueError(f"{name} has no column {column!r}: in hartree there are {has}") from None
    except ValueError:
        raise ValueError(f"{name}: {column} is {row[column]!r}: expected a number") from None


def _geometry(row: dict[str, str], name: str) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    try:
        numbers = [NUMBERS[symbol] for symbol in re.findall(r"[A-Za-z]+", row["Elements"])]
        flat = row["XYZ_Ang"].replace("[", "").replace("]", "").split(",")
        positions = np.array([float(x) for x in flat]).reshape(-1, 3)
    except (KeyError, ValueError) as error:
        raise ValueError(f"{name}: Elements or XYZ_Ang cannot be read ({error})") from None
    return np.array(numbers, dtype=np.int64), positions
