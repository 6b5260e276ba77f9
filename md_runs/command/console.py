"""Lines for people on stderr, results on stdout."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any


def say(text: str) -> None:
    """A line for people; on stderr, so that stdout stays free for --json."""
    print(text, file=sys.stderr, flush=True)


def show_json(content: Any) -> None:
    """Machine-readable output on stdout."""
    print(json.dumps(content, indent=2, default=str))


def show_tree(content: Mapping[str, Any], indent: int = 0, width: int = 23) -> None:
    """Nested values in two columns on stdout."""
    for key, value in content.items():
        if isinstance(value, dict):
            print(f"{' ' * indent}{key}")
            show_tree(value, indent + 2, width)
        else:
            if isinstance(value, list):
                value = ", ".join(map(str, value))
            print(
                f"{' ' * indent}{key:{max(width - 1 - indent, 1)}} "
                f"{value if value is not None else '-'}"
            )


def show_files(files: Mapping[str, Any]) -> None:
    """The files that a command wrote, by what they hold."""
    for name, file in files.items():
        print(f"{name.replace('_', ' ') + ':':19}{file}")


def given_options(context: Any) -> dict[str, str]:
    """The parameters that were typed, each with the name that a user knows it by."""
    return {
        parameter.name: max(parameter.opts, key=len)
        if parameter.param_type_name == "option"
        else parameter.metavar or parameter.name.upper()
        for parameter in context.command.params
        if context.get_parameter_source(parameter.name).name == "COMMANDLINE"
    }
