"""`tensormd data`: packing data sets, and showing what they hold."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from ase.data import chemical_symbols

from ...models.data.frames import Frames
from ...models.data.packed import check_digest, open_packed
from ...models.data.packing import pack_frames
from .console import say, show_json, show_tree
from .options import DataUnits, Json, Labels, check_folder_of, pairs

EVERY = 20_000
"""Frames between lines about the progress."""


def pack(
    files: Annotated[
        list[str], typer.Argument(metavar="FILE...", help="Labelled frames of any format.")
    ],
    out: Annotated[
        Path, typer.Option("--out", "-o", help="File to write, such as frames.packed.")
    ],
    cutoff: Annotated[
        float | None,
        typer.Option(
            metavar="A",
            help="Also write neighbour lists with this cutoff. Default: neighbours are searched "
            "in training.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option(metavar="N", help="Read at most N frames per file. Default: all."),
    ] = None,
    seed: Annotated[
        int | None,
        typer.Option(help="With --limit: take random frames of each file, with this seed."),
    ] = None,
    format_name: Annotated[
        str | None,
        typer.Option(
            "--format", metavar="NAME", help="Format of all files. Default: by their names."
        ),
    ] = None,
    label: Labels = None,
    data_units: DataUnits = None,
    as_json: Json = False,
) -> None:
    """Write frames into one packed file, from which a training of any size reads."""
    check_folder_of(out)

    def tell(count: int) -> None:
        if count % EVERY == 0:
            say(f"{count} frames")

    found = pack_frames(
        files,
        out,
        cutoff=cutoff,
        format=format_name,
        limit=limit,
        seed=seed,
        units=pairs(data_units, "--data-units") or None,
        keys={name: key or None for name, key in pairs(label, "--label").items()},
        tell=tell,
    )
    if as_json:
        show_json({"file": str(out), **found})
        return
    say(f"{out}: {found['frames']} frames, {found['atoms']} atoms, {found['bytes']} bytes")


def info(
    file: Annotated[Path, typer.Argument(help="A packed file.")], as_json: Json = False
) -> None:
    """Show what a packed file holds, after checking its digest."""
    found = describe_packed(file)
    (show_json if as_json else show_tree)(found)


ACTIONS = (pack, info)
"""The functions of this command, each by its name."""


def describe_packed(path: Path) -> dict[str, Any]:
    """What a packed file holds, as plain data.

    Raises
    ------
    FileNotFoundError, ValueError
        If it cannot be read, or its digest is not that of its content.
    """
    packed = open_packed(path)
    check_digest(packed)
    frames = Frames.of_store(packed.arrays)
    weights = frames.weights
    return {
        "file": str(path),
        **packed.info,
        "units": "eV, Angstrom, e",
        "elements": [chemical_symbols[z] for z in frames.elements],
        "labels": {name: len(frames.labelled(name)) for name in frames.quantities},
        "largest_frame_atoms": int(frames.sizes.max()),
        "isolated_atoms": sum(frames.isolated),
        "weights": [float(weights.min()), float(weights.max())],
    }
