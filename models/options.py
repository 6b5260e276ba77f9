"""Options that are validated when they are set: dataclasses whose fields declare their limits.

Values are not converted: a string is not a number, and true is not 1. Error messages,
documentation and examples are generated from the descriptions and limits of the fields.
"""

from __future__ import annotations

import dataclasses
import functools
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

from annotated_types import Ge, Gt, Le, Lt
from pydantic import ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

T = TypeVar("T")

STRICT = ConfigDict(strict=True, extra="forbid")
"""Configuration of pydantic dataclasses that use `one_line_errors`."""


def option(text: str, default: Any = ..., unit: str = "", **limits: Any) -> Any:
    """Field of an options dataclass.

    Parameters
    ----------
    text
        Description, one line.
    default
        Default value; without one, and without a ``default_factory``, the option is required.
    unit
        Unit of its values.
    **limits
        Arguments of pydantic's ``Field``: ``ge``, ``gt``, ``le``, ``lt``, ``default_factory``.
    """
    if "default_factory" not in limits:
        limits["default"] = default
    return Field(description=text, json_schema_extra={"unit": unit}, **limits)


def one_line_errors(cls: type[T]) -> type[T]:
    """Make a pydantic dataclass report a wrong field, its value and what was expected."""
    init = cls.__init__

    @functools.wraps(init)
    def checking(self: T, *args: Any, **kwargs: Any) -> None:
        try:
            init(self, *args, **kwargs)
        except ValidationError as error:
            given = dict(zip(fields_of(cls), args, strict=False)) | kwargs
            raise ValueError(_complaint(cls, given, error)) from None

    cls.__init__ = checking  # type: ignore[method-assign, assignment]
    return cls


def fields_of(cls: type) -> dict[str, FieldInfo]:
    """The fields of a pydantic dataclass by name."""
    return typing.cast(dict[str, FieldInfo], cls.__pydantic_fields__)  # type: ignore[attr-defined]


def _complaint(cls: type, given: Mapping[str, Any], error: ValidationError) -> str:
    first = error.errors()[0]
    if not first["loc"]:  # raised by __post_init__, which names the field
        return str(first["ctx"]["error"])
    name = str(first["loc"][0])
    field = fields_of(cls).get(name)
    if field is None:
        return f"{name} is not an option: expected one of {', '.join(fields_of(cls))}"
    if first["type"] == "missing":
        return f"{name} is missing: expected a value"
    value, kind = given[name], field.annotation
    if isinstance(value, dict):
        for each in error.errors():
            key = each["loc"][-1]
            if len(each["loc"]) > 1 and key in value:
                found = [k for k in parts_of(kind) if typing.get_origin(k) is dict]
                inner = typing.get_args(found[0])[1]
                return f"{name}.{key} is {_shown(value[key])}: expected {type_text(inner)}"
    return f"{name} is {_shown(value)}: expected {_expected(field, first['type'])}"


def _expected(field: FieldInfo, problem: str) -> str:
    if problem == "literal_error":
        choices: list[str] = []
        for part in parts_of(field.annotation):
            literal = typing.get_origin(part) is typing.Literal
            choices += map(repr, typing.get_args(part)) if literal else [type_text(part)]
        return f"one of {', '.join(choices)}"
    if problem.startswith(("greater_than", "less_than")):
        return ", ".join(filter(None, map(_limit_text, field.metadata)))
    return type_text(field.annotation)


def _limit_text(limit: Any) -> str:
    match limit:
        case Ge(ge=least):
            return f"{least} or more"
        case Gt(gt=least):
            return f"more than {least}"
        case Le(le=most):
            return f"at most {most}"
        case Lt(lt=most):
            return f"less than {most}"
    return ""


def _shown(value: Any) -> str:
    return "empty" if value is None else repr(value)


def parts_of(kind: Any) -> tuple[Any, ...]:
    """The types of a union, or the type itself."""
    union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    return typing.get_args(kind) if union else (kind,)


def section_type(kind: Any) -> type | None:
    """The dataclass in a type such as ``Section`` or ``Section | None``, or None."""
    return next((part for part in parts_of(kind) if dataclasses.is_dataclass(part)), None)  # type: ignore[return-value]


_NAMES = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a word",
    type(None): "null",
    Any: "anything",
}


def type_text(kind: Any) -> str:
    """Name of a type in messages and in the documentation."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    parts = parts_of(kind)
    if origin is typing.Literal:
        parts = tuple(type(value) for value in arguments)
    if len(parts) > 1 or origin is typing.Literal:
        *others, last = dict.fromkeys(map(type_text, parts))
        return f"{', '.join(others)} or {last}" if others else last
    if origin in (dict, Mapping):
        return "a section"
    if origin in (list, tuple, Sequence):
        plural = type_text(arguments[0]).removeprefix("a ").replace("a section", "sections")
        plural = plural.replace("number", "numbers").replace("word", "words")
        return f"a list of {plural}"
    return _NAMES.get(kind, str(kind))
