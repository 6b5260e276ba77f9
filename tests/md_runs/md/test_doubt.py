"""Frames about which a committee disagrees."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from ase.io import read
from support.md_runs import Springs, ethanol, run, write_tiny_potential

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.md.loop import start_md
from tensormd.md_runs.md.relax import relax
from tensormd.md_runs.reports.runs import write_report
from tensormd.md_runs.runs.folder import RunFolder
from tensormd.md_runs.runs.settings import MDSettings, RelaxSettings

MODELS = ("-m", "tiny.safetensors", "-m", "other.safetensors", "--backend", "reference")
SAME = ("--seed", "5", "--interval", "2", "--ensemble", "nvt", "--temperature", "600")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write_tiny_potential(tmp_path / "other.safetensors", seed=1)
    ethanol().write("ethanol.xyz")
    return tmp_path


def doubts(folder: str) -> np.ndarray:
    return RunFolder.open(folder).read_log()["doubt_ev_per_a"]


def threshold(name: str = "first") -> float:
    """Above which some frames of a run of 20 steps are, but not the first one."""
    options = (*MODELS, *SAME, "--doubt", "9", "-o", name)
    assert run("md", "ethanol.xyz", *options, "--steps", "20") == 0
    found = doubts(name)
    assert len(found) == 11
    assert found.max() > found[0] + 1e-4
    return float(np.sort([*found[found > found[0]], found[0]])[:2].mean())


def test_doubtful_frames_are_kept(here: Path) -> None:
    limit = threshold()
    assert Path("first/doubtful.extxyz").stat().st_size == 0
    options = (*MODELS, *SAME, "--doubt", str(limit), "-o", "run")
    with pytest.warns(UserWarning, match="the members disagree by") as caught:
        assert run("md", "ethanol.xyz", *options, "--steps", "20") == 0
    assert sum("disagree" in str(each.message) for each in caught) == 1
    above = np.flatnonzero(doubts("run") > limit)
    assert 0 < len(above) < 11
    frames = read("run/doubtful.extxyz", ":")
    whole = read("run/trajectory.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == [whole[k].info["step"] for k in above]
    calculator = PotentialCalculator(
        ["tiny.safetensors", "other.safetensors"], backend="reference"
    )
    for frame, k in zip(frames, above, strict=True):
        np.testing.assert_array_equal(frame.positions, whole[k].positions)
        np.testing.assert_array_equal(frame.get_forces(), whole[k].get_forces())
        spread = calculator.get_property("forces_std", frame)
        np.testing.assert_allclose(frame.arrays["forces_std"], spread, atol=1e-5)
        assert frame.info["doubt_ev_per_a"] == pytest.approx(spread.max(), abs=1e-5)
    _, numbers = write_report("run")
    assert numbers["doubtful_frames"] == len(above)


def test_a_resumed_run_goes_on_doubting(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = threshold()
    options = (*MODELS, *SAME, "--doubt", str(limit))
    assert run("md", "ethanol.xyz", *options, "--steps", "20", "-o", "whole") == 0
    assert run("md", "ethanol.xyz", *options, "--steps", "13", "-o", "parts") == 0
    with open("parts/doubtful.extxyz", "a") as stream:
        stream.write("written after the last restart")
    capsys.readouterr()
    assert run("md", "--resume", "parts", "--steps", "20") == 0
    for file in ("log.csv", "trajectory.extxyz", "doubtful.extxyz"):
        assert Path("parts", file).read_bytes() == Path("whole", file).read_bytes(), file
    assert Path("parts/doubtful.extxyz").stat().st_size > 0
    assert run("md", "--resume", "parts", "--doubt", "3") == 2
    assert f"--doubt is 3.0, but the run was started with {limit}" in capsys.readouterr().err


def test_stop_on_doubt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    limit = threshold()
    options = (*MODELS, *SAME, "--doubt", str(limit), "--stop-on-doubt", "-o", "run")
    first = int(2 * np.flatnonzero(doubts("first") > limit)[0])
    capsys.readouterr()
    assert run("md", "ethanol.xyz", *options, "--steps", "20") == 1
    said = capsys.readouterr().err
    assert f"at step {first}, more than --doubt {limit:g}" in said
    assert "resume it with: tensormd md --resume run" in said
    folder = RunFolder.open("run")
    assert folder.read_restart().state["step"] == first
    assert len(read("run/doubtful.extxyz", ":")) == 1
    assert run("md", "--resume", "run") in (0, 1)  # the next doubtful frame may end it again
    assert folder.read_restart().state["step"] > first


def test_relaxations(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("--steps", "3")
    calm = ("--doubt", "9", "-o", "calm", "--json")
    assert run("relax", "ethanol.xyz", *MODELS, *steps, *calm) == 1
    (result,) = json.loads(capsys.readouterr().out)
    found = doubts("calm")
    assert result["doubt_ev_per_a"] == found[-1] > 0
    limit = str(found.min() / 2)
    with pytest.warns(UserWarning, match="the members disagree by") as caught:
        assert run("relax", "ethanol.xyz", *MODELS, *steps, "--doubt", limit, "-o", "kept") == 1
    assert sum("disagree" in str(each.message) for each in caught) == 1
    assert len(read("kept/doubtful.extxyz", ":")) == 4
    options = (*steps, "--doubt", limit, "--stop-on-doubt", "-o", "ended")
    assert run("relax", "ethanol.xyz", *MODELS, *options) == 1
    assert "about the force on atom" in capsys.readouterr().err
    assert len(RunFolder.open("ended").read_log()["step"]) == 1
    assert Path("ended/relaxed.extxyz").exists()
    RunFolder.discard("ended")


def test_nobody_to_disagree(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, message in (
        (["-m", "tiny.safetensors", "--doubt", "0.1"], "--doubt 0.1 needs a committee"),
        ([*MODELS, "--doubt", "0"], "--doubt is 0.0 eV/A: expected a finite number above"),
        ([*MODELS, "--stop-on-doubt"], "--stop-on-doubt has no effect without a threshold"),
    ):
        for command in ("md", "relax"):
            assert run(command, "ethanol.xyz", *arguments, "-o", "run") == 2
            assert message in capsys.readouterr().err
    mixed = ("--engine", "openmm", "--ml-atoms", "0", "--force-field", "a.xml", "--doubt", "1")
    assert run("md", "ethanol.xyz", *MODELS, *mixed) == 2
    assert "--doubt is for a potential of all atoms" in capsys.readouterr().err
    atoms = ethanol()
    atoms.calc = Springs(atoms.positions)
    with pytest.raises(ValueError, match="needs a committee"):
        relax(atoms, RelaxSettings(doubt=0.1), "run")
    with pytest.raises(ValueError, match="needs a committee"):
        start_md(atoms, MDSettings(doubt=0.1), "run")
    assert not Path("run").exists()


def test_openmm(here: Path) -> None:
    pytest.importorskip("openmm")
    options = (*MODELS, "--engine", "openmm", "--steps", "4", "--interval", "2", "--seed", "1")
    assert run("md", "ethanol.xyz", *options, "--doubt", "1e-6", "-o", "run") == 0
    frames = read("run/doubtful.extxyz", ":")
    assert [frame.info["step"] for frame in frames] == [0, 2, 4]
    found = [frame.info["doubt_ev_per_a"] for frame in frames]
    np.testing.assert_allclose(found, doubts("run"), atol=1e-6)
