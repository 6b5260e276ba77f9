"""Options that several commands have, and how their texts are read."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..runs.settings import ModelSettings

Checkpoint = Annotated[str, typer.Argument(help="A file, a folder or a registry name.")]
Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="Checkpoint: a file, a folder or a registry name; several make a committee. "
        "Default: the model that ships, for neutral molecules of H, C, N, O, F, S and Cl.",
    ),
]
OtherMembers = Annotated[
    list[str] | None,
    typer.Option("--model", "-m", help="Another member of a committee; may be repeated."),
]
Charge = Annotated[
    int | None,
    typer.Option(metavar="E", help="Total charge, e. Default: that of the structure file, or 0."),
]
Dtype = Annotated[str, typer.Option(help="Precision: float32 or float64.")]
Device = Annotated[
    str, typer.Option(help="Device: auto (CUDA where there is one), cpu, cuda, cuda:1.")
]
Backend = Annotated[
    str,
    typer.Option(
        help="fused (compiled kernels), reference (the network itself), or auto: fused where it "
        "exists, in float32."
    ),
]
Threads = Annotated[
    int | None,
    typer.Option(
        metavar="N",
        help="Most CPU threads. Default: all, of which fused kernels use what is fastest.",
    ),
]
AllThreads = Annotated[int | None, typer.Option(metavar="N", help="CPU threads. Default: all.")]
Units = Annotated[
    str | None,
    typer.Option(
        help="LENGTH,ENERGY units of a checkpoint that does not state them, "
        "for example angstrom,kcal/mol (lengths: angstrom, nm, bohr; energies: ev, mev, "
        "hartree, kj/mol, kcal/mol)."
    ),
]
CoulombCutoff = Annotated[
    float | None,
    typer.Option(
        metavar="A",
        help="Cutoff (A) of a Coulomb energy of predicted charges, with a reaction field beyond, "
        "which periodic structures need; inf: all pairs. Default: as in the checkpoint.",
    ),
]
Dispersion = Annotated[
    str | None,
    typer.Option(
        metavar="FUNCTIONAL",
        help="Add D3(BJ) dispersion with the parameters of this functional, such as wb97x; for a "
        "checkpoint trained on energies without dispersion.",
    ),
]
Doubt = Annotated[
    float | None,
    typer.Option(
        metavar="EV/A",
        help="Keep frames in which the members of a committee disagree by more about a component "
        "of a force, eV/A, in doubtful.extxyz.",
    ),
]
StopOnDoubt = Annotated[
    bool, typer.Option("--stop-on-doubt", help="With --doubt: stop at the first such frame.")
]
Labels = Annotated[
    list[str] | None,
    typer.Option(
        "--label",
        metavar="LABEL=NAME",
        help="Name of a label in the files, such as energy=REF_energy; may be repeated. "
        "Without NAME the label is ignored.",
    ),
]
DataUnits = Annotated[
    list[str] | None,
    typer.Option(
        "--data-units",
        metavar="LABEL=UNIT",
        help="Unit of length or of a label in the files, such as energy=kcal/mol.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]
JsonFile = Annotated[
    Path | None,
    typer.Option(
        "--json", metavar="FILE", help="Write all results to this file too; - prints them."
    ),
]


def model_settings(
    model: list[str] | None,
    charge: int | None,
    dtype: str,
    device: str,
    backend: str,
    threads: int | None,
    units: str | None,
    coulomb_cutoff: float | None,
    dispersion: str | None,
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
        coulomb_cutoff=coulomb_cutoff,
        dispersion=dispersion,
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


def json_file(path: Path | None) -> Path | None:
    """The file that --json names; None for ``-``, which is stdout.

    Raises
    ------
    ValueError
        If its folder does not exist.
    """
    if path is None or str(path) == "-":
        return None
    check_folder_of(path)
    return path


def check_folder_of(path: Path) -> None:
    """Raise a ValueError if the folder of a file to be written does not exist."""
    if not path.parent.is_dir():
        raise ValueError(f"{path}: there is no folder {path.parent}")


def split(texts: list[str] | None) -> tuple[str, ...]:
    """The parts of all texts, which commas separate."""
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
