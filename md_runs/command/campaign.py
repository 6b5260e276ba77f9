"""`tensormd campaign`: many runs on many workers."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Annotated, Any

import typer

from ..campaign.execution import BATCH, Workers, execute
from ..campaign.folder import Campaign
from ..campaign.plan import Plan
from ..campaign.results import WHICH_FRAMES, complaints
from ..campaign.results import collect as collect_results
from ..campaign.results import status as status_of
from ..runs.applies import check_options
from ..runs.schema import naming_lines, read_config
from .console import given_options, say, show_files, show_json, show_tree
from .options import Json
from .progress import campaign_progress

Folder = Annotated[Path, typer.Argument(metavar="DIR", help="Folder of a campaign.")]


def run(
    context: typer.Context,
    plan: Annotated[
        Path,
        typer.Argument(metavar="PLAN.yaml", help="Structures, model, and the runs of each."),
    ],
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", help="Folder of the campaign (default NAME_campaign)."),
    ] = None,
    workers: Annotated[
        int | None,
        typer.Option(
            metavar="N",
            help="Workers to start: processes on this machine (default: one for every core that "
            "this process may use), or jobs with --batch.",
        ),
    ] = None,
    scheduler: Annotated[
        str | None,
        typer.Option(
            metavar="ADDRESS",
            help="A dask scheduler that runs, such as tcp://host:8786, or its scheduler file, "
            "instead of workers on this machine. Whoever reaches a scheduler can run programs "
            "on its workers.",
        ),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            metavar="SYSTEM",
            help=f"Start workers as jobs of a batch system: {', '.join(BATCH)}; their options are "
            "in the configuration of dask-jobqueue.",
        ),
    ] = None,
    retries: Annotated[
        int,
        typer.Option(
            metavar="N",
            help="Times that a run is tried again when its worker dies or cannot write.",
        ),
    ] = 3,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Run also those again that failed before.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run a plan; started again, only what is left of it. Exit code 1 if a run fails."""
    check_options("campaign", context.params, given_options(context))
    if retries < 0:
        raise ValueError(f"--retries is {retries}: expected 0 or more")
    where = Workers(scheduler=scheduler, batch=batch, count=workers)
    content = read_config(Plan, plan)
    with naming_lines(plan):
        campaign = Campaign.begin(out or Path(f"{plan.stem}_campaign"), content)
    with campaign:
        say(f"{len(campaign.tasks)} runs of {len(campaign.structures)} structures")
        with campaign_progress(len(campaign.tasks)) as tell:
            execute(
                campaign, where, retries=retries, retry_failed=retry_failed, tell=tell, warn=say
            )
        numbers = status_of(campaign)
    for line in complaints(numbers):
        say(line)
    say(
        f"{_in_words(numbers['states'])}; look at it with: tensormd campaign collect "
        f"{campaign.path}"
    )
    if as_json:
        show_json(numbers)
    if numbers["failures"]:
        raise typer.Exit(1)


def status(folder: Folder, as_json: Json = False) -> None:
    """Show how many runs are done, and why others failed; while they run, or afterwards."""
    numbers = status_of(Campaign.open(folder))
    if as_json:
        show_json(numbers)
        return
    lines = complaints(numbers)
    show_tree({name: each for name, each in numbers.items() if name != "failures"})
    for line in lines:
        print(line)


def collect(
    folder: Folder,
    frames: Annotated[
        str, typer.Option(help=f"Frames of molecular dynamics: {' or '.join(WHICH_FRAMES)}.")
    ] = "last",
    as_json: Json = False,
) -> None:
    """Write one extended XYZ file, one table (CSV) and one HTML page of all runs."""
    files, numbers = collect_results(Campaign.open(folder), frames)
    if as_json:
        show_json({**numbers, "files": files})
        return
    show_files(files)


ACTIONS = (run, status, collect)
"""The functions of this command; `DEFAULT_ACTION` is meant where none is named."""
DEFAULT_ACTION = "run"


def _in_words(states: dict[str, Any]) -> str:
    return ", ".join(f"{n} {state}" for state, n in Counter(states).most_common())
