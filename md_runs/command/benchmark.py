"""`tensormd benchmark`, and the same options for the script that measures everything."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from .console import say, show_json
from .options import parse_units, split


def benchmark(
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Checkpoint; without it, random weights: 2 layers, 128 channels, cutoff 4.5 A.",
        ),
    ] = None,
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
            metavar="ATOMS", help="Boxes of water of about so many atoms, for example 3000,30000."
        ),
    ] = "648",
    data: Annotated[
        Path | None,
        typer.Option(help="Folder of chignolin.pdb and dhfr.pdb (or set TENSORMD_DATA)."),
    ] = None,
    device: Annotated[
        str, typer.Option(help="auto (CUDA where there is one), cpu, cuda, cuda:1.")
    ] = "auto",
    backend: Annotated[str, typer.Option(help="Of tensormd: auto, reference or fused.")] = "auto",
    dtype: Annotated[str, typer.Option(help="float32 or float64.")] = "float32",
    threads: Annotated[
        int | None, typer.Option(metavar="N", help="Processor threads; by default all.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="In which all programs have a turn.")] = 5,
    no_peer: Annotated[bool, typer.Option("--no-peer", help="Leave torchmd-net out.")] = False,
    compile_peer: Annotated[
        bool,
        typer.Option(
            "--compile", help="Try torch.compile of torchmd-net on a CPU too: takes minutes."
        ),
    ] = False,
    units: Annotated[
        str | None,
        typer.Option(help="LENGTH,ENERGY units of a checkpoint that does not say."),
    ] = None,
    json_file: Annotated[
        Path | None,
        typer.Option("--json", metavar="FILE", help="Write everything; - prints it on stdout."),
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Figure: ms a step against atoms (PNG).")
    ] = None,
) -> None:
    """Time, memory and errors against torchmd-net, same weights, same run: a minute or two."""
    unit_names = parse_units(units)
    to_file = json_file is not None and str(json_file) != "-"
    for path in (json_file if to_file else None, plot):
        if path is not None and not path.parent.is_dir():
            raise ValueError(f"{path}: there is no folder {path.parent}")
    if plot is not None and plot.suffix.lower() != ".png":
        raise ValueError(f"--plot is {plot}: expected a name that ends in .png")
    numbers = atom_counts(sizes)
    from ...models.files import write_atomically
    from ..benchmark.report import plot as draw
    from ..benchmark.report import text
    from ..benchmark.rounds import BenchmarkSettings, run_benchmark

    settings = BenchmarkSettings(
        model=model,
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
        if to_file and json_file is not None:
            write_atomically(json_file, (json.dumps(results, indent=1) + "\n").encode())

    results = run_benchmark(settings, say, keep)
    if plot is not None:
        draw(results, plot)
    if json_file is not None and not to_file:
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
