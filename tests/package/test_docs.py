"""Links, anchors, images, source paths and module names in the documentation all exist."""

from __future__ import annotations

import pkgutil
import re
from pathlib import Path

import pytest
from support.paths import ROOT

PAGES = [
    *sorted(ROOT.glob("*.md")),
    ROOT / "models" / "pretrained" / "MODEL_CARD.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
TUTORIALS = sorted((ROOT / "docs" / "tutorials").glob("*.py"))
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")
FOLDERS = ("models", "calculators", "md_runs", "benchmarks")
SOURCE = re.compile(rf"(?:{'|'.join(FOLDERS)}|tests|docs)/[\w/.]*")
PAGE = re.compile(r"\bdocs/[\w/]+\.md\b")
NAME = re.compile(r"(?<![\w.])tensormd(?:\.[A-Za-z_]\w*)+")


def anchors(page: Path) -> set[str]:
    """Anchors of a page's headings, as GitHub names them."""
    found: set[str] = set()
    for heading in HEADING.findall(FENCE.sub("", page.read_text())):
        words = re.sub(r"[^\w\- ]", "", LINK.sub("", heading).lower())
        found.add(words.strip().replace(" ", "-"))
    return found


def broken_links(page: Path, text: str | None = None) -> list[str]:
    """Relative links of a page to files or anchors that do not exist."""
    broken = []
    for link in LINK.findall(FENCE.sub("", page.read_text() if text is None else text)):
        if re.match(r"[a-z]+:", link):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            broken.append(link)
    return broken


def missing_sources(page: Path) -> list[str]:
    """Paths of the repository that a page names in code style and that do not exist."""
    names = CODE.findall(FENCE.sub("", page.read_text()))
    return [name for name in names if SOURCE.fullmatch(name) and not (ROOT / name).exists()]


def missing_names(page: Path) -> list[str]:
    """Modules and objects of tensormd that a page names and that do not exist."""
    missing = []
    for name in sorted(set(NAME.findall(page.read_text()))):
        try:
            pkgutil.resolve_name(name)
        except (ImportError, AttributeError):
            missing.append(name)
    return missing


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_paths_of_a_page_exist(page: Path) -> None:
    assert broken_links(page) == []
    assert missing_sources(page) == []
    assert missing_names(page) == []


@pytest.mark.parametrize("source", TUTORIALS, ids=lambda source: source.name)
def test_links_of_a_tutorial_exist(source: Path) -> None:
    lines = [
        line.removeprefix("# ") for line in source.read_text().splitlines() if line[:1] == "#"
    ]
    page = source.with_name("README.md")  # links are relative to its folder
    assert broken_links(page, "\n".join(lines)) == []


def test_pages_that_the_source_names_exist() -> None:
    sources = [path for name in FOLDERS for path in (ROOT / name).rglob("*.py")]
    named = {page for path in sources for page in PAGE.findall(path.read_text())}
    assert named
    assert [page for page in sorted(named) if not (ROOT / page).exists()] == []


def test_the_index_lists_every_page() -> None:
    index = ROOT / "docs" / "README.md"
    linked = {(index.parent / link).resolve() for link in LINK.findall(index.read_text())}
    assert {page for page in (ROOT / "docs").rglob("*.md") if page != index} <= linked
    tutorials = ROOT / "docs" / "tutorials" / "README.md"
    linked = {(tutorials.parent / link).resolve() for link in LINK.findall(tutorials.read_text())}
    assert set(TUTORIALS) <= linked


def test_every_image_is_shown() -> None:
    text = "".join(page.read_text() for page in PAGES)
    images = [image.name for image in (ROOT / "docs" / "images").iterdir()]
    assert [image for image in images if f"images/{image})" not in text] == []


def test_what_is_broken_is_found(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# One, two\n[a](page.md#one-two) [b](#one-two) [c](https://none.example/x)\n"
        "[d](none.md) [e](#three) ![f](none.png)\n`models/none.py` `models/`\n"
        "`tensormd.models.Graph` `tensormd.models.none(x)` `python -m tensormd.none`\n"
        "```console\n$ [g](none.md)\n```\n"
    )
    assert broken_links(page) == ["none.md", "#three", "none.png"]
    assert missing_sources(page) == ["models/none.py"]
    assert missing_names(page) == ["tensormd.models.none", "tensormd.none"]
