"""TorchScript files for programs that know nothing of tensormd."""

from __future__ import annotations

import json
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from ase.build import molecule
from support.helpers import System, crystal, ethanol, make_potential, make_tdn, predict, slab, tiny
from support.paths import ROOT

from tensormd.models import Committee, NeighborList, Potential, export_torchscript
from tensormd.models.inference.tables import FORCE_BOUND, tabulated_potential
from tensormd.models.inference.torchscript_pairs import neighbor_pairs
from tensormd.models.units import kj_per_mol_in_ev

SYSTEMS = {
    "molecule": ethanol(),
    "charged": ethanol(charge=1.0),
    "crystal": crystal(),
    "slab": slab(),
    "one atom in a tiny cell": tiny(1),
    "two atoms in a tiny cell": tiny(2),
}


@pytest.fixture(scope="module")
def potential() -> Potential:
    return make_potential()


def as_arguments(system: System) -> tuple[torch.Tensor, ...]:
    cell = np.zeros((3, 3)) if system.cell is None else system.cell
    return (
        torch.tensor(system.positions),
        torch.tensor(system.numbers),
        torch.tensor(cell),
        torch.tensor(np.broadcast_to(system.pbc, 3).copy()),
    )


@pytest.mark.parametrize("tables", [True, False])
def test_portable_file_in_a_process_without_tensormd(
    potential: Potential, tables: bool, tmp_path: Path
) -> None:
    export_torchscript(potential, tmp_path / "model.pt", tables=tables)
    if tables:
        potential = tabulated_potential(potential)
    inputs = {
        name: [*(x.tolist() for x in as_arguments(system)), system.charge]
        for name, system in SYSTEMS.items()
    }
    (tmp_path / "inputs.json").write_text(json.dumps(inputs))
    script = tmp_path / "other_program.py"
    script.write_text(
        "import json, sys, torch\n"
        "torch.set_default_dtype(torch.float64)\n"
        "model = torch.jit.load('model.pt')\n"
        "results = {}\n"
        "for name, (x, z, box, pbc, q) in json.load(open('inputs.json')).items():\n"
        "    x, box = torch.tensor(x), torch.tensor(box)\n"
        "    for _ in range(3):\n"
        "        energy, forces = model(x, torch.tensor(z), box, torch.tensor(pbc), q)\n"
        "    results[name] = [energy.item(), forces.tolist()]\n"
        "assert not any('tensormd' in name for name in sys.modules)\n"
        "print(json.dumps(results))\n"
    )
    run = subprocess.run(
        [sys.executable, script], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    results = json.loads(run.stdout)
    for name, system in SYSTEMS.items():
        expected = predict(potential, system)
        energy, forces = results[name]
        assert energy == pytest.approx(expected.energy.item(), abs=1e-10)
        np.testing.assert_allclose(forces, expected.forces.numpy(), atol=1e-10)
    assert np.abs(results["molecule"][1]).max() > 0.1


def test_exported_list_follows_moving_atoms(potential: Potential, tmp_path: Path) -> None:
    export_torchscript(potential, tmp_path / "model.pt", skin=0.5, tables=False)
    model = torch.jit.load(tmp_path / "model.pt")
    generator = np.random.default_rng(0)
    system = crystal()
    assert system.cell is not None
    for step in range(20):
        positions = system.positions + generator.normal(scale=0.08, size=system.positions.shape)
        system = system.moved(positions, system.cell * (1.02 if step == 10 else 1.0))
        energy, forces = model(*as_arguments(system))
        expected = predict(potential, system)
        assert energy.item() == pytest.approx(expected.energy.item(), abs=1e-9)
        np.testing.assert_allclose(forces, expected.forces.numpy(), atol=1e-9)


@pytest.mark.parametrize(("tables", "bound"), [(False, 1e-12), (True, FORCE_BOUND)])
def test_committee_exports_its_mean(tables: bool, bound: float, tmp_path: Path) -> None:
    members = [make_potential(seed) for seed in (0, 1)]
    export_torchscript(Committee(members), tmp_path / "model.pt", tables=tables)
    energy, forces = torch.jit.load(tmp_path / "model.pt")(*as_arguments(ethanol()))
    alone = [predict(member, ethanol()) for member in members]
    assert energy.item() == pytest.approx(np.mean([p.energy.item() for p in alone]), abs=bound)
    mean = torch.stack([p.forces for p in alone]).mean(0)
    np.testing.assert_allclose(forces, mean, rtol=0, atol=bound)


@pytest.mark.parametrize("make", [make_potential, make_tdn])
def test_tables_are_the_default_and_keep_the_bound(
    make: Callable[[], Potential], tmp_path: Path
) -> None:
    potential = make()
    export_torchscript(potential, tmp_path / "default.pt")
    export_torchscript(potential, tmp_path / "exact.pt", tables=False)
    found, exact = (torch.jit.load(tmp_path / f"{name}.pt") for name in ("default", "exact"))
    assert any("table" in name for name, _ in found.named_buffers())
    assert not any("table" in name for name, _ in exact.named_buffers())
    for system in (ethanol(), crystal()):
        error = found(*as_arguments(system))[1] - exact(*as_arguments(system))[1]
        assert 0 < error.abs().max() < FORCE_BOUND


@pytest.mark.parametrize("seed", range(40))
def test_pairs_equal_those_of_the_neighbor_list(seed: int) -> None:
    generator = np.random.default_rng(seed)
    cell = generator.normal(size=(3, 3)) * generator.uniform(2, 12)
    periodic = generator.random(3) < 0.6
    points = generator.normal(size=(int(generator.integers(1, 40)), 3)) * generator.uniform(1, 10)
    points += generator.choice([0.0, 1e5])
    cutoff = generator.uniform(1, 5)
    if abs(np.linalg.det(cell)) < 10:
        cell = np.eye(3) * 4
    graph = NeighborList(cutoff).graph(np.ones(len(points), dtype=int), points, cell, periodic)
    index, shift = torch.jit.script(neighbor_pairs)(
        torch.tensor(points), torch.tensor(cell), torch.tensor(periodic), cutoff
    )
    np.testing.assert_array_equal(index, graph.edge_index)
    np.testing.assert_array_equal(shift, graph.edge_shift)


@pytest.mark.parametrize("name", ["ethanol", "crystal", "slab"])
def test_gromacs_differentiates_the_energy(name: str, tmp_path: Path) -> None:
    """As its NNPot module does: float32, int32 and, without a box, two inputs only."""
    system = {"ethanol": ethanol(charge=1.0), "crystal": crystal(1.0), "slab": slab()}[name]
    potential = make_potential()
    charge = int(system.charge)
    export_torchscript(potential, tmp_path / "model.pt", "gromacs", charge=charge, tables=False)
    model = torch.jit.load(tmp_path / "model.pt")
    positions = torch.tensor(system.positions / 10, dtype=torch.float32, requires_grad=True)
    inputs = [positions, torch.tensor(system.numbers, dtype=torch.int32)]
    cell = None
    if system.cell is not None:
        box = torch.tensor(system.cell / 10, dtype=torch.float32)
        cell = box.double().numpy() * 10
        inputs += [box, torch.tensor(np.broadcast_to(system.pbc, 3).copy())]
    rounded = system.moved(positions.detach().double().numpy() * 10, cell)
    expected = predict(potential, rounded)
    for _ in range(2):
        positions.grad = None
        energy = model(*inputs)
        energy.backward()
        assert energy.item() == pytest.approx(expected.energy.item() / kj_per_mol_in_ev, rel=1e-10)
        forces = -positions.grad.double() * kj_per_mol_in_ev / 10
        assert expected.forces.abs().max() > 0.1
        np.testing.assert_allclose(forces, expected.forces, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("target", ["portable", "openmm", "gromacs"])
def test_files_name_no_file_of_this_machine(
    target: str, potential: Potential, tmp_path: Path
) -> None:
    export_torchscript(potential, tmp_path / "model.pt", target, numbers=[1, 6])
    with zipfile.ZipFile(tmp_path / "model.pt") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    assert any(b"def forward" in content for content in members.values())
    for name, content in members.items():
        for folder in (ROOT, Path(torch.__file__).parent, Path.cwd()):
            assert str(folder).encode() not in content, name
        assert b"site-packages" not in content, name


def test_exporting_leaves_the_potential_as_it_is(tmp_path: Path) -> None:
    potential = make_potential().train()
    export_torchscript(potential, tmp_path / "model.pt")
    assert potential.training
    assert all(parameter.requires_grad for parameter in potential.readout.parameters())


def test_impossible_exports(potential: Potential, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="unknown target 'lammps'"):
        export_torchscript(potential, tmp_path / "model.pt", "lammps")
    with pytest.raises(ValueError, match="needs numbers"):
        export_torchscript(potential, tmp_path / "model.pt", "openmm")
    with pytest.raises(ValueError, match="skin is -1"):
        export_torchscript(potential, tmp_path / "model.pt", skin=-1)
    with pytest.raises(ValueError, match="own module"):
        export_torchscript(torch.nn.Linear(1, 1), tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []
    export_torchscript(
        potential, tmp_path / "model.pt", "openmm", numbers=molecule("CH4").numbers.tolist()
    )
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]
