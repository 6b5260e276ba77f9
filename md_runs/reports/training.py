"""Report of a training: figures, numbers and a table of errors."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from ..runs.folder import RunFolder
from ..train.log import whole
from .figures import FAINT, INK, PALETTE, Columns, canvas
from .page import Figure, Section, Table

ERRORS = re.compile(r"(\w+)_mae_(\w+)")
PER_ATOM = "_per_atom"
"""End of the unit of errors of energies that are divided by the number of atoms."""


def train_section(
    folder: RunFolder, config: dict[str, Any], pictures: Path
) -> tuple[Section, dict[str, Any]]:
    """Learning curves, errors and settings of a training, finished or not.

    Raises
    ------
    ValueError
        If it has no validation yet.
    """
    log = folder.read_log()
    if not log:
        raise ValueError(f"{folder.path} holds no validation yet: nothing to report")
    results_file = folder.path / "results.json"
    results = json.loads(results_file.read_text()) if results_file.exists() else None
    values: dict[str, Any] = {
        "epochs": whole(log["epoch"][-1]),
        "steps": int(log["step"][-1]),
        "seconds": float(log["seconds"][-1]),
        "loss": float(log["loss"][-1]),
        "validation_loss": float(log["validation_loss"][-1]),
        "best_epoch": whole(log["epoch"][log["validation_loss"].argmin()]),
    }
    numbers = [
        ("epochs", f"{values['epochs']:,}", ""),
        ("steps", f"{values['steps']:,}", ""),
        ("time", *_time(values["seconds"])),
        ("lowest validation loss in epoch", f"{values['best_epoch']:,}", ""),
    ]
    rows = []
    for name, unit in errors_in(log):
        column = f"{name}_mae_{unit}"
        values[column] = float(log[column][-1])
        tested = ((results or {}).get("test") or {}).get(name, {})
        shown = [f"{log[f'{name}_{kind}_{unit}'][-1]:.4g}" for kind in ("mae", "rmse")]
        for kind in ("mae", "rmse"):
            key = f"{kind}_per_atom" if unit.endswith(PER_ATOM) else kind
            if key in tested:
                values[f"test_{name}_{kind}_{unit}"] = tested[key]
            shown.append(f"{tested[key]:.4g}" if key in tested else "-")
        rows.append([name.replace("_", " "), readable(unit), *shown])
    columns = ["", "unit", "validation MAE", "RMSE", "test MAE", "RMSE"]
    shown_figures = [
        Figure(
            pictures / "learning_curves.png",
            "Loss of the training and the validation frames, and mean absolute errors of the "
            "averaged weights on the validation frames; dashed, the lowest validation loss.",
        ),
    ]
    learning_curves(shown_figures[0].path, log)
    model, frames = config["model"], config["data"]["frames"]
    counts = ", ".join(f"{count:,} {name}" for name, count in frames.items())
    state = "finished" if results is not None else "not finished"
    section = Section(
        title=f"Training: {model['architecture']} of {', '.join(model['elements'])}",
        subtitle=f"{counts} frames, {model['parameters']:,} parameters; {state}",
        numbers=numbers,
        figures=shown_figures,
        config={**config, "settings": _flat(config["settings"])},
        tables=[Table("Errors", columns, rows)],
    )
    return section, values


def errors_in(log: Columns) -> list[tuple[str, str]]:
    """Quantities that have errors, and the units as columns spell them, by quantity."""
    found = [match.groups() for name in log if (match := ERRORS.fullmatch(name))]
    names = list(dict.fromkeys(name for name, _ in found))
    return sorted(found, key=lambda each: names.index(each[0]))  # type: ignore[arg-type]


def readable(unit: str) -> str:
    """A unit as columns spell it, as people do: ``mev_per_a3`` -> ``meV/Å³``."""
    for old, new in (("_per_", "/"), ("mev", "meV"), ("angstrom", "Å"), ("ev", "eV")):
        unit = unit.replace(old, new)
    unit = unit.replace("/atom", " per atom")
    unit = re.sub(r"(^|[/_])a(\d?)(?=$|[/_])", r"\1Å\2", unit)
    return unit.replace("_", " ").replace("2", "²").replace("3", "³")


def learning_curves(path: Path, log: Columns) -> None:
    """Losses above, errors by quantity below, against the epoch."""
    found = [(name, unit) for name, unit in errors_in(log) if not unit.endswith(PER_ATOM)]
    rows = 1 + (len(found) + 1) // 2
    with canvas(path, 9.0, 2.9 * rows) as figure:
        grid = figure.add_gridspec(rows, 2)
        top = figure.add_subplot(grid[0, :])
        best = int(log["validation_loss"].argmin())
        _curve(top, log, "loss", PALETTE[0], "training")
        _curve(top, log, "validation_loss", PALETTE[1], "validation")
        top.set_title(f"Loss; lowest in validation: epoch {log['epoch'][best]:.0f}")
        top.legend(loc="upper right")
        rate = top.twinx()
        rate.plot(log["epoch"], log["learning_rate"], ":", color=FAINT, linewidth=1.2)
        rate.set_ylabel("learning rate", color=FAINT)
        rate.grid(False)
        all_axes = [top]
        for k, (name, unit) in enumerate(found):
            axes = figure.add_subplot(grid[1 + k // 2, k % 2], sharex=top)
            column = f"{name}_mae_{unit}"
            _curve(axes, log, column, PALETTE[(2 + k) % len(PALETTE)], None)
            axes.set_title(f"{name.replace('_', ' ')}, MAE {log[column][-1]:.4g} {readable(unit)}")
            axes.set(xlabel="epoch", ylabel=readable(unit))
            all_axes.append(axes)
        for axes in all_axes:
            axes.axvline(log["epoch"][best], color=INK, linestyle="--", linewidth=0.8)
            axes.xaxis.set_major_locator(MaxNLocator(integer=True))


def _curve(axes: Axes, log: Columns, column: str, color: str, label: str | None) -> None:
    marker = "o-" if len(log["epoch"]) <= 30 else "-"
    axes.plot(log["epoch"], log[column], marker, color=color, label=label, markersize=3)
    if (log[column] > 0).all():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
        axes.yaxis.set_minor_formatter(lambda value, _: f"{value:g}" if _few(axes) else "")


def _few(axes: Axes) -> bool:
    """Whether an axis spans so little that its powers of ten alone say too little."""
    low, high = axes.get_ylim()
    return high < 30 * low


def _time(seconds: float) -> tuple[str, str]:
    if seconds < 120:
        return f"{seconds:.1f}", "s"
    return (f"{seconds / 60:.1f}", "min") if seconds < 7200 else (f"{seconds / 3600:.2f}", "h")


def _flat(content: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings as one level, for the table of a page."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        if isinstance(value, dict) and value:
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat
