"""benchmarks/accuracy.py on a few frames: it trains, resumes, tests, and stores its results."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from tensormd.models import load_potential
from tensormd.models.training import Progress, evaluate_errors, read_rmd17
from tensormd.models.units import kcal_per_mol_in_ev

TRAIN, TEST = 16, 9  # frames of the fixture `data`
MOLECULES = ("ethanol", "uracil")


def run(accuracy: ModuleType, data: Path, *options: str, place: str = "first") -> Path:
    """Call it; the file of results."""
    folders = ["--data", str(data), "--out", str(data / place), "--work", str(data / place)]
    accuracy.main([*options, *folders])
    return data / place / "accuracy_cpu.json"


def test_it_keeps_the_errors_of_what_it_trained(
    accuracy: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries = json.loads(run(accuracy, data, *MOLECULES).read_text())
    assert [(e["architecture"], e["molecule"]) for e in entries] == [
        ("tensornet", "ethanol"), ("tensornet", "uracil"), ("tdn", "ethanol"), ("tdn", "uracil"),
    ]  # fmt: skip
    printed = capsys.readouterr().out
    for entry in entries:
        name = f"{entry['molecule']}-{entry['architecture']}"
        file = data / "first" / f"{name}-seed-0-2-epochs" / f"{name}.safetensors"
        test_file = data / "rmd17" / f"rmd17_{entry['molecule']}_test_01.npz"
        errors = evaluate_errors(load_potential(file), read_rmd17(test_file, 4.5))
        assert entry["energy_mae_mev"] == pytest.approx(errors.energy_mev, rel=1e-5)
        found = entry["force_mae_mev_per_angstrom"]
        assert found == pytest.approx(errors.force_mev_per_angstrom, rel=1e-5)
        assert entry["training"]["epochs"] == 2
        assert entry["frames"] == {"train": TRAIN - 4, "watched": 4, "test": TEST}
        assert entry["seconds"] > 0
        with np.load(test_file) as arrays:
            zero = 1e3 * kcal_per_mol_in_ev * np.abs(arrays["forces"]).mean()
        assert entry["trivial"]["force_mae_mev_per_angstrom"] == pytest.approx(zero)
        row = next(
            line for line in printed.splitlines()
            if line.startswith(f"| {entry['molecule']} | {entry['architecture']},")
        )  # fmt: skip
        assert f" {entry['energy_mae_mev']:.2f} |" in row
        published = entry["architecture"] == "tensornet" and entry["molecule"] == "uracil"
        assert ("| 0.4 |" in row) == published


def test_an_interrupted_run_ends_with_the_same_numbers(
    accuracy: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class KilledError(Exception):
        pass

    def kill(run: Any, progress: Progress) -> None:
        seen.append(progress.epoch)
        if len(seen) == 2:
            raise KilledError

    seen: list[int] = []
    options = ("ethanol", "--architecture", "tensornet", "--epochs", "4")
    whole = json.loads(run(accuracy, data, *options).read_text())
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "report", kill)
        with pytest.raises(KilledError):
            run(accuracy, data, *options, place="second")
    assert not (data / "second" / "accuracy_cpu.json").exists()
    with monkeypatch.context() as patch:
        patch.setattr(accuracy, "report", lambda run, progress: seen.append(progress.epoch))
        resumed = json.loads(run(accuracy, data, *options, place="second").read_text())
    assert seen[0] == 1
    assert seen[2] > 1, "it began anew"
    assert seen[-1] == 4
    for key in ("energy_mae_mev", "force_mae_mev_per_angstrom"):
        assert resumed[0][key] == whole[0][key]


def test_the_same_run_has_one_entry(accuracy: ModuleType, data: Path) -> None:
    options = ("ethanol", "--architecture", "tensornet")
    first = json.loads(run(accuracy, data, *options).read_text())
    again = json.loads(run(accuracy, data, *options).read_text())
    assert again == first  # its time, too: nothing was left to do
    both = json.loads(run(accuracy, data, *options, "--seed", "1").read_text())
    assert sorted(e["seed"] for e in both) == [0, 1]
    assert len({e["energy_mae_mev"] for e in both}) == 2


def test_minutes_decide_the_epochs_once(
    accuracy: ModuleType, data: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(accuracy.Run, "_time_steps", lambda self: (1.0, 1.0))
    options = ("ethanol", "--architecture", "tensornet", "--minutes", "0.1")
    entries = json.loads(run(accuracy, data, *options).read_text())
    # An epoch is one step of a second; six seconds, of which one starts the run.
    assert entries[0]["training"]["epochs"] in (3, 4)
    assert entries[0]["minutes_asked"] == 0.1
    monkeypatch.setattr(accuracy.Run, "_time_steps", lambda self: (0.0, 1e-3))
    assert json.loads(run(accuracy, data, *options).read_text()) == entries


def test_first_steps_are_timed(accuracy: ModuleType, data: Path) -> None:
    files = accuracy.data_files(data, "ethanol")
    found = accuracy.Run("ethanol", "tensornet", files, data, 0, None, 1.0, (), "cpu")
    startup, step = found._time_steps()
    assert 0 < step < startup


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("caffeine",), "unknown molecule 'caffeine': expected some of aspirin"),
        (("aspirin",), "rmd17_aspirin_train_01.npz is not there"),
        (("ethanol", "--minutes", "0"), "expected more than 0"),
        (("ethanol", "--minutes", "1", "--epochs", "2"), "not allowed with"),
    ],
)
def test_mistakes(
    accuracy: ModuleType,
    data: Path,
    options: tuple[str, ...],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    with pytest.raises(SystemExit) as left:
        run(accuracy, data, *options)
    assert left.value.code == 2
    assert message in capsys.readouterr().err


def test_a_state_of_other_settings(
    accuracy: ModuleType,
    data: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    options = ("ethanol", "--architecture", "tensornet")
    run(accuracy, data, *options)
    setting = accuracy.SETTINGS["tensornet"]
    other = dataclasses.replace(setting.training, learning_rate=1e-4)
    monkeypatch.setitem(accuracy.SETTINGS, "tensornet", accuracy.Setting(setting.network, other))
    with pytest.raises(SystemExit) as left:
        run(accuracy, data, *options)
    assert left.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


def test_settings_can_be_changed(
    accuracy: ModuleType, data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("ethanol", "--architecture", "tensornet", "--set", "backend=plain")
    run(accuracy, data, *options)
    entries = json.loads(run(accuracy, data, *options, "learning_rate=2e-3").read_text())
    assert [e["training"]["backend"] for e in entries] == ["plain"] * 2
    assert sorted(e["training"]["learning_rate"] for e in entries) == [1e-3, 2e-3]
    capsys.readouterr()
    with pytest.raises(SystemExit):
        run(accuracy, data, *options, "lerning_rate=1")
    assert "learning_rate" in capsys.readouterr().err
