"""Training sets as people have them: labels on some frames, isolated atoms as MACE writes them."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.io import read, write
from support.data import data_file
from support.md_runs import run, write_tiny_potential
from support.train_runs import configuration, labelled, log_of, write_frames

from tensormd.md_runs.runs.schema import read_config
from tensormd.md_runs.train.config import TrainConfig
from tensormd.md_runs.train.run import plan_training
from tensormd.models import load_potential
from tensormd.models.training import read_frames, split_frames

REFERENCES = {"H": -13.6, "O": -430.0}


def atom(symbol: str, energy: float, **info: Any) -> Atoms:
    atoms = Atoms(symbol, [[0.0, 0.0, 0.0]])
    atoms.info.update(info)
    atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=np.zeros((1, 3)))
    return atoms


def dry(capsys: pytest.CaptureFixture[str]) -> tuple[dict[str, Any], list[str]]:
    """The plan of a training, and its warnings."""
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        assert run("train", "c.yaml", "--dry-run", "--json") == 0
    found = capsys.readouterr()
    assert not found.err
    return json.loads(found.out), [str(each.message) for each in said]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write_frames(tmp_path / "frames.extxyz", labelled(16, "tiny.safetensors"))
    return tmp_path


def test_a_file_of_mace(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = data_file("faults/mace.extxyz")
    monkeypatch.chdir(tmp_path)
    configuration(Path("c.yaml"), data={"train": str(file), "split": [8, 2]}, model={})
    plan, said = dry(capsys)
    assert plan["frames"] == {"training": 8, "validation": 2, "test": 2}
    assert plan["references_ev"] == pytest.approx(REFERENCES)
    assert said == [
        "isolated atoms (2) are no training, validation or test frames; their energies are the "
        "reference energies (H -13.6 eV, O -430 eV)"
    ]

    assert run("train", "c.yaml", "-o", "out") == 0
    assert log_of(Path("out"))["epoch"] == [2, 4, 6]
    scale = load_potential("out/last.safetensors").atomic_scale
    assert float(scale.references[1]) == -13.6
    assert float(scale.references[8]) == -430
    test = json.loads(Path("out/results.json").read_text())["test"]
    capsys.readouterr()

    assert run("evaluate", "out/last.safetensors", file, "-o", "errors") == 0
    assert "isolated atoms: 2 frames, whose energies are reference" in capsys.readouterr().out
    found = json.loads(Path("errors/evaluation.json").read_text())
    assert found["frames"] == 14
    assert {name: each["frames"] for name, each in found["errors"].items()} == {
        "energy": 12, "forces": 12,
    }  # fmt: skip
    assert found["errors"]["forces"]["mae"] < 2 * test["forces"]["mae"]
    assert len(found["skipped"]) == 1
    alone: Any = read(file, ":2")
    write("alone.extxyz", alone)
    assert run("evaluate", "out/last.safetensors", "alone.extxyz", "-o", "alone") == 0
    assert json.loads(Path("alone/evaluation.json").read_text())["errors"]["energy"]["frames"] == 2


@pytest.mark.parametrize("forces", [True, False])
def test_a_random_split_never_takes_isolated_atoms(forces: bool, tmp_path: Path) -> None:
    molecules = labelled(12, write_tiny_potential(tmp_path / "tiny.safetensors"))
    alone = [atom(s, -float(k)) for k, s in enumerate("HCO", 1)]
    for each in alone:
        if not forces:
            del each.calc.results["forces"]
    frames = [*molecules[:3], alone[0], *molecules[3:8], *alone[1:], *molecules[8:]]
    write_frames(tmp_path / "all.extxyz", frames)
    read = read_frames(tmp_path / "all.extxyz", 4.0)
    assert [k for k, each in enumerate(read.isolated) if each] == [3, 9, 10]
    assert read.atom_energies == {1: [-1.0], 6: [-2.0], 8: [-3.0]}
    for seed in range(20):
        for part in split_frames(read, [0.5, 0.25], seed):
            assert part is not None
            assert min(len(graph.numbers) for graph in part.graphs) > 1
            assert part.partial == ()
            assert part.atom_energies == read.atom_energies
    with pytest.raises(ValueError, match=r"12 frames cannot be split into \[12, 3\]"):
        split_frames(read, [12, 3])
    (tmp_path / "fit.txt").write_text("3 4 5")
    (tmp_path / "held.txt").write_text("0 10")
    fit, held, _ = split_frames(read, [tmp_path / "fit.txt", tmp_path / "held.txt"])
    assert (len(fit), len(held)) == (2, 1)  # numbers of the file
    (tmp_path / "held.txt").write_text("9 10")
    with pytest.raises(ValueError, match="validation names isolated atoms alone"):
        split_frames(read, [tmp_path / "fit.txt", tmp_path / "held.txt"])


@pytest.mark.parametrize(
    ("change", "isolated"),
    [
        ({}, True),
        ({"config_type": "IsolatedAtom", "cell": 5.0}, True),
        ({"config_type": "isolated_atom", "cell": 5.0}, True),
        ({"cell": 5.0}, False),  # a crystal with one atom in its cell
        ({"cell": 12.0}, True),
        ({"charge": 1}, False),
    ],
)
def test_what_an_isolated_atom_is(change: dict[str, Any], isolated: bool, tmp_path: Path) -> None:
    side = change.pop("cell", None)
    atoms = atom("Na", -1.0, **change)
    if side is not None:
        atoms.cell, atoms.pbc = [side] * 3, True
    write_frames(tmp_path / "a.extxyz", [atoms])
    assert read_frames(tmp_path / "a.extxyz", 5.0).isolated == [isolated]


def test_other_references_than_those_of_isolated_atoms(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = [*labelled(16, "tiny.safetensors"), *(atom(s, -5.0) for s in "HCON")]
    write_frames(here / "frames.extxyz", frames)
    elements = ["H", "C", "N", "O"]
    configuration(here / "c.yaml", model={"elements": elements})
    plan, said = dry(capsys)
    assert plan["references_ev"] == dict.fromkeys(elements, -5.0)  # of N too, in no molecule
    assert "isolated atoms (4) are no training" in said[0]
    for references in ("none", {"H": -1.0, "C": -2.0, "N": -3.0, "O": -4.0}):
        configuration(here / "c.yaml", model={"references": references, "elements": elements})
        plan, said = dry(capsys)
        assert "their energies are not used: model.references has others" in said[0]
        given = references if isinstance(references, dict) else dict.fromkeys(elements, 0.0)
        assert plan["references_ev"] == given
    configuration(here / "c.yaml", model={"start_from": "tiny.safetensors", "tensornet": None})
    _, said = dry(capsys)
    assert "not used: the references are those of start_from" in said[0]


def test_labels_of_some_frames(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames = labelled(16, "tiny.safetensors")
    for k in (0, 3, 7, 8):
        del frames[k].calc.results["forces"]
    del frames[5].calc.results["energy"]
    write_frames(here / "frames.extxyz", frames)
    configuration(here / "c.yaml")
    plan, said = dry(capsys)
    assert plan["labels"] == ["energy", "forces"]
    assert len(said) == 1
    assert "of 16 frames, labels are missing: energy in 1, forces in 4; each frame" in said[0]
    assert run("train", "c.yaml", "-o", "out") == 0
    capsys.readouterr()
    assert run("evaluate", "out/last.safetensors", "frames.extxyz", "-o", "errors") == 0
    found = json.loads(Path("errors/evaluation.json").read_text())
    assert found["errors"]["forces"]["frames"] == 12
    assert found["skipped"] == [
        "energy: not labelled in 1 of 16 frames",
        "forces: not labelled in 4 of 16 frames",
    ]
    for each in frames:
        each.calc.results.pop("forces", None)
    del frames[5]
    write_frames(here / "frames.extxyz", frames)
    assert run("train", "c.yaml", "-o", "none") == 2
    error = capsys.readouterr().err
    assert "training frames have no forces" in error
    assert "set training.force_weight to 0" in error


def test_the_digest_knows_the_isolated_atoms(here: Path) -> None:
    configuration(here / "c.yaml")
    digests = []
    for energies in ((), (-1.0,), (-2.0,)):
        alone = [atom("H", energy) for energy in energies]
        write_frames(here / "frames.extxyz", [*labelled(16, "tiny.safetensors"), *alone])
        plan = plan_training(read_config(TrainConfig, here / "c.yaml"))
        digests.append(plan.parts.digest())
    assert len(set(digests)) == 3
