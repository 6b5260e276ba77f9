"""The fused pass as plain functions: gradients against autograd, the whole against `Potential`."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from support import kernel_equations as equations
from support.helpers import (
    REFERENCES,
    System,
    crystal,
    ethanol,
    make_potential,
    predict,
    slab,
    tiny,
)
from support.kernel_cases import CUTOFF, INTERVALS, LOWER, SPACING, Case, make_case, random_graph
from support.kernel_equations import TorchOperators, plain_pass
from torch import Tensor

from tensormd.models import TensorNet, batch_graphs
from tensormd.models.analysis.pruning import pruned
from tensormd.models.graph import Graph, displacements
from tensormd.models.inference.kernels.cuda import perceptrons
from tensormd.models.inference.kernels.cuda.packing import by_component, pack_weights
from tensormd.models.inference.kernels.cuda.rows import EdgeRows, Geometry, edge_rows
from tensormd.models.inference.kernels.cuda.step import (
    StepInputs,
    mix,
    mix_adjoint,
    tensornet_step,
)
from tensormd.models.inference.kernels.weights import Dense, extract_weights
from tensormd.models.maths.activations import LOG_2
from tensormd.models.maths.cartesian import TensorLinear, irrep_norms_squared, norm_squared
from tensormd.models.maths.splines import RadialTable, spline_coefficients
from tensormd.models.potential import Potential

BOUND = 1e-10


def assert_equal(found: Tensor, expected: Tensor, bound: float = BOUND) -> None:
    """Within ``bound`` of the largest magnitude, which must not be zero."""
    assert found.shape == expected.shape
    assert expected.abs().max() > 1e-3, "nothing to compare"
    assert (found - expected).abs().max() <= bound * expected.abs().max()


def gradients(result: Tensor, g: Tensor, *inputs: Tensor) -> tuple[Tensor, ...]:
    return torch.autograd.grad([(result * g).sum()], inputs)


@pytest.fixture(scope="module")
def case() -> Case:
    return make_case(20, 6)


def vectors_of(case: Case) -> Tensor:
    """Of every edge in the order of its row."""
    i, j = equations.receivers(case.edges), case.edges.senders.long()
    graph = case.graph
    shift = (case.edges.shift.unsqueeze(1) @ graph.cell[graph.system[i]]).squeeze(1)
    return graph.positions[j] - graph.positions[i] + shift


def geometry_of(vectors: Tensor) -> Geometry:
    """Differentiable in the vectors, unlike `equations.geometry`."""
    distance = vectors.norm(dim=1)
    place = (distance - LOWER) / SPACING
    knot = place.detach().floor()
    inside = (distance >= LOWER) & (distance < CUTOFF)
    return Geometry(
        -vectors / distance.unsqueeze(1),
        distance,
        torch.where(inside, knot, -1.0).to(torch.int32),
        place - knot,
    )


def geometry(graph: Graph, edges: EdgeRows, length: float = 1.0) -> Geometry:
    return equations.geometry(
        graph.positions,
        graph.cell,
        graph.system,
        edges,
        length=length,
        lower=LOWER / length,
        cutoff=CUTOFF / length,
        intervals=INTERVALS,
        dtype=torch.float64,
    )


def test_edges_of_a_graph() -> None:
    graph = random_graph(20)
    edges = edge_rows(graph)
    i, j = equations.receivers(edges), edges.senders.long()
    reverse = edges.reverse.long()
    assert torch.equal(i, graph.edge_index[0])
    assert torch.equal(j, graph.edge_index[1])
    assert torch.equal(i[reverse], j)
    assert torch.equal(j[reverse], i)
    assert torch.equal(edges.shift[reverse], -edges.shift)
    assert edges.shift.abs().max() > 0


def test_edges_of_a_shuffled_graph_are_the_same() -> None:
    graph = random_graph(20)
    order = torch.randperm(graph.edge_index.shape[1], generator=torch.Generator().manual_seed(0))
    shuffled = graph._replace(
        edge_index=graph.edge_index[:, order], edge_shift=graph.edge_shift[order]
    )
    for a, b in zip(edge_rows(graph), edge_rows(shuffled), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("cells", [3, 3 * 10**5])
def test_edges_between_atoms_many_cells_apart(cells: int) -> None:
    graph = random_graph(20)
    steps = torch.randint(-cells, cells, (20, 3), generator=torch.Generator().manual_seed(0))
    i, j = graph.edge_index
    shift = graph.edge_shift + steps[i] - steps[j]
    moved, edges = edge_rows(graph._replace(edge_shift=shift)), edge_rows(graph)
    receiver, sender = equations.receivers(moved), moved.senders.long()
    assert torch.equal(moved.offsets, edges.offsets)
    assert torch.equal(sender, edges.senders.long())
    reverse = moved.reverse.long()
    assert torch.equal(receiver[reverse], sender)
    assert torch.equal(sender[reverse], receiver)
    assert torch.equal(moved.shift[reverse], -moved.shift)
    assert torch.equal(moved.shift - steps[receiver] + steps[sender], edges.shift)


def test_an_edge_without_its_reverse_is_refused() -> None:
    graph = random_graph(20)
    broken = graph._replace(edge_index=graph.edge_index[:, 1:], edge_shift=graph.edge_shift[1:])
    with pytest.raises(ValueError, match="no reverse"):
        edge_rows(broken)


def test_geometry(case: Case) -> None:
    at, expected = geometry(case.graph, case.edges), geometry_of(vectors_of(case))
    assert torch.equal(at.knot, expected.knot)
    assert (at.knot < 0).any()
    assert (at.knot >= 0).any()
    inside = at.knot >= 0
    for a, b in zip(at, expected, strict=True):
        torch.testing.assert_close(a[inside], b[inside], rtol=1e-12, atol=1e-12)
    other = geometry(case.graph, case.edges, length=0.1)
    assert_equal(other.distance, 10 * at.distance)
    assert torch.equal(other.knot, at.knot)


def test_spline_is_the_radial_table(case: Case) -> None:
    table = RadialTable(case.table[:, :18], CUTOFF, LOWER)
    distance = torch.linspace(0.0, CUTOFF * 1.1, 301, dtype=torch.float64)
    vectors = torch.stack([distance, 0 * distance, 0 * distance], 1)
    value, slope = equations.spline(case.table, geometry_of(vectors))
    assert_equal(value, table(distance))
    x = distance.requires_grad_(True)
    columns = [torch.autograd.grad([table(x)[:, k].sum()], [x])[0] for k in (0, 5, 17)]
    assert_equal(slope[:, [0, 5, 17]], torch.stack(columns, 1))


def test_embedding(case: Case) -> None:
    vectors = vectors_of(case).requires_grad_(True)
    species = (case.receiver, case.sender, case.graph.numbers)
    own = case.at_zero[:6]
    x = equations.embed(geometry_of(vectors), case.edges, case.table, own, *species)
    (expected,) = gradients(x, case.g, vectors)
    at = geometry(case.graph, case.edges)
    found = equations.embed_backward(at, case.edges, case.table, *species, case.g)
    assert_equal(found, expected)
    control = equations.embed_backward(at, case.edges, case.table, *species, 1.001 * case.g)
    assert (control - expected).abs().max() > 1e-4 * expected.abs().max()


def test_message(case: Case) -> None:
    y = case.y.clone().requires_grad_(True)
    vectors = vectors_of(case).requires_grad_(True)
    m = equations.message(geometry_of(vectors), case.edges, case.table, case.at_zero, y)
    d_y, d_vector = gradients(m, case.g, y, vectors)
    at = geometry(case.graph, case.edges)
    found, d_distance = equations.message_backward(
        at, case.edges, case.table, case.at_zero, case.y, case.g
    )
    assert_equal(found, d_y)
    # Each derivative stands at the reverse of its edge.
    swapped = d_distance[case.edges.reverse.long()]
    assert_equal(-swapped.unsqueeze(1) * at.unit, d_vector)


def test_forces_and_virial(case: Case) -> None:
    graph, edges = case.graph, case.edges
    positions = graph.positions.clone().requires_grad_(True)
    strain = torch.zeros(2, 3, 3, dtype=torch.float64, requires_grad=True)
    deformation = torch.eye(3, dtype=torch.float64) + strain
    moved = graph._replace(
        positions=(positions.unsqueeze(1) @ deformation[graph.system]).squeeze(1),
        cell=graph.cell @ deformation,
    )
    vectors = displacements(moved)
    at = geometry_of(vectors)
    weights = torch.randn(len(vectors), 3, generator=torch.Generator().manual_seed(3)).double()
    energy = ((vectors * weights).sum(1) + vectors.norm(dim=1) ** 3)[at.knot >= 0].sum()
    d_positions, d_strain = torch.autograd.grad([energy], [positions, strain])

    at = geometry(graph, edges)
    force, virial = equations.forces(at, edges, weights, 3 * at.distance**2)
    assert_equal(force, -d_positions)
    by_system = torch.zeros_like(d_strain).index_add(0, graph.system, virial)
    assert_equal(by_system, -d_strain)


@pytest.mark.parametrize("parity", [True, False], ids=["O(3)", "SO(3)"])
def test_products(case: Case, parity: bool) -> None:
    q = case.charge_factor
    x, y = (t.clone().requires_grad_(True) for t in (case.x, case.y))
    expected = gradients(equations.combine(x, y, q, parity), case.g, x, y)
    found = equations.combine_adjoint(case.x, case.y, q, parity, case.g)
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b)
    expected = gradients(equations.update(x, y, q), case.g, x, y)
    assert_equal(case.g, expected[0])
    assert_equal(equations.update_adjoint(case.y, q, case.g), expected[1])


def test_norms(case: Case) -> None:
    x = case.x.clone().requires_grad_(True)
    (expected,) = gradients(equations.normalize(x), case.g, x)
    assert_equal(equations.normalize_adjoint(case.x, case.g), expected)
    (expected,) = gradients(norm_squared(x), case.g[0], x)
    assert_equal(equations.norm_squared_adjoint(case.x, case.g[0]), expected)
    (expected,) = gradients(irrep_norms_squared(x), case.factors, x)
    assert_equal(equations.irrep_norms_squared_adjoint(case.x, case.factors), expected)


def test_gate(case: Case) -> None:
    x, factors = (t.clone().requires_grad_(True) for t in (case.x, case.factors))
    expected = gradients(equations.gate(x, factors), case.g, x, factors)
    found = equations.gate_adjoint(case.x, case.factors, case.g)
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b)


def test_mix(case: Case) -> None:
    x = case.x.clone().requires_grad_(True)
    linear = TensorLinear(6).double().requires_grad_(False)
    expected = linear(x)
    weight = by_component(linear.weight)
    assert_equal(mix(case.x, weight), expected)
    assert_equal(mix_adjoint(weight, case.g), gradients(expected, case.g, x)[0])


def test_layer_norm(case: Case) -> None:
    norm = torch.nn.LayerNorm(18).double().requires_grad_(False)
    norm.weight.normal_()
    norm.bias.normal_()
    x = case.factors.clone().requires_grad_(True)
    g = torch.randn_like(x)
    found, *moments = perceptrons.layer_norm(case.factors, norm.weight, norm.bias, 18)
    assert_equal(found, norm(x))
    (expected,) = gradients(norm(x), g, x)
    found = perceptrons.layer_norm_adjoint(case.factors, norm.weight, norm.bias, *moments, g, 18)
    assert_equal(found, expected)


ACTIVATIONS: dict[str, Any] = {
    "identity": lambda x: x,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "ssp": lambda x: torch.log(1 + torch.exp(x)) - LOG_2,
    "tanh": lambda x: 1 - 2 / (1 + torch.exp(2 * x)),
    "sigmoid": lambda x: 1 / (1 + torch.exp(-x)),
    "mish": lambda x: x * (1 - 2 / (1 + (1 + torch.exp(x)) ** 2)),
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_perceptron(name: str) -> None:
    torch.manual_seed(0)
    shapes = [(5, 7), (3, 5)]
    layers = [Dense(torch.randn(*s).double(), torch.randn(s[0]).double(), name) for s in shapes]
    # Beyond 20 torch's softplus is the identity, and its derivative not that of softplus.
    x = torch.randn(11, 7, dtype=torch.float64, requires_grad=True)
    g = torch.randn(11, 3, dtype=torch.float64)
    y = x
    for layer in layers:
        y = ACTIVATIONS[name](y @ layer.weight.t() + layer.bias)
    found, linear = perceptrons.perceptron(layers, x.detach())
    assert_equal(found, y)
    (expected,) = gradients(y, g, x)
    assert_equal(perceptrons.perceptron_adjoint(layers, linear, g), expected)


# The whole pass

VARIANTS: dict[str, dict[str, Any]] = {
    "mlp": {},
    "gated": {"head": "gated", "activation": "mish"},
    "linear-SO(3)": {"head": "linear", "group": "SO(3)", "activation": "ssp"},
    "SO(3)": {"group": "SO(3)"},
    "no self-interaction": {"self_interaction": False, "activation": "tanh"},
    "no layers": {"layers": 0},
    "lower cutoff": {"cutoff_lower": 1.2},
    "three layers": {"layers": 3, "channels": 24, "activation": "sigmoid"},
    "gauss": {"radial": "gauss"},
    "bessel": {"radial": "bessel"},
    "units, references, ZBL": {
        "length_unit": "nm",
        "energy_unit": "kcal/mol",
        "cutoff": 0.45,
        "references": REFERENCES,
        "zbl": 0.5,
    },
}


def table_of(potential: Potential, intervals: int) -> RadialTable:
    network = potential.representation
    assert isinstance(network, TensorNet)
    end, lower = network.cutoff, network.config["cutoff_lower"]

    def factors(distances: Tensor) -> Tensor:
        return torch.cat(network.edge_factors(distances), 1)

    return RadialTable(spline_coefficients(factors, end, intervals, lower), end, lower)


def with_table(potential: Potential, table: RadialTable) -> Potential:
    """The same potential, its radial functions from the table that the fused pass reads."""
    copied = copy.deepcopy(potential)
    assert isinstance(copied.representation, TensorNet)
    copied.representation.use_table(table)
    return copied.requires_grad_(False)


def largest_errors(found: Any, expected: Any) -> dict[str, float]:
    return {
        name: float((a - b).abs().max())
        for name, a, b in zip(expected._fields, found, expected, strict=True)
    }


@pytest.mark.parametrize("irreps", ["IS", "IA", "I"])
@pytest.mark.parametrize("variant", ["mlp", "linear-SO(3)", "no layers"])
def test_pass_of_networks_without_irreps(variant: str, irreps: str) -> None:
    assert_pass_is_that_of_the_network(make_potential(**VARIANTS[variant] | {"irreps": irreps}))
    smaller = pruned(make_potential(**VARIANTS[variant]), irreps)
    assert_pass_is_that_of_the_network(smaller)


@pytest.mark.parametrize("variant", VARIANTS)
def test_pass_is_that_of_the_network_with_tables(variant: str) -> None:
    assert_pass_is_that_of_the_network(make_potential(**VARIANTS[variant]))


def assert_pass_is_that_of_the_network(potential: Potential) -> None:
    table = table_of(potential, 256)
    fused, reference = plain_pass(potential, table), with_table(potential, table)
    systems = [ethanol(charge=1.0), crystal(charge=-2.0), slab(), tiny(2)]
    graph = batch_graphs([s.graph(float(potential.cutoff), skin=0.6) for s in systems])
    found, expected = fused(graph), reference(graph)
    assert expected.forces.abs().max() > 0.1
    for name, a, b in zip(expected._fields, found, expected, strict=True):
        assert a.dtype == torch.float64
        assert_equal(a, b, 1e-11)
        assert a.shape == b.shape, name


@pytest.mark.parametrize("variant", ["mlp", "bessel"])
def test_pass_is_that_of_the_network(variant: str) -> None:
    potential = make_potential(**VARIANTS[variant])
    fused, coarse = (plain_pass(potential, table_of(potential, n)) for n in (2048, 64))
    graph = ethanol(charge=1.0).graph(float(potential.cutoff))
    expected = potential(graph)
    errors = largest_errors(fused(graph), expected)
    assert errors["energy"] < 1e-9
    assert errors["forces"] < 1e-6
    assert errors["virial"] < 1e-6
    assert largest_errors(coarse(graph), expected)["forces"] > 1e-5


def test_without_a_table_one_is_built() -> None:
    potential = make_potential()
    fused = plain_pass(potential)
    errors = largest_errors(fused(crystal().graph()), predict(potential, crystal()))
    assert 0 < errors["forces"] < fused.table_info.bound == 2e-5


def test_float32() -> None:
    potential = make_potential(references=REFERENCES)
    fused = plain_pass(copy.deepcopy(potential).float(), table_of(potential, 2048))
    graph = ethanol().graph()
    found, expected = fused(graph), potential(graph)
    assert all(t.dtype == torch.float64 for t in found)
    errors = largest_errors(found, expected)
    assert 0 < errors["energy"] < 2e-5
    assert 0 < errors["forces"] < 2e-5


def test_half_precision_is_refused() -> None:
    potential = make_potential(layers=0)
    table = table_of(potential, 64)
    with pytest.raises(ValueError, match="expected one of 'float32', 'float64'"):
        plain_pass(copy.deepcopy(potential).half(), table)
    with pytest.raises(ValueError, match="keeps its dtype"):
        plain_pass(potential, table).float()


@pytest.mark.parametrize("layers", [0, 2])
def test_atoms_without_neighbours(layers: int) -> None:
    potential = make_potential(layers=layers)
    fused = plain_pass(potential, table_of(potential, 2048))
    alone = System(np.array([6]), np.zeros((1, 3)))
    apart = System(np.array([6, 1, 8]), np.array([[0.0, 0, 0], [1.1, 0, 0], [30.0, 0, 0]]))
    for system in (alone, apart):
        expected = predict(potential, system)
        found = fused(system.graph())
        assert largest_errors(found, expected)["energy"] < 1e-9
        assert largest_errors(found, expected)["forces"] < 1e-6
    assert not fused(apart.graph()).forces[2].any()


def test_no_atom() -> None:
    found = plain_pass(make_potential(), table_of(make_potential(), 64))(random_graph(0))
    assert found.energy.tolist() == [0.0]
    assert found.forces.shape == (0, 3)


def test_edges_are_kept_until_the_list_changes() -> None:
    potential = make_potential()
    fused = plain_pass(potential, table_of(potential, 2048))
    first, second = ethanol(seed=1).graph(), crystal().graph()
    for graph in (first, second, first):
        assert largest_errors(fused(graph), potential(graph))["forces"] < 1e-6
    known = fused.rows_of(first)
    assert fused.rows_of(first) is known
    first.edge_index[:] = first.edge_index[:, torch.arange(first.edge_index.shape[1]).flip(0)]
    assert fused.rows_of(first) is not known


def test_inference_mode() -> None:
    potential = make_potential()
    fused = plain_pass(potential, table_of(potential, 64))
    expected = fused(crystal().graph())
    with torch.inference_mode():
        found = fused(crystal().graph())
    for a, b in zip(found, expected, strict=True):
        assert_equal(a, b, 1e-15)


def test_room_behind_the_edges_is_not_read() -> None:
    potential = make_potential()
    weights = extract_weights(potential, table_of(potential, 64))
    weights = pack_weights(weights, torch.float64, "cpu")
    graph = random_graph(12)
    edges = edge_rows(graph)
    garbage = EdgeRows(
        edges.offsets,
        torch.cat([edges.senders, torch.full((7,), 3, dtype=torch.int32)]),
        torch.cat([edges.shift, torch.full((7, 3), torch.nan, dtype=torch.float64)]),
        torch.cat([edges.reverse, torch.zeros(7, dtype=torch.int32)]),
    )
    results = [
        tensornet_step(
            StepInputs(
                graph.positions, graph.cell, graph.system, graph.numbers, graph.charge, *each
            ),
            weights,
            1.0,
            TorchOperators(),
        )
        for each in (edges, garbage)
    ]
    for a, b in zip(*results, strict=True):
        assert_equal(a, b, 1e-14)
