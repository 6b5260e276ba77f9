"""tensormd against torchmd-net, from 22 to about 100,000 atoms: docs/results/performance.md.

    python benchmarks/inference.py --json FILE [--plot FILE] [any option of `tensormd benchmark`]
    python benchmarks/inference.py --network tensornet2 --sizes "" --json FILE    # AceFF-2's size
    python benchmarks/inference.py --table FILE        # Markdown table, from the JSON
    python benchmarks/inference.py --speed FILE PNG    # the README's bar chart, from the JSON

Needs chignolin.pdb and dhfr.pdb (--data or TENSORMD_DATA), an idle machine, and about half an
hour on two cores. A system that does not fit into memory is skipped, and reported as such.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from tensormd.md_runs.benchmark.report import markdown, measured, read_results
from tensormd.md_runs.command.main import main as tensormd
from tensormd.md_runs.reports.figures import PALETTE, canvas

FULL = [
    *("--systems", "alanine_dipeptide,testosterone,chignolin,dhfr"),
    *("--sizes", "3000,10000,30000,100000"),
    "--compile",
]


def plot_speed(results: dict[str, Any], path: Path) -> None:
    """Draw each system's speed relative to torchmd-net as a bar chart.

    Raises
    ------
    ValueError
        If torchmd-net ran on no system.
    """
    systems = [system for system in measured(results) if system["ratio"] is not None]
    if not systems:
        raise ValueError("there is no speed to draw: torchmd-net ran on no system")
    labels = [
        f"{system['name'].replace('_', ' ')}\n{system['atoms']:,} atoms" for system in systems
    ]
    with canvas(path, 6.4, 3.4) as figure:
        axes = figure.subplots()
        bars = axes.bar(labels, [system["ratio"] for system in systems], 0.5, color=PALETTE[0])
        axes.bar_label(bars, fmt="{:.0f}\u00d7", padding=2, fontweight="bold")
        axes.axhline(1, color=PALETTE[1], label="torchmd-net with the same weights")
        axes.legend(loc="upper left")
        axes.grid(visible=False, axis="x")
        axes.margins(y=0.15)
        axes.set_ylabel("speed / torchmd-net's")
        machine = results["machine"]
        axes.set_title(machine["gpu"] or f"{machine['processor']}, {machine['threads']} threads")


def main() -> None:
    """Print a table, draw the bar chart, or measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of results")
    parser.add_argument(
        "--speed", type=Path, nargs=2, metavar=("FILE", "PNG"), help="draw the speeds in results"
    )
    options, others = parser.parse_known_args()
    try:
        if options.table is not None:
            print(markdown(read_results(options.table)))
        elif options.speed is not None:
            plot_speed(read_results(options.speed[0]), options.speed[1])
        else:
            tensormd(["benchmark", *FULL, *others])
    except (OSError, ValueError) as error:
        sys.exit(f"inference.py: {error}")


if __name__ == "__main__":
    main()
