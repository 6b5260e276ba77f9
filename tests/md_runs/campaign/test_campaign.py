"""A campaign's folder, its runs and its results, without a scheduler."""

from __future__ import annotations

import csv
import json
import multiprocessing
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ase.build import molecule
from ase.io import read, write
from support.md_runs import ethanol, run, write_tiny_potential

from tensormd.md_runs.campaign import work
from tensormd.md_runs.campaign.folder import (
    Campaign,
    Record,
    lock_file,
    read_record,
    write_record,
)
from tensormd.md_runs.campaign.plan import Plan
from tensormd.md_runs.campaign.results import causes, collect, read_records, status
from tensormd.md_runs.campaign.work import run_task
from tensormd.md_runs.md import loop
from tensormd.md_runs.md.launch import launch_md
from tensormd.md_runs.md.relax import relax_files
from tensormd.md_runs.runs.folder import RunFolder, locked
from tensormd.md_runs.runs.schema import parse_config
from tensormd.md_runs.runs.settings import RelaxSettings, md_settings

PLAN = """
structures: {files: [ethanol.xyz, others.xyz]}
model: {checkpoint: tiny.safetensors, backend: reference}
relax: {fmax: 0.2, steps: 300}
md: {ensemble: nvt, thermostat: bussi, seeds: [4], steps: 40, timestep: 0.2}
evaluate: {start: given}
hessian: {start: given}
"""


def write_inputs(folder: Path) -> None:
    write_tiny_potential(folder / "tiny.safetensors")
    write(folder / "ethanol.xyz", ethanol())
    write(folder / "others.xyz", [molecule("H2O"), molecule("N2")])


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Campaign:
    """A campaign with all runs done that can be."""
    folder = tmp_path_factory.mktemp("finished")
    write_inputs(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        campaign = begun()
    do_all(campaign)
    return campaign


def plan(text: str = PLAN) -> Plan:
    return parse_config(Plan, text, "plan.yaml")


def begun(text: str = PLAN) -> Campaign:
    with Campaign.begin(Path("c"), plan(text)) as campaign:
        return campaign


def do(campaign: Campaign, name: str) -> Record:
    task = campaign.tasks[name]
    state = run_task(str(campaign.path), task, campaign.model, campaign.digest)
    record = read_record(campaign.path, name)
    assert record.state == state
    return record


def do_all(campaign: Campaign) -> None:
    for task in campaign.tasks.values():
        if task.after is None or read_record(campaign.path, task.after).state == "done":
            do(campaign, task.name)


def test_runs_equal_single_runs_to_the_last_bit(finished: Campaign, tmp_path: Path) -> None:
    campaign = finished
    relaxation, dynamics = (campaign.tasks[f"1-ethanol/{n}"] for n in ("relax", "md-300K-seed4"))
    source = f"{campaign.path}/structures.traj@0"
    single = tmp_path / "single-relax"
    relax_files([source], campaign.model, RelaxSettings(**relaxation.settings), single)
    launch_md(
        str(single / "relaxed.extxyz"),
        campaign.model,
        md_settings(dynamics.settings),
        tmp_path / "single-md",
    )
    for name, task in (("single-relax", relaxation), ("single-md", dynamics)):
        for file in ("log.csv", "trajectory.extxyz"):
            alone = (tmp_path / name / file).read_bytes()
            assert alone == (campaign.run_folder(task) / file).read_bytes(), file
            assert alone.count(b"\n") > 3


def test_each_run_has_its_result(finished: Campaign) -> None:
    campaign = finished
    numbers = status(campaign)
    assert numbers["states"] == {"done": 8, "failed": 3, "blocked": 1}
    relaxed = read_record(campaign.path, "1-ethanol/relax").summary
    assert relaxed["energy_ev"] < relaxed["energy_before_ev"]
    assert 0 < relaxed["fmax_ev_per_a"] < 0.2
    dynamics = read_record(campaign.path, "1-ethanol/md-300K-seed4").summary
    assert dynamics["steps"] == 40
    assert dynamics["time_ps"] == pytest.approx(0.008)
    evaluated = read_record(campaign.path, "1-ethanol/evaluate").summary
    assert evaluated["energy_ev"] == pytest.approx(relaxed["energy_before_ev"], abs=1e-12)
    hessian = RunFolder.open(campaign.path / "runs/1-ethanol/hessian").read_hessian()
    assert hessian.shape == (27, 27)
    assert np.allclose(hessian, hessian.T, atol=1e-3)
    assert np.abs(hessian).max() > 0.1
    found = read_record(campaign.path, "1-ethanol/hessian").summary
    assert len(found["wavenumbers_inv_cm"]) == 27
    assert found["lowest_wavenumber_inv_cm"] == min(found["wavenumbers_inv_cm"])


def test_a_run_with_an_unknown_element_fails_alone_and_is_named(finished: Campaign) -> None:
    campaign = finished
    [failure] = status(campaign)["failures"]
    assert failure["cause"] == "the model does not know N: it was made for H, C, O"
    assert failure["runs"] == ["3-others/relax", "3-others/evaluate", "3-others/hessian"]
    assert read_records(campaign)["3-others/md-300K-seed4"].state == "blocked"
    assert read_records(campaign)["2-others/md-300K-seed4"].state == "done"


def test_nothing_is_done_twice(finished: Campaign) -> None:
    campaign = finished
    files = sorted((campaign.path / "runs").rglob("*"))
    before = {file: file.stat().st_mtime_ns for file in files if file.suffix != ".lock"}
    do_all(campaign)
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert all(len(record.attempts) <= 1 for record in read_records(campaign).values())


def test_an_interrupted_run_is_resumed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A process that ends in the middle leaves its lock, and the next one continues."""
    whole = begun()
    do(whole, "1-ethanol/relax")
    do(whole, "1-ethanol/md-300K-seed4")
    wanted = (whole.run_folder(whole.tasks["1-ethanol/md-300K-seed4"]) / "log.csv").read_bytes()
    whole.path.rename(here / "whole")
    campaign = begun(PLAN.replace("steps: 40", "steps: 40, save_every: 0.000001"))
    do(campaign, "1-ethanol/relax")
    task = campaign.tasks["1-ethanol/md-300K-seed4"]
    context = multiprocessing.get_context("spawn")
    killed = context.Process(target=killed_at_step, args=(str(campaign.path), task.name, 17))
    killed.start()
    killed.join()
    assert killed.exitcode == -9
    assert campaign.record(task).state == "interrupted"
    record = do(campaign, task.name)
    assert record.state == "done"
    first, second = record.attempts
    assert (first["pid"], second["pid"]) == (killed.pid, os.getpid())
    assert (campaign.run_folder(task) / "log.csv").read_bytes() == wanted


def killed_at_step(folder: str, name: str, step: int) -> None:
    advance = loop._Run._advance

    def dies(self: Any, most: int) -> None:
        if self.engine.step_number >= step - 1:
            os.kill(os.getpid(), 9)
        advance(self, 1)

    loop._Run._advance = dies  # type: ignore[method-assign]
    do_in(folder, name)


def do_in(folder: str, name: str) -> None:
    do(Campaign.open(folder), name)


def test_a_second_worker_waits_for_the_first(here: Path) -> None:
    campaign = begun()
    name = "1-ethanol/evaluate"
    file = lock_file(campaign.path, name)
    file.parent.mkdir(parents=True)
    lock = locked(file)
    context = multiprocessing.get_context("spawn")
    other = context.Process(target=do_in, args=(str(campaign.path), name))
    other.start()
    other.join(1)
    write_record(campaign.path, name, Record("running", [{"pid": os.getpid()}]))
    assert campaign.record(campaign.tasks[name]).state == "running"
    write_record(campaign.path, name, Record("done", [{"pid": os.getpid()}]))
    lock.release()
    other.join()
    assert other.exitcode == 0
    assert read_record(campaign.path, name).attempts == [{"pid": os.getpid()}]


def test_a_relaxation_that_does_not_converge_has_failed(here: Path) -> None:
    campaign = begun(PLAN.replace("fmax: 0.2, steps: 300", "fmax: 1.0e-9, steps: 3"))
    record = do(campaign, "1-ethanol/relax")
    assert (record.state, record.cause) == ("failed", "not converged in 3 steps")
    assert campaign.record(campaign.tasks["1-ethanol/md-300K-seed4"]).state == "blocked"


def test_errors_from_outside_are_raised(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    campaign = begun()

    def full(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("tensormd.md_runs.campaign.work.relax", full)
    with pytest.raises(RuntimeError, match="OSError: no space left"):
        do(campaign, "1-ethanol/relax")
    assert campaign.record(campaign.tasks["1-ethanol/relax"]).state == "interrupted"
    monkeypatch.undo()
    os.chdir(here)
    assert do(campaign, "1-ethanol/relax").state == "done"
    task = campaign.tasks["1-ethanol/relax"]
    with pytest.raises(OSError, match="does not see"):
        run_task(str(here / "elsewhere"), task, campaign.model, campaign.digest)


def test_a_folder_keeps_its_plan_and_weights(here: Path) -> None:
    begun()
    write("ethanol.xyz", molecule("H2"))  # what was read stays
    assert begun().structures[0].formula == "C2H6O, 9 atoms"
    with pytest.raises(ValueError, match=r"another plan \(md.steps was 40, and is 41\)"):
        begun(PLAN.replace("steps: 40", "steps: 41"))
    with pytest.raises(ValueError, match="another plan"):
        begun(PLAN.replace("hessian: {start: given}\n", ""))
    with (
        Campaign.begin(Path("c"), plan()),
        pytest.raises(ValueError, match="is in use: another process"),
    ):
        begun()
    campaign = begun()
    write_tiny_potential(here / "tiny.safetensors", seed=1)
    with pytest.raises(ValueError, match="the weights are not those"):
        begun()
    work._calculator.cache_clear()  # a worker that starts now
    with pytest.raises(RuntimeError, match=r"weights on .* are not those"):
        do(campaign, "1-ethanol/evaluate")


def test_mistakes_are_one_line_and_leave_nothing(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("full").mkdir()
    Path("full/mine.txt").write_text("x")
    plans = {
        "key.yaml": (PLAN + "relx:\n", "key.yaml, line 8: unknown key relx, did you mean relax"),
        "model.yaml": (
            PLAN.replace("tiny.safetensors", "none.ckpt"),
            "model.yaml, line 3: model.checkpoint",
        ),
        "file.yaml": (
            PLAN.replace("ethanol.xyz", "none.xyz"),
            "file.yaml, line 2: structures.files",
        ),
        "good.yaml": (PLAN, ""),
    }
    for name, (text, _) in plans.items():
        Path(name).write_text(text)
    before = sorted(here.rglob("*"))
    cases = [([name], message) for name, (_, message) in plans.items() if message] + [
        (["good.yaml", "-o", "full"], "full exists already"),
        (["none.yaml"], "none.yaml: no such file"),
        (["good.yaml", "--workers", "0"], "--workers is 0"),
        (["good.yaml", "--retries", "-1"], "--retries is -1"),
        (["good.yaml", "--batch", "cray", "--workers", "2"], "--batch is 'cray'"),
        (["good.yaml", "--batch", "slurm"], "--batch needs --workers N"),
        (["good.yaml", "--workers", "2", "--scheduler", "tcp://x:1"], "--workers cannot be given"),
        (["good.yaml", "--batch", "lsf", "--scheduler", "tcp://x:1"], "--batch cannot be given"),
        (["status", "full"], "full is not the folder of a campaign"),
        (["collect", "none"], "none is not the folder of a campaign"),
    ]
    for arguments, message in cases:
        assert run("campaign", *arguments) == 2, arguments
        errors = capsys.readouterr().err
        assert message in errors
        assert len(errors.strip().splitlines()) == 1, errors
        assert sorted(here.rglob("*")) == before


def test_collecting(finished: Campaign, capsys: pytest.CaptureFixture[str]) -> None:
    campaign = finished
    files, _ = collect(campaign)
    frames = read(files["frames"], index=":")
    assert len(frames) == 6  # of two molecules: relaxed, last of the dynamics, evaluated
    by_run = {frame.info["run"]: frame for frame in frames}
    energies = {
        name: record.summary["energy_ev"]
        for name, record in read_records(campaign).items()
        if name in by_run
    }
    for name, frame in by_run.items():
        assert frame.get_potential_energy() == pytest.approx(energies[name], abs=1e-6)
        assert np.abs(frame.get_forces()).max() > 0
    rows = {row["run"]: row for row in csv.DictReader(files["table"].read_text().splitlines())}
    assert rows.keys() == campaign.tasks.keys()
    assert float(rows["1-ethanol/relax"]["energy_ev"]) == energies["1-ethanol/relax"]
    assert rows["3-others/relax"]["cause"].startswith("the model does not know N")
    assert rows["2-others/md-300K-seed4"]["seed"] == "4"
    page = files["report"].read_text()
    assert "the model does not know N" in page
    assert all(name in page for name in rows)
    collect(campaign, "all")
    assert len(read(files["frames"], index=":")) == 4 + 2 * 5
    with pytest.raises(ValueError, match="--frames is 'some': expected last or all"):
        collect(campaign, "some")
    capsys.readouterr()
    assert run("campaign", "status", campaign.path, "--json") == 0
    assert json.loads(capsys.readouterr().out)["states"]["done"] == 8
    assert run("campaign", "collect", campaign.path) == 0
    assert "runs.csv" in capsys.readouterr().out
    assert run("report", campaign.path / "runs" / "1-ethanol", "--json") == 0
    assert json.loads(capsys.readouterr().out).keys() == {"relax", "md-300K-seed4", "report"}
    assert run("report", campaign.path / "runs" / "1-ethanol" / "hessian") == 2
    assert "holds a run of the kind 'hessian': only md, relax, train" in capsys.readouterr().err


def test_failures_are_grouped_by_cause(here: Path) -> None:
    campaign = begun()
    for k, name in enumerate(("1-ethanol/relax", "2-others/relax")):
        place = campaign.run_folder(campaign.tasks[name])
        cause = f"the run broke down at step {k + 3}: {place} keeps the state of step {k}"
        write_record(campaign.path, name, Record("failed", cause=cause))
    write_record(campaign.path, "1-ethanol/evaluate", Record("lost", cause="no space left"))
    first, second = causes(campaign, read_records(campaign))
    assert first["count"] == 2
    assert "step 3: the run folder keeps" in first["cause"]
    assert second["runs"] == ["1-ethanol/evaluate"]


def test_unreadable_structures_are_left_out_and_listed(here: Path) -> None:
    Path("clash.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0\n")
    campaign = begun(PLAN.replace("[ethanol.xyz, others.xyz]", "[clash.xyz, ethanol.xyz]"))
    assert next(iter(campaign.tasks)) == "2-ethanol/relax"
    assert do(campaign, "2-ethanol/evaluate").state == "done"
    [failure] = status(campaign)["failures"]
    assert failure["runs"] == ["1-clash (clash.xyz)"]
    with pytest.raises(ValueError, match="none of 1 can be run"):
        Campaign.begin(Path("d"), plan(PLAN.replace("[ethanol.xyz, others.xyz]", "clash.xyz")))
    assert not Path("d").exists()
