"""Imports run one way, md_runs -> calculators -> models, at the top of files, without circles."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import pytest
from support.paths import ROOT

FOLDERS = ("models", "calculators", "md_runs")
"""From the lowest to the highest: each may import itself and those before it."""

LAZY = {
    "models.inference.kernels.__init__": "Numba and Triton are optional",
    "models.training.kernels.__init__": "Numba is optional",
    "calculators.openmmml": "openmm-ml imports it in every process, also where torch is broken",
    "md_runs.command.doctor": "Numba is optional, and doctor tells whether it is there",
}
"""Modules that may import the package inside functions, with the reason. The table of commands in
``md_runs.command.main`` imports by name."""

CIRCLES: dict[frozenset[str], str] = {}
"""Circles that may stay, with the reason."""

# To be emptied: modules that import the package inside functions and are being changed.
BEING_CHANGED: set[str] = set()


class Import(NamedTuple):
    """One module of the package that another one imports."""

    importer: str
    target: str
    line: int
    in_function: bool

    def __str__(self) -> str:
        return f"{self.importer}:{self.line} imports {self.target}"


def read_sources(root: Path) -> dict[str, str]:
    """Sources by the dotted names of their modules; a package has the name of its folder."""
    found = {}
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root).with_suffix("").parts
            found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path.read_text()
    packages = {name.rpartition(".")[0] for name in found}
    return {f"{name}.__init__" if name in packages else name: s for name, s in found.items()}


def imports_of(sources: Mapping[str, str], names: Collection[str] | None = None) -> list[Import]:
    """All imports within the package, or those of some modules: hidden ones too."""
    return [
        Import(name, target, node.lineno, in_function)
        for name in (sources if names is None else names)
        for node, in_function in _import_nodes(ast.parse(sources[name]), False)
        for target in sorted(_targets(name, node, sources))
    ]


def _import_nodes(
    node: ast.AST, in_function: bool
) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield node, in_function
    inside = in_function or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    for child in ast.iter_child_nodes(node):
        yield from _import_nodes(child, inside)


def _targets(
    importer: str, node: ast.Import | ast.ImportFrom, sources: Mapping[str, str]
) -> set[str]:
    """Modules that the statement executes, packages around the importer left out."""
    package = importer.split(".")[:-1]
    if isinstance(node, ast.Import):
        named = [alias.name.removeprefix("tensormd.") for alias in node.names]
    else:
        base = package[: len(package) - node.level + 1] if node.level else []
        whole = [*base, *(node.module.split(".") if node.module else [])]
        start = ".".join(whole).removeprefix("tensormd.")
        named = [f"{start}.{alias.name}" for alias in node.names]
    found = set()
    for name in named:
        parts = name.split(".")
        for size in range(1, len(parts) + 1):
            module = ".".join(parts[:size])
            for each in (module, f"{module}.__init__"):
                around = each.endswith(".__init__") and parts[:size] == package[:size]
                # What a package's own __init__ has is asked of it by name.
                asked = size == len(parts) - 1 and not _is_module(name, sources)
                if each in sources and each != importer and (asked or not around):
                    found.add(each)
    return found


def _is_module(name: str, sources: Mapping[str, str]) -> bool:
    return name in sources or f"{name}.__init__" in sources


def against_the_direction(imports: list[Import]) -> list[Import]:
    """Imports of a higher folder."""
    rank = {folder: k for k, folder in enumerate(FOLDERS)}
    return [
        each
        for each in imports
        if rank[each.importer.split(".")[0]] < rank[each.target.split(".")[0]]
    ]


def circles(imports: list[Import]) -> list[frozenset[str]]:
    """Sets of modules that import one another, directly or not."""
    reached: dict[str, set[str]] = {}
    for each in imports:
        reached.setdefault(each.importer, set()).add(each.target)
    changed = True
    while changed:
        changed = False
        for targets in reached.values():
            further = set().union(*(reached.get(target, set()) for target in targets))
            changed |= not further <= targets
            targets |= further
    found = {
        frozenset(other for other in targets if name in reached.get(other, set()))
        for name, targets in reached.items()
        if name in targets
    }
    return sorted(found, key=sorted)


def in_functions(imports: list[Import]) -> list[Import]:
    """Imports of the package that stand inside functions."""
    return [each for each in imports if each.in_function]


@pytest.fixture(scope="module")
def imports() -> list[Import]:
    return imports_of(read_sources(ROOT))


def test_imports_run_one_way(imports: list[Import]) -> None:
    found = against_the_direction(imports)
    assert not found, "\n".join(map(str, found))


def test_there_is_no_circle(imports: list[Import]) -> None:
    found = [circle for circle in circles(imports) if circle not in CIRCLES]
    assert not found, "\n".join(" <-> ".join(sorted(circle)) for circle in found)
    assert set(CIRCLES) <= set(circles(imports)), "a listed circle is gone: take it off the list"


def test_imports_stand_at_the_top(imports: list[Import]) -> None:
    lazy = in_functions(imports)
    found = [e for e in lazy if e.importer not in LAZY and e.importer not in BEING_CHANGED]
    assert not found, "\n".join(map(str, found))
    assert set(LAZY) <= {e.importer for e in lazy}, (
        "a listed module has none: take it off the list"
    )


def test_only_the_registry_and_kernels_name_networks(imports: list[Import]) -> None:
    """Whoever else asks for a class of network would have to be changed for every new one."""
    networks = {f"models.networks.{name}" for name in ("tensornet", "tensornet2", "qet", "tdn")}
    found = {each.importer for each in imports if each.target in networks}
    may = {
        "models.__init__": "public names",
        "models.networks.__init__": "the registry",
        "models.pretrained.train_ethanol": "a script that trains these two",
        "models.networks.tensornet2": "a network made of another's layers",
        "models.networks.qet": "a network that contains another",
    }
    assert {name for name in found if ".kernels." not in name} <= set(may)


def test_each_violation_is_seen(imports: list[Import]) -> None:
    """The control: sources with one violation each, and sources with none."""
    sources = read_sources(ROOT)
    assert len(imports) > 500  # the sources are found at all

    def changed(name: str, text: str) -> list[Import]:
        others = [each for each in imports if each.importer != name]
        return others + imports_of(sources | {name: sources[name] + text}, [name])

    upwards = changed("models.graph", "\nimport tensormd.calculators.ase\n")
    assert {e.target for e in against_the_direction(upwards)} == {
        "calculators.__init__",
        "calculators.ase",
    }
    for text in (
        "\nfrom .cp import factors_for\n",
        "\ndef f():\n    from .cp import factors_for\n",
        "\nif TYPE_CHECKING:\n    from . import cp\n",
        "\nfrom ...models.maths.cp import factors_for\n",
    ):
        found = circles(changed("models.maths.cp_als", text))
        assert frozenset({"models.maths.cp", "models.maths.cp_als"}) in found
    inside = changed("models.units", "\nclass A:\n    def f(self):\n        from . import graph\n")
    assert {e.importer for e in in_functions(inside)} - {e.importer for e in in_functions(imports)}
