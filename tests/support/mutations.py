"""Damage to lines of a file, and a file damaged by a seed."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence

Action = Callable[[list[bytes], int, random.Random], None]
"""Changes a list of lines in place, at a line that is not empty."""


def mutated(
    files: Mapping[str, bytes], actions: Sequence[Action], seed: int
) -> tuple[str, bytes, str]:
    """Name and content of a damaged file, and what was done to it."""
    rng = random.Random(seed)
    names = list(files)
    name = names[seed % len(names)]
    lines = files[name].splitlines(keepends=True)
    done = []
    for _ in range(rng.choice((1, 1, 1, 2))):
        if not any(lines):
            break
        action = rng.choice(actions)
        k = rng.choice([k for k, line in enumerate(lines) if line])
        done.append(f"{action.__name__.lstrip('_')} {k + 1}")
        action(lines, k, rng)
    return name, b"".join(lines), ", ".join(done)


def flip(lines: list[bytes], k: int, rng: random.Random) -> None:
    at = rng.randrange(len(lines[k]))
    new = bytes([rng.choice([rng.randrange(256), rng.randrange(32, 127)])])
    lines[k] = lines[k][:at] + new + lines[k][at + 1 :]


def cut_line(lines: list[bytes], k: int, rng: random.Random) -> None:
    if len(lines) > 1:
        del lines[k]


def cut_end(lines: list[bytes], k: int, rng: random.Random) -> None:
    """A line loses its end, or the file all that follows."""
    lines[k] = lines[k][: rng.randrange(len(lines[k]))]
    if rng.random() < 0.5:
        lines[k] += b"\n"
    else:
        del lines[k + 1 :]
