"""The page of all public names: what the packages export and what the pages import."""

from __future__ import annotations

import ast
import importlib
import inspect
import re
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = ("tensormd.calculators", "tensormd.models")
BLOCK = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)

HEAD = """# Python API

Every public name: what `tensormd.calculators` and `tensormd.models` export, and what the pages of
this documentation import from other modules. `docs/site/generate.py` writes this page from the
docstrings; the site shows them whole. All other names may change without notice.

`import tensormd` has the names of the first two tables that most scripts need
(`tensormd.TensorNetCalculator`), and imports torch only when one is used.
"""


def public_names() -> dict[str, list[str]]:
    """Public names by the module that they are imported from."""
    found: dict[str, set[str]] = {name: set(_exported(name)) for name in PACKAGES}
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in BLOCK.findall(page.read_text()):
            for node in ast.walk(ast.parse(block)):
                module = str(getattr(node, "module", ""))
                if isinstance(node, ast.ImportFrom) and module.startswith("tensormd."):
                    found.setdefault(module, set()).update(alias.name for alias in node.names)
    return {module: sorted(names, key=str.lower) for module, names in sorted(found.items())}


def api_page() -> str:
    """Markdown with a table for each module."""
    parts = [HEAD]
    for module, names in public_names().items():
        rows = [f"| `{name}` | {_first_line(module, name)} |" for name in names]
        parts.append("\n".join([f"## {module}", "", "| name | |", "|---|---|", *rows, ""]))
    return "\n".join(parts)


def api_directives() -> str:
    """The page for Sphinx: the table of a module, and the docstrings of its names."""
    parts = [HEAD]
    for module, names in public_names().items():
        parts.append(f"## {module}\n\n```{{eval-rst}}\n.. py:currentmodule:: {module}\n")
        for name in names:
            thing = getattr(importlib.import_module(module), name)
            kind = "autoclass" if inspect.isclass(thing) else "autofunction"
            if not callable(thing):
                kind = "autodata"
            members = "\n   :members:" if inspect.isclass(thing) and _documented(thing) else ""
            parts.append(f".. {kind}:: {module}.{name}{members}\n")
        parts.append("```\n")
    return "\n".join(parts)


def _documented(thing: type) -> bool:
    """Whether a class has public methods or fields of its own to show."""
    return any(not name.startswith("_") for name in vars(thing))


def _exported(name: str) -> list[str]:
    module: ModuleType = importlib.import_module(name)
    return list(module.__all__)


def _first_line(module: str, name: str) -> str:
    thing: Any = getattr(importlib.import_module(module), name)
    text = (inspect.getdoc(thing) or "").split("\n\n")[0]
    return " ".join(text.split()).replace("|", r"\|")
