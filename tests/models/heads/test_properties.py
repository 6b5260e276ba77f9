"""Dipole and polarizability: symmetry, definition, checkpoints."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.data import atomic_masses
from safetensors.torch import load_file, save_file
from support.helpers import (
    Array,
    System,
    crossing,
    crystal,
    ethanol,
    gap_to_cutoff,
    relative_error,
    rotation,
)
from support.property_models import MODELS, add_heads, bare, model, properties
from torch import Tensor
from torch.fx.experimental.proxy_tensor import make_fx

from tensormd.models import (
    DipoleReadout,
    PolarizabilityReadout,
    Potential,
    batch_graphs,
    export_torchscript,
    load_potential,
)
from tensormd.models.checkpoint import describe, save_potential
from tensormd.models.graph import Graph, displacements, pair_edges
from tensormd.models.inference.backends import compile_potential
from tensormd.models.inference.kernels import fuse

EXACT = 1e-10  # what symmetry demands, left to rounding alone


@pytest.fixture(params=MODELS)
def potential(request: pytest.FixtureRequest) -> Potential:
    return model(request.param)


@pytest.fixture(params=[0.0, -1.0], ids=["neutral", "ion"])
def system(request: pytest.FixtureRequest) -> System:
    return ethanol(charge=request.param)


def assert_turned(found: dict[str, Array], before: dict[str, Array], matrix: Array) -> None:
    """A vector and a tensor turned by a matrix, the tensor's anisotropic part by itself too."""
    assert relative_error(found["dipole"], before["dipole"] @ matrix.T) < EXACT
    if "polarizability" in before:
        for part in (lambda tensor: tensor, anisotropic):
            expected = matrix @ part(before["polarizability"]) @ matrix.T
            assert relative_error(part(found["polarizability"]), expected) < EXACT


def anisotropic(tensors: Array) -> Array:
    mean = np.trace(tensors, axis1=1, axis2=2) / 3
    return np.asarray(tensors - mean[:, None, None] * np.eye(3))


# Symmetry


@pytest.mark.parametrize("seed", [0, 1])
def test_rotation(potential: Potential, system: System, seed: int) -> None:
    matrix = rotation(seed)
    turned = system.moved(system.positions @ matrix.T)
    assert_turned(properties(potential, turned), properties(potential, system), matrix)


@pytest.mark.parametrize("name", [name for name in MODELS if "SO(3)" not in name])
def test_inversion(name: str, system: System) -> None:
    """The dipole is a polar vector, the polarizability an even tensor."""
    before = properties(model(name), system)
    after = properties(model(name), system.moved(-system.positions))
    assert_turned(after, before, -np.eye(3))


@pytest.mark.parametrize("name", ["TensorNet-SO(3)", "TDN-L2-SO(3)"])
def test_so3_may_tell_mirror_images_apart(name: str) -> None:
    """The control of the test above."""
    before = properties(model(name), ethanol())
    after = properties(model(name), ethanol().moved(-ethanol().positions))
    assert relative_error(after["dipole"], -before["dipole"]) > 1e-4


class OneComponent(DipoleReadout):
    """Reads the x component of the vectors by itself."""

    def forward(self, x: Tensor, graph: Graph) -> Tensor:
        row = self.layout.by_atom(x)[:, self.place.start]
        extra = torch.zeros(graph.charge.shape[0], dtype=torch.float64)
        extra = extra.index_add(0, graph.system, row.double().mean(1))
        return super().forward(x, graph) + extra.unsqueeze(1)


@pytest.mark.parametrize("name", ["TensorNet", "TDN-L2"])
def test_a_readout_of_one_component_is_seen(name: str) -> None:
    """The control of the tests of rotation and inversion."""
    potential = add_heads(bare(name))
    potential.heads["dipole"] = OneComponent(potential.representation).double()
    matrix = rotation()
    before = properties(potential, ethanol())
    turned = properties(potential, ethanol().moved(ethanol().positions @ matrix.T))
    assert relative_error(turned["dipole"], before["dipole"] @ matrix.T) > 1e-3


@pytest.mark.parametrize("distance", [7.0, 1e5])
def test_translation(potential: Potential, system: System, distance: float) -> None:
    """Of ions too: their dipole is taken at the centre of mass."""
    before = properties(potential, system)
    moved = system.moved(system.positions + distance * np.array([1.0, -2.0, 0.5]))
    bound = EXACT if distance < 10 else 1e-8  # 1e5 A leave 1e-11 A of the positions
    for name, value in properties(potential, moved).items():
        assert relative_error(value, before[name]) < bound


def test_permutation(potential: Potential, system: System) -> None:
    order = np.random.default_rng(3).permutation(len(system.numbers))
    other = system._replace(numbers=system.numbers[order], positions=system.positions[order])
    before = properties(potential, system)
    for name, value in properties(potential, other).items():
        assert relative_error(value, before[name]) < EXACT


def test_the_polarizability_is_symmetric(system: System) -> None:
    tensor = properties(model("TensorNet"), system)["polarizability"][0]
    assert np.array_equal(tensor, tensor.T)
    assert np.abs(tensor[0, 1]) > 1e-3


def test_a_free_atom_is_isotropic(potential: Potential) -> None:
    atom = System(np.array([6]), np.array([[1.0, 2.0, 3.0]]))
    found = properties(potential, atom)
    assert np.abs(found["dipole"]).max() < 1e-12
    if "polarizability" in found:
        alpha = found["polarizability"][0]
        assert alpha[0, 0] > 0.01
        assert np.abs(alpha - alpha[0, 0] * np.eye(3)).max() < 1e-12


# Bookkeeping


def test_batch_equals_single(potential: Potential) -> None:
    systems = [ethanol(1), ethanol(2, charge=1.0), ethanol(3)]
    together = properties(potential, *systems)
    for k, system in enumerate(systems):
        for name, value in properties(potential, system).items():
            assert relative_error(together[name][k], value[0]) < 1e-12


def together(a: System, b: System, distance: float) -> System:
    far = b.positions + np.array([distance, 0.0, 0.0])
    return System(np.append(a.numbers, b.numbers), np.vstack([a.positions, far]))


def test_far_fragments_add_up(potential: Potential) -> None:
    """Copies of one molecule, turned: their charges miss the same."""
    a = ethanol()
    b = a.moved(a.positions @ rotation(5).T)
    both = properties(potential, together(a, b, 30.0))
    parts = properties(potential, a, b)
    for name, value in both.items():
        assert relative_error(value[0], parts[name].sum(0)) < EXACT


def test_fragments_that_differ_add_up_without_charges() -> None:
    """With charges they share what is missing: the control, and the reason for the option."""
    a, b = ethanol(), System(np.array([8, 1, 1]), ethanol().positions[:3])
    for charges in (True, False):
        potential = model("TensorNet", charges)
        both = properties(potential, together(a, b, 30.0))
        parts = properties(potential, a, b)
        error = relative_error(both["dipole"][0], parts["dipole"].sum(0))
        assert error > 0.1 if charges else error < EXACT
        alpha = parts["polarizability"].sum(0)
        assert relative_error(both["polarizability"][0], alpha) < EXACT


def test_near_fragments_do_not_add_up(potential: Potential) -> None:
    """The control of the tests above."""
    both = properties(potential, together(ethanol(), ethanol(), 3.0))
    parts = properties(potential, ethanol(), ethanol())
    for name, value in both.items():
        assert relative_error(value[0], parts[name].sum(0)) > 1e-3


def test_continuous_through_the_cutoff(potential: Potential) -> None:
    changes = []
    for gap in (1e-2, 1e-3, 1e-4):
        inside, outside = (
            properties(potential, crossing(potential, potential.cutoff + sign * gap))
            for sign in (-1, 1)
        )
        changes.append({n: np.abs(inside[n] - outside[n]).max() for n in inside})
    for name in changes[0]:
        assert changes[0][name] > 1e-9
        # A charge that is moved counts linearly, all else quadratically.
        factor = 5 if name == "dipole" else 50
        for k in (1, 2):
            assert changes[k][name] < max(changes[k - 1][name] / factor, 1e-12)


def test_float32_is_close_to_float64(potential: Potential, system: System) -> None:
    exact = properties(potential, system)
    single = copy.deepcopy(potential).float()
    for key, tensor in single.state_dict().items():
        if "constants" in key:
            assert torch.equal(tensor, potential.state_dict()[key]), key
    for name, value in properties(single, system).items():
        assert value.dtype == np.float64
        assert 0 < relative_error(value, exact[name]) < 3e-5


# What the dipole is


def test_charges_sum_to_the_charge_of_their_system() -> None:
    potential = model("TensorNet")
    systems = [ethanol(), ethanol(2, charge=-1.0), ethanol(3, charge=2.0)]
    graph = batch_graphs([s.graph() for s in systems])
    vectors = displacements(graph)
    features = potential.representation(graph, vectors)
    charges = potential.heads["dipole"].charges(features, graph).detach().numpy()
    assert charges.std() > 0.01
    assert np.abs(charges.reshape(3, -1).sum(1) - [0.0, -1.0, 2.0]).max() < 1e-12
    # Charges and atomic dipoles make the dipole, at the centre of mass.
    found = properties(potential, *systems)["dipole"]
    atomic = potential.heads["dipole"].read(features)[1].detach().numpy().reshape(3, -1, 3)
    for k, system in enumerate(systems):
        masses = atomic_masses[system.numbers]
        arms = system.positions - masses @ system.positions / masses.sum()
        expected = charges.reshape(3, -1)[k] @ arms + atomic[k].sum(0)
        assert np.abs(found[k] - expected).max() < 1e-12
    with pytest.raises(ValueError, match="charges=False"):
        model("TensorNet", False).heads["dipole"].charges(features, graph)


def test_derivatives_by_the_positions(potential: Potential, system: System) -> None:
    """Born charges, which sum to nothing: the dipole does not change under translation."""
    graph = system.graph(potential.cutoff)
    assert gap_to_cutoff(system, potential.cutoff) > 1e-3

    def dipole(positions: Tensor) -> Tensor:
        return potential.properties(graph._replace(positions=positions), names=["dipole"])[
            "dipole"
        ][0]

    born = torch.autograd.functional.jacobian(dipole, graph.positions)
    assert born.sum(1).abs().max() < EXACT
    step = torch.zeros_like(graph.positions)
    step[4, 1] = 1e-4
    with torch.no_grad():
        numeric = (dipole(graph.positions + step) - dipole(graph.positions - step)) / 2e-4
    assert relative_error(numeric, born[:, 4, 1]) < 1e-5


def test_periodic_systems_have_no_dipole() -> None:
    potential = model("TensorNet")
    graph = crystal().graph()
    with pytest.raises(ValueError, match="periodic system is not defined"):
        potential.properties(graph)
    alpha = potential.properties(graph, names=["polarizability"])["polarizability"][0]
    assert alpha.abs().max() > 0.1


def test_standardise() -> None:
    potential = add_heads(bare("TensorNet"))
    systems = [ethanol(), System(np.array([8, 1, 1]), ethanol().positions[:3])]
    graphs = [s.graph() for s in systems]
    alpha, dipole = potential.heads["polarizability"], potential.heads["dipole"]
    isotropic = {1: 0.02, 6: 0.08, 8: 0.05}
    labels = [sum(isotropic[z] for z in s.numbers) * torch.eye(3) for s in systems]
    deviator = torch.tensor([[0.0, 0.1, 0.0], [0.1, 0.0, 0.0], [0.0, 0.0, 0.0]])
    alpha.standardise(graphs, [label + deviator for label in labels])
    counts = np.array([np.bincount(s.numbers, minlength=16) for s in systems])
    expected = [float(label[0, 0]) for label in labels]
    assert counts @ alpha.constants.references.numpy() == pytest.approx(expected)
    assert alpha.constants.scale.item() == pytest.approx(np.sqrt(2 * 0.01 / 9 / 6))
    alpha.standardise(graphs, [label[0, 0] for label in labels])
    assert counts @ alpha.constants.references.numpy() == pytest.approx(expected)
    assert alpha.constants.scale.item() == pytest.approx(1e-3 * np.mean(expected) / 6)
    dipole.standardise(graphs, [torch.tensor([0.3, 0.0, 0.4]), torch.tensor(0.5)])
    assert dipole.constants.scale.item() == pytest.approx(np.sqrt(0.25 / 3 / 6))
    dipole.standardise(graphs, [torch.zeros(3), torch.zeros(3)])
    assert dipole.constants.scale.item() == 1.0


# The energy path


@pytest.mark.parametrize("name", ["TensorNet", "TDN-L2"])
def test_energies_and_forces_do_not_see_the_heads(name: str) -> None:
    plain, headed = bare(name).float(), copy.deepcopy(model(name)).float()
    graph = ethanol().graph()
    assert set(plain.state_dict()) == {k for k in headed.state_dict() if "heads" not in k}
    for make in (lambda p: p, compile_potential, fuse):
        one, other = make(plain), make(headed)
        for _ in range(3):  # TorchScript rounds otherwise at first
            expected, found = one(graph), other(graph)
        assert expected.forces.abs().max() > 1e-3
        assert all(torch.equal(a, b) for a, b in zip(expected, found, strict=True))


def test_one_pass_for_energies_and_properties(potential: Potential) -> None:
    graph = batch_graphs([ethanol(1).graph(potential.cutoff), ethanol(2).graph(potential.cutoff)])
    vectors = displacements(graph)
    for pairs in (None, pair_edges(graph)):
        energies, found = potential.atom_energies_and_properties(graph, vectors, pairs)
        assert torch.equal(energies, potential.atom_energies(graph, vectors, pairs))
        for name, value in potential.properties(graph, vectors, pairs).items():
            assert torch.equal(value, found[name])
    with pytest.raises(ValueError, match="give both, or neither"):
        potential.properties(graph, pairs=pair_edges(graph))


def test_traceable_and_trainable() -> None:
    potential = add_heads(bare("TensorNet")).train()
    graph = ethanol().graph()
    pairs = pair_edges(graph)

    def loss(vectors: Tensor) -> Tensor:
        energies, found = potential.atom_energies_and_properties(graph, vectors, pairs)
        return energies.sum() + sum(value.square().sum() for value in found.values())

    traced = make_fx(loss)(displacements(graph))
    moved = displacements(graph) * 1.01
    assert torch.equal(traced(moved), loss(moved))
    assert not torch.equal(traced(moved), loss(displacements(graph)))
    loss(moved).backward()
    for name, parameter in potential.heads.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name


# Files


def test_round_trip(potential: Potential, tmp_path: Path) -> None:
    potential.metadata = {"trained_on": ["energy", "dipole"]}
    save_potential(potential, tmp_path / "heads.safetensors")
    again = load_potential(tmp_path / "heads.safetensors")
    assert isinstance(again, Potential)
    assert describe(again) == describe(potential)
    assert describe(again)["heads"]["dipole"] == {"charges": True}
    for key, tensor in potential.state_dict().items():
        assert torch.equal(again.state_dict()[key], tensor), key
    expected = properties(potential, ethanol(charge=1.0))
    for name, value in properties(again, ethanol(charge=1.0)).items():
        assert relative_error(value, expected[name]) < 1e-13
    save_potential(again, tmp_path / "twice.safetensors")
    assert (tmp_path / "twice.safetensors").read_bytes() == (
        tmp_path / "heads.safetensors"
    ).read_bytes()


def described(path: Path) -> dict[str, Any]:
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, Any] = json.loads(header["__metadata__"]["tensormd"])
    return found


def test_only_files_with_heads_have_the_new_version(tmp_path: Path) -> None:
    save_potential(bare("TensorNet"), tmp_path / "plain.safetensors")
    save_potential(model("TensorNet"), tmp_path / "heads.safetensors")
    assert described(tmp_path / "plain.safetensors")["version"] == 1
    assert "heads" not in described(tmp_path / "plain.safetensors")
    assert described(tmp_path / "heads.safetensors")["version"] == 2


@pytest.mark.parametrize(
    ("heads", "message"),
    [
        ({"quadrupole": {}}, "unknown head 'quadrupole'"),
        ({"dipole": {"charge": True}}, "description makes no model"),
        ([], "expected a dict"),
        ({}, "heads.dipole"),
    ],
)
def test_descriptions_that_are_wrong(heads: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "heads.safetensors"
    save_potential(model("TensorNet"), path)
    text = json.dumps(described(path) | {"heads": heads})
    save_file(load_file(path), path, metadata={"tensormd": text})
    with pytest.raises(ValueError, match=message):
        load_potential(path)


def test_heads_that_do_not_fit() -> None:
    small, network = bare("TDN-L1").representation, bare("TensorNet").representation
    with pytest.raises(ValueError, match=r"needs the tensor part .* l = 2"):
        PolarizabilityReadout(small)
    with pytest.raises(ValueError, match="Linear has no vectors"):
        DipoleReadout(torch.nn.Linear(2, 2))
    for heads in ({"quadrupole": DipoleReadout(network)}, {"polarizability": torch.nn.Identity()}):
        with pytest.raises(ValueError, match="expected 'dipole': DipoleReadout"):
            Potential(network, bare("TensorNet").readout, elements=[1], heads=heads)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="has no heads: it gives energy"):
        bare("TensorNet").properties(ethanol().graph())
    with pytest.raises(ValueError, match="has no polarizability: it gives energy, dipole"):
        model("TDN-L1").properties(ethanol().graph(), names=["polarizability"])


def test_exported_files_hold_the_energy_alone(tmp_path: Path) -> None:
    path = export_torchscript(model("TensorNet"), tmp_path / "model.pt", target="portable")
    names = [name for name, _ in torch.jit.load(path or tmp_path / "model.pt").named_parameters()]
    assert names
    assert not any("heads" in name for name in names)
