"""Build the documentation site: `make docs`, or `python docs/site/build.py [--out FOLDER]`.

The pages of docs/ are plain Markdown whose links hold on GitHub. Here they are copied beside
pages from elsewhere (changelog, contributing, scripts), links that leave docs/ are turned to
those, docs/README.md becomes the start page and its sections the tables of contents, the tutorials
are executed, and Sphinx turns every warning into an error.
"""

from __future__ import annotations

import argparse
import ast
import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import jupytext
import nbformat
from nbclient import NotebookClient

sys.path.insert(0, str(Path(__file__).parent))

from public_names import api_directives

SITE = Path(__file__).resolve().parent
DOCS = SITE.parent
ROOT = DOCS.parent
TUTORIALS = DOCS / "tutorials"
SCRIPTS = ROOT / "md_runs" / "scripts"
FENCE = re.compile(r"(^```.*?^```)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\((?![a-z]+:|#)([^)\s#]+)(#[^)\s]*)?\)")
SECTION = re.compile(r"^\*\*(\w[\w ]*)\*\*", re.MULTILINE)
OUTSIDE = {
    ROOT / "CHANGELOG.md": "project/changelog",
    ROOT / "CODE_OF_CONDUCT.md": "project/conduct",
    ROOT / "CONTRIBUTING.md": "project/contributing",
    ROOT / "SECURITY.md": "project/security",
    ROOT / "models" / "pretrained" / "MODEL_CARD.md": "reference/model_card",
    SCRIPTS: "guide/scripts",
}
"""Pages of the site that stand outside docs/."""


def stage(target: Path) -> None:
    """Write the sources that Sphinx reads."""
    shutil.rmtree(target, ignore_errors=True)
    pages = {path: path.relative_to(DOCS).with_suffix("") for path in DOCS.rglob("*.md")}
    for path, page in [*pages.items(), *OUTSIDE.items()]:
        text = scripts_page() if path == SCRIPTS else path.read_text()
        if str(page) == "reference/api":
            text = api_directives()
        text = with_links(text, path, target)
        if str(page) == "tutorials/README":
            names = "\n".join(source.stem for source in tutorials())
            text += f"\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"
        if str(page) == "README":
            page, text = Path("index"), text + sections(text, target)
        write(target / f"{page}.md", text)
    shutil.copytree(DOCS / "images", target / "images")


def with_links(text: str, path: Path, target: Path) -> str:
    """The text of a file with its links as they are from the page; files are copied."""
    folder = path if path.is_dir() else path.parent

    def link(match: re.Match[str]) -> str:
        linked, anchor = (folder / match[1]).resolve(), match[2] or ""
        if linked in OUTSIDE:
            return f"](/{OUTSIDE[linked]}.md{anchor})"
        if linked == DOCS / "README.md":
            return f"](/index.md{anchor})"
        if linked == ROOT / "README.md":
            return "](/getting_started.md)"
        if linked.is_relative_to(TUTORIALS) and linked.suffix == ".py":
            return f"](/tutorials/{linked.stem}.ipynb{anchor})"
        if linked.is_relative_to(DOCS) and linked.suffix in (".md", ".png", ".svg"):
            return f"](/{linked.relative_to(DOCS)}{anchor})"
        if not linked.is_file():
            raise SystemExit(f"{path}: {match[1]} has no page and is no file to copy")
        write(target / "files" / linked.name, linked.read_text())
        return f"](/files/{linked.name})"

    parts = FENCE.split(text)
    return "".join(part if part.startswith("```") else LINK.sub(link, part) for part in parts)


def sections(start: str, target: Path) -> str:
    """Write a page for each section of the start page; the table of contents with all of them."""
    parts = SECTION.split(start)
    names = []
    for caption, text in zip(parts[1::2], parts[2::2], strict=True):
        pages = "\n".join(name.removesuffix(".md") for name, _ in LINK.findall(text))
        tree = f"```{{toctree}}\n:hidden:\n\n{pages}\n```\n"
        write(target / f"{caption.lower()}.md", f"# {caption}\n\n{text.strip(' :')}\n\n{tree}")
        names.append(caption.lower())
    return "\n```{toctree}\n:hidden:\n\n" + "\n".join(names) + "\n```\n"


def scripts_page() -> str:
    """A page with all scripts to copy."""
    parts = ["# Scripts to copy\n\nComplete programs, each with `--help`. The tests run them.\n"]
    for path in sorted(SCRIPTS.glob("*.py")):
        text = path.read_text()
        purpose = (ast.get_docstring(ast.parse(text)) or "").split("\n\n")[0]
        parts.append(f"## {path.stem}\n\n{purpose}\n\n```python\n{text.rstrip()}\n```\n")
    return "\n".join(parts)


def tutorials() -> Iterator[Path]:
    """The sources of the tutorials, in their order."""
    yield from sorted(TUTORIALS.glob("*.py"))


def executed(source: Path, cache: Path) -> Path:
    """The notebook of a tutorial with its outputs, kept until the tutorial changes."""
    text = source.read_text()
    kept = cache / f"{source.stem}-{hashlib.sha256(text.encode()).hexdigest()[:12]}.ipynb"
    if not kept.exists():
        print(f"running {source.name}", flush=True)
        for older in cache.glob(f"{source.stem}-*.ipynb"):
            older.unlink()
        notebook = jupytext.reads(text, fmt="py:percent")
        notebook.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3"}
        folder = cache / source.stem
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        resources = {"metadata": {"path": str(folder)}}
        # Cells of commands find the `tensormd` of this environment.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
        client = NotebookClient(notebook, timeout=600, resources=resources)
        client.execute(env=os.environ | {"PATH": path})
        write(kept, nbformat.writes(notebook))
        shutil.rmtree(folder)
    return kept


def write(path: Path, text: str) -> None:
    """Write a file and the folders above it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def main() -> None:
    """Build the site."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("-o", "--out", type=Path, default=ROOT / "build" / "site")
    parser.add_argument(
        "--tutorials", action="store_true", help="run the tutorials anew, and nothing else"
    )
    arguments = parser.parse_args()
    source = ROOT / "build" / "site-source"
    cache = ROOT / "build" / "tutorials"
    if arguments.tutorials:
        shutil.rmtree(cache, ignore_errors=True)
    notebooks = {path.stem: executed(path, cache) for path in tutorials()}
    if arguments.tutorials:
        return
    stage(source)
    for name, notebook in notebooks.items():
        write(source / "tutorials" / f"{name}.ipynb", notebook.read_text())
    command = ["-m", "sphinx", "-W", "--keep-going", "-q", "-E", "-b", "html", "-c", str(SITE)]
    environment = os.environ | {"PYTHONWARNINGS": "ignore::DeprecationWarning"}
    done = subprocess.run(
        [sys.executable, *command, str(source), str(arguments.out)], env=environment
    )
    if done.returncode:
        sys.exit(done.returncode)
    print(f"the site is {arguments.out / 'index.html'}")


if __name__ == "__main__":
    main()
