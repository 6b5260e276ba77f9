"""`tensormd train`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from ...models.training.rate_search import RateSearch, search_learning_rate
from ..runs.folder import REPORT, refuse_existing
from ..runs.schema import naming_lines, read_config
from ..train.config import TrainConfig
from ..train.config import example as example_text
from ..train.run import ALREADY, Plan, plan_training, resume_training, start_training
from .console import say, show_json
from .options import Json
from .progress import Pace, error_text, train_progress


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
            "repeated. With --resume: training.epochs alone, another length of the run.",
        ),
    ] = None,
    find_lr: Annotated[
        bool,
        typer.Option(
            "--find-lr",
            help="Train a copy for 150 steps at rising learning rates, show the losses and "
            "suggest a rate; write nothing.",
        ),
    ] = False,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            help="Write the report at every validation, as a page that reloads itself.",
        ),
    ] = False,
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
    changes = change or ()
    if config is not None:
        read = read_config(TrainConfig, config, changes)
        folder = out or Path(read.output.folder or f"{config.stem}_training")
        if find_lr:
            with naming_lines(config, changes):
                plan = plan_training(read)
            _show_search(_search(plan), as_json)
            return
        if dry_run:
            if out is not None:
                refuse_existing(out, ALREADY.format(out))
            with naming_lines(config, changes):
                plan = plan_training(read)
            _show_plan(plan.to_json(), as_json)
            return
        with naming_lines(config, changes), train_progress() as watcher:
            _tell_where(folder, watch)
            summary = start_training(read, folder, watcher, live=watch)
    else:
        assert resume is not None
        with train_progress() as watcher:
            _tell_where(resume, watch)
            summary = resume_training(resume, watcher, changes, live=watch)
    if summary is None:  # one of several processes, but not the first
        return
    errors, of = summary.validation, "validation"
    if summary.test is not None:
        errors, of = summary.test, "test"
    say(
        f"done: epoch {summary.epochs:g}, {summary.seconds:.0f} s; {of} errors: "
        f"{errors_text(errors)}; the potential is {summary.checkpoint}, the report "
        f"{summary.files['report']}"
    )
    if as_json:
        show_json(summary.to_json())


def _tell_where(folder: Path, watch: bool) -> None:
    if watch:
        say(f"from the first validation on, see {folder / REPORT} in a browser")


def _search(plan: Plan) -> RateSearch:
    """The learning-rate range test of a training."""
    pace = Pace()

    def tell(done: int, steps: int) -> None:
        if pace():
            say(f"step {done} of {steps} of the search")

    parts, settings = plan.parts, plan.config.settings
    return search_learning_rate(
        plan.potential, parts.training, settings, plan.device, step_done=tell
    )


def _show_search(found: RateSearch, as_json: bool) -> None:
    """The curve as bars, about ten steps apart, and the suggestion."""
    if as_json:
        show_json(asdict(found))
        return
    highest = max(found.losses)
    print("learning rate  loss")
    for rate, loss in list(zip(found.rates, found.losses, strict=True))[9::6]:
        print(f"{rate:13.1e}  {loss:<9.4g} {'#' * round(40 * loss / highest)}")
    print(f"suggestion: --set training.learning_rate={found.suggestion:g}")


def errors_text(errors: dict[str, dict[str, object]]) -> str:
    """Mean absolute errors in one line."""
    return ", ".join(error_text(name, each) for name, each in errors.items())


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
