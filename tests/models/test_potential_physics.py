"""The contract that every potential keeps, whatever its architecture and options.

Derivatives, symmetries and the cutoff are tested for every network, on systems for which its
options matter. Translations, lattices, permutations and skins depend on the graph; they are tested
for one network of each architecture on every system.

Unless stated otherwise, bounds are relative to the largest energy or force compared, in float64.
Random networks stand in for trained ones; `make_potential` scales them so that forces are of the
order of eV/A.
"""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    CUTOFF,
    REFERENCES,
    Array,
    System,
    crystal,
    ethanol,
    gap_to_cutoff,
    jump,
    make_potential,
    numerical_forces,
    numerical_hessian,
    numerical_virial,
    predict,
    predict_batch,
    relative_error,
    rotation,
    supercell,
)
from support.networks import BASES, ENGINES, NETWORKS, SYSTEMS, TENSORNETS, model, network
from torch import Tensor, nn

from tensormd.models import Potential, batch_graphs
from tensormd.models.graph import Graph, displacements
from tensormd.models.heads.repulsion import ZBLRepulsion
from tensormd.models.inference.hessian import hessian
from tensormd.models.maths.cartesian import BASIS
from tensormd.models.maths.radial import CosineCutoff

EXACT = 1e-10  # what symmetry demands, left to rounding alone
# One factor at a time: every network is seen where its options matter, a base everywhere.
VARIANTS = [name for name in NETWORKS if name not in BASES]
FUSED = [f"tensornet {name}" for name in TENSORNETS if name != "base"]
PERIODIC = ("crystal", "slab", "1-atom-cell", "2-atom-cell")
CASES = [
    *[(name, engine, kind) for name in BASES for engine in ENGINES for kind in SYSTEMS],
    *[(name, "eager", kind) for name in VARIANTS for kind in ("ion", "crystal")],
    *[(name, "fused", "crystal") for name in FUSED],
]


def potentials(names: list[str], fused: list[str]) -> Any:
    """Parameters of a fixture: names of networks, and those whose kernels are seen too."""
    pairs = [(name, "eager") for name in names] + [(name, "fused") for name in fused]
    return {"params": pairs, "ids": lambda pair: " ".join(pair)}


@pytest.fixture(**potentials(NETWORKS, BASES))
def potential(request: pytest.FixtureRequest) -> nn.Module:
    """Every network, for what its options could break."""
    return model(*request.param)


@pytest.fixture(**potentials(BASES, BASES))
def base(request: pytest.FixtureRequest) -> nn.Module:
    """One network of each architecture, for what the graph alone could break."""
    return model(*request.param)


@pytest.fixture(params=NETWORKS)
def eager(request: pytest.FixtureRequest) -> Potential:
    """The eager ones alone, which can be trained and cast."""
    return network(request.param)


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> System:
    return SYSTEMS[request.param]


def error(value: Any, expected: Any) -> float:
    """Largest difference over the largest magnitude, or over 1e-3 where all is smaller."""
    a, b = (np.asarray(torch.as_tensor(x).detach(), dtype=float) for x in (value, expected))
    return float(np.abs(a - b).max()) / max(float(np.abs(b).max()), 1e-3)


def assert_same(found: Any, expected: Any, bound: float = EXACT) -> None:
    """Energy, energies, forces and virial of two predictions, relative."""
    for name, a, b in zip(expected._fields, found, expected, strict=True):
        assert error(a, b) <= bound, name


# Derivatives


@pytest.mark.parametrize(("name", "engine", "kind"), CASES)
def test_forces_and_virial_are_derivatives(name: str, engine: str, kind: str) -> None:
    potential, system = model(name, engine), SYSTEMS[kind]
    assert gap_to_cutoff(system, float(potential.cutoff)) > 0.004  # two steps, on both sides
    prediction = predict(potential, system)
    virial = prediction.virial[0]
    assert virial.abs().max() > 0.03
    assert torch.equal(virial, virial.T)
    assert relative_error(numerical_virial(potential, system), virial) < 1e-7
    if len(system.numbers) == 1:
        assert prediction.forces.abs().max() < 1e-12  # by symmetry
        return
    assert prediction.forces.abs().max() > (0.03 if name.startswith("tensornet") else 0.01)
    assert relative_error(numerical_forces(potential, system), prediction.forces) < 1e-7


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        *[("tensornet base", k) for k in SYSTEMS],
        ("tdn base", "molecule"),
        ("tdn L2-cp", "molecule"),
    ],
)
def test_hessian_is_the_gradient_of_the_forces(name: str, kind: str) -> None:
    potential, system = network(name), SYSTEMS[kind]
    matrix = hessian(potential.total_energy, system.graph(skin=1.0))
    assert torch.equal(matrix, matrix.T)
    # Acoustic sum rule: a translation of all atoms does no work.
    assert matrix.view(-1, len(system.numbers), 3).sum(1).abs().max() < 1e-11
    if len(system.numbers) > 1:
        assert relative_error(numerical_hessian(potential, system), matrix) < 1e-7


def test_finite_differences_see_a_wrong_sign() -> None:
    """The control of the two tests above."""
    potential = network("tensornet base")
    forces = predict(potential, SYSTEMS["crystal"]).forces
    numerical = numerical_forces(potential, SYSTEMS["crystal"])
    assert relative_error(numerical, -forces) > 1
    assert relative_error(numerical, forces * (1 + 1e-6)) > 1e-7


def test_virial_of_a_molecule_is_that_of_its_forces(potential: nn.Module) -> None:
    system = SYSTEMS["molecule"]
    prediction = predict(potential, system)
    outer = torch.from_numpy(system.positions).T @ prediction.forces
    assert error(0.5 * (outer + outer.T), prediction.virial[0]) < 1e-12


def test_a_molecule_feels_no_net_force_and_no_torque(potential: nn.Module) -> None:
    system = SYSTEMS["molecule"]
    forces = predict(potential, system).forces
    assert forces.abs().max() > 0.1
    torque = torch.linalg.cross(torch.from_numpy(system.positions), forces).sum(0)
    assert forces.sum(0).abs().max() < 1e-12 * forces.abs().max()
    assert torque.abs().max() < 1e-11 * forces.abs().max()


def test_no_net_force_on_a_crystal(potential: nn.Module) -> None:
    forces = predict(potential, SYSTEMS["crystal"]).forces
    assert forces.abs().max() > 0.03
    assert forces.sum(0).abs().max() < 1e-12 * forces.abs().max()


# Symmetries


def transformed(system: System, matrix: Array) -> System:
    cell = None if system.cell is None else system.cell @ matrix.T
    return system._replace(positions=system.positions @ matrix.T, cell=cell)


def turn(prediction: Any, matrix: Array) -> Any:
    q = torch.from_numpy(matrix)
    return prediction._replace(
        forces=prediction.forces @ q.T,
        virial=q @ prediction.virial @ q.T,
        virials=q @ prediction.virials @ q.T,
    )


def assert_turns(potential: nn.Module, system: System, matrix: Array) -> None:
    turned = predict(potential, transformed(system, matrix))
    assert_same(turned, turn(predict(potential, system), matrix))


@pytest.mark.parametrize("kind", ["ion", "crystal"])
def test_rotation(potential: nn.Module, kind: str) -> None:
    assert_turns(potential, SYSTEMS[kind], rotation(0))


def test_rotation_of_every_system(base: nn.Module, system: System) -> None:
    for seed in (1, 2):
        assert_turns(base, system, rotation(seed))


@pytest.mark.parametrize("kind", ["ion", "crystal"])
@pytest.mark.parametrize("name", [name for name in NETWORKS if "SO" not in name])
def test_inversion(name: str, kind: str) -> None:
    assert_turns(network(name), SYSTEMS[kind], -np.eye(3))


@pytest.mark.parametrize("name", BASES)
def test_inversion_of_every_system(name: str, system: System) -> None:
    assert_turns(network(name), system, -np.eye(3))


@pytest.mark.parametrize("name", [name for name in NETWORKS if "SO" in name])
@pytest.mark.parametrize("kind", ["molecule", "crystal", "slab"])
def test_so3_tells_mirror_images_apart(name: str, kind: str) -> None:
    """The control of the test of inversion: structures and bound do tell."""
    system = SYSTEMS[kind]
    mirrored = predict(network(name), transformed(system, -np.eye(3)))
    assert error(mirrored.energy, predict(network(name), system).energy) > 1e-5


def on_a_grid(system: System) -> System:
    """Coordinates and cell rounded to multiples of 2^-20 A: adding 1e5 A to them is exact."""
    cell = None if system.cell is None else np.round(system.cell * 2**20) / 2**20
    return system.moved(np.round(system.positions * 2**20) / 2**20, cell)


def test_translation(base: nn.Module, system: System) -> None:
    system = on_a_grid(system)
    for distance in (10.0, 1e4, 1e5):
        moved = system.moved(system.positions + distance * np.array([1.0, -1.0, 1.0]))
        for a, b in zip(predict(base, moved), predict(base, system), strict=True):
            assert torch.equal(a, b), distance


def test_translation_by_any_vector(base: nn.Module, system: System) -> None:
    for distance, bound in [(10.0, EXACT), (1e4, 1e-9), (1e5, 1e-8)]:
        # Positions are rounded to 2e-12 A at 1e4 A, 1.5e-11 A at 1e5 A; curvature does the rest.
        moved = system.moved(system.positions + distance * np.array([0.3, -0.7, 0.9]))
        assert_same(predict(base, moved), predict(base, system), bound)


def test_permutation(base: nn.Module, system: System) -> None:
    order = np.random.default_rng(2).permutation(len(system.numbers))
    permuted = system._replace(numbers=system.numbers[order], positions=system.positions[order])
    expected = predict(base, system)
    expected = expected._replace(
        energies=expected.energies[order],
        forces=expected.forces[order],
        virials=expected.virials[order],
    )
    assert_same(predict(base, permuted), expected)


@pytest.mark.parametrize("kind", PERIODIC)
def test_atoms_shifted_by_lattice_vectors(base: nn.Module, kind: str) -> None:
    system = SYSTEMS[kind]
    assert system.cell is not None
    images = np.random.default_rng(3).integers(-3, 4, system.positions.shape)
    images = images * np.broadcast_to(system.pbc, 3)
    shifted = system.moved(system.positions + images @ system.cell)
    assert_same(predict(base, shifted), predict(base, system))


@pytest.mark.parametrize("kind", PERIODIC)
def test_equivalent_cells(base: nn.Module, kind: str) -> None:
    """Another choice of lattice vectors, among them a left-handed one."""
    system = SYSTEMS[kind]
    assert system.cell is not None
    for change in ([[1, 0, 0], [2, 1, 0], [0, 0, 1]], [[0, 1, 0], [1, 0, 0], [0, 0, 1]]):
        other = system._replace(cell=np.array(change) @ system.cell)
        assert_same(predict(base, other), predict(base, system))


@pytest.mark.parametrize("repeats", [(2, 2, 1), (1, 1, 3)])
@pytest.mark.parametrize("kind", ["crystal", "1-atom-cell", "2-atom-cell"])
def test_energy_is_extensive(base: nn.Module, kind: str, repeats: Any) -> None:
    system, copies = SYSTEMS[kind], int(np.prod(repeats))
    small = predict(base, system)
    expected = small._replace(
        energy=copies * small.energy,
        energies=small.energies.repeat(copies),
        forces=small.forces.repeat(copies, 1),
        virial=copies * small.virial,
        virials=small.virials.repeat(copies, 1, 1),
    )
    assert_same(predict(base, supercell(system, repeats)), expected)


# Separation


def test_far_fragments_add_up(potential: nn.Module) -> None:
    a, b = ethanol(1), ethanol(2)
    rotated = b.positions @ rotation(4).T + np.array([50.0, 0.0, 0.0])
    both = System(np.append(a.numbers, b.numbers), np.vstack([a.positions, rotated]))
    together = predict(potential, both)
    parts = [predict(potential, a), predict(potential, b.moved(rotated))]
    assert abs(together.energy - sum(p.energy for p in parts)).item() < 1e-10  # eV
    forces = torch.cat([p.forces for p in parts])
    assert (together.forces - forces).abs().max().item() < 1e-10  # eV/A


def test_near_fragments_do_not_add_up(base: nn.Module) -> None:
    """The control: within the cutoff there is an interaction to lose."""
    a, b = ethanol(1), ethanol(2)
    near = b.positions + np.array([4.5, 0.0, 0.0])
    both = System(np.append(a.numbers, b.numbers), np.vstack([a.positions, near]))
    parts = predict(base, a).energy + predict(base, b).energy
    assert abs(predict(base, both).energy - parts).item() > 1e-5


# The cutoff


def test_energy_and_forces_are_continuous_through_the_cutoff(potential: nn.Module) -> None:
    gaps = (1e-2, 1e-3, 1e-4)
    energies, forces = zip(*(jump(potential, gap) for gap in gaps), strict=True)
    assert forces[0] > 1e-7  # they do interact
    # The cosine cutoff vanishes as gap^2, its slope as gap; half an order is left for the rest.
    for k in (1, 2):
        assert forces[k] < forces[k - 1] / 5
        assert energies[k] < max(energies[k - 1] / 50, 1e-12)
    energy, force = jump(potential, 1e-8)
    assert energy < 1e-12  # rounding of some 10 eV
    assert force < 3e-8  # 1e-8 A times curvatures of about 1 eV/A^2


def test_a_step_in_place_of_the_cutoff_is_seen() -> None:
    """The control of the test above."""

    class Step(CosineCutoff):
        def forward(self, distances: Tensor) -> Tensor:
            return (distances < self.cutoff).to(distances.dtype)

    potential = make_potential(radial="gauss")
    for module in potential.modules():
        for name, child in module.named_children():
            if isinstance(child, CosineCutoff):
                setattr(module, name, Step(child.cutoff))
    energy, force = jump(potential, 1e-8)
    assert energy > 1e-4
    assert force > 1e-4


def test_repulsion_by_its_formula() -> None:
    """Carbon and oxygen 1.1 A apart; each atom has half."""
    r, cutoff, z = 1.1, 3.0, (6, 8)
    x = r * (z[0] ** 0.23 + z[1] ** 0.23) / (0.8854 * 0.529177210544)
    terms = zip((0.1818, 0.5099, 0.2802, 0.02817), (3.2, 0.9423, 0.4029, 0.2016), strict=True)
    screening = sum(c * np.exp(-d * x) for c, d in terms)
    coulomb = 14.399645468 * z[0] * z[1] / r  # e^2 / (4 pi epsilon_0), eV A
    expected = coulomb * screening * 0.5 * (np.cos(np.pi * r / cutoff) + 1)
    assert expected > 5
    graph = System(np.array(z), np.array([[0.0, 0, 0], [0, r, 0]])).graph(cutoff)
    found = ZBLRepulsion(cutoff)(graph, displacements(graph))
    assert error(found, np.full(2, expected / 2)) < 1e-8  # the digits given here


def test_repulsion_is_continuous_through_its_own_cutoff() -> None:
    potential = network("tensornet zbl")
    inner = potential.repulsion.cutoff
    for distance in (inner, CUTOFF):
        a, b = (
            predict(potential, System(np.array([6, 8]), np.array([[0.0, 0, 0], [x, 0, 0]])))
            for x in (distance - 1e-8, distance + 1e-8)
        )
        # The slope of the forces is below 10 eV/A^2 here.
        assert abs(a.energy - b.energy).item() < 1e-6
        assert (a.forces - b.forces).abs().max().item() < 2e-7


# Batches and bookkeeping


def test_batch_equals_single(potential: nn.Module) -> None:
    systems = list(SYSTEMS.values())
    together = predict_batch(potential, systems)
    sizes = [len(s.numbers) for s in systems]
    energies, forces = together.energies.split(sizes), together.forces.split(sizes)
    for k, system in enumerate(systems):
        single = predict(potential, system)
        part = single._replace(
            energy=together.energy[k : k + 1],
            energies=energies[k],
            forces=forces[k],
            virial=together.virial[k : k + 1],
        )
        assert_same(part, single, 1e-12)


def test_energies_of_the_atoms_sum_to_the_energy(potential: nn.Module) -> None:
    systems = list(SYSTEMS.values())
    prediction = predict_batch(potential, systems)
    parts = prediction.energies.split([len(s.numbers) for s in systems])
    assert error(torch.stack([p.sum() for p in parts]), prediction.energy) < 1e-14


def test_atoms_apart_are_free_atoms(potential: nn.Module) -> None:
    """Nothing acts on an atom alone, nor on four of them beyond the cutoff."""
    one = predict(potential, System(np.array([8]), np.array([[0.1, 0.2, 0.3]])))
    assert torch.isfinite(one.energy).all()
    assert one.forces.tolist() == [[0.0, 0.0, 0.0]]
    assert not one.virial.any()
    numbers = np.array([1, 6, 7, 8])
    positions = np.arange(4)[:, None] * np.array([[0.0, 20.0, 5.0]])
    apart = predict(potential, System(numbers, positions))
    alone = predict_batch(potential, [System(numbers[k : k + 1], positions[:1]) for k in range(4)])
    assert not apart.forces.any()
    assert error(apart.energies, alone.energy) < 1e-12


def test_input_is_not_mutated(base: nn.Module) -> None:
    graph = batch_graphs([s.graph(float(base.cutoff), 1.0) for s in SYSTEMS.values()])
    before = Graph(*(tensor.clone() for tensor in graph))
    state = {name: value.clone() for name, value in base.state_dict().items()}
    first = base(graph)
    second = base(graph)
    for a, b in zip(graph, before, strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    for name, value in base.state_dict().items():
        assert torch.equal(value, state[name])
    for a, b in zip(first, second, strict=True):
        assert torch.equal(a, b)
        assert not a.requires_grad
    assert all(p.grad is None for p in base.parameters())


def assert_skin_changes_nothing(potential: nn.Module, system: System) -> None:
    for a, b in zip(predict(potential, system, skin=1.5), predict(potential, system), strict=True):
        assert torch.equal(a, b)


def test_edges_of_the_skin_change_nothing(base: nn.Module, system: System) -> None:
    assert_skin_changes_nothing(base, system)


def test_edges_of_the_skin_change_no_network(potential: nn.Module) -> None:
    """Networks differ in their cutoffs, those of repulsions among them, and units of length."""
    assert_skin_changes_nothing(potential, SYSTEMS["crystal"])


@pytest.mark.parametrize("layers", [1, 2])
def test_charge_is_read_by_the_layers(layers: int) -> None:
    potential = make_potential(layers=layers)
    energies = [predict(potential, ethanol(charge=q)).energy.item() for q in (-1, 0, 1)]
    assert np.ptp(energies) > 1e-3
    assert len(set(energies)) == 3


def test_each_system_of_a_batch_has_its_own_charge() -> None:
    potential = network("tensornet base")
    batch = predict_batch(potential, [ethanol(charge=q) for q in (-1, 0, 1)])
    for k, q in enumerate((-1, 0, 1)):
        assert error(batch.energy[k], predict(potential, ethanol(charge=q)).energy[0]) < 1e-12


# Dtypes


def assert_float32_is_close(potential: Potential, system: System) -> None:
    """Rounding of 6e-8, through some hundred operations on terms larger than their sum."""
    single = copy.deepcopy(potential).float()
    assert single.dtype == torch.float32
    found, expected = predict(single, system), predict(potential, system)
    assert all(tensor.dtype == torch.float64 for tensor in found)
    size = max(1.0, float(expected.forces.abs().max()))
    assert (found.forces - expected.forces).abs().max() < 5e-5 * size
    assert (found.virial - expected.virial).abs().max() < 2e-4 * size
    assert (found.energies - expected.energies).abs().max() < 2e-5  # eV
    assert not torch.equal(found.energies, expected.energies)  # it is another arithmetic


def test_float32_is_close_to_float64(eager: Potential) -> None:
    assert_float32_is_close(eager, SYSTEMS["ion"])


@pytest.mark.parametrize("name", BASES)
def test_float32_is_close_for_every_system(name: str, system: System) -> None:
    assert_float32_is_close(network(name), system)


def test_float32_far_from_the_origin() -> None:
    """Positions of 1e5 A leave float32 no digit after the point; displacements are float64."""
    potential = copy.deepcopy(network("tensornet base")).float()
    system = on_a_grid(ethanol())
    far = predict(potential, system.moved(system.positions + 1e5))
    for a, b in zip(far, predict(potential, system), strict=True):
        assert torch.equal(a, b)


def test_large_references_keep_the_resolution_of_float64() -> None:
    """Some 4,000 eV in total: float32 would round them to 2e-4 eV."""
    bare = make_potential().float()
    shifted = make_potential(references=REFERENCES).float()
    system = ethanol()
    shift = sum(REFERENCES[z] for z in system.numbers)
    assert abs(shift) > 4000
    for step in (0.0, 1e-5):
        moved = system.moved(system.positions * (1 + step))
        difference = predict(shifted, moved).energy - predict(bare, moved).energy
        assert abs(difference.item() - shift) < 1e-11  # float64 at 4,000 eV
    assert torch.equal(predict(shifted, system).forces, predict(bare, system).forces)


def test_constants_survive_float32() -> None:
    potential = make_potential(references=[0.1 + z / 7 for z in range(9)])
    potential.atomic_scale.scale.fill_(1 / 3)
    potential.atomic_scale.mean.fill_(1 / 7)
    expected = copy.deepcopy(potential.atomic_scale.state_dict())
    potential.float().double().half().to(torch.float32).double()
    for name, value in potential.atomic_scale.state_dict().items():
        assert value.dtype == torch.float64
        assert torch.equal(value, expected[name])
    assert torch.equal(potential.representation.embedding.algebra.basis, BASIS.reshape(9, 9))
    weights = potential.representation.embedding.mix.weight
    assert torch.equal(weights, weights.half().double())  # while the weights were cast


def test_scale_references_and_mean() -> None:
    plain = make_potential()
    system = ethanol()
    full = Potential(
        plain.representation,
        plain.readout,
        elements=plain.elements,
        references=REFERENCES,
        scale=6.0,
        mean=-2.5,
    ).eval()
    bare, found = predict(plain, system), predict(full, system)
    references = np.array(REFERENCES)[system.numbers]
    expected = 2 * bare.energies.numpy() + references - 2.5 / len(system.numbers)
    assert error(found.energies, expected) < 1e-14
    assert error(found.forces, 2 * bare.forces) < 1e-14


# Training


def test_forces_can_be_trained_on() -> None:
    """Gradients of a loss of forces and virial are its finite differences."""
    potential = make_potential(layers=1, zbl=3.0).train()
    graph = batch_graphs([ethanol().graph(), crystal().graph()])

    def loss() -> Tensor:
        prediction = potential(graph)
        energy = prediction.energy.square().sum()
        return energy + prediction.forces.pow(4).sum() + prediction.virial.square().sum()

    parameters = dict(potential.named_parameters())
    gradients = dict(
        zip(parameters, torch.autograd.grad(loss(), list(parameters.values())), strict=True)
    )
    for name, parameter in parameters.items():
        direction = torch.randn(parameter.shape, dtype=parameter.dtype)
        expected = (gradients[name] * direction).sum().item()
        step, values = 1e-5, []
        for k in (-2, -1, 1, 2):
            with torch.no_grad():
                parameter += k * step * direction
            values.append(loss().item())
            with torch.no_grad():
                parameter -= k * step * direction
        numerical = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * step)
        # Losses of 1e3 leave 1e-13 / 1e-5 of rounding.
        assert abs(numerical - expected) < 1e-6 * max(abs(expected), 1.0), name
    assert max(float(g.abs().max()) for g in gradients.values()) > 1.0


def test_training_and_evaluation_agree(eager: Potential) -> None:
    graph = SYSTEMS["crystal"].graph(float(eager.cutoff))
    trained = copy.deepcopy(eager).train()(graph)
    assert trained.energy.requires_grad
    assert trained.forces.requires_grad
    assert_same(trained, eager(graph), 1e-14)


def test_frozen_weights_give_the_same_forces(base: nn.Module) -> None:
    frozen = copy.deepcopy(base).requires_grad_(False)
    system = SYSTEMS["crystal"]
    for a, b in zip(predict(frozen, system), predict(base, system), strict=True):
        assert torch.equal(a, b)
