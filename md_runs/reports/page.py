"""One HTML page that needs nothing but itself: styles, images and scripts are inside."""

from __future__ import annotations

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from . import scene as scenes
from .scene import Scene

STYLE = """
:root { --ink: #1f2933; --soft: #616e7c; --line: #e4e7eb; --page: #f5f7fa; --card: #fff;
        --accent: #2563a8; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e7eb; --soft: #9aa5b1; --line: #323f4b; --page: #12181f; --card: #1b232c;
          --accent: #7fb2ea; }
}
* { box-sizing: border-box; }
body { margin: 0; background: var(--page); color: var(--ink);
       font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, sans-serif; }
main { max-width: 62rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .25rem; }
h2 { font-size: 1.35rem; margin: 3rem 0 .25rem; }
.subtitle { color: var(--soft); margin: 0 0 1.5rem; }
.numbers { display: grid; grid-template-columns: repeat(auto-fill, minmax(11.5rem, 1fr));
           gap: .75rem; margin: 0 0 1.75rem; padding: 0; }
.numbers div { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
               padding: .7rem .9rem; }
.numbers dt { color: var(--soft); font-size: .82rem; }
.numbers dd { margin: 0; font-size: 1.25rem; font-weight: 600;
              font-variant-numeric: tabular-nums; }
.numbers small { font-weight: 400; font-size: .8rem; color: var(--soft); }
figure { margin: 0 0 1.25rem; background: var(--card); border: 1px solid var(--line);
         border-radius: .6rem; overflow: hidden; }
figure img { display: block; width: 100%; background: #fff; padding: .75rem; }
figcaption { color: var(--soft); font-size: .88rem; padding: .6rem .9rem .75rem;
             border-top: 1px solid var(--line); }
details { background: var(--card); border: 1px solid var(--line); border-radius: .6rem;
          padding: .7rem .9rem; margin-bottom: .75rem; }
summary { cursor: pointer; font-weight: 600; }
table { border-collapse: collapse; width: 100%; margin-top: .6rem; font-size: .88rem; }
th, td { text-align: left; vertical-align: top; padding: .3rem .6rem .3rem 0;
         border-top: 1px solid var(--line); overflow-wrap: anywhere; }
th { font-weight: 500; color: var(--soft); white-space: nowrap; width: 16rem; }
table.columns { margin-bottom: 1.5rem; font-variant-numeric: tabular-nums; }
table.columns th { width: auto; white-space: normal; }
h3 { font-size: 1rem; margin: 1.5rem 0 0; }
footer { color: var(--soft); font-size: .82rem; margin-top: 2.5rem; }
"""


@dataclass(frozen=True)
class Figure:
    """A PNG file and what it shows."""

    path: Path
    caption: str


@dataclass(frozen=True)
class Table:
    """Rows of text under a heading."""

    title: str
    columns: list[str]
    rows: list[list[str]]


@dataclass(frozen=True)
class Section:
    """One run on a page."""

    title: str
    subtitle: str
    numbers: list[tuple[str, str, str]]
    """Words, value, unit."""
    figures: list[Figure]
    config: dict[str, Any]
    tables: Sequence[Table] = ()
    scene: Scene | None = None


def html_page(
    title: str, sections: list[Section], lead: str = "", reload: int | None = None
) -> str:
    """A page of one or several sections; of one, its title is the page's.

    Parameters
    ----------
    title, sections, lead
        Content of the page.
    reload
        Seconds after which a browser loads the page again; None: it does not.
    """
    refresh = "" if reload is None else f'\n<meta http-equiv="refresh" content="{reload}">'
    alone = len(sections) == 1
    head = "" if alone else f"<h1>{escape(title)}</h1>\n<p class='subtitle'>{escape(lead)}</p>"
    body = "\n".join(_section(section, "h1" if alone else "h2", alone) for section in sections)
    moving = any(section.scene for section in sections)
    credit = " The scene is drawn by 3Dmol.js (BSD-3-Clause)." if moving else ""
    version = escape(str(sections[0].config.get("versions", {}).get("tensormd", "")))
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">{refresh}
<title>{escape(title)}</title>
<style>{STYLE}{scenes.STYLE if moving else ""}</style>
</head>
<body>
<main>
{head}
{body}
<footer>Written by tensormd {version}. Units: eV, Å, fs and ps, K, bar.{credit}</footer>
</main>
{scenes.library_html() if moving else ""}
</body>
</html>
"""


def _section(section: Section, heading: str, alone: bool) -> str:
    scene = "" if section.scene is None else scenes.scene_html(section.scene, at_once=alone)
    numbers = "\n".join(
        f"<div><dt>{escape(words)}</dt>"
        f"<dd>{escape(value)} <small>{escape(unit)}</small></dd></div>"
        for words, value, unit in section.numbers
    )
    pictures = "\n".join(_figure(figure) for figure in section.figures)
    columns = "\n".join(_table(table) for table in section.tables)
    tables = "\n".join(
        _details(title, section.config[key])
        for key, title in (
            ("settings", "Settings"),
            ("model", "Model"),
            ("model_settings", "How the model ran"),
            ("structure", "Structure"),
            ("versions", "Versions"),
        )
        if section.config.get(key)
    )
    return f"""<{heading}>{escape(section.title)}</{heading}>
<p class="subtitle">{escape(section.subtitle)}</p>
<dl class="numbers">
{numbers}
</dl>
{scene}
{pictures}
{columns}
{tables}"""


def _figure(figure: Figure) -> str:
    data = base64.b64encode(figure.path.read_bytes()).decode("ascii")
    caption = escape(figure.caption)
    return (
        f'<figure><img src="data:image/png;base64,{data}" alt="{caption}">'
        f"<figcaption>{caption}</figcaption></figure>"
    )


def _table(table: Table) -> str:
    head = "".join(f"<th scope='col'>{escape(name)}</th>" for name in table.columns)
    rows = "\n".join(
        "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>"
        for row in table.rows
    )
    return (
        f"<h3>{escape(table.title)}</h3>\n<table class='columns'><tr>{head}</tr>\n{rows}</table>"
    )


def _details(title: str, content: dict[str, Any]) -> str:
    rows = "\n".join(
        f"<tr><th scope='row'>{escape(str(key).replace('_', ' '))}</th>"
        f"<td>{escape(value if isinstance(value, str) else json.dumps(value))}</td></tr>"
        for key, value in content.items()
    )
    return f"<details><summary>{escape(title)}</summary><table>{rows}</table></details>"
