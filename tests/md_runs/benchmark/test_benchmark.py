"""The benchmark: its systems, both programs' weights and its reports, but not its speed."""

from __future__ import annotations

import copy
import importlib
import json
import math
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.build import bulk, molecule
from ase.geometry import get_distances
from support.checkpoint_helpers import make_model, save
from support.data import data_file
from support.helpers import make_potential
from support.md_runs import ethanol, run, write_tiny_potential
from support.paths import ROOT

from tensormd.calculators.openmm_versions import python_problem
from tensormd.md_runs.benchmark import report as benchmark_report
from tensormd.md_runs.benchmark import rounds as benchmark
from tensormd.md_runs.benchmark.model import (
    product_flops_per_atom,
    random_potential,
)
from tensormd.md_runs.benchmark.programs import (
    Contestant,
    fits_minimum_image,
    make_program,
    peer_quiet,
    places_for_neighbors,
)
from tensormd.md_runs.benchmark.rounds import BenchmarkSettings, run_benchmark
from tensormd.md_runs.benchmark.systems import AMPLITUDE, Motion, collect_systems, water_box
from tensormd.md_runs.benchmark.worker import TrialError, one_line, run_trial
from tensormd.models import (
    NeighborList,
    Potential,
    load_potential,
    save_potential,
    write_torchmdnet_checkpoint,
)
from tensormd.models.checkpoint import why_not_torchmdnet

MEASURED = ROOT / "benchmarks" / "results" / "inference_cpu.json"


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("TENSORMD_DATA", raising=False)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    ethanol().write("ethanol.xyz")
    return tmp_path


# Systems


@pytest.mark.parametrize("size", [192, 648, 3000])
def test_water_has_the_density_of_water_and_no_overlaps(size: int) -> None:
    box = water_box(size)
    assert len(box) % 3 == 0
    assert abs(len(box) - size) < 0.25 * size
    density = box.get_masses().sum() / box.get_volume() / 0.602214076
    assert density == pytest.approx(0.997, abs=1e-6)
    molecules = np.arange(len(box)) // 3
    assert (box.numbers.reshape(-1, 3) == [8, 1, 1]).all()
    graph = NeighborList(2.5).graph(box.numbers, box.positions, box.cell.array, True)
    i, j = graph.edge_index.numpy()
    vectors = graph.positions[j] - graph.positions[i] + graph.edge_shift @ graph.cell[0]
    lengths = vectors.norm(dim=1).numpy()
    within = molecules[i] == molecules[j]
    bonds = within & (box.numbers[i] != box.numbers[j])
    assert bonds.sum() == 4 * len(box) / 3
    assert lengths[bonds] == pytest.approx(0.9572, abs=1e-6)
    assert lengths[within & ~bonds] == pytest.approx(1.5139, abs=1e-3)
    hydrogens = (box.numbers[i] == 1) & (box.numbers[j] == 1)
    assert lengths[~within & hydrogens].min() > 1.15
    assert lengths[~within & ~hydrogens].min() > 2.1


def test_water_is_the_same_each_time_and_turned_at_random() -> None:
    box = water_box(648)
    assert np.array_equal(box.positions, water_box(648).positions)
    assert not np.allclose(box.positions, water_box(648, seed=1).positions)
    axes = box.positions.reshape(-1, 3, 3)
    dipoles = axes[:, 1:].mean(1) - axes[:, 0]
    dipoles /= np.linalg.norm(dipoles, axis=1, keepdims=True)
    assert np.abs(dipoles.mean(0)).max() < 0.15
    assert np.allclose(dipoles.T @ dipoles / len(dipoles), np.eye(3) / 3, atol=0.1)


@pytest.mark.parametrize(
    ("name", "formula"),
    [("alanine_dipeptide", "C6H12N2O2"), ("testosterone", "C19H28O2")],
)
def test_molecules_that_need_no_file(name: str, formula: str) -> None:
    atoms = collect_systems((name,), (), None)[0].atoms
    assert atoms.get_chemical_formula("hill") == formula
    assert not atoms.pbc.any()
    distances = get_distances(atoms.positions)[1] + 9 * np.eye(len(atoms))
    hydrogen = atoms.numbers == 1
    nearest = distances.min(1)
    assert ((nearest[hydrogen] > 0.9) & (nearest[hydrogen] < 1.15)).all()
    assert ((nearest > 0.9) & (nearest < 1.6)).all()
    # Every hydrogen is bonded to one heavy atom.
    assert ((distances[hydrogen] < 1.25).sum(1) == 1).all()


@pytest.mark.parametrize("name", ["alanine_dipeptide", "testosterone", "chignolin", "dhfr"])
def test_systems_are_those_of_the_data_folder(name: str) -> None:
    folder = data_file(f"systems/{name}.pdb").parents[1]
    from ase.io import read

    expected = read(folder / "systems" / f"{name}.pdb", index=0)
    atoms = collect_systems((name,), (), folder)[0].atoms
    assert np.array_equal(atoms.numbers, expected.numbers)
    assert np.allclose(atoms.positions, expected.positions, atol=1e-9)


def test_systems_come_smallest_first_and_once(here: Path) -> None:
    found = collect_systems(("testosterone", "ethanol.xyz", "ethanol.xyz"), (192,), None)
    assert [system.name for system in found] == ["ethanol", "testosterone", "water 192"]


def test_motion_is_thermal_stays_near_and_wears_out_neighbour_lists() -> None:
    box = water_box(648)
    motion, again = Motion(box), Motion(box)
    paths = np.array([motion.next() for _ in range(60)])
    assert np.array_equal(paths[0], again.next())
    assert np.abs(np.linalg.norm(paths - box.positions, axis=2)).max() <= AMPLITUDE + 1e-12
    # sqrt(3 kT / m) at 300 K, A in a femtosecond, but for the steps that turn back.
    speeds = np.linalg.norm(paths[1] - paths[0], axis=1)
    for number, expected in ((1, 0.02725), (8, 0.00684)):
        rms = np.sqrt((speeds[box.numbers == number] ** 2).mean())
        assert rms == pytest.approx(expected, rel=0.1)
    neighbors = NeighborList(4.5, 1.0)
    for positions in paths:
        neighbors.graph(box.numbers, positions, box.cell.array, True)
    assert 3 <= neighbors.builds <= 15


# The other program's checkpoint


@pytest.mark.parametrize("old_layout", [False, True])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_layers": 1, "activation": "ssp"},
        {"rbf_type": "gauss", "trainable_rbf": True, "equivariance_invariance_group": "SO(3)"},
        {"prior_model": "Atomref", "prior_args": {"max_z": 20}, "cutoff_lower": 0.5},
    ],
)
@pytest.mark.filterwarnings("ignore:.*does not state its units")
def test_weights_go_to_torchmdnet_and_come_back(
    changes: dict[str, Any], old_layout: bool, tmp_path: Path
) -> None:
    first = load_potential(save(tmp_path / "m.ckpt", *make_model(**changes)))
    write_torchmdnet_checkpoint(first, tmp_path / "again.ckpt", old_layout=old_layout)
    again = load_potential(tmp_path / "again.ckpt")
    assert again.representation.config == first.representation.config
    before, after = first.state_dict(), again.state_dict()
    assert before.keys() == after.keys()
    for key, tensor in before.items():
        assert torch.allclose(tensor, after[key], rtol=1e-6, atol=0), key


def test_torchmdnet_itself_computes_the_same(tmp_path: Path) -> None:
    potential = make_potential()
    save_potential(potential, tmp_path / "m.safetensors")
    write_torchmdnet_checkpoint(copy.deepcopy(potential).float(), tmp_path / "m.ckpt")
    atoms = ethanol()
    peer = {"energy_in_ev": float(potential.energy_in_ev), "max_neighbors": len(atoms)}
    results = []
    for contestant in (
        Contestant("tensormd", str(tmp_path / "m.safetensors"), dtype="float64"),
        Contestant("tensormd-graph", str(tmp_path / "m.safetensors")),
        Contestant("torchmdnet", str(tmp_path / "m.ckpt"), **peer),
        Contestant("torchmdnet", str(tmp_path / "m.ckpt"), mode="torchscript", **peer),
        Contestant("torchmdnet-ase", str(tmp_path / "m.ckpt"), **peer),
    ):
        program = make_program(contestant, atoms)
        program.load(atoms)
        program.step(atoms.get_positions())
        results.append(program.results())
    energy, forces = results[0]
    assert np.abs(forces).max() > 1e-2
    for other_energy, other_forces in results[1:]:
        assert other_energy == pytest.approx(energy, rel=1e-5)
        assert np.abs(other_forces - forces).max() < 1e-5 * np.abs(forces).max()


def test_what_torchmdnet_has_no_place_for() -> None:
    from tensormd.models import TDN, ScalarReadout

    tdn = Potential(TDN(channels=4, layers=1, lmax=1), ScalarReadout(4), elements=[1])
    with pytest.raises(ValueError, match="TDN is not one of its networks"):
        write_torchmdnet_checkpoint(tdn, Path("never.ckpt"))
    assert product_flops_per_atom(tdn) is None


def test_products_of_the_default_network() -> None:
    # 9 F^2 each for three mixings and two more in pairs, the gates' 8 F^2, the readout's 3.5 F^2.
    f = 128
    expected = 4 * (5 * 9 * f**2 + 8 * f**2 + 3 * f**2 + f**2 // 2 + f // 2)
    assert product_flops_per_atom(random_potential()) == expected


def test_random_potential_is_the_same_each_time_and_leaves_the_generator() -> None:
    torch.manual_seed(5)
    first = random_potential()
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(drawn, torch.rand(1))
    second = random_potential()
    assert all(map(torch.equal, first.state_dict().values(), second.state_dict().values()))


def test_second_network_has_the_size_of_aceff() -> None:
    potential = random_potential(network="tensornet2")
    assert (potential.architecture, potential.cutoff) == ("TensorNet2", math.inf)
    assert sum(p.numel() for p in potential.representation.parameters()) > 9e5
    assert why_not_torchmdnet(potential) is None


def test_neighbours_and_cells_of_torchmdnet() -> None:
    box = water_box(648)
    neighbors = NeighborList(4.5)
    motion = Motion(box)
    places = places_for_neighbors(box, 4.5)
    most = 0
    for _ in range(5):
        graph = neighbors.graph(box.numbers, motion.next(), box.cell.array, True)
        most = max(most, int(torch.bincount(graph.edge_index[0]).max()))
    assert most + 1 <= places < 2 * most
    assert fits_minimum_image(box, 4.5)
    assert fits_minimum_image(ethanol(), 4.5)
    assert not fits_minimum_image(box, 9.5)
    assert not fits_minimum_image(bulk("Cu"), 4.5)
    box.pbc = [True, True, False]
    assert not fits_minimum_image(box, 4.5)


# Trials in a process of their own


def test_trial_reports_memory_and_results(here: Path) -> None:
    contestant = Contestant("tensormd", "tiny.safetensors", backend="reference")
    trial = run_trial(contestant, ethanol(), 1, 120)
    calculator_forces = make_program(contestant, ethanol())
    calculator_forces.load(ethanol())
    calculator_forces.step(ethanol().get_positions())
    energy, forces = calculator_forces.results()
    assert trial.energy == pytest.approx(energy, rel=1e-6)
    assert np.allclose(trial.forces, forces, atol=1e-5)
    assert trial.seconds > 0
    if sys.platform == "linux":
        assert trial.memory_mib is not None
        assert 0 <= trial.memory_mib < 2000


def test_trial_that_fails_says_why(here: Path) -> None:
    xenon = Atoms("Xe")
    with pytest.raises(TrialError, match="does not know Xe"):
        run_trial(Contestant("tensormd", "tiny.safetensors"), xenon, 1, 120)
    with pytest.raises(TrialError, match="no program"):
        run_trial(Contestant("other", "tiny.safetensors"), xenon, 1, 120)
    with pytest.raises(TrialError, match=r"no answer within 0\.01 s"):
        run_trial(Contestant("tensormd", "tiny.safetensors"), xenon, 1, 0.01)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited on Linux only")
def test_too_little_memory_is_an_answer() -> None:
    code = """
import torch
from tensormd.md_runs.benchmark import worker
worker.SHARE = 0.01
with worker.limited_memory(torch.device("cpu")):
    try:
        torch.empty(2**36)
    except RuntimeError as error:
        print(worker.one_line(error))
print(torch.empty(2**20).numel())
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:2] == ["not enough memory", str(2**20)]


def test_reasons_are_one_line() -> None:
    wrapped = RuntimeError("failed in the TorchScript interpreter.\nRuntimeError: why\n")
    assert one_line(wrapped) == "RuntimeError: RuntimeError: why"
    assert one_line(KeyError()) == "KeyError: "
    assert one_line(ValueError("first\nsecond")) == "ValueError: first"


# All of it


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("benchmark")
    path = write_tiny_potential(folder / "tiny.safetensors")
    settings = BenchmarkSettings(
        model=str(path),
        systems=(),  # each takes a dozen processes; `test_command_writes_files` has a molecule
        sizes=(192,),
        backend="reference",
        device="cpu",
        threads=1,
        rounds=1,
        modes=("eager", "compile"),
    )
    before = os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()
    said: list[str] = []
    found = run_benchmark(settings, said.append)
    assert (os.environ.get("OMP_NUM_THREADS"), torch.get_num_threads()) == before
    assert any("water 192" in line for line in said)
    return json.loads(json.dumps(found))  # it is plain data


def test_what_is_reported(results: dict[str, Any]) -> None:
    machine = results["machine"]
    assert machine["processor"]
    assert machine["threads"] == 1
    assert machine["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert machine["versions"]["torchmd-net"]
    assert results["model"]["name"] == "tiny"
    assert results["model"]["backend"] == "reference"
    assert results["model"]["engine"]
    assert results["matrix_product_gflops"] > 0
    names = [(s["name"], s["atoms"], s["periodic"]) for s in results["systems"]]
    assert names == [("water 192", 192, True)]
    for system in results["systems"]:
        ours, peer = system["tensormd"], system["torchmdnet"]
        assert system["edges"] > 0
        assert ours["ms"] > 0
        assert ours["graph_ms"] > 0
        assert 0 < ours["adapter_ms"] < 0.9 * ours["ms"]
        assert ours["ns_per_day"] == pytest.approx(86.4 / ours["ms"])
        assert ours["us_per_atom"] == pytest.approx(1e3 * ours["ms"] / system["atoms"])
        assert len(ours["ms_by_round"]) == 1
        assert system["products_ms"] > 0
        assert system["largest_force_ev_per_a"] > 1e-2
        assert set(peer["modes"]) == {"eager", "compile"}
        assert "--compile" in peer["modes"]["compile"]["failed"]
        assert peer["best_mode"] == "eager"
        assert peer["ms"] == peer["modes"][peer["best_mode"]]["ms"]
        assert peer["ms"] == min(m["ms"] for m in peer["modes"].values() if m.get("timed"))
        assert peer["ase_ms"] > 0
        assert system["ratio"] == pytest.approx(peer["ms"] / ours["ms"])
        # The same weights: both are as near to float64 as float32 can be, and not equal to it.
        for deviation in (ours["deviation"], peer["deviation"]):
            limit = 1e-5 * max(system["largest_force_ev_per_a"], 1.0)
            assert 0 < deviation["force_rms_ev_per_a"] <= deviation["force_max_ev_per_a"] < limit
            assert abs(deviation["energy_ev"]) < 1e-5 * system["atoms"]


def test_table_and_figure(results: dict[str, Any], tmp_path: Path) -> None:
    text = benchmark_report.text(results)
    for expected in ("water 192", "GFLOP/s", "from float64", "1 thread;", "compile:"):
        assert expected in text
    table = benchmark_report.markdown(results).splitlines()
    assert len(table) == 4 + len(results["systems"])
    assert len({line.count("|") for line in table[2:]}) == 1
    assert "torch " + torch.__version__.partition("+")[0] in table[0]
    benchmark_report.plot(results, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").read_bytes().startswith(b"\x89PNG")


def test_how_cost_grows() -> None:
    def system(atoms: int, ms: float | None, name: str = "water") -> dict[str, Any]:
        peer = {} if ms is None else {"ms": ms}
        ours = {"ms": 0.1 * atoms}
        return {"name": f"{name} {atoms}", "atoms": atoms} | {
            "tensormd": ours,
            "torchmdnet": peer,
        }

    found = {"systems": [system(300, 9.0), system(3000, 900.0), system(5, 1e9, "other")]}
    assert benchmark.power_law(found, "tensormd") == pytest.approx(1.0)
    assert benchmark.power_law(found, "torchmdnet") == pytest.approx(2.0)
    assert benchmark.power_law({"systems": [system(300, None)]}, "torchmdnet") is None


def test_a_cell_that_torchmdnet_cannot_do(here: Path) -> None:
    bulk("C").write("diamond.xyz")
    found = run_benchmark(
        BenchmarkSettings(
            model="tiny.safetensors", systems=("diamond.xyz",), sizes=(), rounds=1, threads=1
        )
    )["systems"][0]
    for mode in found["torchmdnet"]["modes"].values():
        assert "wrong for this cell" in mode["failed"]
    assert found["tensormd"]["ms"] > 0


def test_command_writes_files(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["-m", "tiny.safetensors", "--systems", "ethanol.xyz", "--sizes", "", "--no-peer"]
    options += ["--rounds", "1", "--threads", "1", "--backend", "reference"]
    assert run("benchmark", *options, "--json", "out.json", "--plot", "out.png") == 0
    assert "ethanol" in capsys.readouterr().out
    written = json.loads((here / "out.json").read_text())
    assert written["settings"]["rounds"] == 1
    system = written["systems"][0]
    assert system["ratio"] is None
    assert system["torchmdnet"]["best_mode"] is None
    assert system["torchmdnet"]["modes"]["eager"] == {"failed": "not asked for"}
    assert "-" in benchmark_report.rows(written)[0]
    written["systems"].append({"name": "much", "atoms": 10**9, "failed": "not enough memory"})
    assert "much: tensormd fails: not enough memory" in benchmark_report.text(written)
    assert benchmark.power_law(written, "tensormd") is None
    written["systems"].pop()
    assert (here / "out.png").exists()
    table = [sys.executable, str(ROOT / "benchmarks" / "inference.py"), "--table"]
    done = subprocess.run([*table, "out.json"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == benchmark_report.markdown(written)

    def script(*options: str) -> None:
        monkeypatch.setattr(sys, "argv", ["inference.py", *options])
        runpy.run_path(table[1], run_name="__main__")

    with pytest.raises(SystemExit, match="torchmd-net ran on no system"):
        script("--speed", "out.json", "speed.png")
    script("--speed", str(MEASURED), "speed.png")
    assert (here / "speed.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(SystemExit, match=r"^inference.py: ethanol.xyz holds no results"):
        script("--table", "ethanol.xyz")


def test_json_on_stdout(
    results: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = importlib.import_module("tensormd.md_runs.command.benchmark")
    monkeypatch.setattr(module, "run_benchmark", lambda settings, say, keep: results)
    assert run("benchmark", "--json", "-") == 0
    assert json.loads(capsys.readouterr().out) == results


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--systems", "ubiquitin"], "'ubiquitin' is none of"),
        (["--systems", "dhfr"], "dhfr.pdb is not in"),
        (["--systems", "", "--sizes", ""], "nothing to measure"),
        (["--sizes", "many"], "'many' is no number"),
        (["--sizes", "30"], "30 atoms of water are too few"),
        (["--rounds", "0"], "--rounds is 0"),
        (["--threads", "0"], "--threads is 0"),
        (["--device", "gpu9"], "gpu9"),
        (["--backend", "magic"], "magic"),
        (["--network", "resnet"], "'resnet': expected one of tensornet, tensornet2"),
        (["-m", "tiny.safetensors", "--network", "tensornet2"], "--model has a network"),
        (["--dtype", "half"], "dtype is 'half'"),
        (["-m", "tiny.safetensors", "--units", "feet"], "LENGTH,ENERGY"),
        (["--json", "none/out.json"], "there is no folder none"),
        (["--plot", "out.pdf"], "ends in .png"),
        (["-m", "missing.ckpt"], "missing.ckpt"),
        (["-m", "tiny.safetensors"], "alanine_dipeptide: the model does not know N"),
    ],
)
def test_mistakes_are_one_line_and_code_2(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = sorted(path.name for path in here.iterdir())
    assert run("benchmark", *arguments) == 2
    captured = capsys.readouterr()
    assert message in captured.err
    assert len(captured.err.strip().splitlines()) == 1
    assert captured.out == ""
    assert sorted(path.name for path in here.iterdir()) == files


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("benchmark", "--help") == 0
    assert "--no-peer" in capsys.readouterr().out


@pytest.mark.skipif(python_problem() is not None, reason=str(python_problem()))
def test_steps_in_openmm() -> None:
    from tensormd.md_runs.benchmark.openmm_steps import openmm_steps

    found = openmm_steps(peer=False, rounds=1, steps=1, threads=1, platform="Reference")
    assert found["atoms"] == 22
    assert found["tensormd"]["engine"] in ("torchforce", "python")
    assert found["tensormd"]["steps_per_second"] == pytest.approx(1e3 / found["tensormd"]["ms"])
    assert found["ratio"] is None
    with pytest.raises(ValueError, match="expected one of"):
        openmm_steps(platform="Abacus")


def test_openmmml_gets_the_same_weights(tmp_path: Path) -> None:
    # Without compiling: what its file holds, read as openmm-ml 1.7 reads it.
    potential = make_potential()
    single = copy.deepcopy(potential).float()
    write_torchmdnet_checkpoint(single, tmp_path / "old.ckpt", old_layout=True)
    with peer_quiet():
        from torchmdnet.models.model import load_model

        model = load_model(str(tmp_path / "old.ckpt"), check_errors=False, derivative=True)
    atoms = molecule("CH3CH2OH")
    numbers = torch.tensor(atoms.numbers)
    energy, forces = model.eval()(numbers, torch.tensor(atoms.positions, dtype=torch.float32))
    graph = NeighborList(float(potential.cutoff)).graph(atoms.numbers, atoms.positions)
    expected = potential(graph)
    unit = float(potential.energy_in_ev)
    assert energy.item() * unit == pytest.approx(expected.energy.item(), rel=1e-5)
    assert torch.allclose(forces.double() * unit, expected.forces, atol=1e-5)
