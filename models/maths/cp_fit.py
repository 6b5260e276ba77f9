"""Command that refits the CP factors of `cp`.

    python -m tensormd.models.maths.cp_fit --lmax 1 2

prints the residuals of the shipped factors and of a new fit.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from .cp import MAX_FACTORED_DEGREE, shipped_ranks
from .cp_als import fit
from .cp_factors import factors_key, residual, shipped_factors
from .harmonics import GROUPS, check_degree, coupling_tensor


def main(arguments: list[str] | None = None) -> None:
    """Refit the shipped factors and print the residuals of both."""
    parser = argparse.ArgumentParser(description="Fit the CP factors that ship.")
    parser.add_argument("--lmax", type=int, nargs="+", default=[1, 2], help="1 to 4")
    parser.add_argument("--group", nargs="+", default=list(GROUPS), choices=GROUPS)
    parser.add_argument("--rank", type=int, nargs="+", help="instead of those that ship")
    parser.add_argument("--output", type=Path, help="write all of them to this npz file")
    options = parser.parse_args(arguments)
    fitted: dict[str, Any] = {}
    for lmax in options.lmax:
        check_degree(lmax, MAX_FACTORED_DEGREE, lowest=1)
        for group in options.group:
            tensor = coupling_tensor(lmax, group)
            for rank in options.rank or shipped_ranks(lmax, group):
                began = time.perf_counter()
                key = factors_key(lmax, group, rank)
                fitted[key] = fit(lmax, group, rank)
                shipped = shipped_factors().get(key)
                known = "none" if shipped is None else f"{residual(tensor, shipped):.3e}"
                print(
                    f"L {lmax}  {group:5}  rank {rank:3}  residual "
                    f"{residual(tensor, fitted[key]):.3e}  shipped {known}  "
                    f"{time.perf_counter() - began:.1f} s",
                    flush=True,
                )
    if options.output is not None:
        np.savez(options.output, **fitted)


if __name__ == "__main__":
    main()
