"""Damaged training configurations: bytes, lines, values and keys changed; one per seed."""

from __future__ import annotations

import random
import re

from support.mutations import cut_end, cut_line, flip, mutated

_SMALL = b"""# A small TensorNet
data:
  train: frames.extxyz
  split: [4, 2]
model:
  tensornet:
    channels: 4
    layers: 1
    radial_functions: 4
    cutoff: 3.0
    max_number: 10
training:
  epochs: 6
  batch: 2
  loss: norm
  learning_rate: 1e-3
  largest_gradient: .inf
machine: {threads: 1, device: cpu}
"""
_TDN = b"""data:
  train: [frames.extxyz, "more frames.extxyz"]
  validation: frames.extxyz
  test:
    - frames.extxyz@:2
  format: extxyz
  units: {energy: eV, length: angstrom}
  keys: {energy: energy, forces: forces, stress: null}
  limit: 5
  limit_seed: 3
model:
  architecture: tdn
  repulsion_cutoff: 2.0
  elements: [H, O]
  references: {H: -13.6, O: -2041.3}
  tdn: {channels: 4, layers: 1, lmax: 1, radial_functions: 4, radial_widths: [6], cutoff: 3.0}
training:
  epochs: 3
  batch: 3
  keep_last_batch: true
  schedule: plateau
  plateau_factor: 0.5
  energy_weight: 1.0
  force_weight: 10
  keep: best
  compile: auto
  dtype: float64
output:
  folder: out
  metadata: {name: test, licence: CC0, authors: [a, b]}
machine:
  device: cpu
"""
_FURTHER = b"""data: {train: frames.extxyz, split: [0.5, 0.3], split_seed: 7}
model:
  start_from: tiny.safetensors
  refit: [H, O]
  properties: [dipole]
training:
  epochs: 1
  batch: 1
  dipole_weight: 2.0
  compile: false
output: {torchmdnet_ckpt: false}
machine: {device: cpu}
"""
FILES = {"small.yaml": _SMALL, "tdn.yaml": _TDN, "further.yaml": _FURTHER}
VALUES = [
    *(
        "true",
        "null",
        "",
        "~",
        "''",
        "word",
        "two words",
        "-1",
        "0",
        "1.5",
        "-0.5",
        ".nan",
        ".inf",
    ),
    *("1e400", "010", "0x10", "1_0", "1:30", "2020-01-01", "10000000000000000", "9" * 30),
    *("[]", "[1, 2]", "[1, [2]]", "[word, 1]", "[true]", "[-1, 2.5]", "[null]", "{}", "{a: 1}"),
    *("{a: {b: c}}", "{1: 2}", "{[1]: 2}", "{true: x}", "!!python/object:os.system x", "!a b"),
    *("*a", "&a [*a]", "&a {b: *a}", "|", ">", '"', "'", "[", "{", "]", "- 1", "? x", "@", "%x"),
    *("a: b", "no.extxyz", "frames.extxyz@9", "frames.extxyz@x", "tdn", "tensornet", "Xx", "cuda"),
    *("qm9", "./", "/dev/null", "small.yaml", "tiny.safetensors", "\\u00e9", "# only a comment"),
]


def _value(lines: list[bytes], k: int, rng: random.Random) -> None:
    """A value becomes another one, mostly of a wrong type."""
    pairs = list(re.finditer(rb"(?<=: )[^,{}\[\]\n]+|(?<=: )[\[{].*?[\]}]", lines[k]))
    new = rng.choice(VALUES).encode()
    if pairs:
        pair = rng.choice(pairs)
        lines[k] = lines[k][: pair.start()] + new + lines[k][pair.end() :]
    else:
        lines[k] = lines[k].rstrip(b"\n") + b" " + new + b"\n"


def _indent(lines: list[bytes], k: int, rng: random.Random) -> None:
    bare = lines[k].lstrip(b" ")
    width = len(lines[k]) - len(bare)
    blank = rng.choice([b" " * rng.choice([w for w in range(7) if w != width]), b"\t"])
    lines[k] = blank + bare


def _double(lines: list[bytes], k: int, rng: random.Random) -> None:
    lines.insert(rng.randrange(len(lines)), lines[k])


def _key(lines: list[bytes], k: int, rng: random.Random) -> None:
    """A key becomes an unknown one, or that of another line."""
    keys = [m for line in lines for m in re.findall(rb"(\w+):", line)]
    found = list(re.finditer(rb"\w+(?=:)", lines[k]))
    if found:
        word = rng.choice(found)
        new = rng.choice([word.group()[:-1], word.group() + b"s", word.group().upper(), b"1", b"",
                          rng.choice(keys)])  # fmt: skip
        lines[k] = lines[k][: word.start()] + new + lines[k][word.end() :]


def mutated_config(seed: int) -> tuple[str, bytes, str]:
    """Name and content of a damaged configuration, and what was done to it."""
    actions = (flip, cut_line, cut_end, _value, _value, _value, _indent, _double, _key)
    return mutated(FILES, actions, seed)
