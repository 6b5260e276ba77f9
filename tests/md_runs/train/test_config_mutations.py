"""Damaged configurations: accepted, or refused in one line that holds the number of a line.

``TENSORMD_MUTATIONS=1000`` tries 1000 mutations instead of 200.
"""

from __future__ import annotations

import os
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from ase.build import molecule
from ase.calculators.singlepoint import SinglePointCalculator
from support.md_runs import run, write_tiny_potential
from support.mutated_configs import FILES, mutated_config
from support.train_runs import write_frames

MUTATIONS = int(os.environ.get("TENSORMD_MUTATIONS", "200"))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with everything that the configurations name."""
    folder = tmp_path_factory.mktemp("data")
    frames = []
    for k in range(8):
        atoms = molecule("H2O")
        atoms.rattle(0.05, rng=np.random.default_rng(k))
        atoms.calc = SinglePointCalculator(
            atoms,
            energy=-2068.0 + 0.1 * k,
            forces=np.full((3, 3), 0.1 * k),
            dipole=[0, 0.1 * k, 0.2],
        )
        frames.append(atoms)
    write_frames(folder / "frames.extxyz", frames)
    write_frames(folder / "more frames.extxyz", frames[:3])
    write_tiny_potential(folder / "tiny.safetensors")
    return folder


def dry_run(path: Path, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit code and error message."""
    code = run("train", path.name, "--dry-run", "--json")
    return code, capsys.readouterr().err


@pytest.mark.parametrize("name", FILES)
def test_what_is_damaged_was_valid(
    name: str, data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    (data / name).write_bytes(FILES[name])
    assert dry_run(data / name, capsys) == (0, "")


def test_damage_is_found_in_its_line(
    data: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(data)
    outcomes: Counter[str] = Counter()
    for seed in range(MUTATIONS):
        name, content, done = mutated_config(seed)
        (data / "c.yaml").write_bytes(content)
        what = f"seed {seed}, {name}: {done}"
        try:
            code, said = dry_run(data / "c.yaml", capsys)
        except Exception as error:
            pytest.fail(f"{what}: {type(error).__name__}: {error}")
        outcomes[{0: "accepted", 2: "refused"}.get(code, f"code {code}")] += 1
        if code == 0:
            continue
        assert code == 2, what
        assert said.count("\n") == 1, (what, said)
        line = re.match(r"tensormd: c\.yaml, line (\d+): ", said)
        assert line is not None, (what, said)
        assert 1 <= int(line.group(1)) <= content.count(b"\n") + 1, (what, said)
    print(dict(outcomes))
    assert outcomes["refused"] > MUTATIONS / 2
    assert outcomes["accepted"] > MUTATIONS / 20


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ((b"train: frames", b"train: no"), r"line 3: data.train: no.extxyz: no such file"),
        ((b"[4, 2]", b"[40, 2]"), r"line 4: data.split: 8 frames cannot be split"),
        ((b"batch: 2", b"batch: 7"), r"line 14: 4 training frames are fewer than training.batch"),
        ((b"layers: 1", b"layers: -1"), r"line 6: model.tensornet: layers is -1: expected 0 to"),
        ((b"layers: 1", b"layers: 1000000000000"), r"line 6: .* layers is 10+: expected 0 to"),
        ((b"device: cpu", b"device: abacus"), r"line 18: machine.device: unknown device 'abacus'"),
        ((b"loss: norm", b"stress_weight: 1"), r"line 15: the training frames have no stress"),
        ((b"norm\n", b"norm\n  no\xffne: 1\n"), r"line 16: it is no text: expected a YAML file"),
        ((b"norm\n", b"norm\n  a: \x07\n"), r"line 16: no YAML: the character '\\x07'"),
        ((b"model:", b"model:\n  elements: [H]"), r"line 6: training frame 0 holds O, which"),
    ],
)
def test_what_is_found_after_reading_has_a_line_too(
    change: tuple[bytes, bytes],
    message: str,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(data)
    assert change[0] in FILES["small.yaml"]
    (data / "c.yaml").write_bytes(FILES["small.yaml"].replace(*change))
    code, said = dry_run(data / "c.yaml", capsys)
    assert code == 2
    assert re.match(rf"tensormd: c\.yaml, {message}", said), said
