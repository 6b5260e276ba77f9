"""tensormd against torchmd-net, from 22 to about 100,000 atoms: the table of docs/performance.md.

    python benchmarks/inference.py --json FILE [--plot FILE] [any option of `tensormd benchmark`]
    python benchmarks/inference.py --table FILE      # Markdown, from the JSON

Needs chignolin.pdb and dhfr.pdb (--data or TENSORMD_DATA), a quiet machine, and about half an
hour on two cores; what does not fit into memory is left out, and says so.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tensormd.md_runs.benchmark.report import markdown, read_results
from tensormd.md_runs.command.main import main as tensormd

FULL = [
    *("--systems", "alanine_dipeptide,testosterone,chignolin,dhfr"),
    *("--sizes", "3000,10000,30000,100000"),
    "--compile",
]


def main() -> None:
    """Print a table, or measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--table", type=Path, metavar="FILE", help="print the table of results")
    options, others = parser.parse_known_args()
    if options.table is None:
        tensormd(["benchmark", *FULL, *others])
        return
    try:
        print(markdown(read_results(options.table)))
    except (OSError, ValueError) as error:
        sys.exit(f"inference.py: {error}")


if __name__ == "__main__":
    main()
