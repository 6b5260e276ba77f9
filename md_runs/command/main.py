"""The `tensormd` command: the table of its commands, and what becomes of their errors.

The table is the one place of the package where imports wait: a command's module, with all that it
imports at its top, is loaded when the command is called or asked for its own help. A new command
is a file here, with a function of the same name, or `ACTIONS`, functions that the command's first
argument names (`DEFAULT_ACTION` where it names none); and a row of `COMMANDS`.
"""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from typing import Annotated, Any

import typer
from typer.core import TyperCommand, TyperGroup

from ..runs.applies import check_options
from ..runs.errors import Interrupted, RunStopped
from ..runs.versions import package_version
from .console import given_options, say

COMMANDS = {
    "demo": "Relax aspirin, run dynamics and write a report, with what ships: about a minute.",
    "relax": "Relax structures with ASE's optimizers.",
    "md": "Run molecular dynamics of a structure in a run folder.",
    "vibrations": "Compute vibrations and thermochemistry of a molecule.",
    "eos": "Compute volume and bulk modulus of a crystal (equation of state).",
    "phonons": "Compute phonons of a crystal: bands, density of states, thermal properties.",
    "elastic": "Compute elastic constants of a crystal, and moduli of a polycrystal.",
    "neb": "Find the lowest path between two structures (nudged elastic band).",
    "ts": "Find the transition state near a structure.",
    "report": "Write figures and an HTML page of a run.",
    "info": "Show what a checkpoint holds.",
    "convert": "Convert a checkpoint to the native format or to torchmd-net's.",
    "doctor": "Report versions and devices, and explain what does not work.",
    "warm": "Compile the fused kernels for this machine before they are needed.",
    "serve": "Serve a potential to i-PI, or another program with its protocol, at a socket.",
    "campaign": "Run many structures, seeds and temperatures on many cores or machines.",
    "train": "Train a TensorNet or a TDN, new or from a checkpoint, in a run folder.",
    "data": "Pack labelled frames into one file for large trainings, or show what it holds.",
    "evaluate": "Compute the errors of a checkpoint on labelled frames.",
    "export": "Write a TorchScript file that needs neither tensormd nor Python.",
    "irreps": "Find out which orders (irreps) of a network matter, and prune it.",
    "benchmark": "Compare speed, memory and forces with torchmd-net: a minute or two.",
}
"""The line of each command in ``tensormd --help``; its module has the command's name."""

app = typer.Typer(
    name="tensormd",
    help="Molecular dynamics and geometry relaxation with TensorNet and TDN potentials. "
    "Units: A, fs, K, bar, eV.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class _Command(TyperCommand):
    """A row of the table; its module is imported when the command is called or explained."""

    def make_context(
        self, info_name: str | None, args: list[str], *more: Any, **extra: Any
    ) -> Any:
        assert self.name is not None
        module = importlib.import_module(f".{self.name}", __package__)
        default = getattr(module, "DEFAULT_ACTION", None)
        names = {function.__name__ for function in getattr(module, "ACTIONS", ())}
        if default and not (args and args[0] in {*names, "-h", "--help"}):
            args = [default, *args]
        alone = typer.Typer(add_completion=False)
        for function in getattr(module, "ACTIONS", None) or [getattr(module, self.name)]:
            alone.command(function.__name__)(function)
        context = typer.main.get_command(alone).make_context(info_name, args, *more, **extra)
        check_options(self.name, context.params, given_options(context))
        return context


def _print_version(wanted: bool) -> None:
    if wanted:
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
            "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
        ),
    ] = False,
) -> None:
    """Read by `main` (--traceback) or by a callback (--version)."""


def main(arguments: list[str] | None = None) -> None:
    """Run the command; a user's mistake becomes one line on stderr and exit code 2."""
    arguments = sys.argv[1:] if arguments is None else arguments
    debug = "--traceback" in arguments or bool(os.environ.get("TENSORMD_DEBUG"))
    usual = warnings.formatwarning
    warnings.formatwarning = _format_warning
    group = typer.main.get_command(app)
    assert isinstance(group, TyperGroup)
    group.commands = {name: _Command(name, help=line) for name, line in COMMANDS.items()}
    try:
        group(args=arguments, prog_name="tensormd")
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


if __name__ == "__main__":
    main()
