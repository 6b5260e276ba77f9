"""`tensormd warm`: compile kernels before they are needed."""

from __future__ import annotations

import time
from typing import Annotated, Literal

import typer
from ase.build import molecule

from ...calculators import PotentialCalculator
from ...calculators.domain import DEFAULT
from .console import say
from .options import Device

SHIPPED = (DEFAULT, "tdn-ethanol")
"""A checkpoint of each network that has kernels."""


def warm(
    checkpoints: Annotated[
        list[str] | None,
        typer.Argument(help="Files or registry names. Default: one of each network that ships."),
    ] = None,
    device: Device = "auto",
    dtype: Annotated[
        Literal["float32", "float64"], typer.Option(help="Precision to compile for.")
    ] = "float32",
) -> None:
    """Compile the fused kernels of checkpoints for this machine, and compare them with torch's.

    Kernels are compiled once for a machine, at their first evaluation; this is one.
    """
    for checkpoint in checkpoints or SHIPPED:
        began = time.perf_counter()
        calculator = PotentialCalculator(checkpoint, device=device, dtype=dtype, backend="fused")
        hydrogen = molecule("H2")
        hydrogen.numbers[:] = calculator.evaluator.potential.elements[0]
        calculator.calculate(hydrogen)
        say(
            f"{checkpoint}: {calculator.info()['engine']} ready after "
            f"{time.perf_counter() - began:.1f} s"
        )
