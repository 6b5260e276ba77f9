"""TDN: the contract that every potential keeps, exact symmetry, and a second implementation."""

from __future__ import annotations

import copy
import functools
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from support.helpers import (
    REFERENCES,
    System,
    crystal,
    ethanol,
    gap_to_cutoff,
    make_potential,
    make_tdn,
    numerical_forces,
    numerical_hessian,
    numerical_virial,
    predict,
    relative_error,
    rotation,
)
from torch import nn

from tensormd.calculators import TDNCalculator, TensorNetCalculator
from tensormd.models import (
    TDN,
    batch_graphs,
    export_torchscript,
    load_potential,
    save_potential,
)
from tensormd.models.inference.hessian import hessian
from tensormd.models.networks.tdn_product import ContractedProduct, ExactCoupling, PathProduct
from tests.models import test_potential_physics as contract

CUTOFF = 4.5
SYSTEMS = contract.SYSTEMS
MODELS: dict[str, dict[str, Any]] = {
    "L1": {},
    "L2": {"lmax": 2, "scale": 1.4},
    "L3-1-layer": {"lmax": 3, "layers": 1, "scale": 1.5},
    "0-layers": {"layers": 0},
    "L2-SO(3)": {"lmax": 2, "scale": 1.3, "group": "SO(3)"},
    "L1-cp-factored": {"product": "cp", "evaluation": "factored"},
    "L2-cp": {"lmax": 2, "scale": 1.4, "product": "cp"},
    "L2-by-path": {"lmax": 2, "scale": 1.4, "evaluation": "factored"},
    "l02": {"degrees": (0, 2), "scale": 1.4},
    "zbl-references": {"zbl": 3.0, "references": REFERENCES},
    "bohr-hartree": {
        "length_unit": "bohr",
        "energy_unit": "hartree",
        "cutoff": CUTOFF / 0.529,
        "scale": 0.1,
    },
}


@functools.cache
def model(name: str, scripted: bool = False) -> nn.Module:
    if scripted:
        return torch.jit.script(model(name))  # type: ignore[no-any-return]
    return make_tdn(**MODELS[name])


@pytest.fixture(params=MODELS)
def potential(request: pytest.FixtureRequest) -> nn.Module:
    return model(request.param)


@pytest.fixture
def network(potential: nn.Module) -> nn.Module:
    return potential


@pytest.fixture(params=SYSTEMS)
def system(request: pytest.FixtureRequest) -> System:
    return SYSTEMS[request.param]


def turned(system: System, matrix: np.ndarray) -> System:
    return contract.transformed(system, matrix)


# The contract: tests of `test_potential_physics`, run with the fixtures of this file.

test_virial_of_a_molecule = contract.test_virial_of_a_molecule_is_that_of_its_forces
test_no_net_force_and_no_torque = contract.test_a_molecule_feels_no_net_force_and_no_torque
test_no_net_force_on_a_crystal = contract.test_no_net_force_on_a_crystal
test_rotation = contract.test_rotation
test_translation = contract.test_translation
test_translation_by_any_vector = contract.test_translation_by_any_vector
test_permutation = contract.test_permutation
test_atoms_shifted_by_lattice_vectors = contract.test_atoms_shifted_by_lattice_vectors
test_equivalent_cells = contract.test_equivalent_cells
test_energy_is_extensive = contract.test_energy_is_extensive
test_far_fragments_add_up = contract.test_far_fragments_add_up
test_near_fragments_do_not_add_up = contract.test_near_fragments_do_not_add_up
test_continuous_through_the_cutoff = (
    contract.test_energy_and_forces_are_continuous_through_the_cutoff
)
test_batch_equals_single = contract.test_batch_equals_single
test_energies_of_the_atoms_sum = contract.test_energies_of_the_atoms_sum_to_the_energy
test_one_atom_feels_nothing = contract.test_one_atom_feels_nothing
test_atoms_apart_are_free_atoms = contract.test_atoms_apart_are_free_atoms
test_input_is_not_mutated = contract.test_input_is_not_mutated
test_edges_of_the_skin_change_nothing = contract.test_edges_of_the_skin_change_nothing
test_float32_is_close_to_float64 = contract.test_float32_is_close_to_float64


# Derivatives


@pytest.mark.parametrize("scripted", [False, True], ids=["eager", "script"])
@pytest.mark.parametrize("name", MODELS)
def test_forces_and_virial_are_derivatives(name: str, system: System, scripted: bool) -> None:
    potential = model(name, scripted)
    assert gap_to_cutoff(system, float(potential.cutoff)) > 0.004
    prediction = predict(potential, system)
    virial = prediction.virial[0]
    assert relative_error(numerical_virial(potential, system), virial) < 1e-7
    if len(system.numbers) > 1:
        assert prediction.forces.abs().max() > 0.01
        assert relative_error(numerical_forces(potential, system), prediction.forces) < 1e-7


@pytest.mark.parametrize("name", ["L1", "L2-cp"])
def test_hessian_is_the_gradient_of_the_forces(name: str) -> None:
    matrix = hessian(model(name).total_energy, ethanol().graph(skin=1.0))
    assert relative_error(numerical_hessian(model(name), ethanol()), matrix) < 1e-7


def test_forces_can_be_trained_on() -> None:
    """The gradient of a loss of forces is its finite difference, for every parameter."""
    potential = make_tdn(lmax=2, layers=1, product="cp").train()
    graph = batch_graphs([ethanol().graph(), crystal().graph()])

    def loss() -> torch.Tensor:
        prediction = potential(graph)
        return prediction.forces.square().sum() + prediction.energy.square().sum()

    loss().backward()
    random = torch.Generator().manual_seed(3)
    for name, parameter in potential.named_parameters():
        direction = torch.randn(parameter.shape, generator=random, dtype=parameter.dtype)
        assert parameter.grad is not None, name
        slope = (parameter.grad * direction).sum().item()
        values = []
        with torch.no_grad():
            start = parameter.clone()
            for step in (1e-5, -1e-5):
                parameter.copy_(start + step * direction)
                with torch.enable_grad():
                    values.append(loss().item())
            parameter.copy_(start)
        assert abs((values[0] - values[1]) / 2e-5 - slope) < 1e-5 * max(1.0, abs(slope)), name


# Another implementation


@pytest.mark.parametrize("kind", ["ethanol", "two fragments"])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"lmax": 2},
        {"lmax": 3, "group": "SO(3)"},
        {"lmax": 2, "envelope": "none", "evaluation": "factored", "norm_epsilon": 1e-5},
    ],
    ids=str,
)
def test_exact_products_equal_an_implementation_with_e3nn(
    options: dict[str, Any], kind: str
) -> None:
    pytest.importorskip("e3nn", reason="compares with e3nn's tensor products")
    from tdn_reference import energies

    system = ethanol()
    if kind == "two fragments":
        other = ethanol(2).positions @ rotation(2).T + np.array([5.5, 0.5, 0.0])
        system = System(np.tile(system.numbers, 2), np.vstack([system.positions, other]))
    potential = make_tdn(**options)
    graph = system.graph()
    found = potential(graph)
    positions = graph.positions.clone().requires_grad_(True)
    expected = 3.0 * energies(potential.representation, potential.readout, graph, positions)
    forces = -torch.autograd.grad(expected.sum(), positions)[0]
    assert found.forces.abs().max() > 0.1
    assert (found.energies - expected).abs().max() < 1e-10
    assert (found.forces - forces).abs().max() < 1e-10


@pytest.mark.parametrize("evaluation", ["contracted", "factored"])
@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("lmax", [1, 2, 3, 4])
def test_the_exact_rank_gives_the_exact_product(lmax: int, group: str, evaluation: str) -> None:
    options: dict[str, Any] = {"lmax": lmax, "group": group, "channels": 8}
    exact = make_tdn(**options)
    factored = make_tdn(**options, product="cp", evaluation=evaluation)
    for system in (ethanol(), crystal()):
        found, expected = predict(factored, system), predict(exact, system)
        assert expected.forces.abs().max() > 0.03
        assert (found.energies - expected.energies).abs().max() < 1e-8
        assert (found.forces - expected.forces).abs().max() < 1e-8


@pytest.mark.parametrize("edges", [0, 1, 300, 1000])
def test_blocks_of_edges_change_nothing(edges: int) -> None:
    """The contracted product takes 128 of these edges at a time; the factored one takes all."""
    random = torch.Generator().manual_seed(edges)
    sizes = [(edges, 16), (edges, 16, 128), (edges, 128)]
    y, x, w = (torch.randn(s, generator=random, dtype=torch.float64) for s in sizes)
    receiver = torch.randint(0, 7, (edges,), generator=random)
    found = []
    for product, contracted in (
        (ContractedProduct(), True),
        (PathProduct(range(4), "SO(3)"), False),
    ):
        x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
        coupling = ExactCoupling(range(4), "SO(3)", contracted)(y)
        message = product.message(x, w, coupling)
        total = product.aggregate(x, w, coupling, receiver, 7)
        (message.square().sum() + total.square().sum()).backward()
        found.append((message, total, x.grad, w.grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b, rtol=1e-12, atol=1e-11)


# Symmetry


def equivariance_error(potential: nn.Module, rotations: int = 100) -> tuple[float, float]:
    """Largest relative error of energies and forces over random rotations of ethanol."""
    system = ethanol()
    expected = predict(potential, system)
    energy = forces = 0.0
    for seed in range(rotations):
        q = rotation(seed)
        found = predict(potential, turned(system, q))
        energy = max(energy, relative_error(found.energy, expected.energy))
        forces = max(forces, relative_error(found.forces, expected.forces @ torch.tensor(q.T)))
    return energy, forces


@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_the_exact_rank_rotates_exactly(lmax: int, group: str) -> None:
    potential = make_tdn(lmax=lmax, group=group, product="cp", channels=8)
    energy, forces = equivariance_error(potential)
    print(f"L {lmax}, {group}, exact rank: energy {energy:.1e}, forces {forces:.1e}")
    assert max(energy, forces) <= 1e-8


@pytest.mark.parametrize("lmax", [1, 2, 3])
def test_the_rank_of_the_paper_does_not(lmax: int) -> None:
    """The control of the test above."""
    potential = make_tdn(lmax=lmax, group="SO(3)", product="cp", rank="paper", channels=8)
    energy, forces = equivariance_error(potential)
    print(f"L {lmax}, SO(3), rank 7 L^2: energy {energy:.1e}, forces {forces:.1e}")
    assert energy > 1e-5
    assert forces > 1e-4


@pytest.mark.parametrize("kind", ["molecule", "crystal", "slab"])
@pytest.mark.parametrize("options", [{}, {"product": "cp"}, {"lmax": 2, "product": "cp"}], ids=str)
def test_mirror_images(options: dict[str, Any], kind: str) -> None:
    """Equal for O(3); the control is SO(3), which tells them apart."""
    system = SYSTEMS[kind]
    mirrored = turned(system, -np.eye(3))
    potential = make_tdn(**options)
    found, expected = predict(potential, mirrored), predict(potential, system)
    assert relative_error(found.energy, expected.energy) < 1e-10
    assert relative_error(-found.forces, expected.forces) < 1e-10
    potential = make_tdn(**options, group="SO(3)")
    difference = relative_error(
        predict(potential, mirrored).energy, predict(potential, system).energy
    )
    print(f"{kind}, {options}, SO(3): mirror images differ by {difference:.1e} of the energy")
    assert difference > 1e-6


# The cutoff


def pair(distance: float) -> System:
    return System(np.array([6, 8]), np.array([[0.0, 0.0, 0.0], [distance, 0.0, 0.0]]))


@pytest.mark.parametrize("name", ["L1", "L2-cp"])
def test_the_last_neighbour_leaves_smoothly(name: str) -> None:
    inside, outside = (predict(model(name), pair(CUTOFF + x)) for x in (-1e-9, 1e-9))
    assert (inside.energy - outside.energy).abs().item() < 1e-12
    assert (inside.forces - outside.forces).abs().max() < 1e-8
    assert predict(model(name), pair(CUTOFF - 0.5)).forces.abs().max() > 1e-3


@pytest.mark.parametrize("lacking", ["envelope", "constant"])
def test_without_envelope_or_constant_it_does_not(lacking: str) -> None:
    """The control. Without the constant in the softmax the last weight is 1 at any distance."""
    potential = make_tdn(envelope="none") if lacking == "envelope" else make_tdn()
    if lacking == "constant":
        for layer in potential.representation.layers:
            layer.attention.smooth = False
    inside, outside = (predict(potential, pair(CUTOFF + x)) for x in (-1e-6, 1e-6))
    assert (inside.energy - outside.energy).abs().item() > 1e-3


def test_scores_of_any_size_do_not_overflow() -> None:
    potential = make_tdn().float()
    with torch.no_grad():
        for layer in potential.representation.layers:
            layer.attention.score_dot *= 1e4
    prediction = predict(potential, ethanol())
    assert torch.isfinite(prediction.energy).all()
    assert torch.isfinite(prediction.forces).all()


def test_more_than_a_hundred_neighbours_count() -> None:
    random = np.random.default_rng(0)
    positions = np.vstack([np.zeros(3), 2.5 * rotation(0)[:1], 0.3 * random.normal(size=(130, 3))])
    positions[2:] += 3.5 * positions[2:] / np.linalg.norm(positions[2:], axis=1, keepdims=True)
    crowd = System(np.full(len(positions), 6), positions)
    potential = make_tdn(layers=1)
    full = predict(potential, crowd).energies[0]
    for left_out in (2, 131):
        keep = np.arange(132) != left_out
        fewer = crowd._replace(numbers=crowd.numbers[keep], positions=crowd.positions[keep])
        assert (predict(potential, fewer).energies[0] - full).abs() > 1e-9


# TorchScript, bookkeeping


@pytest.mark.parametrize("name", MODELS)
def test_script_equals_eager(name: str) -> None:
    for dtype, bound in ((torch.float64, 1e-11), (torch.float32, 3e-4)):
        eager = copy.deepcopy(model(name)).to(dtype)
        scripted = torch.jit.script(eager)
        for system in [*SYSTEMS.values(), System(np.array([6]), np.zeros((1, 3))), ethanol()]:
            for a, b in zip(predict(scripted, system), predict(eager, system), strict=True):
                assert (a - b).abs().max() < bound


def test_config_makes_the_network_again() -> None:
    for name, options in MODELS.items():
        if "length_unit" in options:
            continue
        first = model(name).representation
        second = TDN(**first.config).double()
        assert second.config == first.config
        second.load_state_dict(first.state_dict())
        with torch.device("meta"):
            empty = TDN(**first.config)
        assert {k: v.shape for k, v in empty.state_dict().items()} == {
            k: v.shape for k, v in first.state_dict().items()
        }


def test_constants_survive_float32() -> None:
    for options in ({}, {"product": "cp"}):
        potential = make_tdn(**options)
        cast = copy.deepcopy(potential).float().double()
        for name, buffer in cast.representation.coupling.named_buffers():
            assert buffer.dtype == torch.float64
            assert torch.equal(buffer, getattr(potential.representation.coupling, name))


# Files and calculators


@pytest.mark.parametrize("name", ["L1", "L2-cp", "L1-cp-factored", "zbl-references"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_holds_it_all(name: str, dtype: torch.dtype, tmp_path: Path) -> None:
    potential = copy.deepcopy(model(name)).to(dtype)
    path = tmp_path / "tdn.safetensors"
    save_potential(potential, path)
    loaded = load_potential(path)
    assert loaded.architecture == "TDN"
    assert loaded.dtype == dtype
    assert loaded.representation.config == potential.representation.config
    for a, b in zip(predict(loaded, ethanol()), predict(potential, ethanol()), strict=True):
        assert torch.equal(a, b)


def test_calculators_and_the_other_architecture(tmp_path: Path) -> None:
    paths = [tmp_path / "tdn.safetensors", tmp_path / "tensornet.safetensors"]
    save_potential(model("L2-cp"), paths[0])
    save_potential(make_potential(), paths[1])
    system = ethanol()
    atoms = Atoms(system.numbers, system.positions)
    atoms.calc = TDNCalculator(paths[0], dtype="float64")
    expected = predict(model("L2-cp"), system).forces
    assert np.abs(atoms.get_forces() - expected.numpy()).max() < 1e-12
    with pytest.raises(ValueError, match="TDNCalculator runs TDN, but the checkpoint holds a Te"):
        TDNCalculator(paths[1])
    with pytest.raises(ValueError, match=r"TensorNetCalculator .* checkpoint holds a TDN"):
        TensorNetCalculator(paths[0])


def test_portable_export(tmp_path: Path) -> None:
    export_torchscript(copy.deepcopy(model("L2-cp")), tmp_path / "tdn.pt", tables=False)
    module = torch.jit.load(tmp_path / "tdn.pt")
    system = ethanol()
    energy, forces = module(
        torch.from_numpy(system.positions),
        torch.from_numpy(system.numbers),
        torch.zeros(3, 3),
        torch.zeros(3, dtype=torch.bool),
    )
    expected = predict(model("L2-cp"), system)
    assert abs(energy.item() - expected.energy.item()) < 1e-11
    assert (forces - expected.forces).abs().max() < 1e-11


# Bad input


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lmax": 0}, "expected a whole number from 1 to 6"),
        ({"lmax": 7}, "expected a whole number from 1 to 6"),
        ({"lmax": 5, "product": "cp"}, "expected a whole number from 1 to 4"),
        ({"product": "cp", "rank": "best"}, '"exact", "paper" or a positive number'),
        ({"product": "cp", "rank": 0}, '"exact", "paper" or a positive number'),
        ({"product": "tucker"}, "expected one of exact_cg, cp"),
        ({"evaluation": "fast"}, "expected one of auto, contracted, factored"),
        ({"envelope": "step"}, "expected one of cosine, none"),
        ({"group": "O(2)"}, r"expected one of O\(3\), SO\(3\)"),
        ({"heads": 3}, "3 heads of 128 channels"),
        ({"cutoff": 0.0}, "cutoff is 0.0"),
        ({"norm_epsilon": 0.0}, "norm_epsilon is 0.0"),
        ({"dropout": 1.0}, "dropout is 1.0"),
        ({"radial_functions": 0}, "0 radial functions"),
    ],
)
def test_options_that_make_no_network(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TDN(**options)


def test_a_rank_too_small_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="leaves a residual of 0.4"):
        TDN(product="cp", rank=4, channels=8)
