"""YAML files read into dataclasses: what is wrong is said with its line and the valid keys.

A section of the file is a dataclass, a key one of its fields, and the type of the field says what
values it takes. `about` gives a field its unit and its description, from which documentation and
examples are made.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml

T = TypeVar("T")

DEEPEST = 8
"""Levels of a file; an anchor that holds itself would have no end."""
# YAML 1.1 takes a number without a point, 1e-3, for a word.
_NUMBER = re.compile(r"[-+]?(\d[\d_]*(\.\d*)?|\.\d+)([eE][-+]?\d+)?$|[-+]?\.?inf(inity)?$", re.I)
_TAG = "tag:yaml.org,2002:"
_PLAIN = ("map", "seq", "str", "int", "float", "bool", "null", "timestamp")


def about(text: str, unit: str = "") -> dict[str, str]:
    """What the metadata of a field say: one line of description, and its unit."""
    return {"text": text, "unit": unit}


@dataclass(frozen=True)
class Place:
    """Where something stands, for messages."""

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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file") from None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is no text: expected a YAML file") from None
    except OSError as error:
        raise ValueError(f"cannot read {path}: {error.strerror or error}") from error
    return parse_config(cls, text, str(path), changes)


def parse_config(cls: type[T], text: str, source: str, changes: Sequence[str] = ()) -> T:
    """The same of the text of a file; see `read_config`."""
    root = _compose(text, source)
    if root is None:
        root = yaml.MappingNode(f"{_TAG}map", [])
        root.start_mark = yaml.Mark(source, 0, 0, 0, None, 0)
    for change in changes:
        _apply(root, change)
    return typing.cast(T, _section(cls, root, ""))


def _compose(text: str, source: str) -> Any:
    try:
        root = yaml.compose(_Named(text, source), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        place = Place(source, 0 if mark is None else mark.line + 1)
        raise ValueError(f"{place}: no YAML: {error.problem or error.context}") from None
    except yaml.YAMLError as error:
        raise ValueError(f"{source} is no YAML: {error}") from None
    return root


def _check_tag(node: yaml.Node, name: str) -> None:
    tag = node.tag.removeprefix(_TAG)
    if tag not in _PLAIN:
        raise ValueError(f"{_place(node)}: {name} has the tag {tag}: expected plain YAML")


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


def fields_of(cls: type) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """Fields of a section that a file may give, and their types."""
    hints = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        if field.init:
            yield field, hints[field.name]


def section_type(kind: Any) -> type | None:
    """The dataclass in a type that is a section, or a section or nothing."""
    parts = typing.get_args(kind) if _is_union(kind) else (kind,)
    found = [part for part in parts if dataclasses.is_dataclass(part)]
    return typing.cast(type, found[0]) if found else None


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (typing.Union, types.UnionType)


def _section(cls: type, node: yaml.Node, path: str) -> Any:
    """An instance of a section from its node; ``path`` is its name with a point behind it."""
    what = f"{path.rstrip('.')} is" if path else "it is"
    if isinstance(node, yaml.ScalarNode) and node.tag == f"{_TAG}null" and path:
        node = yaml.MappingNode(f"{_TAG}map", [], node.start_mark, node.end_mark)
    if not isinstance(node, yaml.MappingNode):
        raise ValueError(f"{_place(node)}: {what} {_shown(node)}: expected a section of keys")
    kinds = {field.name: kind for field, kind in fields_of(cls)}
    values: dict[str, Any] = {}
    places: dict[str, Place] = {}
    for name_node, value in node.value:
        name = str(name_node.value)
        place = _place(name_node)
        if name not in kinds:
            raise ValueError(f"{place}: unknown key {path}{name}{_nearest(name, kinds)}")
        if name in places:
            raise ValueError(
                f"{place}: {path}{name} is given twice, in line {places[name].line} too: "
                "expected once"
            )
        places[name] = place
        inner = section_type(kinds[name])
        if inner is not None:
            values[name] = _section(inner, value, f"{path}{name}.")
        else:
            values[name] = _value(kinds[name], value, f"{path}{name}")
    for field, _ in fields_of(cls):
        required = field.default is MISSING and field.default_factory is MISSING
        if required and field.name not in values:
            inner = section_type(kinds[field.name])
            if inner is not None:
                empty = yaml.MappingNode(f"{_TAG}map", [], node.start_mark, node.end_mark)
                values[field.name] = _section(inner, empty, f"{path}{field.name}.")
                continue
            raise ValueError(f"{_place(node)}: {path}{field.name} is missing: expected a value")
    try:
        return cls(**values)
    except ValueError as error:
        # The message of a section begins with the key that is wrong.
        wrong = str(error).split(" ", 1)[0].rstrip(":")
        place = places.get(wrong.split(".")[0], _place(node))
        prefix = path if wrong.split(".")[0] in kinds else ""
        raise ValueError(f"{place}: {prefix}{error}") from None


def _nearest(name: str, kinds: Mapping[str, Any]) -> str:
    close = difflib.get_close_matches(name.lower(), kinds, 1, 0.6)
    hint = f", did you mean {close[0]}" if close else ""
    return f"{hint}? Valid are {', '.join(kinds)}" if hint else f": valid are {', '.join(kinds)}"


def _shown(node: yaml.Node) -> str:
    if isinstance(node, yaml.ScalarNode):
        return repr(node.value) if node.value else "empty"
    return "a list" if isinstance(node, yaml.SequenceNode) else "a section"


def _value(kind: Any, node: yaml.Node, name: str) -> Any:
    """What a node says, as a value of a type."""
    _check_tag(node, name)
    options = typing.get_args(kind) if _is_union(kind) else (kind,)
    for option in options:
        try:
            return _as(option, node, name)
        except _MismatchError:
            continue
    raise ValueError(f"{_place(node)}: {name} is {_shown(node)}: expected {type_text(kind)}")


class _MismatchError(Exception):
    """A node is no value of a type."""


def _as(kind: Any, node: yaml.Node, name: str) -> Any:
    origin = typing.get_origin(kind)
    if origin in (list, tuple, Sequence):
        if not isinstance(node, yaml.SequenceNode):
            raise _MismatchError
        inner = typing.get_args(kind)[0]
        return [_as(inner, each, name) for each in node.value]
    if origin in (dict, Mapping) or kind is dict:
        if not isinstance(node, yaml.MappingNode):
            raise _MismatchError
        inner = typing.get_args(kind)[1]
        return _mapping(inner, node, name)
    if kind is Any:
        return _plain(node, name)
    if not isinstance(node, yaml.ScalarNode):
        raise _MismatchError
    return _scalar(kind, node)


def _mapping(kind: Any, node: yaml.MappingNode, name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for each, value in node.value:
        if not isinstance(each, yaml.ScalarNode):
            raise ValueError(f"{_place(each)}: {name} has a key that is no word")
        if each.value in found:
            raise ValueError(f"{_place(each)}: {name}.{each.value} is given twice: expected once")
        found[each.value] = _value(kind, value, f"{name}.{each.value}")
    return found


def _plain(node: yaml.Node, name: str, depth: int = 0) -> Any:
    if depth > DEEPEST:
        raise ValueError(f"{_place(node)}: {name} has more than {DEEPEST} levels: expected fewer")
    _check_tag(node, name)
    if isinstance(node, yaml.MappingNode):
        return {str(k.value): _plain(v, name, depth + 1) for k, v in node.value}
    if isinstance(node, yaml.SequenceNode):
        return [_plain(each, name, depth + 1) for each in node.value]
    for kind in (type(None), bool, int, float, str):
        try:
            return _scalar(kind, node)  # type: ignore[arg-type]
        except _MismatchError:
            continue
    return node.value


def _scalar(kind: Any, node: yaml.ScalarNode) -> Any:
    tag, text = node.tag.removeprefix(_TAG), node.value
    quoted = node.style in ("'", '"')
    if kind is type(None) and tag == "null":
        return None
    if kind is bool and tag == "bool":
        return text.lower() in ("true", "yes", "on")
    if kind is int and tag == "int" and re.fullmatch(r"[-+]?\d[\d_]*", text):
        return int(text.replace("_", ""))
    if kind is float and not quoted and tag in ("int", "float", "str") and _NUMBER.match(text):
        return float(text.replace("_", "").replace(".inf", "inf").replace(".Inf", "inf"))
    if kind is str and (quoted or tag in ("str", "timestamp")):
        return text
    raise _MismatchError


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}


def type_text(kind: Any) -> str:
    """What a type is called in messages and in the documentation."""
    if _is_union(kind):
        *others, last = dict.fromkeys(type_text(part) for part in typing.get_args(kind))
        return f"{', '.join(others)} or {last}" if others else last
    if kind is type(None):
        return "null"
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin in (dict, Mapping) or kind is dict or kind is Any:
        return "a section" if kind is not Any else "anything"
    if origin is not None and arguments:
        inner = type_text(arguments[0])
        plural = inner.removeprefix("a ").replace("number", "numbers").replace("word", "words")
        return f"a list of {plural}"
    return _NAMES.get(kind, str(kind))
