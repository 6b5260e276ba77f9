"""The page of every command and option, from the program itself."""

from __future__ import annotations

import importlib
from typing import Any

import typer

from tensormd.md_runs.command.main import COMMANDS

HEAD = """# All commands and options

This page is what `tensormd COMMAND --help` shows, written from the program by
`docs/site/generate.py`. What the options mean together is in [the command line](command_line.md).
"""
KINDS = {"int": "INTEGER", "float": "NUMBER", "Path": "PATH", "str": "TEXT"}
"""Words for the values of options, by the type that the program declares."""


def commands_page() -> str:
    """Markdown with a section for each command."""
    return "\n".join([HEAD, *(_section(name) for name in COMMANDS)])


def commands_of(name: str) -> dict[str, Any]:
    """The command of a module, or those that its first argument chooses, by their whole names."""
    module = importlib.import_module(f"tensormd.md_runs.command.{name}")
    actions = getattr(module, "ACTIONS", None)
    found = {}
    for function in actions or [getattr(module, name)]:
        alone = typer.Typer(add_completion=False)
        alone.command()(function)
        whole = f"{name} {function.__name__}" if actions else name
        found[whole] = typer.main.get_command(alone)
    return found


def _section(name: str) -> str:
    parts = [f"## {name}", COMMANDS[name]]
    for whole, command in commands_of(name).items():
        arguments = [each for each in command.params if each.param_type_name == "argument"]
        options = [
            each
            for each in command.params
            if each.param_type_name == "option" and each.name != "help"
        ]
        usage = " ".join(["tensormd", whole, *map(_argument, arguments), "[OPTIONS]"])
        parts.append(f"```\n{usage}\n```")
        text = " ".join(_plain(command.help or "").split())
        if text != COMMANDS[name]:
            parts.append(text)
        rows = [f"| `{_argument(each)}` | | {_plain(each.help or '')} |" for each in arguments]
        rows += [
            f"| `{_option(each)}` | {_default(each)} | {_plain(each.help or '')} |"
            for each in options
        ]
        if rows:
            parts.append("\n".join(["| | default | |", "|---|---|---|", *rows]))
    return "\n\n".join(parts) + "\n"


def _argument(parameter: Any) -> str:
    name = str(parameter.metavar or parameter.name).upper().removesuffix("...")
    name += "..." if parameter.nargs == -1 else ""
    return name if parameter.required else f"[{name}]"


def _option(parameter: Any) -> str:
    names = ", ".join(sorted([*parameter.opts, *parameter.secondary_opts], key=len))
    if parameter.is_flag:
        return names
    annotation = parameter.type_descriptor.annotation
    kind = next((word for word in KINDS if word in str(annotation)), "str")
    return f"{names} {parameter.metavar or KINDS[kind]}"


def _default(parameter: Any) -> str:
    value = parameter.default
    if isinstance(value, bool):
        return "yes" if value else ""
    if isinstance(value, list | tuple):
        value = ",".join(map(str, value))
    if isinstance(value, str | int | float) and value != "":
        return f"`{value}`"
    return "required" if parameter.required else ""


def _plain(text: str) -> str:
    return text.replace("|", r"\|").strip()
