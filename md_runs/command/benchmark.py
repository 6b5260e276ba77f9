"""`tensormd benchmark`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..benchmark.report import plot as draw
from ..benchmark.report import text
from ..benchmark.rounds import BenchmarkSettings, run_benchmark
from ..runs.files import write_json
from .console import say, show_json
from .options import (
    AllThreads,
    Device,
    Dtype,
    JsonFile,
    Units,
    check_folder_of,
    json_file,
    parse_units,
    split,
)


def benchmark(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Checkpoint. Default: random weights, 2 layers, 128 channels, cutoff 4.5 A.",
        ),
    ] = None,
    network: Annotated[
        str,
        typer.Option(
            help="Network with random weights: tensornet, or tensornet2 of the size of AceFF-2 "
            "(cutoff 5 A, all pairs of charges: molecules only)."
        ),
    ] = "tensornet",
    systems: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="alanine_dipeptide, testosterone, chignolin, dhfr or structure files, "
            "separated by commas; '' for none.",
        ),
    ] = "alanine_dipeptide,testosterone",
    sizes: Annotated[
        str,
        typer.Option(
            metavar="ATOMS", help="Boxes of water of about this many atoms, such as 3000,30000."
        ),
    ] = "648",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder with chignolin.pdb and dhfr.pdb (or set TENSORMD_DATA)."),
    ] = None,
    device: Device = "auto",
    backend: Annotated[
        str, typer.Option(help="Backend of tensormd: auto, reference or fused.")
    ] = "auto",
    dtype: Dtype = "float32",
    threads: AllThreads = None,
    rounds: Annotated[
        int, typer.Option(help="Number of rounds; in each, all programs take turns.")
    ] = 5,
    no_peer: Annotated[bool, typer.Option("--no-peer", help="Leave torchmd-net out.")] = False,
    compile_peer: Annotated[
        bool,
        typer.Option(
            "--compile", help="Try torch.compile of torchmd-net on a CPU too; takes minutes."
        ),
    ] = False,
    units: Units = None,
    json: JsonFile = None,
    plot: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Write a figure (PNG): ms per step against atoms."),
    ] = None,
) -> None:
    """Compare time, memory and forces with torchmd-net, with the same weights, in one run."""
    unit_names = parse_units(units)
    to_file = json_file(json)
    if plot is not None:
        check_folder_of(plot)
        if plot.suffix.lower() != ".png":
            raise ValueError(f"--plot is {plot}: expected a name that ends in .png")
    numbers = atom_counts(sizes)
    settings = BenchmarkSettings(
        model=model,
        network=network,
        units=unit_names,
        systems=split([systems]),
        sizes=numbers,
        data=data,
        device=device,
        backend=backend,
        dtype=dtype,
        threads=threads,
        rounds=rounds,
        peer=not no_peer,
        compile=compile_peer,
    )

    def keep(results: dict[str, Any]) -> None:
        if to_file is not None:
            write_json(to_file, results)

    results = run_benchmark(settings, say, keep)
    if plot is not None:
        draw(results, plot)
    if json is not None and to_file is None:
        show_json(results)
    else:
        print(text(results))


def atom_counts(text: str) -> tuple[int, ...]:
    """``3000,30000`` as numbers.

    Raises
    ------
    ValueError
        If a part is no whole number.
    """
    parts = split([text])
    for part in parts:
        if not part.isdigit():
            raise ValueError(
                f"--sizes: {part!r} is no number of atoms: expected such as 3000,30000"
            )
    return tuple(int(part) for part in parts)
