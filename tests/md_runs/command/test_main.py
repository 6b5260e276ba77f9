"""The `tensormd` command as a user runs it."""

from __future__ import annotations

import importlib
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from ase.io import read, write
from support.md_runs import ethanol, run, waters, write_tiny_potential

from tensormd.calculators.openmm_versions import python_problem
from tensormd.md_runs.command import demo as demo_module
from tensormd.md_runs.command import doctor
from tensormd.md_runs.command.main import COMMANDS
from tensormd.models.inference.kernels.cpu import potential as cpu_potential

SHARED = ("__init__", "main", "console", "options", "progress")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write("ethanol.xyz", ethanol())
    return tmp_path


def test_a_command_is_a_file_and_a_row() -> None:
    folder = Path(demo_module.__file__).parent
    assert {file.stem for file in folder.glob("*.py")} - set(SHARED) == COMMANDS.keys()


def test_help_of_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    overview = " ".join(capsys.readouterr().out.replace("│", "").split())
    for name, line in COMMANDS.items():
        assert f"{name} {line}" in overview
        assert run(name, "--help") == 0
        assert f"Usage: tensormd {name}" in capsys.readouterr().out
    assert run("md", "-h") == 0
    words = capsys.readouterr().out.split()
    for unit in ("FS", "BAR", "K"):
        assert unit in words


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    found, seconds = loaded("--help")
    assert not found & {"torch", "ase", "matplotlib", "numpy", "pydantic"}
    assert not {name for name in found if name.startswith("tensormd.md_runs.command.")} - {
        f"tensormd.md_runs.command.{name}" for name in ("main", "console")
    }
    assert seconds < 5


def test_a_command_loads_its_own_module_only() -> None:
    found, _ = loaded("info", "--help")
    assert "tensormd.md_runs.command.info" in found
    others = [f"tensormd.md_runs.command.{name}" for name in COMMANDS if name != "info"]
    assert not found.intersection([*others, "matplotlib", "openmm", "tensormd.md_runs.train"])


def loaded(*arguments: str) -> tuple[set[str], float]:
    """Modules that a fresh process imports for these arguments, and its time in seconds."""
    code = (
        "import sys; from tensormd.md_runs.command.main import main\n"
        f"try: main({list(arguments)})\n"
        "except SystemExit: pass\n"
        "print('MODULES', *sys.modules)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split("MODULES")[1].split()), time.monotonic() - began


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["md", "missing.xyz", "-m", "tiny.safetensors"], "missing.xyz: no such file"),
        (["md", "ethanol.xyz", "-m", "missing.ckpt"], "missing.ckpt"),
        (["md", "ethanol.xyz", "-m", "ethanol.xyz"], "ethanol.xyz"),
        (["md"], "no structure: give a file, or --resume"),
        (["md", "ethanol.xyz", "--resume", "x"], "cannot be given with --resume"),
        (["md", "--resume", "none"], "none: no such run folder"),
        (["md", "ethanol.xyz", "-m", "tiny.safetensors", "--engine", "x"], "ase or openmm"),
        (["md", "ethanol.xyz", "-m", "tiny.safetensors", "--timestep", "0"], "--timestep is 0.0"),
        (["md", "ethanol.xyz", "-m", "tiny.safetensors", "--dtype", "half"], "dtype is 'half'"),
        (["md", "ethanol.xyz", "-m", "tiny.safetensors", "--device", "gpu9"], "gpu9"),
        (["md", "ethanol.xyz", "-m", "tiny.safetensors", "--ensemble", "npt"], "npt needs"),
        (["md", "xenon.xyz", "-m", "tiny.safetensors"], "Xe"),
        (["md", "clash.xyz", "-m", "tiny.safetensors"], "in one place"),
        (["md", "flat.xyz", "-m", "tiny.safetensors"], "cell"),
        (["md", "xenon.xyz"], "not Xe: take -m TensorNet-PES-MatPES"),
        (["relax", "ethanol.xyz", "-m", "tiny.safetensors", "--optimizer", "x"], "lbfgs or fire"),
        (["relax", "ethanol.xyz", "--pressure", "3"], "the cell is fixed: add --cell"),
        (["relax", "ethanol.xyz", "-m", "tiny.safetensors", "--units", "feet"], "LENGTH,ENERGY"),
        (["report", "."], "is not a run folder"),
        (["info", "missing.ckpt"], "missing.ckpt"),
        (["convert", "tiny.safetensors", "x.safetensors", "--elements", "H,Qq"], "'Qq' is no"),
        (["convert", "tiny.safetensors", "none/x.safetensors"], "none"),
    ],
)
def test_mistakes_are_one_line_and_exit_2(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("xenon.xyz").write_text("1\n\nXe 0 0 0\n")
    Path("clash.xyz").write_text("2\n\nH 0 0 0\nH 0 0 0\n")
    Path("flat.xyz").write_text('1\nLattice="4 0 0 4 0 0 0 0 4" pbc="T T T"\nH 0 0 0\n')
    Path("water.xyz").write_text("3\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    before = sorted(here.iterdir())
    assert run(*arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert "Traceback" not in errors
    assert sorted(here.iterdir()) == before, "a mistake must leave nothing behind"


@pytest.mark.parametrize(
    "arguments",
    [["md", "--tempersture", "300"], ["mdd"], ["md", "x.xyz", "--steps", "many"], ["relax"]],
)
def test_misspelt_options(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*arguments) == 2
    assert "Usage: tensormd" in capsys.readouterr().err


def test_traceback_for_developers(here: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run("--traceback", "md", "missing.xyz", "-m", "tiny.safetensors")


def test_md_resume_and_report(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["md", "ethanol.xyz", "-m", "tiny.safetensors", "--steps", "20", "--seed", "3"]
    assert run(*command, "--ensemble", "nvt", "--json") == 0
    output = capsys.readouterr()
    summary = json.loads(output.out)
    assert summary["folder"] == "ethanol_md"
    assert summary["last_step"] == 20
    assert "tensormd report ethanol_md" in output.err
    assert run(*command) == 2
    errors = capsys.readouterr().err
    assert "ethanol_md exists already" in errors
    assert "--resume ethanol_md" in errors
    assert run("md", "--resume", "ethanol_md", "--steps", "40", "--json") == 0
    output = capsys.readouterr()
    assert json.loads(output.out)["first_step"] == 20
    assert run("md", "--resume", "ethanol_md", "--temperature", "500") == 2
    assert "--temperature is 500.0, but the run was started with 300.0" in capsys.readouterr().err
    assert run("md", "--resume", "ethanol_md", "--timestep", "0.5", "--steps", "41") == 0
    capsys.readouterr()
    assert run("report", "ethanol_md", "--json") == 0
    numbers = json.loads(capsys.readouterr().out)
    assert numbers["steps"] == 40
    assert Path(numbers["report"]).exists()
    config = json.loads(Path("ethanol_md/config.json").read_text())
    assert config["settings"]["seed"] == 3
    assert config["settings"]["steps"] == 41
    assert len(config["model"]["sha256"]) == 64
    assert Path(config["model_settings"]["model"][0]).is_absolute()
    assert config["versions"]["torch"]
    assert len(read("ethanol_md/trajectory.extxyz", ":")) == 5


def test_a_seed_is_drawn_and_kept(here: Path) -> None:
    command = ["md", "ethanol.xyz", "-m", "tiny.safetensors", "--steps", "1", "-o"]
    seeds = []
    for name in ("one", "two"):
        assert run(*command, name) == 0
        seeds.append(json.loads(Path(name, "config.json").read_text())["settings"]["seed"])
    assert seeds[0] != seeds[1]


def test_committee_and_charge(here: Path) -> None:
    write_tiny_potential(here / "second.safetensors", seed=1)
    options = ["-m", "tiny.safetensors", "-m", "second.safetensors", "--charge", "1"]
    assert run("md", "ethanol.xyz", *options, "--steps", "2", "-o", "run") == 0
    config = json.loads(Path("run/config.json").read_text())
    assert config["model"]["members"] == 2
    assert config["model_settings"]["charge"] == 1
    assert run("md", "--resume", "run", "--steps", "4") == 0


def test_periodic_npt_in_float64(here: Path) -> None:
    write("waters.xyz", waters())
    options = ["--ensemble", "npt", "--thermostat", "bussi", "--dtype", "float64", "--steps", "20"]
    assert run("md", "waters.xyz", "-m", "tiny.safetensors", *options, "-o", "run") == 0
    frames = read("run/trajectory.extxyz", ":")
    assert frames[-1].get_volume() != frames[0].get_volume()
    assert frames[-1].get_stress().shape == (6,)


def test_info_and_convert(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", "tiny.safetensors", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["architecture"] == "TensorNet"
    assert found["elements"] == [1, 6, 8]
    assert found["cutoff_angstrom"] == 4.0
    assert run("info", "tiny.safetensors") == 0
    assert "cutoff_angstrom" in capsys.readouterr().out
    assert run("convert", "tiny.safetensors", "copy.safetensors") == 0
    assert "copy.safetensors" in capsys.readouterr().err
    assert run("info", "copy.safetensors", "--json") == 0
    assert json.loads(capsys.readouterr().out)["sha256"] == found["sha256"]


def test_doctor_tells_what_works(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("doctor", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["versions"]["torch"]
    assert "cpu" in found["devices"]
    checks = {check["name"]: check for check in found["checks"]}
    for name in ("model organic", "backend reference", "backend fused", "threads", "engine ase"):
        assert checks[name]["works"], checks[name]
    assert checks["threads"]["detail"].startswith("1 of at most 1 (9 atoms, not timed yet); torch")
    assert checks["engine openmm"]["works"] == (python_problem() is None)
    assert all(check["detail"] for check in checks.values())
    monkeypatch.setattr(doctor, "examine", lambda: found)
    assert run("doctor") == 0
    shown = capsys.readouterr().out
    assert "ok  engine ase" in shown
    assert "engine openmm" in shown


def test_warm_leaves_compiled_kernels(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cpu_potential, "folder", lambda: here)
    assert run("warm", "tiny.safetensors") == 0
    assert "tiny.safetensors: fused CPU kernels ready after" in capsys.readouterr().err
    assert len(list(here.glob("checked-*"))) == 1


def test_doctor_says_why_something_does_not_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "DEFAULT", "missing.ckpt")
    check = doctor.check_model()
    assert not check.works
    assert "missing.ckpt" in check.detail
    monkeypatch.setattr(doctor, "OPENMM_TRIAL", "import os; os.abort()")
    check = doctor._try_openmm("create_force python", "python")
    assert not check.works
    assert "ended with code" in check.detail


def test_evaluate_stops_at_ctrl_c(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def evaluate_checkpoint(*_: object, tell: Callable[[int, int], None], **__: object) -> None:
        signal.raise_signal(signal.SIGINT)
        tell(1, 2)

    module = importlib.import_module("tensormd.md_runs.command.evaluate")
    monkeypatch.setattr(module, "evaluate_checkpoint", evaluate_checkpoint)
    assert run("evaluate", "tiny.safetensors", "ethanol.xyz") == 130
    assert "interrupted after 1 of 2 frames, nothing written" in capsys.readouterr().err
    assert not Path("ethanol_evaluation").exists()


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out.startswith("tensormd 0.")


def test_demo(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(demo_module, "NVT_STEPS", 20)
    monkeypatch.setattr(demo_module, "NVE_STEPS", 30)
    monkeypatch.setattr(demo_module, "ANGLES", 3)
    for _ in range(2):  # over the results of the first
        assert run("demo", "-o", "demo", "--json") == 0
        found = json.loads(capsys.readouterr().out)
        assert found["converged"]
        assert all(Path(file).exists() for file in found["files"].values())
    page = Path("demo/report.html").read_text()
    for title in ("Relaxation", "Torsion", "NVT (Bussi)", "NVE at 300 K"):
        assert title in page
    relaxed = read("demo/aspirin_relaxed.xyz")
    assert relaxed.get_distance(1, 2) == pytest.approx(1.20, abs=0.02)  # C=O
