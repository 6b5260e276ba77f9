"""The fused pass of TDN: its equations against autograd, the kernels against plain torch."""

from __future__ import annotations

import copy
import functools
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from support import tdn_equations as twin
from support.helpers import (
    System,
    crystal,
    ethanol,
    make_potential,
    make_tdn,
    predict,
    predict_batch,
    slab,
    tiny,
)
from support.kernel_cases import water
from support.tdn_weights import extract_tdn_weights
from torch import nn

from tensormd.models import TDN, Potential, ScalarReadout
from tensormd.models.graph import within
from tensormd.models.inference.kernels import fuse
from tensormd.models.inference.kernels.cpu.tdn_potential import CPUTDN
from tensormd.models.inference.tables import FORCE_BOUND, build_table, tabulated_potential
from tensormd.models.maths.harmonics import SphericalHarmonics
from tensormd.models.neighbors import NeighborList
from tensormd.models.networks.tdn import PUBLISHED

SYSTEMS = {
    "molecule": ethanol(),
    "crystal": crystal(),
    "slab": slab(),
    "2-atom-cell": tiny(2),
    "apart": System(np.array([8, 1]), np.array([[0.0, 0, 0], [0, 0, 5.0]])),
    "atom": System(np.array([6]), np.zeros((1, 3))),
}
# Kernels are compiled anew for each L and dtype: a minute each, so not every combination is fast.
NETWORKS: dict[str, dict[str, Any]] = {
    "L1": {"scale": 1.0},
    "published": {"scale": 1.0, **PUBLISHED},
    "shared": {"scale": 1.0, "weights": "shared", "sender_species": False},
    "no-layers": {"layers": 0},
    "one-layer": {"layers": 1, "channels": 24},
    "L1-SO(3)": {"group": "SO(3)", "channels": 64, "scale": 1.0},
    "L1-cp": {"product": "cp", "rank": 4, "scale": 1.0},
    "no-envelope": {"envelope": "none", "scale": 1.0},
    "one-head": {"heads": 1, "channels": 20, "scale": 1.0},
    "zbl-bohr": {
        "zbl": 5.0,
        "length_unit": "bohr",
        "energy_unit": "hartree",
        "cutoff": 8.5,
        "scale": 0.05,
    },
    "L2": {"lmax": 2, "scale": 1.0},
    "L2-SO(3)": {"lmax": 2, "group": "SO(3)", "channels": 24, "layers": 3, "scale": 0.5},
    "L2-published": {"lmax": 2, "scale": 1.0, **PUBLISHED},
    "L2-cp": {"lmax": 2, "product": "cp", "channels": 32, "heads": 2, "scale": 1.0},
    "l02": {"degrees": (0, 2), "scale": 1.0},
    "l02-cp": {"lmax": 3, "degrees": (0, 2), "group": "SO(3)", "product": "cp", "scale": 1.0},
}
TWIN_NETWORKS = {
    **NETWORKS,
    "L3": {"lmax": 3, "layers": 1},
    "L4-SO(3)": {"lmax": 4, "layers": 1, "group": "SO(3)"},
    "l034": {"degrees": (0, 3, 4), "layers": 1},
    "l0": {"degrees": (0,)},
}


@functools.cache
@pytest.mark.filterwarnings("ignore:rank 4 leaves")
def potential_of(name: str) -> Potential:
    return make_tdn(**TWIN_NETWORKS[name])


@functools.cache
def fused_of(name: str, dtype: torch.dtype = torch.float64) -> CPUTDN:
    return CPUTDN(copy.deepcopy(potential_of(name)).to(dtype))


@functools.cache
def tabulated_of(name: str) -> nn.Module:
    return tabulated_potential(potential_of(name))


# The twin


@pytest.mark.parametrize("degrees", [(0, 1), (0, 1, 2), (0, 2), (0, 3, 4), range(7)], ids=str)
def test_harmonics_and_their_derivatives(degrees: Sequence[int]) -> None:
    unit = nn.functional.normalize(torch.randn(5, 3, dtype=torch.float64), dim=1)
    unit[0] = torch.tensor([0.0, 1.0, 0.0])
    unit.requires_grad_(True)
    values, slopes = twin.harmonics(unit.detach(), degrees)
    expected = SphericalHarmonics(max(degrees), degrees)(unit)
    torch.testing.assert_close(values, expected.detach(), rtol=0, atol=1e-12)
    for k in range(expected.shape[1]):
        (row,) = torch.autograd.grad(expected[:, k].sum(), unit, retain_graph=True)
        torch.testing.assert_close(slopes[:, k], row, rtol=0, atol=1e-11)


@pytest.mark.filterwarnings("ignore:rank 4 leaves")
@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize("name", TWIN_NETWORKS)
def test_twin_is_the_gradient_of_the_network_with_tables(name: str, kind: str) -> None:
    potential, network = potential_of(name), tabulated_of(name)
    assert isinstance(network, Potential)
    table, _ = build_table(potential)
    weights = extract_tdn_weights(potential, table)
    graph, vectors = within(SYSTEMS[kind].graph(potential.cutoff), potential.cutoff)
    unit = potential.length_in_angstrom
    # Pairs beyond the cutoff of the network, within that of the repulsion, are no edges.
    near = vectors.norm(dim=1) / unit < table.cutoff
    vectors = (vectors[near] / unit).requires_grad_(True)
    graph = graph._replace(edge_index=graph.edge_index[:, near])
    expected = network.readout(network.representation(graph, vectors))
    (gradient,) = torch.autograd.grad(expected.sum(), vectors)
    outputs, found = twin.outputs_and_gradient(
        weights, graph.numbers, graph.edge_index, vectors.detach()
    )
    torch.testing.assert_close(outputs, expected.detach(), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-10)
    assert kind in ("apart", "atom") or gradient.abs().max() > 1e-3


# The kernels


def assert_same(found: Any, expected: Any, bound: float = 1e-11) -> None:
    for field, a, b in zip(expected._fields, found, expected, strict=True):
        size = max(float(b.abs().max()), 1.0)
        assert float((a - b).abs().max()) < bound * size, field


L2 = [name for name, options in NETWORKS.items() if options.get("lmax") == 2]


@pytest.mark.filterwarnings("ignore:rank 4 leaves")
@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        *((name, torch.float64) for name in NETWORKS if name not in L2),
        *((name, torch.float32) for name in L2),
        *(pytest.param(name, torch.float64, marks=pytest.mark.slow) for name in L2),
    ],
)
def test_equals_plain_torch_with_the_same_tables(name: str, dtype: torch.dtype, kind: str) -> None:
    expected = predict(tabulated_of(name), SYSTEMS[kind])
    found = predict(fused_of(name, dtype), SYSTEMS[kind], skin=0.7)
    assert_same(found, expected, 1e-11 if dtype == torch.float64 else 3e-5)
    assert kind in ("apart", "atom") or expected.forces.abs().max() > 1e-3


@pytest.mark.filterwarnings("ignore:rank 4 leaves")
@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize(
    "name", [name for name in NETWORKS if not NETWORKS[name].keys() & {"lmax", "degrees"}]
)
def test_float32_is_near_the_network(name: str, kind: str) -> None:
    expected = predict(potential_of(name), SYSTEMS[kind])
    found = predict(fused_of(name, torch.float32), SYSTEMS[kind])
    size = max(1.0, float(expected.forces.abs().max()))
    assert (found.forces - expected.forces).abs().max() < FORCE_BOUND + 1e-5 * size
    energies = float(expected.energies.abs().max())
    assert (found.energies - expected.energies).abs().max() < 1e-5 + 2e-6 * energies
    assert found.forces.dtype == torch.float64


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("L3", torch.float64),
        ("l034", torch.float64),
        ("l02", torch.float32),
    ],
)
def test_other_kernels(name: str, dtype: torch.dtype) -> None:
    """Of more degrees, and of float32 with degrees 0 and 2: each is compiled."""
    expected = predict(tabulated_of(name), SYSTEMS["molecule"])
    found = predict(fused_of(name, dtype), SYSTEMS["molecule"], skin=0.7)
    assert_same(found, expected, 1e-11 if dtype == torch.float64 else 1e-5)


def test_many_groups_and_chunks_of_receivers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A chunk small enough that senders are summed in many parts: to the bit the same."""
    from tensormd.models.inference.kernels.cpu import tdn_potential

    system = water(150)
    expected = predict(tabulated_of("L1"), system)
    whole = predict(fused_of("L1"), system, skin=0.5)
    assert_same(whole, expected, 1e-10)
    monkeypatch.setattr(tdn_potential, "CHUNK_BYTES", 1 << 16)
    parts = predict(CPUTDN(potential_of("L1")), system, skin=0.5)
    assert all(torch.equal(a, b) for a, b in zip(parts, whole, strict=True))


def test_several_systems_in_one_graph_and_charges() -> None:
    systems = [SYSTEMS[kind] for kind in ("molecule", "crystal", "atom", "slab")]
    together = predict_batch(fused_of("L1"), systems)
    for k, system in enumerate(systems):
        alone = predict(fused_of("L1"), system._replace(charge=2.0))
        torch.testing.assert_close(together.energy[k], alone.energy[0], rtol=1e-12, atol=1e-12)
        torch.testing.assert_close(together.virial[k], alone.virial[0], rtol=1e-12, atol=1e-12)


def test_energies_per_atom_are_honoured() -> None:
    plain = make_tdn(layers=1, scale=0.3, references=[0.0] * 9)
    readout = ScalarReadout(16, per_atom=True)
    readout.load_state_dict(plain.readout.state_dict())
    potential = Potential(
        plain.representation, readout.double(), elements=plain.elements, scale=0.3, mean=2.0
    )
    potential = potential.double().eval()
    fused, expected = CPUTDN(potential), tabulated_potential(potential)
    systems = [SYSTEMS[kind] for kind in ("molecule", "crystal", "atom")]
    assert_same(predict_batch(fused, systems), predict_batch(expected, systems))


def test_repeats_to_the_bit_whatever_the_number_of_threads() -> None:
    system, threads, results = water(150), torch.get_num_threads(), []
    fused = fused_of("L1", torch.float32)
    try:
        for count in (1, 2, 2, 1):
            torch.set_num_threads(count)
            results.append(predict(fused, system))
    finally:
        torch.set_num_threads(threads)
    for result in results[1:]:
        for a, b in zip(result, results[0], strict=True):
            assert torch.equal(a, b)


def test_memory_is_kept_while_the_neighbours_are_the_same() -> None:
    fused, system = fused_of("L1"), SYSTEMS["crystal"]
    neighbors = NeighborList(4.5, skin=1.0)
    rng = np.random.default_rng(0)
    for _ in range(3):
        moved = system.moved(system.positions + 0.05 * rng.normal(size=(5, 3)))
        found = fused(neighbors.graph(*moved))
        assert_same(found, predict(tabulated_of("L1"), moved))
    assert neighbors.builds == 1
    for other in (system.strained(0.02 * np.eye(3)), SYSTEMS["molecule"]):
        assert_same(fused(neighbors.graph(*other)), predict(tabulated_of("L1"), other))


def test_survives_pickling() -> None:
    copied = pickle.loads(pickle.dumps(fused_of("L1")))
    a, b = (predict(f, SYSTEMS["molecule"]) for f in (copied, fused_of("L1")))
    assert torch.equal(a.forces, b.forces)


def test_edges_that_cannot_be_used_are_refused() -> None:
    fused, graph = fused_of("L1"), SYSTEMS["molecule"].graph()
    receiver = graph.edge_index[0]
    order = torch.argsort(receiver * 100 - graph.edge_index[1])
    assert (receiver[order] == receiver).all()
    swapped = graph._replace(edge_index=graph.edge_index[:, order].contiguous())
    with pytest.raises(ValueError, match="then sender"):
        fused(swapped)


def test_degree_0_alone_has_no_kernels() -> None:
    with pytest.raises(ValueError, match="TDN with degree 0 only"):
        fuse(make_tdn(degrees=(0,)))


def test_another_architecture_is_refused() -> None:
    potential = make_potential(layers=0)
    table, _ = build_table(potential)
    with pytest.raises(ValueError, match="expected a Potential with a TDN"):
        extract_tdn_weights(potential, table)


def test_a_potential_is_left_as_it_is() -> None:
    potential = make_tdn()
    before = {name: value.clone() for name, value in potential.state_dict().items()}
    CPUTDN(potential)
    assert all(torch.equal(before[name], v) for name, v in potential.state_dict().items())
    assert isinstance(potential.representation, TDN)
    assert next(potential.parameters()).requires_grad
