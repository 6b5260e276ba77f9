"""The neighbour list against ASE's, the Verlet skin, batches of graphs."""

from __future__ import annotations

import copy
import itertools
import pickle

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.neighborlist import neighbor_list
from support.helpers import (
    CUTOFF,
    System,
    crystal,
    ethanol,
    make_potential,
    predict,
    rotation,
    slab,
    tiny,
)

from tensormd.models import TDN, Graph, NeighborList, Potential, ScalarReadout, batch_graphs
from tensormd.models.graph import displacements, pair_edges, within
from tensormd.models.potential import assemble

TRICLINIC = np.array([[6.1, 0.0, 0.0], [2.0, 5.3, 0.0], [-1.4, 1.7, 7.2]])
CELLS = {
    "cubic": np.diag([6.0, 6.0, 6.0]),
    "triclinic": TRICLINIC,
    "left-handed": TRICLINIC[[1, 0, 2]],
    "rotated": TRICLINIC @ rotation(3).T,
    "smaller than the cutoff": TRICLINIC / 3,
    "needle": np.array([[30.0, 0.0, 0.0], [1.0, 1.9, 0.0], [14.0, 0.3, 2.3]]),
}
PBC = list(itertools.product([False, True], repeat=3))


def random_system(cell: np.ndarray, pbc: object, atoms: int = 5, seed: int = 0) -> System:
    scaled = np.random.default_rng(seed).random((atoms, 3))
    return System(np.full(atoms, 6), scaled @ cell, cell, pbc)


def edges(graph: Graph) -> list[tuple[int, ...]]:
    """(i, j, shift...) of every edge, in the graph's own order."""
    columns = [graph.edge_index.T, graph.edge_shift.round().long()]
    return [tuple(row) for row in torch.cat(columns, dim=1).tolist()]


def ase_edges(system: System, cutoff: float = CUTOFF) -> dict[tuple[int, ...], float]:
    """The same with distances, by ASE."""
    atoms = Atoms(system.numbers, system.positions, cell=system.cell, pbc=system.pbc)
    i, j, shift, distance = neighbor_list("ijSd", atoms, cutoff)
    keys = np.column_stack([i, j, shift]).tolist()
    return dict(zip(map(tuple, keys), distance, strict=True))


def assert_as_ase(graph: Graph, expected: dict[tuple[int, ...], float], tolerance: float) -> None:
    found = edges(graph)
    assert len(found) == len(set(found)) == len(expected)
    assert set(found) == set(expected)
    distances = displacements(graph).norm(dim=1).numpy()
    np.testing.assert_allclose(distances, [expected[e] for e in found], rtol=0, atol=tolerance)


@pytest.mark.parametrize("pbc", PBC, ids=lambda pbc: "".join("FT"[k] for k in pbc))
@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_edges_equal_those_of_ase(cell: np.ndarray, pbc: tuple[bool, ...]) -> None:
    system = random_system(cell, pbc)
    expected = ase_edges(system)
    assert expected
    assert_as_ase(system.graph(), expected, 1e-12)  # a few roundings of ~10 A


@pytest.mark.parametrize("pbc", PBC[1:-1], ids=lambda pbc: "".join("FT"[k] for k in pbc))
def test_vectors_of_directions_without_period_are_not_read(pbc: tuple[bool, ...]) -> None:
    system = random_system(TRICLINIC, pbc)
    periodic = np.array(pbc)[:, None]
    for other in (np.zeros((3, 3)), 1e3 * TRICLINIC, TRICLINIC[[1, 2, 0]]):
        changed = system._replace(cell=np.where(periodic, TRICLINIC, other))
        assert edges(changed.graph()) == edges(system.graph())


@pytest.mark.parametrize("cell", CELLS.values(), ids=CELLS.keys())
def test_one_atom_in_a_cell(cell: np.ndarray) -> None:
    system = random_system(cell / 2, True, atoms=1)
    expected = ase_edges(system)
    assert expected
    assert all(i == j == 0 for i, j, *_ in expected)
    assert_as_ase(system.graph(), expected, 1e-12)


@pytest.mark.parametrize("pbc", PBC, ids=lambda pbc: "".join("FT"[k] for k in pbc))
def test_unwrapped_atoms(pbc: tuple[bool, ...]) -> None:
    system = random_system(TRICLINIC, pbc)
    images = np.random.default_rng(1).integers(-4, 5, (5, 3)) * np.array(pbc)
    unwrapped = system.moved(system.positions + images @ TRICLINIC)
    assert_as_ase(unwrapped.graph(), ase_edges(unwrapped), 1e-12)
    assert len(edges(unwrapped.graph())) == len(edges(system.graph()))


@pytest.mark.parametrize("pbc", PBC, ids=lambda pbc: "".join("FT"[k] for k in pbc))
def test_far_from_the_origin(pbc: tuple[bool, ...]) -> None:
    system = random_system(TRICLINIC, pbc)
    far = system.moved(system.positions + np.array([1e5, -1e5, 1e5]))
    # Positions of 1e5 A are rounded to 1.5e-11 A.
    assert_as_ase(far.graph(), ase_edges(system), 1e-10)


def test_edges_are_sorted_and_come_in_pairs() -> None:
    for system in (ethanol(), crystal(), slab(), tiny(1), tiny(2)):
        found = edges(system.graph())
        assert found == sorted(found)
        assert {(j, i, -a, -b, -c) for i, j, a, b, c in found} == set(found)
        assert not any(i == j and not any(shift) for i, j, *shift in found)


def test_displacements_point_from_receiver_to_sender() -> None:
    system = System(np.array([1, 1]), np.array([[0.0, 0.0, 0.0], [0.5, 0.0, 3.0]]))
    assert edges(system.graph()) == [(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)]
    assert displacements(system.graph()).tolist() == [[0.5, 0.0, 3.0], [-0.5, 0.0, -3.0]]
    cell = np.diag([9.0, 9.0, 4.0])
    periodic = system._replace(cell=cell, pbc=[False, False, True]).graph(1.5)
    assert edges(periodic) == [(0, 1, 0, 0, -1), (1, 0, 0, 0, 1)]
    assert displacements(periodic).tolist() == [[0.5, 0.0, -1.0], [-0.5, 0.0, 1.0]]


@pytest.mark.parametrize("atoms", [0, 1, 2])
def test_no_edges(atoms: int) -> None:
    graph = NeighborList(CUTOFF).graph(np.full(atoms, 8), 50.0 * np.eye(3)[:atoms])
    assert graph.edge_index.shape == (2, 0)
    assert graph.edge_index.dtype == torch.int64
    assert graph.edge_shift.shape == (0, 3)
    assert displacements(graph).shape == (0, 3)


def test_graph_has_the_documented_shapes_and_dtypes() -> None:
    graph = crystal(charge=-1).graph()
    n, e = 5, graph.edge_index.shape[1]
    shapes = [tuple(tensor.shape) for tensor in graph]
    assert shapes == [(n,), (n, 3), (1, 3, 3), (2, e), (e, 3), (n,), (1,)]
    real, whole = torch.float64, torch.int64
    assert [t.dtype for t in graph] == [whole, real, real, whole, real, whole, real]
    assert graph.charge.tolist() == [-1.0]


def test_molecule_has_no_cell() -> None:
    system = ethanol()
    boxed = system._replace(cell=np.diag([3.0, 3.0, 3.0]), pbc=False)
    assert not boxed.graph().cell.any()
    assert edges(boxed.graph()) == edges(system.graph())


def test_graph_owns_its_memory() -> None:
    system = crystal()
    assert system.cell is not None
    neighbors = NeighborList(CUTOFF, skin=1.0)
    numbers, positions, cell = system.numbers.copy(), system.positions.copy(), system.cell.copy()
    graph = neighbors.graph(numbers, positions, cell, True)
    numbers[:], positions[:], cell[:] = 0, 0.0, 0.0
    assert graph.numbers.tolist() == system.numbers.tolist()
    np.testing.assert_array_equal(graph.positions, system.positions)
    np.testing.assert_array_equal(graph.cell[0], system.cell)
    graph.positions.add_(10.0)
    graph.cell.mul_(2)
    graph.numbers.add_(1)
    neighbors.graph(*system)
    assert neighbors.builds == 1  # what it compares with did not change


# The Verlet skin


def test_list_is_reused_until_an_atom_has_moved_half_the_skin() -> None:
    system, neighbors = ethanol(), NeighborList(CUTOFF, skin=1.0)
    first = neighbors.graph(*system)
    direction = np.zeros_like(system.positions)
    direction[4] = [0.6, 0.0, 0.8]
    for moved, builds in [(0.2, 1), (0.4, 1), (0.499, 1), (0.501, 2), (0.9, 2), (1.1, 3)]:
        graph = neighbors.graph(*system.moved(system.positions + moved * direction))
        assert neighbors.builds == builds, moved
        assert (graph.edge_index is first.edge_index) == (builds == 1)
        np.testing.assert_array_equal(graph.positions, system.positions + moved * direction)


@pytest.mark.parametrize("system", [ethanol(), crystal()], ids=["molecule", "crystal"])
def test_a_common_translation_counts_as_motion(system: System) -> None:
    neighbors = NeighborList(CUTOFF, skin=1.0)
    neighbors.graph(*system)
    neighbors.graph(*system.moved(system.positions + 0.28))  # 0.485 A along the diagonal
    assert neighbors.builds == 1
    neighbors.graph(*system.moved(system.positions + 0.30))
    assert neighbors.builds == 2


def test_list_is_built_anew_when_cell_pbc_or_numbers_change() -> None:
    system = crystal()
    assert system.cell is not None
    neighbors = NeighborList(CUTOFF, skin=1.0)
    changed = [
        system,
        system._replace(cell=system.cell * (1 + 1e-12)),
        system,
        system._replace(pbc=[True, True, False]),
        system,
        system._replace(numbers=system.numbers[::-1].copy()),
        system._replace(numbers=system.numbers[:4], positions=system.positions[:4]),
    ]
    for builds, variant in enumerate(changed, start=1):
        graph = neighbors.graph(*variant)
        assert neighbors.builds == builds
        neighbors.graph(*variant)
        assert neighbors.builds == builds
        assert graph.numbers.tolist() == variant.numbers.tolist()


def test_charge_changes_without_a_search() -> None:
    neighbors = NeighborList(CUTOFF, skin=1.0)
    assert neighbors.graph(*ethanol()).charge.item() == 0
    assert neighbors.graph(*ethanol(charge=2)).charge.item() == 2
    assert neighbors.builds == 1


def test_cell_of_a_molecule_changes_without_a_search() -> None:
    system, neighbors = ethanol(), NeighborList(CUTOFF)
    neighbors.graph(*system)
    neighbors.graph(*system._replace(cell=np.eye(3)))
    assert neighbors.builds == 1


def test_without_a_skin_every_move_is_a_search() -> None:
    system, neighbors = ethanol(), NeighborList(CUTOFF)
    for shift, builds in [(0.0, 1), (0.0, 1), (1e-9, 2)]:
        neighbors.graph(*system.moved(system.positions + shift))
        assert neighbors.builds == builds


@pytest.mark.parametrize(
    "system", [ethanol(), crystal(), slab(), tiny(2)], ids=["molecule", "crystal", "slab", "tiny"]
)
def test_a_random_walk_sees_the_edges_of_fresh_searches(system: System) -> None:
    random = np.random.default_rng(0)
    reused, steps = NeighborList(CUTOFF, skin=1.0), 60
    positions = system.positions
    seen = set()
    for _ in range(steps):
        positions = positions + 0.05 * random.normal(size=positions.shape)
        moved = system.moved(positions)
        filtered, vectors = within(reused.graph(*moved), CUTOFF)
        fresh = moved.graph()
        assert torch.equal(filtered.edge_index, fresh.edge_index)
        assert torch.equal(filtered.edge_shift, fresh.edge_shift)
        assert torch.equal(vectors, displacements(fresh))
        seen.add(len(vectors))
    assert 1 < reused.builds < steps / 3
    assert len(seen) > 1  # pairs did cross the cutoff


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "system", [ethanol(), crystal(), slab(), tiny(2)], ids=["molecule", "crystal", "slab", "tiny"]
)
def test_results_do_not_depend_on_the_history_of_the_list(
    system: System, dtype: torch.dtype
) -> None:
    potential = make_potential(cutoff=3.0).to(dtype)
    random = np.random.default_rng(5)
    reused = NeighborList(3.0, skin=2.0)
    reused.graph(*system)
    for _ in range(5):
        moved = system.moved(system.positions + 0.2 * random.normal(size=system.positions.shape))
        graph = reused.graph(*moved)
        for skin in (0.0, 0.7, 2.0):
            for a, b in zip(potential(graph), predict(potential, moved, skin), strict=True):
                assert torch.equal(a, b)
        assert graph.edge_index.shape[1] > moved.graph(3.0).edge_index.shape[1]
    assert reused.builds < 5


def test_copies_search_for_themselves() -> None:
    neighbors = NeighborList(CUTOFF, skin=0.7)
    expected = edges(neighbors.graph(*crystal()))
    for copied in (copy.deepcopy(neighbors), pickle.loads(pickle.dumps(neighbors))):
        assert (copied.cutoff, copied.skin, copied.builds) == (CUTOFF, 0.7, 0)
        assert copied.device == neighbors.device
        assert edges(copied.graph(*crystal())) == expected
        assert copied.builds == 1
    assert neighbors.builds == 1


# Batches


def test_batch_keeps_every_graph() -> None:
    graphs = [ethanol(charge=1).graph(), crystal(-2).graph(), tiny(1).graph()]
    batch = batch_graphs([*graphs[:1], batch_graphs(graphs[1:])])
    sizes = [len(g.numbers) for g in graphs]
    assert batch.system.tolist() == [0] * sizes[0] + [1] * sizes[1] + [2] * sizes[2]
    assert batch.charge.tolist() == [1.0, -2.0, 0.0]
    assert batch.cell.shape == (3, 3, 3)
    assert torch.equal(batch.numbers, torch.cat([g.numbers for g in graphs]))
    assert batch.edge_index[0].diff().min() >= 0  # still sorted by the receiver
    expected = torch.cat([displacements(g) for g in graphs])
    assert torch.allclose(displacements(batch), expected, rtol=0, atol=1e-13)


def test_batch_of_one_is_the_graph() -> None:
    graph = crystal().graph()
    for a, b in zip(batch_graphs([graph]), graph, strict=True):
        assert torch.equal(a, b)


# Bad arguments


def test_empty_batch() -> None:
    with pytest.raises(ValueError, match="expected at least one"):
        batch_graphs([])


def test_all_pairs_of_a_molecule() -> None:
    """An infinite cutoff gives the edges of any that is large enough, and no cell."""
    molecule = ethanol()
    neighbors = NeighborList(np.inf, skin=1.0)
    for a, b in zip(neighbors.graph(*molecule), NeighborList(100.0).graph(*molecule), strict=True):
        assert torch.equal(a, b)
    neighbors.graph(*molecule.moved(molecule.positions * 30))
    assert neighbors.builds == 1  # all pairs stay all pairs
    with pytest.raises(ValueError, match="periodic cell"):
        neighbors.graph(*crystal())
    broken = molecule.moved(molecule.positions * np.nan)
    with pytest.raises(ValueError, match="non-finite"):
        NeighborList(np.inf).graph(*broken)


@pytest.mark.parametrize("cutoff", [0.0, -1.0, np.nan])
def test_bad_cutoff(cutoff: float) -> None:
    with pytest.raises(ValueError, match=f"cutoff is {cutoff} A"):
        NeighborList(cutoff)


@pytest.mark.parametrize("skin", [-0.1, np.nan, np.inf])
def test_bad_skin(skin: float) -> None:
    with pytest.raises(ValueError, match=f"skin is {skin} A"):
        NeighborList(CUTOFF, skin)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([1, 1], np.zeros((3, 3))), r"shape \(2,\) and positions \(3, 3\)"),
        (([1, 1], np.zeros((3, 2))), r"shape \(2,\) and positions \(3, 2\)"),
        (([1], [[0.0, np.nan, 0.0]]), "non-finite"),
        (([1], [[0.0, np.inf, 0.0]], np.eye(3), True), "non-finite"),
        (([1], [[0.0, 0.0, 0.0]], None, True), "not invertible"),
        (([1], [[0.0, 0.0, 0.0]], np.diag([3.0, 3.0, 0.0]), True), "not invertible"),
        (([1], [[0.0, 0.0, 0.0]], np.ones(3), True), r"cell has shape \(3,\)"),
    ],
)
def test_bad_structures(arguments: tuple[object, ...], message: str) -> None:
    neighbors = NeighborList(CUTOFF)
    with pytest.raises(ValueError, match=message):
        neighbors.graph(*arguments)  # type: ignore[arg-type]
    neighbors.graph(*crystal())
    assert neighbors.builds == 1  # and it still works


@pytest.mark.parametrize("system", [ethanol(), crystal()], ids=["molecule", "crystal"])
def test_pairs_are_the_two_directions_of_an_edge(system: System) -> None:
    graph = system.graph()
    pairs = pair_edges(graph)
    vectors = displacements(graph)
    assert 2 * len(pairs.one) == len(pairs.of_edge) > 0
    assert torch.bincount(pairs.of_edge).tolist() == [2] * len(pairs.one)
    signs = (vectors * vectors[pairs.one[pairs.of_edge]]).sum(1) / (vectors * vectors).sum(1)
    assert torch.allclose(signs.abs(), torch.ones_like(signs), atol=1e-12)
    assert (signs > 0).sum() == (signs < 0).sum() == len(pairs.one)


def test_an_edge_without_its_counterpart() -> None:
    graph = ethanol().graph()
    with pytest.raises(ValueError, match="no counterpart"):
        pair_edges(
            graph._replace(edge_index=graph.edge_index[:, 1:], edge_shift=graph.edge_shift[1:])
        )


def small_tdn() -> Potential:
    torch.manual_seed(0)
    network = TDN(channels=8, layers=1, lmax=1, radial_functions=8, max_number=9)
    return Potential(network, ScalarReadout(8), elements=[1, 6, 7, 8], scale=3.0).double()


@pytest.mark.parametrize("kind", ["tensornet", "tdn"])
def test_radial_networks_may_see_each_pair_once(kind: str) -> None:
    potential = make_potential() if kind == "tensornet" else small_tdn()
    for system in (ethanol(), crystal()):
        graph = system.graph(potential.cutoff)
        vectors = displacements(graph).requires_grad_(True)
        results = []
        for pairs in (None, pair_edges(graph)):
            energies = potential.atom_energies(graph, vectors, pairs)
            (gradient,) = torch.autograd.grad([energies.sum()], [vectors])
            forces = assemble(graph, energies, vectors.detach(), gradient)
            results.append(forces)
        for one, other in zip(*results, strict=True):
            assert one.abs().max() > 1e-3
            assert torch.allclose(one, other, atol=1e-10)
