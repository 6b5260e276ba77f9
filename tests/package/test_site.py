"""What the documentation and the packages say about the program is what the program says."""

from __future__ import annotations

import ast
import importlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT

DOCS = ROOT / "docs"
SITE = DOCS / "site"
MESSAGE = re.compile(r"^### `(.+)`$", re.MULTILINE)
CONDA_NAMES = {
    "torch": "pytorch",
    "huggingface-hub": "huggingface_hub",
    "matplotlib": "matplotlib-base",
}


def test_generated_pages_are_those_of_the_program() -> None:
    code = "import generate, json; files = generate.generated().items(); "
    code += "print(json.dumps({str(path): text for path, text in files}))"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=SITE, capture_output=True, text=True, check=True
    )
    for name, text in json.loads(done.stdout).items():
        assert Path(name).read_text() == text, f"{name}: run python docs/site/generate.py"
        assert len(text) > 3000


def strings_of(source: str) -> Iterator[str]:
    """Every text of a source, with … for what is put in."""

    def text(node: ast.AST) -> str:
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            return node.value
        if isinstance(node, ast.JoinedStr):
            return "".join(map(text, node.values))
        if isinstance(node, ast.BinOp):
            return text(node.left) + text(node.right)
        return "…"

    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Constant | ast.JoinedStr | ast.BinOp):
            yield " ".join(text(node).replace("`", "").split())


def is_said(message: str, texts: set[str]) -> bool:
    """Whether a text holds all parts of a message in their order."""
    pattern = re.compile(".*".join(re.escape(p.strip()) for p in message.split("…")))
    return any(pattern.search(text) for text in texts)


def test_messages_with_a_remedy_are_messages_of_the_program() -> None:
    sources = [p for f in ("models", "calculators", "md_runs") for p in (ROOT / f).rglob("*.py")]
    texts = {text for path in sources for text in strings_of(path.read_text())}
    messages = MESSAGE.findall((DOCS / "faq.md").read_text())
    assert len(messages) >= 20
    assert [message for message in messages if not is_said(message, texts)] == []
    assert not is_said("the model does not know …: it was made of …", texts)


def test_the_picture_holds_every_folder_and_no_arrow_upwards(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.syspath_prepend(str(SITE))
    architecture = importlib.import_module("architecture")
    boxes = architecture.boxes_of()
    folders = {
        f"{layer}/{path.name}"
        for layer in architecture.LAYERS
        for path in (ROOT / layer).iterdir()
        if (path / "__init__.py").exists() and path.name != "pretrained"
    }
    assert folders <= set(boxes)
    arrows = architecture.arrows_of(boxes)
    assert ("calculators/ase", "calculators/evaluator") in arrows
    rank = {layer: k for k, layer in enumerate(architecture.LAYERS)}
    assert all(rank[a.split("/")[0]] <= rank[b.split("/")[0]] for a, b in arrows)
    chain = {("a", "b"), ("b", "c"), ("a", "c")}
    assert architecture.reduced(chain) == {("a", "b"), ("b", "c")}


def project() -> dict[str, Any]:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no tomllib")
    found: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return found


def test_all_files_name_one_version_and_one_licence() -> None:
    recipe = yaml.safe_load((ROOT / "conda.recipe" / "recipe.yaml").read_text())
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    version = project()["version"]
    assert recipe["context"]["version"] == citation["version"] == version
    assert project()["license"] == recipe["about"]["license"] == " AND ".join(citation["license"])
    titles = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert titles[:2] == ["Unreleased", version]
    numbers = [tuple(map(int, title.split("."))) for title in titles[1:]]
    assert numbers == sorted(numbers, reverse=True)


def test_the_conda_recipe_has_the_dependencies_of_the_wheel() -> None:
    recipe = yaml.safe_load((ROOT / "conda.recipe" / "recipe.yaml").read_text())
    python, *found = recipe["requirements"]["run"]
    assert python == f"python {project()['requires-python']}"
    expected = []
    for dependency in project()["dependencies"]:
        name, bound = re.fullmatch(r"([\w-]+)(.*)", dependency).groups()  # type: ignore[union-attr]
        expected.append(f"{CONDA_NAMES.get(name, name)} {bound}")
    assert found == expected


def test_issue_forms_have_what_github_asks_for() -> None:
    forms = [p for p in (ROOT / ".github" / "ISSUE_TEMPLATE").iterdir() if p.name != "config.yml"]
    assert len(forms) == 3
    for form in forms:
        content = yaml.safe_load(form.read_text())
        assert {"name", "description", "body"} <= content.keys()
        for part in content["body"]:
            assert part["type"] in ("textarea", "markdown")
            assert part["attributes"].get("label") or part["attributes"].get("value")
