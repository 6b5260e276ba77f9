"""Results of a benchmark as text, as a Markdown table and as a figure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.ticker import LogLocator, NullFormatter, StrMethodFormatter

from ..reports.figures import PALETTE, canvas
from .rounds import power_law

COLUMNS = (
    "system",
    "atoms",
    "tensormd",
    "ns/day",
    "MiB",
    "torchmd-net",
    "mode",
    "its ASE",
    "MiB",
    "ratio",
    "products",
)
"""Times are ms a step; the ratio is that of the bare torchmd-net to tensormd's get_forces()."""


def read_results(path: Path) -> dict[str, Any]:
    """The results in a JSON file.

    Raises
    ------
    ValueError, OSError
        If it holds none.
    """
    try:
        content = json.loads(path.read_text())
    except ValueError:
        content = None
    if not isinstance(content, dict) or "systems" not in content or "machine" not in content:
        raise ValueError(
            f"{path} holds no results: expected what `tensormd benchmark --json` wrote"
        )
    return content


def rows(results: dict[str, Any]) -> list[list[str]]:
    """One row a system, under `COLUMNS`."""
    table = []
    for system in measured(results):
        ours, peer = system["tensormd"], system["torchmdnet"]
        table.append(
            [
                system["name"],
                f"{system['atoms']:,}",
                number(ours["ms"]),
                number(ours["ns_per_day"]),
                number(ours["memory_mib"]),
                number(peer.get("ms")),
                peer["best_mode"] or "-",
                number(peer["ase_ms"]),
                number(peer["memory_mib"]),
                number(system["ratio"]),
                number(system["products_ms"]),
            ]
        )
    return table


def measured(results: dict[str, Any]) -> list[dict[str, Any]]:
    """The systems on which tensormd ran."""
    return [system for system in results["systems"] if "failed" not in system]


def number(value: float | None) -> str:
    """Three digits, or a dash."""
    if value is None:
        return "-"
    if abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.2f}" if abs(value) < 10 else f"{value:.1f}"


def headline(results: dict[str, Any]) -> str:
    """Model, machine and versions, in one line."""
    machine, model = results["machine"], results["model"]
    found = machine["versions"]
    where = f"{machine['gpu']} with " if machine["gpu"] else ""
    threads = f"{machine['threads']} thread" + ("s" if machine["threads"] != 1 else "")
    return (
        f"{model['architecture']} ({model['name']}), {model['dtype']}, "
        f"{model['engine']}; {where}{machine['processor']}, {threads}; tensormd "
        f"{found['tensormd']}, torchmd-net {found['torchmd-net']}, torch {found['torch']}"
    )


def markdown(results: dict[str, Any]) -> str:
    """The table for documentation, with a line above it that says what ran where."""
    lines = [headline(results) + ".", "", _row(COLUMNS), _row(["---"] + ["---:"] * 10)]
    lines += [_row(row) for row in rows(results)]
    return "\n".join(lines)


def _row(cells: Sequence[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def text(results: dict[str, Any]) -> str:
    """Everything that a person wants to know, for a terminal."""
    table = [list(COLUMNS), *rows(results)]
    widths = [max(len(row[k]) for row in table) for k in range(len(COLUMNS))]
    lines = [headline(results), ""]
    for row in table:
        cells = [row[0].ljust(widths[0])]
        cells += [cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)]
        lines.append("  ".join(cells))
    rate, flops = results["matrix_product_gflops"], results["product_mflops_per_atom"]
    lines += [
        "",
        "Times: ms a step, medians of rounds in turn, neighbour lists included; ns/day with steps "
        "of 1 fs;",
        "MiB: peak above the start. torchmd-net: its bare model in its best mode; ratio: that to "
        "get_forces().",
    ]
    if flops is not None:
        lines.append(
            f"products: matrix products of the model's atoms, {flops:.2f} MFLOP an atom, at the "
            f"{rate:.0f} GFLOP/s of torch.mm."
        )
    for system in results["systems"]:
        lines += ["", *_details(system)]
    for program in ("tensormd", "torchmdnet"):
        exponent = power_law(results, program)
        if exponent is not None:
            lines += ["", f"{program}, water: time grows as atoms^{exponent:.2f}"]
    return "\n".join(lines)


def _details(system: dict[str, Any]) -> list[str]:
    if "failed" in system:
        return [f"{system['name']}: tensormd fails: {system['failed']}"]
    ours, peer = system["tensormd"], system["torchmdnet"]
    searches = ours["steps_per_neighbor_search"]
    lines = [
        f"{system['name']}: {system['edges']:,} edges, {ours['us_per_atom']:.3g} us an atom",
        f"  ASE, adapter, neighbours: {number(ours['adapter_ms'])} ms of {number(ours['ms'])}; "
        f"a graph made beforehand: {number(ours['graph_ms'])} ms; neighbours "
        + (f"searched every {searches:.1f} steps" if searches else "never searched again"),
        f"  tensormd from float64:    {_say_deviation(ours['deviation'])}",
    ]
    if peer["deviation"] is not None:
        lines.append(f"  torchmd-net from float64: {_say_deviation(peer['deviation'])}")
    for mode, found in peer["modes"].items():
        if "failed" in found:
            lines.append(f"  torchmd-net, {mode}: {found['failed']}")
        else:
            note = "" if found["timed"] else " (when tried)"
            lines.append(f"  torchmd-net, {mode}: {number(found['ms'])} ms{note}")
    return lines


def _say_deviation(deviation: dict[str, Any]) -> str:
    if "failed" in deviation:
        return f"not known ({deviation['failed']})"
    return (
        f"energy {deviation['energy_ev']:+.1e} eV, forces at most "
        f"{deviation['force_max_ev_per_a']:.1e}, rms {deviation['force_rms_ev_per_a']:.1e} eV/A"
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Time of a step against the number of atoms, both axes logarithmic."""
    with canvas(path, 6.4, 4.4) as figure:
        axes = figure.subplots()
        curves = (
            ("torchmd-net, bare model", "torchmdnet", PALETTE[1], "s"),
            ("tensormd, get_forces()", "tensormd", PALETTE[0], "o"),
        )
        for label, program, color, marker in curves:
            found = [(s["atoms"], s[program].get("ms")) for s in measured(results)]
            points = [(atoms, ms) for atoms, ms in found if ms is not None]
            if points:
                axes.loglog(*zip(*points, strict=True), marker + "-", color=color, label=label)
        for axis in (axes.xaxis, axes.yaxis):
            low, high = axis.get_view_interval()
            axis.set_major_locator(LogLocator(subs=(1.0,) if high > 50 * low else (1.0, 2.0, 5.0)))
            axis.set_major_formatter(StrMethodFormatter("{x:,.10g}"))
            axis.set_minor_formatter(NullFormatter())
        axes.set(xlabel="atoms", ylabel="time of a step / ms")
        machine = results["machine"]
        axes.set_title(machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads")
        axes.legend(loc="upper left")
