"""What an evaluation found, as tables on the console, a figure and files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ...models.files import write_atomically
from ...models.quantities import QUANTITIES
from ..evaluate.evaluation import Compared, Evaluation, error_key
from ..runs.files import write_json
from ..runs.structures import frame_text
from .figures import INK, PALETTE, canvas

if TYPE_CHECKING:
    from rich.console import RenderableType

Array = NDArray[np.float64]

SUMMARY, WORST, FIGURE = "evaluation.json", "worst.extxyz", "parity.png"

FEW_POINTS = 5000
"""More points than this are drawn smaller and fainter."""
PANELS_IN_ROW = 3
LEAST_IN_BIN = 10
"""Points behind each mark of the calibration."""


def write_evaluation(found: Evaluation, folder: Path, worst: int = 10) -> dict[str, Any]:
    """Write ``evaluation.json``, ``worst.extxyz`` and ``parity.png``, each atomically.

    Returns
    -------
    dict
        What the JSON file holds: `Evaluation.summary` and the names of the files.

    Raises
    ------
    OSError
        If one cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(frame_text(atoms) for atoms in found.worst_structures(worst))
    write_atomically(folder / WORST, text.encode())
    plot_parity(folder / FIGURE, found)
    files = {"summary": SUMMARY, "worst_structures": WORST, "figure": FIGURE}
    content = found.summary(worst)
    content["files"] = {name: str(folder / file) for name, file in files.items()}
    write_json(folder / SUMMARY, content)
    return content


def plot_parity(path: Path, found: Evaluation) -> None:
    """Predicted against reference values; of a committee also its calibration."""
    calibrated = [each for each in found.compared.values() if each.deviations is not None]
    panels = len(found.compared) + bool(calibrated)
    columns = min(panels, PANELS_IN_ROW)
    rows = -(-panels // columns)
    with canvas(path, 4.2 * columns, 4.6 * rows) as figure:
        axes = [figure.add_subplot(rows, columns, k + 1) for k in range(panels)]
        for each, name in zip(axes, found.compared, strict=False):
            if name == "energy":
                _plot_energies(each, found)
            else:
                _plot_quantity(each, found.compared[name])
        if calibrated:
            _plot_calibration(axes[-1], calibrated)


def _plot_energies(axes: Axes, found: Evaluation) -> None:
    # Frames of one size keep their total energies; of several, only shares can be compared.
    energy = found.compared["energy"]
    sizes = found.sizes[energy.frames]
    alike = bool((sizes == sizes[0]).all())
    share = np.ones(len(sizes)) if alike else sizes
    unit, per = ("eV", "") if alike else ("eV per atom", " per atom")
    reference, predicted = np.stack(energy.wanted) / share, np.stack(energy.found) / share
    middle = float(reference.mean())
    _parity(axes, reference - middle, predicted - middle)
    axes.set_title(f"Energies{per}, MAE {1e3 * np.abs(predicted - reference).mean():.3g} meV")
    axes.set_xlabel(f"reference $-$ E$_0$ / {unit} (E$_0$ = {middle:.3f} {unit})")
    axes.set_ylabel(f"predicted $-$ E$_0$ / {unit}")


def _plot_quantity(axes: Axes, each: Compared) -> None:
    row = each.row
    factor, unit = row.customary or (1.0, row.unit)
    reference, predicted = (factor * each.joined(v).ravel() for v in (each.wanted, each.found))
    _parity(axes, reference, predicted)
    error = each.statistics(each.errors)["mae"]
    title = row.name.replace("_", " ").capitalize()
    axes.set_title(f"{title}, MAE {error:.3g} {_shown(row.evaluated.unit)}")
    axes.set(xlabel=f"reference / {_shown(unit)}", ylabel=f"predicted / {_shown(unit)}")


def _shown(unit: str) -> str:
    """A unit as figures have it."""
    for plain, drawn in (("a0", "a$_0$"), ("A", "Å"), ("^2", "²"), ("^3", "³")):
        unit = unit.replace(plain, drawn)
    return unit


def _parity(axes: Axes, reference: Array, predicted: Array) -> None:
    both = np.concatenate([reference, predicted])
    low, high = float(both.min()), float(both.max())
    margin = 0.04 * (high - low) or 1.0
    ends = (low - margin, high + margin)
    size, alpha = (3.0, 0.35) if len(reference) <= FEW_POINTS else (1.5, 0.2)
    axes.plot(reference, predicted, "o", color=PALETTE[0], markersize=size, alpha=alpha, mew=0)
    axes.plot(ends, ends, "--", color=INK, linewidth=0.8)
    axes.set(xlim=ends, ylim=ends, aspect="equal")


def _plot_calibration(axes: Axes, calibrated: list[Compared]) -> None:
    """Root mean square error against root mean square deviation, in bins of equal numbers."""
    ends: list[float] = []
    for k, each in enumerate(calibrated):
        deviation, error = each.joined(each.deviations or []).ravel(), each.errors.ravel()
        label = f"{each.row.name} / {_shown(each.row.unit)}"
        color, marker = PALETTE[(1 - k) % len(PALETTE)], "so^v"[k % 4]
        order = np.argsort(deviation)
        bins = np.array_split(order, int(np.clip(len(order) // LEAST_IN_BIN, 1, 10)))
        x = np.array([np.sqrt(np.square(deviation[part]).mean()) for part in bins])
        y = np.array([np.sqrt(np.square(error[part]).mean()) for part in bins])
        drawn = (x > 0) & (y > 0)
        axes.loglog(x[drawn], y[drawn], marker + "-", color=color, label=label, markersize=4)
        ends += [*x[drawn], *y[drawn]]
    if ends:
        limits = (min(ends) / 1.3, max(ends) * 1.3)
        axes.loglog(limits, limits, "--", color=INK, linewidth=0.8)
        axes.set(xlim=limits, ylim=limits, aspect="equal")
    axes.set(xlabel="predicted deviation, rms", ylabel="error, rms")
    axes.set_title("Calibration")
    axes.legend(loc="upper left")


def tables(summary: dict[str, Any]) -> list[RenderableType]:
    """What `rich` prints of `Evaluation.summary`."""
    from rich.table import Table

    model = summary["model"]
    errors = Table(
        title=f"{model['name']} on {summary['data']}: {summary['frames']:,} frames, "
        f"{summary['atoms']:,} atoms, {model['dtype']}, {model['engine']}",
        title_justify="left",
    )
    errors.add_column("errors")
    for name in ("unit", "MAE", "RMSE", "largest", "bias"):
        errors.add_column(name, justify="left" if name == "unit" else "right")
    found: list[RenderableType] = [errors]
    rows = [
        (name.replace("_", " "), each["unit"], each) for name, each in summary["errors"].items()
    ]
    energy = summary["energy_mev"]
    if energy is not None:
        rows.insert(1, ("energy per atom", "meV", summary["energy_mev_per_atom"]))
        if abs(energy["bias"]) > 0.5 * energy["rmse"]:  # perhaps another zero of energy
            rows.insert(1, ("energy less bias", "meV", summary["energy_less_bias_mev"]))
    _add_rows(errors, rows)
    if summary["force_mev_per_angstrom"] is not None:
        _add_forces(errors, summary)
    if summary["calibration"] is not None:
        found.append(_calibration_table(summary["calibration"]))
    if summary["doubt"] is not None:
        found.append(_doubt_line(summary["doubt"]))
    found.append(_worst_table(summary))
    return [*found, *summary["skipped"]]


def _add_forces(table: Any, summary: dict[str, Any]) -> None:
    """Rows of forces by element and by magnitude."""
    table.add_section()
    elements = summary["force_by_element_mev_per_angstrom"]
    _add_rows(table, [(f"forces on {name}", "meV/A", each) for name, each in elements.items()])
    table.add_section()
    quarters = [
        (
            f"|F| {each['from_ev_per_angstrom']:.2f} to {each['to_ev_per_angstrom']:.2f} eV/A",
            "meV/A",
            each,
        )
        for each in summary["force_by_magnitude_mev_per_angstrom"]
    ]
    _add_rows(table, quarters)


def _doubt_line(doubt: dict[str, float]) -> str:
    return (
        f"threshold for md and relax: --doubt {doubt['ev_per_angstrom']:.3g} "
        f"({100 * doubt['share_below']:.0f} % of these frames stay below it; the error of a force "
        f"component there is about {doubt['error_ev_per_angstrom']:.2g} eV/A)"
    )


def _worst_table(summary: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    worst = Table(title="worst frames", title_justify="left")
    worst.add_column("frame", justify="right")
    derived = {name for name in summary["errors"] if QUANTITIES[name].of in summary["errors"]}
    keys = {name: error_key(name) for name in summary["errors"] if name not in derived}
    for name, key in keys.items():
        largest = "largest " if key.startswith("largest") else ""
        text = f"{largest}{'force' if name == 'forces' else name.replace('_', ' ')} error"
        worst.add_column(f"{text} / {summary['errors'][name]['unit']}", justify="right")
    for each in summary["worst_frames"][:10]:
        numbers = (f"{each[key]:.4g}" if key in each else "-" for key in keys.values())
        worst.add_row(str(each["frame"]), *numbers)
    return worst


def _add_rows(table: Any, rows: list[tuple[str, str, dict[str, float]]]) -> None:
    for name, unit, each in rows:
        numbers = (each["mae"], each["rmse"], each["largest"])
        table.add_row(name, unit, *(f"{x:.4g}" for x in numbers), f"{each['bias']:+.3g}")


def _calibration_table(calibration: dict[str, Any]) -> RenderableType:
    from rich.table import Table

    table = Table(title="calibration of the committee", title_justify="left")
    table.add_column("sigma of")
    for name in ("rank corr.", "within 1", "within 2", "error/sigma"):
        table.add_column(name, justify="right")
    for name, each in calibration.items():
        optional = (
            "-" if each[key] is None else f"{each[key]:.2f}"
            for key in ("rank_correlation", "ratio")
        )
        rank, ratio = optional
        one, two = each["within_one_sigma"], each["within_two_sigma"]
        table.add_row(name, rank, f"{100 * one:.1f} %", f"{100 * two:.1f} %", ratio)
    table.add_row("if calibrated", "", "68.3 %", "95.4 %", "1.00")
    return table
