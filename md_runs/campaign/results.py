"""What a campaign has found so far: numbers by state, one table, one file of frames, one page."""

from __future__ import annotations

import csv
import io
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...models.files import replacing, write_all, write_atomically
from ..reports.page import Section, Table, html_page
from ..runs.folder import EVALUATED, RELAXED, REPORT, TRAJECTORY
from ..runs.structures import whole_frames
from .folder import BLOCKED, DONE, FAILED, LOST, Campaign, Record
from .plan import KINDS, Task

FRAMES, TABLE = "frames.extxyz", "runs.csv"
WHICH_FRAMES = ("last", "all")

Records = dict[str, Record]


def read_records(campaign: Campaign) -> Records:
    """The record of every run, with the state that it has now."""
    return {name: campaign.record(task) for name, task in campaign.tasks.items()}


def status(campaign: Campaign, records: Records | None = None) -> dict[str, Any]:
    """Numbers of a campaign as plain data, finished or not."""
    records = read_records(campaign) if records is None else records
    runs = {
        kind: Counter(records[t.name].state for t in campaign.tasks.values() if t.kind == kind)
        for kind in KINDS
    }
    return {
        "structures": len(campaign.structures),
        "unreadable_structures": sum(bool(each.cause) for each in campaign.structures),
        "runs": len(campaign.tasks),
        "states": dict(Counter(record.state for record in records.values())),
        "by_kind": {kind: dict(states) for kind, states in runs.items() if states},
        "attempts": sum(len(record.attempts) for record in records.values()),
        "run_hours": sum(record.seconds for record in records.values()) / 3600,
        "runs_with_warnings": sum(bool(record.warnings) for record in records.values()),
        "failures": causes(campaign, records),
    }


def causes(campaign: Campaign, records: Records) -> list[dict[str, Any]]:
    """Failures with the same cause together, the most frequent first.

    Runs that only lack what they begin with are left out: the cause is that of the run before.
    """
    found: dict[str, dict[str, Any]] = {}

    def add(name: str, cause: str) -> None:
        group = found.setdefault(_without_details(cause), {"cause": cause, "runs": []})
        group["runs"].append(name)

    for listed in campaign.structures:
        if listed.cause:
            add(f"{listed.name} ({listed.source})", listed.cause)
    for name, record in records.items():
        if record.state in (FAILED, LOST):
            place = str(campaign.run_folder(campaign.tasks[name]))
            add(name, record.cause.replace(place, "the run folder"))
    groups = sorted(found.values(), key=lambda group: -len(group["runs"]))
    return [{"count": len(group["runs"]), **group} for group in groups]


def _without_details(cause: str) -> str:
    """A cause without numbers and the formula before it, in which alike ones differ."""
    return re.sub(r"\d+(\.\d+)?", "#", re.sub(r"^\S+: ", "", cause))


def collect(campaign: Campaign, frames: str = "last") -> tuple[dict[str, Path], dict[str, Any]]:
    """Write all results of a campaign, finished or not, into three files of its folder.

    Parameters
    ----------
    campaign
        To be read.
    frames
        ``"last"`` or ``"all"`` frames of molecular dynamics.

    Returns
    -------
    The files by what they hold, and the numbers of `status`.

    Raises
    ------
    ValueError, OSError
        If there is nothing else to choose, or a file cannot be written.
    """
    if frames not in WHICH_FRAMES:
        raise ValueError(f"--frames is {frames!r}: expected {' or '.join(WHICH_FRAMES)}")
    records = read_records(campaign)
    numbers = status(campaign, records)
    files = {
        "frames": campaign.path / FRAMES,
        "table": campaign.path / TABLE,
        "report": campaign.path / REPORT,
    }
    with replacing(files["frames"]) as temporary, temporary.open("wb") as stream:
        for text in _frames(campaign, records, frames == "all"):
            write_all(stream, text)
    rows = _rows(campaign, records)
    write_atomically(files["table"], _csv(rows).encode())
    write_atomically(files["report"], _page(campaign, numbers, rows).encode())
    return files, numbers


def _frames(campaign: Campaign, records: Records, every: bool) -> Iterator[bytes]:
    """Frames of all runs that are done, with every digit, each with the name of its run."""
    for name, task in campaign.tasks.items():
        file = {"relax": RELAXED, "evaluate": EVALUATED, "md": TRAJECTORY}.get(task.kind)
        if file is None or records[name].state != DONE:
            continue
        last = b""
        for count, note, *atoms in whole_frames(campaign.run_folder(task) / file):
            last = b"".join([count, note.rstrip(b"\n") + f' run="{name}"\n'.encode(), *atoms])
            if every:
                yield last
        if not every:
            yield last


def _rows(campaign: Campaign, records: Records) -> list[dict[str, Any]]:
    """A row of the table for each run."""
    given = [each for each in campaign.structures if not each.cause]
    rows = []
    for name, task in campaign.tasks.items():
        record, structure = records[name], given[task.structure]
        rows.append(
            {
                "run": name,
                "kind": task.kind,
                "source": structure.source,
                "formula": structure.formula.partition(",")[0],
                "state": record.state,
                **_conditions(task),
                **{k: v for k, v in record.summary.items() if not isinstance(v, list)},
                "attempts": len(record.attempts),
                "seconds": round(record.seconds, 3),
                "cause": record.cause,
                "warnings": "; ".join(record.warnings),
            }
        )
    return rows


def _conditions(task: Task) -> dict[str, Any]:
    """What tells the runs of one structure apart."""
    if task.kind != "md":
        return {}
    return {"temperature_k": task.settings["temperature"], "seed": task.settings["seed"]}


def _columns(rows: list[dict[str, Any]]) -> list[str]:
    """All keys; those that every row has at the end stay there."""
    end = ["attempts", "seconds", "cause", "warnings"]
    return [key for key in dict.fromkeys(k for row in rows for k in row) if key not in end] + end


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, _columns(rows), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _page(campaign: Campaign, numbers: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The page: numbers, failures by cause, every run."""
    states: dict[str, int] = numbers["states"]
    failures = [
        [str(each["count"]), each["cause"], ", ".join(each["runs"])]
        for each in numbers["failures"]
    ]
    columns = _columns(rows)
    tables = [Table("Runs", columns, [[_cell(row.get(name)) for name in columns] for row in rows])]
    if failures:
        tables.insert(0, Table("Failures by cause", ["runs", "cause", "names"], failures))
    section = Section(
        title=f"Campaign {campaign.path.name}",
        subtitle=f"{numbers['structures']} structures, {numbers['runs']} runs",
        numbers=[
            ("done", str(states.get(DONE, 0)), f"of {numbers['runs']}"),
            *((name, str(n), "") for name, n in sorted(states.items()) if name != DONE),
            ("unreadable structures", str(numbers["unreadable_structures"]), ""),
            ("wall time of all runs", f"{numbers['run_hours']:.3g}", "h"),
        ],
        figures=[],
        config={
            "settings": campaign.plan,
            "model": {"sha256": campaign.digest},
            "versions": campaign.versions,
        },
        tables=tables,
    )
    return html_page(section.title, [section])


def _cell(value: Any) -> str:
    if value is None:
        return ""
    return f"{value:.6g}" if isinstance(value, float) else str(value)


def complaints(numbers: dict[str, Any]) -> list[str]:
    """A line for each cause of failures, with the runs; one for runs that wait for them."""
    lines = []
    for each in numbers["failures"]:
        names = each["runs"]
        more = f" and {len(names) - 5} more" if len(names) > 5 else ""
        lines.append(f"failed: {', '.join(names[:5])}{more}: {each['cause']}")
    blocked = numbers["states"].get(BLOCKED, 0)
    if blocked:
        lines.append(f"{blocked} runs have nothing to begin with, since another run has failed")
    return lines
