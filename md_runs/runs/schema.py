"""YAML files read into dataclasses: messages name the line and the valid keys.

A section of the file is a dataclass of `models.options`, a key one of its fields.
"""

from __future__ import annotations

import contextlib
import difflib
import re
import typing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

from ...models.options import fields_of, section_type

T = TypeVar("T")

DEEPEST = 8
"""Levels of a file; an anchor that holds itself would have no end."""
# YAML 1.1 takes a number without a point, 1e-3, for a word.
_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|[-+]?\.?inf(inity)?$", re.I)
# Keys of a training, and those of a campaign.
_KEY = re.compile(
    r"\b(?:data|model|training|machine|output|structures|relax|md)\.[a-z_]+(?:\.[a-z_]+)?"
)
_TAG = "tag:yaml.org,2002:"
_PLAIN = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")


@dataclass(frozen=True)
class Place:
    """Source and line of a key or value, for messages."""

    source: str
    line: int
    """From 1; 0 where the source has no lines."""

    def __str__(self) -> str:
        return f"{self.source}, line {self.line}" if self.line else self.source


def read_config(cls: type[T], path: Path, changes: Sequence[str] = ()) -> T:
    """A file as an instance of a dataclass of sections.

    Parameters
    ----------
    cls
        The dataclass of the whole file.
    path
        YAML.
    changes
        ``section.key=value``, which replace what the file says; values are YAML too.

    Raises
    ------
    ValueError
        If it cannot be read, is no YAML, or has an unknown key, a key twice, or a value of a
        wrong type: with the line, and the valid keys.
    """
    return parse_config(cls, _text_of(path), str(path), changes)


def parse_config(cls: type[T], text: str, source: str, changes: Sequence[str] = ()) -> T:
    """Parse the text of a configuration; see `read_config`."""
    return typing.cast(T, _section(cls, _root(text, source, changes), ""))


@contextlib.contextmanager
def of_key(key: str) -> Iterator[None]:
    """Put a key in front of errors that name none: it is to blame for them."""
    try:
        yield
    except (ValueError, OSError) as error:
        if _KEY.search(str(error)):
            raise
        raise ValueError(f"{key}: {error}") from error


@contextlib.contextmanager
def naming_lines(path: Path, changes: Sequence[str] = ()) -> Iterator[None]:
    """Put the line of the file in front of errors that name a key, such as ``data.train``.

    Parameters
    ----------
    path, changes
        Arguments of `read_config`.

    Raises
    ------
    ValueError
        Instead of such an error, with the line of the key, or of the section that lacks it.
    """
    places = _places(_root(_text_of(path), str(path), changes))
    try:
        yield
    except ValueError as error:
        found = _KEY.search(str(error))
        if found is None:
            raise
        name = found.group()
        while name not in places:
            name = name.rpartition(".")[0]
        raise ValueError(f"{places[name]}: {error}") from error


def _text_of(path: Path) -> str:
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        place = Place(str(path), content[: error.start].count(b"\n") + 1)
        raise ValueError(f"{place}: it is no text: expected a YAML file") from None


def _root(text: str, source: str, changes: Sequence[str]) -> Any:
    """The node of a whole file, with changes."""
    root = _compose(text, source)
    if root is None:
        root = yaml.MappingNode(f"{_TAG}map", [])
        root.start_mark = yaml.Mark(source, 0, 0, 0, None, 0)
    for change in changes:
        _apply(root, change)
    return root


def _places(node: yaml.Node, path: str = "") -> dict[str, Place]:
    """Places of the keys by their full names, and of the file by an empty one."""
    found: dict[str, Place] = {} if path else {"": _place(node)}
    for name, value in node.value if isinstance(node, yaml.MappingNode) else ():
        full = f"{path}.{name.value}" if path else str(name.value)
        found[full] = _place(name)
        found |= _places(value, full)
    return found


def _compose(text: str, source: str) -> Any:
    try:
        root = yaml.compose(_Named(text, source), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, 0 if mark is None else mark.line + 1)
        raise ValueError(f"{place}: no YAML: {error.problem or error.context}") from None
    except yaml.reader.ReaderError as error:
        place = Place(source, text[: error.position].count("\n") + 1)
        raise ValueError(
            f"{place}: no YAML: the character {chr(error.character)!r} is not allowed"
        ) from None
    return root


class _Named:
    """Text as a stream, since a loader takes the name of its source from there."""

    def __init__(self, text: str, name: str) -> None:
        self._text: str | None = text
        self.name = name

    def read(self, size: int = -1) -> str:
        text, self._text = self._text or "", None
        return text


def _place(node: yaml.Node) -> Place:
    mark = node.start_mark
    return Place(mark.name, 0 if mark.name.startswith("--set") else mark.line + 1)


def _apply(root: yaml.Node, change: str) -> None:
    """Put the value of ``section.key=value`` where it belongs."""
    name, equals, text = change.partition("=")
    path = name.strip().split(".")
    if not equals or not all(path):
        raise ValueError(
            f"--set {change}: expected SECTION.KEY=VALUE, such as training.epochs=100"
        )
    where = f"--set {name.strip()}"
    value = _compose(text, where)
    if value is None:
        value = yaml.ScalarNode(f"{_TAG}null", "", yaml.Mark(where, 0, 0, 0, None, 0))
    node = root
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{_place(node)}: it is {_shown(node)}: expected a section of keys")
    for depth, part in enumerate(path):
        found = [k for k, (each, _) in enumerate(node.value) if each.value == part]
        if depth == len(path) - 1:
            name_node = yaml.ScalarNode(f"{_TAG}str", part, value.start_mark)
            node.value = [each for k, each in enumerate(node.value) if k not in found]
            node.value.append((name_node, value))
            return
        if not found:
            child = yaml.MappingNode(f"{_TAG}map", [], value.start_mark)
            node.value.append((yaml.ScalarNode(f"{_TAG}str", part, value.start_mark), child))
            found = [-1]
        child = node.value[found[0]][1]
        if not isinstance(child, yaml.MappingNode):
            raise ValueError(f"{where}: {'.'.join(path[: depth + 1])} is no section")
        node = child


def _section(cls: type, node: yaml.Node, path: str) -> Any:
    """An instance of a section from its node; ``path`` is its name with a point behind it."""
    what = f"{path.rstrip('.')} is" if path else "it is"
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null" and path:
        node = yaml.MappingNode(f"{_TAG}map", [], node.start_mark, node.end_mark)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{_place(node)}: {what} {_shown(node)}: expected a section of keys")
    fields = fields_of(cls)
    values: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for name_node, value in node.value:
        name, place = str(name_node.value), _place(name_node)
        if name not in fields:
            raise ValueError(f"{place}: unknown key {path}{name}{_nearest(name, fields)}")
        if name in places:
            raise ValueError(
                f"{place}: {path}{name} is given twice, in line {places[name].line} too: "
                "expected once"
            )
        places[name] = place
        inner = section_type(fields[name].annotation)
        if inner is not None:
            values[name] = _section(inner, value, f"{path}{name}.")
            continue
        values[name] = _plain(value, f"{path}{name}")
        if isinstance(value, yaml.MappingNode):
            places |= {f"{name}.{key.value}": _place(each) for key, each in value.value}
    for name, field in fields.items():
        inner = section_type(field.annotation)
        if inner is not None and field.is_required() and name not in values:
            empty = yaml.MappingNode(f"{_TAG}map", [], node.start_mark, node.end_mark)
            values[name] = _section(inner, empty, f"{path}{name}.")
    try:
        return cls(**values)
    except ValueError as error:
        # The message of a section begins with the key that is wrong.
        wrong = str(error).split(" ", 1)[0].rstrip(":")
        key = wrong.split(".")[0]
        place = places.get(wrong) or places.get(key) or _place(node)
        raise ValueError(f"{place}: {path if key in fields else ''}{error}") from None


def _nearest(name: str, valid: Iterable[str]) -> str:
    close = difflib.get_close_matches(name.lower(), valid, 1, 0.6)
    hint = f", did you mean {close[0]}" if close else ""
    return f"{hint}? Valid are {', '.join(valid)}" if hint else f": valid are {', '.join(valid)}"


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value) if node.value else "empty"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a section"


def _plain(node: yaml.Node, name: str, depth: int = 0) -> Any:
    """The value of a node, of the type that YAML gives it."""
    place, tag = _place(node), node.tag.removeprefix(_TAG)
    if depth > DEEPEST:
        raise ValueError(f"{place}: {name} has more than {DEEPEST} levels: expected fewer")
    if tag not in _PLAIN:
        raise ValueError(f"{place}: {name} has the tag {tag}: expected plain YAML")
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each, name, depth + 1) for each in node.value]
    if isinstance(node, yaml.MappingNode):
        found: dict[str, Any] = {}
        for key, value in node.value:
            if not isinstance(key, yaml.ScalarNode):
                raise ValueError(f"{_place(key)}: {name} has a key that is no word")
            inner = name if depth else f"{name}.{key.value}"
            if key.value in found:
                raise ValueError(
                    f"{_place(key)}: {name}.{key.value} is given twice: expected once"
                )
            found[key.value] = _plain(value, inner, depth + 1)
        return found
    text = str(node.value)
    if isinstance(node, yaml.ScalarNode) and node.style in ("'", '"'):
        return text
    if tag == "null":
        return None
    if tag == "bool":
        return text.lower() in ("true", "yes", "on")
    if tag == "int" and re.fullmatch(r"[-+]?\d[\d_]*", text):
        return int(text.replace("_", ""))
    if tag in ("int", "float", "str") and _NUMBER.match(text):
        return float(text.replace("_", "").replace(".inf", "inf").replace(".Inf", "inf"))
    return text
