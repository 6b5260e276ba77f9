"""The `tensormd` command: arguments in, one call each.

Everything heavy is imported by the command that needs it, so that --help comes at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any

import typer

from ..runs.errors import Interrupted, RunStopped
from ..runs.settings import MDSettings, ModelSettings, RelaxSettings
from .benchmark import benchmark
from .console import md_progress, relax_reporter, say, show_json
from .evaluate import evaluate
from .export import export
from .irreps import irreps
from .options import (
    Backend,
    Charge,
    Device,
    Dtype,
    Threads,
    Units,
    model_settings,
    parse_units,
    split,
)
from .train import train

app = typer.Typer(
    name="tensormd",
    help="Molecular dynamics and geometry relaxation with TensorNet potentials. "
    "Units: A, fs, K, bar, eV.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

Structure = Annotated[
    str,
    typer.Argument(help="Any file that ASE reads; of several structures FILE@INDEX is one."),
]
Model = Annotated[
    list[str] | None,
    typer.Option(
        "--model",
        "-m",
        help="Checkpoint: a file, a folder or a registry name; several make a committee. "
        "Without it, the ethanol model that ships (for ethanol only).",
    ),
]
OPENMM = "Options of --engine openmm"
Json = Annotated[bool, typer.Option("--json", help="Print the results as JSON on stdout.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        from ..runs.versions import package_version

        print(f"tensormd {package_version('tensormd')}")
        raise typer.Exit


@app.callback()
def _options(
    traceback: Annotated[
        bool,
        typer.Option("--traceback", help="Show where an error arose (or set TENSORMD_DEBUG=1)."),
    ] = False,
    version: Annotated[
        bool,
        typer.Option(
            "--version",
            help="Print the version and leave.",
            is_eager=True,
            callback=_print_version,
        ),
    ] = False,
) -> None:
    """Read by `main` (--traceback) or by a callback (--version)."""


@app.command()
def demo(
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the results.")] = Path(
        "demo"
    ),
    dtype: Dtype = "float32",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Relax ethanol, run it at 300 K and write a report, with what ships: about a minute."""
    from ..runs.models import SHIPPED
    from .demo import run_demo

    found = run_demo(out, ModelSettings((SHIPPED,), dtype=dtype, device=device), say=say)
    if as_json:
        show_json(found)
    else:
        for name, file in found["files"].items():
            print(f"{name.replace('_', ' ') + ':':19}{file}")


@app.command()
def relax(
    structures: Annotated[
        list[str],
        typer.Argument(
            metavar="STRUCTURE...",
            help="Any files that ASE reads; all structures of each, or FILE@INDEX.",
        ),
    ],
    model: Model = None,
    fmax: Annotated[
        float, typer.Option(metavar="EV/A", help="Largest force at the end, eV/A.")
    ] = 0.01,
    cell: Annotated[bool, typer.Option("--cell", help="Relax the cell as well.")] = False,
    pressure: Annotated[
        float, typer.Option(metavar="BAR", help="With --cell: pressure, bar.")
    ] = 0.0,
    optimizer: Annotated[str, typer.Option(help="lbfgs, fire or bfgs.")] = "lbfgs",
    steps: Annotated[int, typer.Option(help="Steps at most.")] = 1000,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out",
            "-o",
            help="Folder of the results (default NAME_relaxed), or for one structure a file "
            "such as relaxed.cif.",
        ),
    ] = None,
    charge: Charge = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    units: Units = None,
    as_json: Json = False,
) -> None:
    """Relax structures with ASE's optimizers. Exit code 1 if one does not converge."""
    settings = RelaxSettings(
        fmax=fmax, optimizer=optimizer, steps=steps, cell=cell, pressure=pressure
    )
    how = model_settings(model, charge, dtype, device, backend, threads, units)
    from ..md.relax import RelaxResult, relax_files

    def done(result: RelaxResult) -> None:
        say(
            f"{result.source}  {'converged' if result.converged else 'NOT CONVERGED'} after "
            f"{result.steps} steps  {result.energy_ev:.6f} eV  fmax {result.fmax_ev_per_a:.4f} "
            f"eV/A (wanted {fmax:g})  -> {result.output}"
        )

    results = relax_files(structures, how, settings, out, observer=relax_reporter, done=done)
    if as_json:
        show_json([result.to_json() for result in results])
    if not all(result.converged for result in results):
        say(
            "not converged: the structures so far are saved; allow more --steps or a larger --fmax"
        )
        raise typer.Exit(1)


@app.command()
def md(
    context: typer.Context,
    structure: Annotated[
        str | None,
        typer.Argument(help="Any file that ASE reads; of several structures FILE@INDEX."),
    ] = None,
    model: Model = None,
    engine: Annotated[
        str, typer.Option(help="What integrates: ase or openmm.")
    ] = MDSettings.engine,
    ensemble: Annotated[str, typer.Option(help="nve, nvt or npt.")] = MDSettings.ensemble,
    thermostat: Annotated[
        str, typer.Option(help="nvt and npt: langevin, or with ASE bussi.")
    ] = MDSettings.thermostat,
    temperature: Annotated[
        float, typer.Option(metavar="K", help="Of the thermostat and the first velocities, K.")
    ] = MDSettings.temperature,
    pressure: Annotated[
        float, typer.Option(metavar="BAR", help="npt: pressure, bar.")
    ] = MDSettings.pressure,
    timestep: Annotated[
        float, typer.Option(metavar="FS", help="Time step, fs.")
    ] = MDSettings.timestep,
    steps: Annotated[
        int, typer.Option(help="Time steps in all; with --resume a larger number extends the run.")
    ] = MDSettings.steps,
    seed: Annotated[
        int | None, typer.Option(help="Of all random numbers; drawn where not given.")
    ] = None,
    interval: Annotated[
        int, typer.Option(help="Steps between log lines and trajectory frames.")
    ] = MDSettings.interval,
    thermostat_time: Annotated[
        float,
        typer.Option(
            metavar="FS", help="Time constant, fs: 1/friction of langevin, tau of bussi."
        ),
    ] = MDSettings.thermostat_time,
    barostat_time: Annotated[
        float, typer.Option(metavar="FS", help="npt with ASE: time constant, fs.")
    ] = MDSettings.barostat_time,
    compressibility: Annotated[
        float | None,
        typer.Option(
            metavar="1/BAR",
            help="npt with ASE: 1/bar, sets the volume's pace; by default the model's own.",
        ),
    ] = None,
    keep_velocities: Annotated[
        bool,
        typer.Option("--keep-velocities", help="Start with the velocities in the file."),
    ] = False,
    barostat: Annotated[
        str, typer.Option(help="openmm, npt: isotropic or anisotropic.", rich_help_panel=OPENMM)
    ] = MDSettings.barostat,
    minimize: Annotated[
        bool,
        typer.Option(
            "--minimize", help="openmm: minimise the energy first.", rich_help_panel=OPENMM
        ),
    ] = False,
    trajectory: Annotated[
        str,
        typer.Option(
            help="openmm: dcd or xtc writes a copy in this format.", rich_help_panel=OPENMM
        ),
    ] = MDSettings.trajectory,
    ml_atoms: Annotated[
        str | None,
        typer.Option(
            metavar="ATOMS",
            help="openmm: atoms of the potential, such as 0-21,30, or resname LIG, or chain A; "
            "the rest is the force field's. The structure is a PDB or mmCIF file.",
            rich_help_panel=OPENMM,
        ),
    ] = None,
    force_field: Annotated[
        list[str] | None,
        typer.Option(
            metavar="XML",
            help="openmm: for the other atoms; several separated by commas, for example "
            "amber14-all.xml,amber14/tip3p.xml.",
            rich_help_panel=OPENMM,
        ),
    ] = None,
    constraints: Annotated[
        str,
        typer.Option(
            help="openmm: of the force field's part: none, or hbonds (and rigid water).",
            rich_help_panel=OPENMM,
        ),
    ] = MDSettings.constraints,
    hydrogen_mass: Annotated[
        float | None,
        typer.Option(
            metavar="U",
            help="openmm: of the force field's hydrogens, u, taken from the bonded atom.",
            rich_help_panel=OPENMM,
        ),
    ] = None,
    platform: Annotated[
        str | None,
        typer.Option(
            help="openmm: Reference, CPU, CUDA or OpenCL; by default what suits.",
            rich_help_panel=OPENMM,
        ),
    ] = None,
    engine_force: Annotated[
        str,
        typer.Option(
            help="openmm: how the potential is called: auto, torchforce or python.",
            rich_help_panel=OPENMM,
        ),
    ] = MDSettings.engine_force,
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Run folder (default NAME_md).")
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(help="Run folder to go on with; only --steps may change.")
    ] = None,
    save_every: Annotated[
        float, typer.Option(metavar="S", help="Seconds between restarts: what a kill may cost.")
    ] = 10.0,
    charge: Charge = None,
    dtype: Dtype = "float32",
    device: Device = "auto",
    backend: Backend = "auto",
    threads: Threads = None,
    units: Units = None,
    as_json: Json = False,
) -> None:
    """Molecular dynamics of a structure, into a run folder that survives being killed."""
    if resume is not None:
        if structure is not None:
            raise ValueError(
                f"{structure} cannot be given with --resume: the run has its structure already"
            )
        given = {
            name: context.params[name]
            for name in context.params
            if name not in ("resume", "save_every", "as_json") and _was_given(context, name)
        }
        if "units" in given:
            given["units"] = parse_units(units)
        if "force_field" in given:
            given["force_field"] = split(force_field)
        from ..md.launch import relaunch_md
        from ..runs.folder import RunFolder

        total = given.get("steps", RunFolder.open(resume).config["settings"]["steps"])
        with md_progress(total) as observer:
            summary = relaunch_md(resume, given, observer=observer, save_every=save_every)
    else:
        if structure is None:
            raise ValueError("no structure: give a file, or --resume RUN_DIR to go on with a run")
        values = {name: context.params[name] for name in MDSettings.__dataclass_fields__}
        values["force_field"] = split(force_field)
        values["seed"] = int.from_bytes(os.urandom(4), "big") if seed is None else seed
        settings = MDSettings(**values)
        how = model_settings(model, charge, dtype, device, backend, threads, units)
        from ..md.launch import launch_md

        folder = Path(f"{Path(structure.partition('@')[0]).name.partition('.')[0]}_md")
        with md_progress(steps) as observer:
            summary = launch_md(
                structure, how, settings, out or folder, observer=observer, save_every=save_every
            )
    say(
        f"done: steps {summary.first_step} to {summary.last_step}, "
        f"{summary.milliseconds_per_step:.2f} ms a step ({summary.nanoseconds_per_day:.2f} ns/day)"
        f"; look at it with: tensormd report {summary.folder}"
    )
    if as_json:
        show_json(summary.to_json())


@app.command()
def report(
    run_dir: Annotated[Path, typer.Argument(help="Folder that md or relax wrote.")],
    as_json: Json = False,
) -> None:
    """Figures and one HTML page of a run: energies (eV), temperature (K), distances (A)."""
    from ..reports.runs import write_report

    page, numbers = write_report(run_dir)
    if as_json:
        show_json({**numbers, "report": str(page)})
    else:
        for name, value in numbers.items():
            print(f"{name:28}{value if value is not None else '-'}")
        print(f"{'report':28}{page}")


@app.command()
def info(
    checkpoint: Annotated[str, typer.Argument(help="A file, a folder or a registry name.")],
    units: Units = None,
    as_json: Json = False,
) -> None:
    """What a checkpoint holds: architecture, elements, cutoff (A), units, errors, licence."""
    from ..runs.models import describe_checkpoint

    found = describe_checkpoint(checkpoint, parse_units(units))
    if as_json:
        show_json(found)
    else:
        _print_tree(found)


@app.command()
def convert(
    checkpoint: Annotated[str, typer.Argument(help="A file, a folder or a registry name.")],
    output: Annotated[
        Path,
        typer.Argument(help="File to write: model.safetensors, or torchmd-net's model.ckpt."),
    ],
    units: Units = None,
    elements: Annotated[
        str | None,
        typer.Option(
            help="Elements it was trained on, where its file does not say: symbols or atomic "
            "numbers, for example H,C,O."
        ),
    ] = None,
) -> None:
    """Turn a checkpoint into the native format, or a TensorNet's into torchmd-net's (.ckpt)."""
    from ..runs.models import convert_checkpoint

    written = convert_checkpoint(checkpoint, output, parse_units(units), elements)
    say(f"wrote {written}")


@app.command()
def doctor(as_json: Json = False) -> None:
    """Versions, devices, and which engines and backends work here, or why not."""
    from .doctor import examine

    found = examine()
    if as_json:
        show_json(found)
        return
    for section in ("versions", "platform", "cpu_cores", "threads", "devices"):
        _print_tree({section: found[section]})
    print("checks")
    for check in found["checks"]:
        print(f"  {'ok ' if check['works'] else 'no '} {check['name']:24}{check['detail']}")


app.command()(train)
app.command()(evaluate)
app.command()(export)
app.command()(irreps)
app.command()(benchmark)


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake becomes one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--traceback" in arguments or bool(os.environ.get("TENSORMD_DEBUG"))
    usual = warnings.formatwarning
    warnings.formatwarning = _format_warning
    try:
        app(args=arguments, prog_name="tensormd")
    except Interrupted as error:
        say(str(error))
        sys.exit(error.exit_code)
    except (ValueError, OSError, RunStopped) as error:
        if debug:
            raise
        say("tensormd: " + " ".join(str(error).split()))
        sys.exit(1 if isinstance(error, RunStopped) else 2)
    finally:
        warnings.formatwarning = usual


def _format_warning(message: Warning | str, *_: object, **__: object) -> str:
    return f"tensormd: warning: {' '.join(str(message).split())}\n"


def _was_given(context: typer.Context, name: str) -> bool:
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _print_tree(content: dict[str, Any], indent: int = 0) -> None:
    for key, value in content.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{key}")
            _print_tree(value, indent + 2)
        else:
            if isinstance(value, list):
                value = ", ".join(map(str, value))
            print(
                f"{' ' * indent}{key:{max(22 - indent, 1)}} {value if value is not None else '-'}"
            )


if __name__ == "__main__":
    main()
