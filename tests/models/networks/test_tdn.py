"""TDN: exact symmetry, a second implementation, options and files.

The contract that every potential keeps is tested in `test_potential_physics.py`.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from support.helpers import (
    CUTOFF,
    System,
    crystal,
    ethanol,
    make_potential,
    make_tdn,
    predict,
    relative_error,
    rotation,
)
from support.networks import SYSTEMS, network
from support.networks import TDNS as MODELS
from torch import nn

from tensormd.calculators import TDNCalculator, TensorNetCalculator
from tensormd.models import (
    TDN,
    batch_graphs,
    export_torchscript,
    load_potential,
    save_potential,
)
from tensormd.models.networks.tdn import PUBLISHED
from tensormd.models.networks.tdn_product import ContractedProduct, ExactCoupling, PathProduct


def model(name: str) -> nn.Module:
    return network(f"tdn {name}")


def turned(system: System, matrix: np.ndarray) -> System:
    cell = None if system.cell is None else system.cell @ matrix.T
    return system._replace(positions=system.positions @ matrix.T, cell=cell)


# Training


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
        {"lmax": 2, **PUBLISHED},
        {"lmax": 3, "group": "SO(3)"},
        {"lmax": 3, "group": "SO(3)", **PUBLISHED},
        {"lmax": 2, "sender_species": False, "self_product": False},
        {"lmax": 2, "weights": "shared"},
        {"lmax": 2, "envelope": "none", "evaluation": "factored", "norm_epsilon": 1e-5},
    ],
    ids=str,
)
def test_exact_products_equal_an_implementation_with_e3nn(
    options: dict[str, Any], kind: str
) -> None:
    pytest.importorskip("e3nn", reason="compares with e3nn's tensor products")
    from support.tdn_reference import energies

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


@pytest.mark.parametrize("weights", [1, 4])
@pytest.mark.parametrize("edges", [0, 1, 300, 1000])
def test_blocks_of_edges_change_nothing(edges: int, weights: int) -> None:
    """The contracted product takes 128 of these edges at a time; the factored one takes all."""
    random = torch.Generator().manual_seed(edges)
    sizes = [(edges, 16), (edges, 16, 128), (edges, weights, 128)]
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


@pytest.mark.parametrize("name", ["base", "L2-cp"])
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


@pytest.mark.parametrize(
    ("name", "dtype", "bound"),
    [
        *[(name, torch.float64, 1e-11) for name in MODELS],
        *[(name, torch.float32, 3e-4) for name in ("base", "L2-cp")],
    ],
)
def test_script_equals_eager(name: str, dtype: torch.dtype, bound: float) -> None:
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
            assert buffer.dtype in (torch.float64, torch.int64)
            assert torch.equal(buffer, getattr(potential.representation.coupling, name))


# Files and calculators


@pytest.mark.parametrize("name", ["base", "L2-cp", "cp-factored", "zbl-references"])
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
        ({"radial_functions": 0}, "radial_functions is 0: expected 1 or more"),
    ],
)
def test_options_that_make_no_network(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        TDN(**options)


def test_a_rank_too_small_is_warned_of() -> None:
    with pytest.warns(UserWarning, match="leaves a residual of 0.4"):
        TDN(product="cp", rank=4, channels=8)
