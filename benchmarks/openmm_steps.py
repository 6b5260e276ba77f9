"""Steps per second in OpenMM: tensormd's force against openmm-ml's MLPotential("torchmdnet").

    python benchmarks/openmm_steps.py [--system alanine_dipeptide] [--json FILE]

The two run the same weights, on 22 atoms by default, alternately in one process; openmm-ml first
compiles for about a minute.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from tensormd.md_runs.benchmark.openmm_steps import openmm_steps
from tensormd.md_runs.command.console import say
from tensormd.models.files import write_atomically


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--system", default="alanine_dipeptide", help="a name or a file")
    parser.add_argument("--model", help="checkpoint; default: random weights")
    parser.add_argument("--engine", default="auto", help="torchforce, python or auto")
    parser.add_argument("--platform", default="CPU", help="OpenMM platform")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=30, help="steps per round")
    parser.add_argument("--no-peer", dest="peer", action="store_false")
    parser.add_argument("--json", type=Path)
    options = vars(parser.parse_args())
    json_file = options.pop("json")
    try:
        found = openmm_steps(**options, say=say)
        if json_file is not None:
            write_atomically(json_file, (json.dumps(found, indent=1) + "\n").encode())
    except (ValueError, OSError) as error:
        sys.exit(f"openmm_steps.py: {error}")
    print(f"{found['atoms']} atoms, {found['platform']}, {found['machine']['threads']} threads")
    for name in ("tensormd", "openmmml"):
        result = found.get(name, {"failed": "not asked for"})
        if "failed" in result:
            print(f"{name:10}{result['failed']}")
        else:
            print(
                f"{name:10}{result['ms']:.3f} ms a step, "
                f"{result['steps_per_second']:.1f} steps/s, {result['ns_per_day']:.2f} ns/day "
                f"at 1 fs, start at {result['energy_kj_per_mol']:.5f} kJ/mol"
            )
    if found["ratio"] is not None:
        print(f"tensormd makes {found['ratio']:.1f} times as many steps")


if __name__ == "__main__":
    main()
