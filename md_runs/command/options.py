"""Options that several commands have, and what their texts mean."""

from __future__ import annotations

from typing import Annotated

import typer

from ..runs.settings import ModelSettings

Charge = Annotated[
    int | None,
    typer.Option(metavar="E", help="Total charge, e; by default what the structure file says."),
]
Dtype = Annotated[str, typer.Option(help="float32 or float64.")]
Device = Annotated[str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1.")]
Backend = Annotated[
    str,
    typer.Option(
        help="fused (compiled kernels), reference (the network itself), or auto: fused where it "
        "exists, in float32."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(metavar="N", help="Processor threads; by default 1 up to 60 atoms, else all."),
]
Units = Annotated[
    str | None,
    typer.Option(
        help="LENGTH,ENERGY units of a checkpoint that does not say, "
        "for example angstrom,kcal/mol (lengths: angstrom, nm, bohr; energies: ev, mev, "
        "hartree, kj/mol, kcal/mol)."
    ),
]
OtherMembers = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="One more checkpoint, of a committee; as often as needed."),
]


def model_settings(
    model: list[str] | None,
    charge: int | None,
    dtype: str,
    device: str,
    backend: str,
    threads: int | None,
    units: str | None,
) -> ModelSettings:
    """Settings from what the command line gave."""
    return ModelSettings(
        model=tuple(model or ()),
        charge=charge,
        dtype=dtype,
        device=device,
        backend=backend,
        threads=threads,
        units=parse_units(units),
    )


def parse_units(text: str | None) -> tuple[str, str] | None:
    """``angstrom,ev`` as a pair.

    Raises
    ------
    ValueError
        If there are not two names.
    """
    if text is None:
        return None
    parts = split([text])
    if len(parts) != 2:
        raise ValueError(f"--units is {text!r}: expected LENGTH,ENERGY such as angstrom,ev")
    return parts[0], parts[1]


def split(texts: list[str] | None) -> tuple[str, ...]:
    """What commas separate, in all of the texts."""
    return tuple(part.strip() for text in texts or () for part in text.split(",") if part.strip())


def pairs(texts: list[str] | None, option: str) -> dict[str, str]:
    """``NAME=VALUE`` texts as a dict.

    Raises
    ------
    ValueError
        If one has no name, or a name comes twice.
    """
    found: dict[str, str] = {}
    for text in texts or ():
        name, equals, value = (part.strip() for part in text.partition("="))
        if not name or not equals or name in found:
            again = " and comes twice" if name in found else ""
            raise ValueError(f"{option} is {text!r}{again}: expected NAME=VALUE, each name once")
        found[name] = value
    return found
