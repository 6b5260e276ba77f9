"""`tensormd train`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from ..runs.folder import refuse_existing
from ..train.config import TrainConfig
from ..train.config import example as example_text
from ..train.run import ALREADY, plan_training, resume_training, start_training
from ..train.schema import naming_lines, read_config
from .console import say, show_json
from .options import Json
from .progress import train_progress


def train(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="CONFIG.yaml", help="Data, model and options of the training."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Run folder (default output.folder, or NAME_training)."),
    ] = None,
    resume: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Run folder to resume.")
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Read and check everything, but write nothing.")
    ] = False,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="SECTION.KEY=VALUE",
            help="Replace a value of the configuration, such as training.epochs=5; may be "
            "repeated.",
        ),
    ] = None,
    example: Annotated[
        bool, typer.Option("--example", help="Print a complete configuration with comments.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Train a TensorNet or a TDN, new or from a checkpoint, in a run folder that resumes."""
    if example:
        print(example_text(), end="")
        return
    if resume is None and config is None:
        raise ValueError(
            "no configuration: give a YAML file (tensormd train --example prints one), or "
            "--resume DIR to resume a run"
        )
    if config is not None:
        changes = change or ()
        read = read_config(TrainConfig, config, changes)
        folder = out or Path(read.output.folder or f"{config.stem}_training")
        if dry_run:
            if out is not None:
                refuse_existing(out, ALREADY.format(out))
            with naming_lines(config, changes):
                plan = plan_training(read)
            _show_plan(plan.to_json(), as_json)
            return
        with naming_lines(config, changes), train_progress() as watcher:
            summary = start_training(read, folder, watcher)
    else:
        assert resume is not None
        with train_progress() as watcher:
            summary = resume_training(resume, watcher)
    if summary is None:  # one of several processes, but not the first
        return
    errors, of = summary.validation, "validation"
    if summary.test is not None:
        errors, of = summary.test, "test"
    say(
        f"done: epoch {summary.epochs}, {summary.seconds:.0f} s; {of} errors: "
        f"{errors_text(errors)}; the potential is {summary.checkpoint}, the report "
        f"{summary.files['report']}"
    )
    if as_json:
        show_json(summary.to_json())


def errors_text(errors: dict[str, dict[str, object]]) -> str:
    """Mean absolute errors in one line."""
    return ", ".join(f"{name} {each['mae']:.4g} {each['unit']}" for name, each in errors.items())


def _show_plan(plan: dict[str, Any], as_json: bool) -> None:
    if as_json:
        show_json(plan)
        return
    for name, value in plan.items():
        print(f"{name.replace('_', ' ') + ':':19}{_text(value)}")


def _text(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {_text(each)}" for name, each in value.items())
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "-"
    return f"{value:.6g}" if isinstance(value, float) else str(value)
