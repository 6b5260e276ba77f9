"""Results of an analysis of orders, as tables, figures, a page and JSON."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from rich.console import RenderableType
from rich.table import Table as RichTable

from ...models.analysis import explained_by, predict
from ...models.files import write_atomically
from ..evaluate.irreps import IrrepsRun
from ..runs.files import write_json
from ..runs.versions import versions
from .irreps_figures import plot_maps, plot_orders
from .page import Figure, Section, Table, html_page

SUMMARY, PAGE, TABLES = "irreps.json", "irreps.html", "irreps.md"
ORDERS, MAPS = "orders.png", "maps.png"

COLORS = {
    "energy": ("energy_per_atom_ev", "energy per atom / eV"),
    "atoms": ("atoms", "number of atoms"),
    "forces": ("rms_force_ev_per_angstrom", "rms force / eV Å$^{-1}$"),
}
"""Properties that may colour a map: name, and label in the figure."""


def write_irreps(found: IrrepsRun, folder: Path, color: str = "energy") -> dict[str, Any]:
    """Write ``irreps.json``, ``.html`` and ``.md``, ``orders.png`` and ``maps.png``.

    Parameters
    ----------
    found
        The results.
    folder
        Created where it is missing.
    color
        One of `COLORS`.

    Returns
    -------
    dict
        Content of the JSON file.

    Raises
    ------
    OSError
        If a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    content = summary(found)
    values = properties(found)
    name, label = COLORS[color]
    plot_orders(folder / ORDERS, content)
    plot_maps(folder / MAPS, found.analysis.maps, values[name].numpy(), label)
    files = {"summary": SUMMARY, "page": PAGE, "tables": TABLES, "figure": ORDERS, "maps": MAPS}
    content["files"] = {key: str(folder / file) for key, file in files.items()}
    if found.pruned is not None:
        content["files"]["pruned_checkpoint"] = str(found.pruned.file)
    write_json(folder / SUMMARY, content)
    write_atomically(folder / PAGE, _page(content, folder, label).encode())
    write_atomically(folder / TABLES, _markdown(content).encode())
    return content


def properties(found: IrrepsRun) -> dict[str, torch.Tensor]:
    """Properties of each frame, (F,) float64, to compare the maps with: labels where there are."""
    frames = found.frames
    sizes = torch.from_numpy(frames.sizes).double()
    values = {"atoms": sizes}
    if "energy" in frames.quantities:
        values["energy_per_atom_ev"] = frames.energies / sizes
    else:
        values["energy_per_atom_ev"] = predict(found.potential, frames, False).energy / sizes
    forces = list(frames.forces) if "forces" in frames.quantities else None
    if forces is None:
        predicted = predict(found.potential, frames).forces
        assert predicted is not None
        forces = list(torch.split(predicted, frames.sizes.tolist()))
    values["rms_force_ev_per_angstrom"] = torch.stack([f.square().mean().sqrt() for f in forces])
    return values


def summary(found: IrrepsRun) -> dict[str, Any]:
    """Everything as plain data: meV, meV/A; shares from 0 to 1."""
    analysis = found.analysis
    layout, shares = analysis.layout, analysis.shares
    names = [order.name for order in layout.orders]
    rows = []
    for k, layer in enumerate(layout.layers):
        for o, name in enumerate(names):
            rows.append(
                {
                    "layer": layer,
                    "order": name,
                    "norm_share": float(shares.norm[k, o]),
                    "norm_share_per_component": float(shares.norm_per_component[k, o]),
                    "rms": float(shares.rms[k, o]),
                    "energy_share": float(shares.energy[k, o]),
                    "gradient_rms_ev": float(shares.gradient_rms[k, o]),
                    "force_share": float(shares.force[k, o]),
                    "force_rms_ev_per_angstrom": float(shares.force_rms[k, o]),
                    "without": analysis.at_layer[name][k]._asdict(),
                }
            )
    values = properties(found)
    content: dict[str, Any] = {
        "data": found.data,
        "model": found.model,
        "frames": analysis.frames,
        "atoms": analysis.atoms,
        "neighbours": analysis.neighbours,
        "layers": list(layout.layers),
        "orders": names,
        "removable": [order.name for order in layout.removable],
        "whole": analysis.whole._asdict(),
        "by_layer": rows,
        "force_share_of_later_edges": dict(
            zip(layout.layers, shares.force[:, -1].tolist(), strict=True)
        ),
        "without_everywhere": {k: each._asdict() for k, each in analysis.everywhere.items()},
        "work_without": analysis.work,
        "fine_tuning": None,
        "maps": [
            {
                "of": each.name,
                "variance_explained": list(each.explained),
                "r2": {key: explained_by(each.points, v) for key, v in values.items()},
            }
            for each in analysis.maps
        ],
        "recommendation": analysis.advice._asdict(),
        "pruned": None,
    }
    if analysis.tuned:
        content["fine_tuning"] = {
            "epochs": found.epochs,
            "frames": found.fit_frames,
            "errors": {k: each._asdict() for k, each in analysis.tuned.items()},
        }
    if found.pruned is not None:
        content["pruned"] = {
            "order": found.pruned.order,
            "predicted": found.pruned.predicted._asdict(),
            "found": found.pruned.found._asdict(),
        }
    return content


# Tables


def text_tables(content: dict[str, Any]) -> list[Table]:
    """The two tables of `summary`: by layer, and of the whole network."""
    return [_layer_table(content), _removal_table(content)]


def _layer_table(content: dict[str, Any]) -> Table:
    columns = [
        "layer",
        "order",
        "norm",
        "norm by comp.",
        "energy",
        "forces",
        "energy error / meV",
        "force error / meV/A",
    ]
    rows = []
    for row in content["by_layer"]:
        without = row["without"]
        rows.append(
            [
                row["layer"],
                row["order"],
                _percent(row["norm_share"]),
                _percent(row["norm_share_per_component"]),
                _percent(row["energy_share"]),
                _percent(row["force_share"]),
                _number(without["energy_mae_mev"]),
                _number(without["force_mae_mev_per_angstrom"]),
            ]
        )
    whole = content["whole"]
    errors = (whole["energy_mae_mev"], whole["force_mae_mev_per_angstrom"])
    rows.append(["whole", "", "", "", "", "", *map(_number, errors)])
    return Table("Shares of each order, and errors without it at that layer alone", columns, rows)


def _removal_table(content: dict[str, Any]) -> Table:
    tuning = content["fine_tuning"]
    columns = ["without", "energy error / meV", "force error / meV/A", "multiplications"]
    if tuning is not None:
        columns += ["fine-tuned, meV", "fine-tuned, meV/A"]
    rows = []
    for name in (None, *content["removable"]):
        errors = content["whole"] if name is None else content["without_everywhere"][name]
        row = [
            "nothing" if name is None else name,
            _number(errors["energy_mae_mev"]),
            _number(errors["force_mae_mev_per_angstrom"]),
            _percent(1.0 if name is None else content["work_without"][name]),
        ]
        if tuning is not None:
            tuned = tuning["errors"]["whole" if name is None else name]
            row += [_number(tuned["energy_mae_mev"])]
            row += [_number(tuned["force_mae_mev_per_angstrom"])]
        rows.append(row)
    title = "Errors without an order everywhere: what pruning gives"
    if tuning is not None:
        title += f" ({tuning['epochs']} epochs of {tuning['frames']:,} frames)"
    return Table(title, columns, rows)


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %" if abs(share) >= 5e-4 or share == 0 else f"{100 * share:.0e} %"


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:.3g}" if abs(value) < 1000 else f"{value:,.0f}"


def _markdown(content: dict[str, Any]) -> str:
    parts = [
        f"{content['model']['name']}, {Path(content['data']).name}, {content['frames']:,} frames"
    ]
    for table in text_tables(content):
        lines = [table.columns, ["---" for _ in table.columns], *table.rows]
        parts.append(f"**{table.title}**")
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in lines))
    return "\n\n".join([*parts, content["recommendation"]["text"]]) + "\n"


def console_tables(content: dict[str, Any]) -> list[RenderableType]:
    """Tables of `summary` for `rich`."""
    found: list[RenderableType] = []
    lead = f"{content['model']['name']} on {content['data']}: {content['frames']:,} frames"
    for table in text_tables(content):
        shown = RichTable(title=f"{table.title}\n{lead}", title_justify="left")
        for name in table.columns:
            words = name in ("layer", "order", "without")
            shown.add_column(name, justify="left" if words else "right", no_wrap=words)
        before = None
        for row in table.rows:
            if before is not None and row[0] != before and table.columns[0] == "layer":
                shown.add_section()
            before = row[0]
            shown.add_row(*row)
        found.append(shown)
    return found


# The page


def _page(content: dict[str, Any], folder: Path, label: str) -> str:
    whole, model = content["whole"], content["model"]
    numbers = [
        ("frames", f"{content['frames']:,}", ""),
        ("atoms", f"{content['atoms']:,}", ""),
        ("neighbours of an atom", f"{content['neighbours']:.1f}", ""),
        ("energy error, MAE", _number(whole["energy_mae_mev"]), "meV"),
        ("force error, MAE", _number(whole["force_mae_mev_per_angstrom"]), "meV/Å"),
    ]
    shown = [
        Figure(
            folder / ORDERS,
            "Shares of the squared norm of the features, of the energy gradient and of the forces "
            "after each layer, and the errors without an order at one layer alone or everywhere; "
            "dashed, the whole network.",
        ),
        Figure(
            folder / MAPS,
            "The first two principal components of the graph embeddings (invariants of the last "
            f"features, averaged over the atoms of a frame), coloured by {label.split(' / ')[0]}; "
            "in brackets the share of the variance that they explain.",
        ),
    ]
    section = Section(
        title=f"Orders of {model['name']}",
        subtitle=content["recommendation"]["text"],
        numbers=numbers,
        figures=shown,
        config={
            "model": model,
            "settings": {
                "data": content["data"],
                "pruned": content["pruned"],
                "maps": content["maps"],
            },
            "versions": versions(),
        },
        tables=text_tables(content),
    )
    return html_page(section.title, [section])
