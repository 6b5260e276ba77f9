"""Figures of the orders of a network."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from ...models.analysis import Map
from .figures import FAINT, INK, PALETTE, canvas

Array = NDArray[np.float64]

EVERYWHERE = "everywhere"


def plot_orders(path: Path, content: dict[str, Any]) -> None:
    """Shares by layer in three panels, and the errors without each order."""
    forces = content["whole"]["force_mae_mev_per_angstrom"] is not None
    error, unit = (
        ("force_mae_mev_per_angstrom", "force MAE / meV Å$^{-1}$")
        if forces
        else ("energy_mae_mev", "energy MAE / meV")
    )
    with canvas(path, 9.0, 6.4) as figure:
        axes = figure.subplots(2, 2)
        _stacked(axes[0, 0], content, "norm_share", "Squared norm of the features")
        _stacked(axes[0, 1], content, "energy_share", "Energy gradient")
        _side_by_side(axes[1, 0], content)
        _errors(axes[1, 1], content, error, unit)
        handles, labels = axes[0, 0].get_legend_handles_labels()
        more, words = axes[1, 0].get_legend_handles_labels()
        figure.legend(
            handles + more,
            labels + words,
            loc="outside upper center",
            ncols=min(len(labels + words), 8),
        )


def _by_order(content: dict[str, Any], key: str) -> dict[str, list[float]]:
    found: dict[str, list[float]] = {name: [] for name in content["orders"]}
    for row in content["by_layer"]:
        found[row["order"]].append(row[key])
    return found


def _layers(axes: Axes, names: list[str]) -> Array:
    places = np.arange(len(names), dtype=np.float64)
    axes.set_xticks(places, names)
    axes.tick_params(axis="x", length=0)
    axes.grid(False, axis="x")
    return places


def _stacked(axes: Axes, content: dict[str, Any], key: str, title: str) -> None:
    places = _layers(axes, content["layers"])
    bottom = np.zeros(len(places))
    for k, (name, values) in enumerate(_by_order(content, key).items()):
        height = 100 * np.array(values)
        color = PALETTE[k % len(PALETTE)]
        axes.bar(places, height, 0.6, bottom=bottom, color=color, label=name)
        for x, y, low in zip(places, height, bottom, strict=True):
            if y > 6:
                axes.text(x, low + y / 2, f"{y:.0f}", color="white", ha="center", va="center")
        bottom += height
    axes.set(ylabel="share / %", ylim=(0, 100))
    axes.set_title(title)


def _side_by_side(axes: Axes, content: dict[str, Any]) -> None:
    places = _layers(axes, content["layers"])
    bars = {name: np.array(v) for name, v in _by_order(content, "force_share").items()}
    later = content["force_share_of_later_edges"]
    bars["edges of later layers"] = np.array([later[name] for name in content["layers"]])
    width = 0.8 / len(bars)
    for k, (name, values) in enumerate(bars.items()):
        last = k == len(bars) - 1
        axes.bar(
            places + (k - 0.5 * (len(bars) - 1)) * width,
            100 * values,
            0.9 * width,
            color=FAINT if last else PALETTE[k % len(PALETTE)],
            label=name if last else None,
        )
    axes.axhline(0, color=INK, linewidth=0.8)
    axes.set(ylabel="share / %")
    axes.set_title("Forces that pass through")


def _errors(axes: Axes, content: dict[str, Any], key: str, unit: str) -> None:
    names = [*content["layers"], EVERYWHERE]
    places = _layers(axes, names)
    removable = content["removable"]
    width = 0.8 / max(len(removable), 1)
    whole = content["whole"][key]
    found = {name: [] for name in removable}  # type: dict[str, list[float]]
    for row in content["by_layer"]:
        if row["order"] in found:
            found[row["order"]].append(row["without"][key])
    smallest = whole
    for k, name in enumerate(removable):
        values = np.array([*found[name], content["without_everywhere"][name][key]])
        smallest = min(smallest, values.min())
        axes.bar(
            places + (k - 0.5 * (len(removable) - 1)) * width,
            values,
            0.9 * width,
            color=PALETTE[content["orders"].index(name) % len(PALETTE)],
        )
    axes.axhline(whole, color=INK, linestyle="--", linewidth=1.0)
    if smallest > 0:
        axes.set_yscale("log")
        axes.set_ylim(bottom=0.6 * smallest)
    axes.set(ylabel=unit)
    axes.set_title("Error without an order")


def plot_maps(path: Path, maps: list[Map], values: Array, label: str) -> None:
    """Embeddings of the frames in two dimensions, of all orders and of each, coloured."""
    columns = min(len(maps), 4)
    rows = -(-len(maps) // columns)
    with canvas(path, 2.6 * columns + 1.0, 2.7 * rows) as figure:
        grid = np.atleast_1d(figure.subplots(rows, columns)).ravel()
        for axes in grid[len(maps) :]:
            axes.set_axis_off()
        for axes, each in zip(grid, maps, strict=False):
            points = each.points.numpy()
            dots = axes.scatter(
                points[:, 0], points[:, 1], c=values, cmap="viridis", s=9, linewidths=0
            )
            title = "all orders" if each.name == "all" else each.name
            axes.set_title(f"{title} ({100 * sum(each.explained):.0f} %)")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.set_aspect("equal", adjustable="datalim")
        figure.colorbar(dots, ax=list(grid), label=label, shrink=0.8)
