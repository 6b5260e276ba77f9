"""Training configurations: every key is documented, every error names its line."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.md_runs import run
from support.paths import ROOT

from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.schema import parse_config, read_config
from tensormd.md_runs.train.config import (
    ARCHITECTURES,
    NETWORK_SECTIONS,
    SECTIONS,
    TrainConfig,
    example,
    keys_of,
    markdown_table,
    plain,
)
from tensormd.md_runs.train.run import configuration_of, finite
from tensormd.models.training.settings import TrainingSettings

KEYS = ROOT / "docs" / "reference" / "configuration.md"
GUIDE = ROOT / "docs" / "guide" / "training.md"
LEAST = "data:\n  train: a.extxyz\n  split: [8, 2]\n"


def parse(text: str, *changes: str) -> TrainConfig:
    return parse_config(TrainConfig, text, "c.yaml", changes)


# Documentation


@pytest.mark.parametrize("section", SECTIONS)
def test_the_documentation_has_every_key_as_it_is(section: str) -> None:
    assert markdown_table(section) in KEYS.read_text()


def test_every_key_has_a_description_and_a_default() -> None:
    for section, cls in SECTIONS.items():
        keys = keys_of(cls)
        assert len(keys) > 1
        for key in keys:
            assert key.text, f"{section}.{key.name}"
            assert key.default == "required" or yaml.safe_load(key.default) != "", key
    for name, kind in ARCHITECTURES.items():
        options = inspect.signature(kind.network).parameters
        keys = {key.name: key for key in keys_of(SECTIONS[f"model.{name}"])}
        assert keys.keys() == options.keys()
        assert keys["cutoff"].unit == "Å"
        assert yaml.safe_load(keys["layers"].default) == options["layers"].default


def test_the_example_is_complete_and_valid(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", "--example") == 0
    text = capsys.readouterr().out
    assert text == example()
    content = yaml.safe_load(text)
    for section, cls in SECTIONS.items():
        if section in ("model.tensornet2", "model.qet", "model.tdn"):
            continue
        found: Any = content
        for part in section.split("."):
            found = found[part]
        assert [key.name for key in keys_of(cls)] == [k for k in found if k != "tensornet"], (
            section
        )
    assert max(map(len, text.splitlines())) < 100
    config = parse(text)
    assert config.settings == TrainingSettings()
    assert config.model.options == NETWORK_SECTIONS["tensornet"](channels=64).__dict__


def test_configurations_in_the_documentation_are_valid() -> None:
    for page, least in ((GUIDE, 2), (ROOT / "README.md", 1)):
        found = re.findall(r"^```yaml\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
        assert len(found) >= least
        for text in found:
            assert isinstance(parse(text), TrainConfig)


def test_what_is_written_down_reads_back(tmp_path: Path) -> None:
    text = LEAST + (
        "  units: {energy: kcal/mol}\n  keys: {energy: REF, stress: null}\n"
        "model:\n  architecture: tdn\n  tdn: {degrees: [0, 2], radial_widths: [8]}\n"
        "  properties: [dipole]\n  references: {H: -13.6, O: -2041}\n"
        "training: {largest_gradient: .inf, dipole_weight: 2, compile: false, loss: huber}\n"
        "output: {metadata: {licence: MIT, year: 2026, tags: [a, 1.5]}}\n"
    )
    config = parse(text)
    assert config.model.options["degrees"] == [0, 2]
    assert config.settings.largest_gradient == float("inf")
    assert config.settings.compile is False
    assert config.data.keys == {"energy": "REF", "stress": None}
    assert config.output.metadata == {"licence": "MIT", "year": 2026, "tags": ["a", 1.5]}
    assert parse(yaml.safe_dump(plain(config))) == config
    folder = RunFolder(tmp_path)
    folder.write_config({"kind": "train", "settings": finite(plain(config))})
    assert configuration_of(folder) == config


# Mistakes: the text, and what the message must say

MISTAKES: dict[str, tuple[str, str]] = {
    "a section": (
        "trainig: {}",
        r"line 1: unknown key trainig, did you mean training\? Valid are",
    ),
    "a key": (
        LEAST + "training:\n  epohcs: 5",
        r"line 5: unknown key training.epohcs, did you mean epochs\? Valid are epochs, batch, ",
    ),
    "nothing near": (
        LEAST + "training:\n  xyzzy: 5",
        r"line 5: unknown key training.xyzzy: valid are epochs, batch, ",
    ),
    "an option": (
        LEAST + "model:\n  tensornet:\n    chanels: 5",
        r"line 6: unknown key model.tensornet.chanels, did you mean channels\?",
    ),
    "a float for an int": (
        LEAST + "training:\n  epochs: 1.5",
        "line 5: training.epochs is 1.5: expected a whole number",
    ),
    "a word for a number": (
        LEAST + "training:\n  learning_rate: fast",
        "line 5: training.learning_rate is 'fast': expected a number",
    ),
    "a number for a word": (
        LEAST + "training:\n  schedule: 5",
        "line 5: training.schedule is 5: expected one of 'cosine', 'plateau', 'constant'",
    ),
    "a word for a truth": (
        LEAST + "model:\n  tensornet: {trainable_radial: maybe}",
        "line 5: model.tensornet.trainable_radial is 'maybe': expected true or false",
    ),
    "a list for a number": (
        LEAST + "training:\n  epochs: [1, 2]",
        r"line 5: training.epochs is \[1, 2\]: expected a whole number",
    ),
    "a number for a section": (
        LEAST + "training: 5",
        "line 4: training is '5': expected a section",
    ),
    "mixed list": (
        "data:\n  train: a\n  split: [1, x]",
        r"line 3: data.split is \[1, 'x'\]: expected a list of whole numbers, a list of",
    ),
    "not a number": (
        LEAST + "training:\n  learning_rate: .nan",
        "line 5: training.learning_rate is '.nan': expected a number",
    ),
    "empty": ("", "line 1: data.train is missing: expected a value"),
    "no value": (LEAST + "training:\n  epochs:", "line 5: training.epochs is empty"),
    "out of range": (
        LEAST + "training:\n  batch: 4\n  epochs: 0",
        "line 6: training.epochs is 0: expected 1 or more",
    ),
    "not a choice": (
        LEAST + "training: {schedule: sinus}",
        "line 4: training.schedule is 'sinus': expected one of 'cosine', 'plateau'",
    ),
    "no loss": (
        LEAST + "training: {energy_weight: 0, force_weight: 0}",
        "line 4: training: all weights of the loss are 0|line 4: all weights of the loss are 0",
    ),
    "twice": ("data:\n  train: a\n  train: b", "line 3: data.train is given twice, in line 2 too"),
    "twice inside": (
        LEAST + "  units: {energy: ev, energy: ev}",
        "line 4: data.units.energy is given twice",
    ),
    "no YAML": ("data: [1", r"line 1: no YAML"),
    "tabs": ("data:\n\ttrain: a", "line 2: no YAML"),
    "a list": ("- a\n- b", "line 1: it is a list: expected a section of keys"),
    "an object": (
        "data:\n  train: !!python/object/apply:os.system [ls]\n  split: [8, 2]",
        "line 2: data.train has the tag python/object/apply:os.system: expected plain YAML",
    ),
    "an object inside": (
        LEAST + "output:\n  metadata:\n    a: [!x y]",
        "line 6: output.metadata.a has the tag !x: expected plain YAML",
    ),
    "no end": (
        LEAST + "output:\n  metadata: &a\n    b: *a",
        "line 5: output.metadata.b has more than 8 levels",
    ),
    "no validation": ("data:\n  train: a", "line 2: data.validation is missing"),
    "both": (
        "data:\n  train: a\n  validation: b\n  split: [1, 2]",
        "line 4: data.split makes the validation frames",
    ),
    "four parts": ("data:\n  train: a\n  split: [1, 2, 3, 4]", "line 3: data.split has 4 parts"),
    "two tests": (
        "data:\n  train: a\n  test: b\n  split: [1, 2, 3]",
        "line 4: data.split has 3 parts: expected training and validation; test has its own",
    ),
    "an empty part": ("data:\n  train: a\n  split: [8, 0]", "line 3: data.split is .8, 0."),
    "a seed of nothing": (
        LEAST + "  limit_seed: 3",
        "line 4: data.limit_seed is 3: expected 0 or",
    ),
    "no frames": (LEAST + "  limit: 0", "line 4: data.limit is 0: expected 1 or more"),
    "a format": (
        LEAST + "  format: xyzz",
        "line 4: data.format is 'xyzz': expected one of extxyz",
    ),
    "an architecture": (
        LEAST + "model: {architecture: schnet}",
        "line 4: model.architecture is 'schnet': expected tensornet, tensornet2, qet or tdn",
    ),
    "the other's options": (
        LEAST + "model:\n  architecture: tdn\n  tensornet: {channels: 8}",
        "line 6: model.tensornet has options, but the architecture is tdn",
    ),
    "a readout": (
        LEAST + "model: {readout: mpl}",
        "line 4: model.readout is 'mpl': expected one of mlp, gated, linear",
    ),
    "a readout of TDN": (
        LEAST + "model: {architecture: tdn, readout: mlp}",
        "line 4: model.readout is 'mlp': expected one of mlp, gated, linear, of a TensorNet",
    ),
    "a property": (
        LEAST + "model: {properties: [quadrupole]}",
        "line 4: model.properties has 'quadrupole': expected of dipole, polarizability",
    ),
    "a property without a loss": (
        LEAST + "model: {properties: [dipole]}",
        "line 4: model.properties has dipole, but the loss does not: set training.dipole_weight",
    ),
    "a loss without a property": (
        LEAST + "training: {dipole_weight: 1}",
        "line 4: training.dipole_weight asks for the dipole, .* add it to model.properties",
    ),
    "a checkpoint and an architecture": (
        LEAST + "model:\n  start_from: a.ckpt\n  architecture: tdn",
        "line 6: model.architecture is that of start_from",
    ),
    "a refit of nothing": (
        LEAST + "model: {refit: all}",
        "line 4: model.refit is of start_from, which is not given",
    ),
    "references": (
        LEAST + "model: {references: fitt}",
        "line 4: model.references is 'fitt': expected fit, none, or a section",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistakes_are_found_with_their_line(
    mistake: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text, message = MISTAKES[mistake]
    path = tmp_path / "c.yaml"
    path.write_text(text)
    with pytest.raises(ValueError, match=rf"^[^\n]*c\.yaml, (?:{message})"):
        read_config(TrainConfig, path)
    assert run("train", path, "-o", tmp_path / "out") == 2
    said = capsys.readouterr().err.strip().splitlines()
    assert len(said) == 1
    assert said[0].startswith(f"tensormd: {path}, line ")
    assert not (tmp_path / "out").exists()


def test_values_as_people_write_them() -> None:
    # YAML 1.1 takes 1e-3 for a word: here it is the number it looks like.
    config = parse(LEAST + "training: {learning_rate: 1e-3, ema_decay: .99, seed: 1_000}")
    assert config.settings.learning_rate == 1e-3
    assert (config.settings.ema_decay, config.settings.seed) == (0.99, 1000)
    assert parse(LEAST + "training: {force_weight: 100}").settings.force_weight == 100.0
    assert parse(LEAST + "training:").settings == TrainingSettings()
    assert parse("data: {train: [a, 'b c'], validation: d, test: [e]}").data.train == ["a", "b c"]
    assert parse("data: {train: a, split: [0.8, 0.1]}").data.split == [0.8, 0.1]
    assert parse("data: {train: a, split: splits.npz}").data.split == "splits.npz"


def test_changes_on_the_command_line() -> None:
    config = parse(
        LEAST + "training: {epochs: 3}",
        "training.epochs=5",
        "training.learning_rate=1e-4",
        "model.tensornet.channels=8",
        "output.metadata.licence=MIT",
        "data.split=[0.5, 0.25]",
    )
    assert config.settings.epochs == 5
    assert config.settings.learning_rate == 1e-4
    assert config.model.options["channels"] == 8
    assert config.output.metadata == {"licence": "MIT"}
    assert config.data.split == [0.5, 0.25]


@pytest.mark.parametrize(
    ("change", "message"),
    {
        "training.epohcs=5": "--set training.epohcs: unknown key training.epohcs, did you mean ep",
        "training.epochs=x": "--set training.epochs: training.epochs is 'x': expected a whole",
        "training.epochs": "--set training.epochs: expected SECTION.KEY=VALUE",
        "training.epochs=": "--set training.epochs: training.epochs is empty",
        "training.epochs=0": "--set training.epochs: training.epochs is 0: expected 1 or more",
        "data.train.x=1": "--set data.train.x: data.train is no section",
        "training.epochs=[1": "--set training.epochs.*: no YAML",
    }.items(),
)
def test_mistakes_on_the_command_line(change: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"^{message}"):
        parse(LEAST, change)


def test_files_that_cannot_be_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("train", tmp_path / "none.yaml") == 2
    assert "none.yaml: no such file" in capsys.readouterr().err
    (tmp_path / "b.yaml").write_bytes(b"\xff\xfe\x00\x01")
    assert run("train", tmp_path / "b.yaml") == 2
    assert "b.yaml, line 1: it is no text" in capsys.readouterr().err
    assert run("train", tmp_path) == 2
    assert f"cannot read {tmp_path}" in capsys.readouterr().err
    assert run("train") == 2
    assert "tensormd train --example prints one" in capsys.readouterr().err
    for options in (["c.yaml"], ["--set", "a.b=c"], ["-o", "x"], ["--dry-run"]):
        assert run("train", "--resume", "somewhere", *options) == 2
        assert "cannot be given with --resume" in capsys.readouterr().err
