"""The fused pass of TensorNet2 against plain torch, its pairs, charges, portions and threads."""

from __future__ import annotations

import copy
import functools
import math
import pickle
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    System,
    ethanol,
    numerical_forces,
    numerical_virial,
    predict,
    predict_batch,
    relative_error,
)
from support.kernel_cases import SYSTEMS, water
from support.tensornet2 import REACTION_FIELD, make_tensornet2

from tensormd.models import NeighborList, Potential, batch_graphs
from tensormd.models.graph import Graph
from tensormd.models.inference.kernels import fuse
from tensormd.models.inference.kernels.cpu import tensornet2_potential
from tensormd.models.inference.tables import FORCE_BOUND, tabulated_potential

INF = math.inf
NETWORKS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-pairs": {"coulomb": INF, "repulsion": True},
    "reaction-field": {"coulomb": REACTION_FIELD},
    "long": {"coulomb": 12.0, "layers": 1, "repulsion": True},
    "SO(3)": {"group": "SO(3)", "layers": 1, "coulomb": REACTION_FIELD},
    "no-layers": {"layers": 0, "coulomb": INF},
    "three-layers": {"layers": 3, "channels": 24, "coulomb": INF},
    "many-charges": {"channels": 10, "charge_channels": 20, "coulomb": REACTION_FIELD},
    "one-charge": {"charge_channels": 1, "coulomb": INF, "activation": "tanh"},
    "lower-cutoff": {"cutoff_lower": 0.9, "coulomb": INF, "radial": "gauss"},
}
ANION, CATION = ethanol(charge=-1.0), ethanol(charge=1.0)


@functools.cache
def model(name: str) -> Potential:
    return make_tensornet2(**NETWORKS[name])


def systems(name: str) -> dict[str, System]:
    """Those that the model can evaluate."""
    found = {**SYSTEMS, "anion": ANION, "cation": CATION}
    if NETWORKS[name].get("coulomb") == INF:
        return {kind: system for kind, system in found.items() if system.cell is None}
    return found


def charges_of(potential: Potential, system: System) -> torch.Tensor:
    return potential.properties(system.graph(potential.cutoff), names=["charges"])["charges"]


@pytest.mark.parametrize("name", NETWORKS)
def test_equals_plain_torch_with_the_same_tables(name: str) -> None:
    """In float64, to rounding; and a wrong table would be seen."""
    fused, plain = fuse(model(name)), tabulated_potential(model(name))
    for kind, system in systems(name).items():
        graph = system.graph(fused.cutoff, skin=0.7)  # type: ignore[arg-type]
        found, expected = fused(graph), predict(plain, system)
        for field, a, b in zip(expected._fields, found, expected, strict=True):
            size = max(float(b.abs().max()), 1e-3)
            assert float((a - b).abs().max()) < 1e-11 * size, (kind, field)
        charges = fused.properties(graph, ["charges"])["charges"]  # type: ignore[operator]
        assert (charges - charges_of(plain, system)).abs().max() < 1e-12, kind
        if len(charges) > 2:
            assert charges.abs().max() > 1e-3


@pytest.mark.parametrize("name", NETWORKS)
def test_float32_is_near_the_network(name: str) -> None:
    potential = model(name)
    fused = fuse(copy.deepcopy(potential).float())
    for kind, system in systems(name).items():
        found, expected = predict(fused, system), predict(potential, system)
        size = max(1.0, float(expected.forces.abs().max()))
        assert (found.forces - expected.forces).abs().max() < FORCE_BOUND + 1e-5 * size, kind
        energies = float(expected.energies.abs().max())
        assert (found.energies - expected.energies).abs().max() < 1e-5 + 2e-6 * energies, kind
        assert (found.virial - expected.virial).abs().max() < 2e-4 * size, kind
        graph = system.graph(potential.cutoff)
        charges = fused.properties(graph, ["charges"])["charges"]  # type: ignore[operator]
        assert charges.dtype == torch.float64
        assert (charges - charges_of(potential, system)).abs().max() < 1e-5, kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("all-pairs", "anion"), ("three-layers", "cation"), ("long", "crystal"), ("SO(3)", "slab")],
)
def test_forces_and_virial_are_derivatives(name: str, kind: str) -> None:
    fused, system = fuse(model(name)), systems(name)[kind]
    found = predict(fused, system)
    assert found.forces.abs().max() > 0.03
    assert relative_error(numerical_forces(fused, system), found.forces) < 1e-6
    assert relative_error(numerical_virial(fused, system), found.virial[0]) < 1e-6


def test_units_of_the_network() -> None:
    """Bohr and hartree: positions, forces, and the Coulomb energy beside a scaled output."""
    from tensormd.models.heads.coulomb import CoulombEnergy

    base = model("plain")
    coulomb = CoulombEnergy([1.0, 2.0, 3.0], 4, 11.0, damping=8.7, coulomb=1.0)
    potential = Potential(
        base.representation, base.readout, elements=base.elements, scale=0.1, mean=2.0,
        coulomb=coulomb, length_unit="bohr", energy_unit="hartree",
    ).eval()  # fmt: skip
    fused, plain = fuse(potential), tabulated_potential(potential)
    for kind in ("anion", "crystal"):
        for a, b in zip(
            predict(fused, systems("plain")[kind]), predict(plain, systems("plain")[kind]),
            strict=True,
        ):  # fmt: skip
            assert (a - b).abs().max() < 1e-11 * b.abs().max()


def test_several_systems_in_one_graph() -> None:
    """Charges of one system do not reach the other, neither do pairs."""
    for name, kinds in (
        ("all-pairs", ("anion", "atom", "cation")),
        ("long", ("ion", "crystal", "slab")),
    ):
        fused, several = fuse(model(name)), [systems(name)[kind] for kind in kinds]
        together = predict_batch(fused, several)
        end = 0
        for k, system in enumerate(several):
            alone, part = predict(fused, system), slice(end, end + len(system.numbers))
            end = part.stop
            torch.testing.assert_close(together.energy[k], alone.energy[0], rtol=1e-13, atol=1e-13)
            torch.testing.assert_close(together.forces[part], alone.forces, rtol=0, atol=1e-13)
            torch.testing.assert_close(together.virial[k], alone.virial[0], rtol=0, atol=1e-12)


def equal(found: Any, expected: Any) -> bool:
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_repeats_to_the_bit_whatever_the_number_of_threads() -> None:
    potential = make_tensornet2(channels=48, coulomb=8.0).float()
    threads = torch.get_num_threads()
    results = []
    try:
        for count in (1, 2, 2, 1):
            torch.set_num_threads(count)
            results.append(predict(fuse(potential), water(150)))
    finally:
        torch.set_num_threads(threads)
    assert all(equal(result, results[0]) for result in results[1:])


def test_same_bits_without_the_memory_of_the_forward_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """The edge networks are computed again, one portion of the receivers after the other."""
    potential, system = make_tensornet2(channels=32, coulomb=6.0).float(), water(70)
    expected = predict(fuse(potential), system)
    monkeypatch.setattr(tensornet2_potential, "KEPT_BYTES", 0)
    for size in (2**15, 2**18, 2**26):
        monkeypatch.setattr(tensornet2_potential, "PORTION_BYTES", size)
        fused: Any = fuse(potential)
        assert equal(predict(fused, system), expected)
        portions = len(fused._memory.edges.portions) - 1
        assert (portions == 1) == (size == 2**26)
        assert not fused._memory.edges.keeps


def test_all_pairs_need_not_be_listed() -> None:
    """Neither do they disturb where they are."""
    fused, system = fuse(model("all-pairs")), ANION
    short = fused(system.graph(fused.near_cutoff, skin=0.3))  # type: ignore[arg-type]
    assert equal(short, predict(fused, system))
    apart = systems("all-pairs")["apart"]
    near = fused(apart.graph(fused.near_cutoff))  # type: ignore[arg-type]
    assert near.forces.abs().max() > 1e-3  # beyond the cutoff of the network
    assert equal(near, predict(fused, apart))


@pytest.mark.parametrize("name", ["long", "all-pairs"])
def test_edges_of_the_network_among_longer_pairs(name: str) -> None:
    """They are kept while atoms move a little, and nothing of them is left afterwards."""
    kind = {"long": "crystal", "all-pairs": "anion"}[name]
    system, fused = systems(name)[kind], fuse(model(name))
    neighbors = NeighborList(fused.cutoff, skin=3.0)  # type: ignore[arg-type]
    generator = np.random.default_rng(0)
    for step in range(4):
        moved = system.moved(system.positions + (0.1 + 0.2 * step) * generator.normal(size=(1, 3)))
        moved = moved.moved(moved.positions + 0.05 * generator.normal(size=moved.positions.shape))
        assert equal(fused(neighbors.graph(*moved)), predict(fuse(model(name)), moved))
    other = System(np.array([6, 8]), np.array([[0.0, 0, 0], [0, 0, 1.2]]))
    assert equal(predict(fused, other), predict(fuse(model(name)), other))


def test_charge_of_the_same_atoms_may_change() -> None:
    fused = fuse(model("all-pairs"))
    graph = ANION.graph(fused.near_cutoff)  # type: ignore[arg-type]
    for charge in (-1.0, 2.0, 0.0):
        changed = graph._replace(charge=torch.tensor([charge], dtype=torch.float64))
        expected = predict(tabulated_potential(model("all-pairs")), ethanol(charge=charge))
        assert (fused(changed).forces - expected.forces).abs().max() < 1e-10
        found = fused.properties(changed, ["charges"])["charges"]  # type: ignore[operator]
        assert float(found.sum()) == pytest.approx(charge, abs=1e-4)


def test_charges_are_those_of_the_graph_asked_for() -> None:
    """The last evaluation serves again, but only for the very same graph."""
    fused: Any = fuse(model("all-pairs"))
    anion, cation = (system.graph(fused.near_cutoff) for system in (ANION, CATION))
    fused(anion)
    first = fused.properties(anion, ["charges"])["charges"]
    assert float(first.sum()) == pytest.approx(-1, abs=1e-4)
    assert float(fused.properties(cation, ["charges"])["charges"].sum()) == pytest.approx(
        1, abs=1e-4
    )
    assert torch.equal(fused.properties(anion, ["charges"])["charges"], first)
    anion.positions[0] += 0.1  # in place
    assert not torch.equal(fused.properties(anion, ["charges"])["charges"], first)


def test_copies() -> None:
    fused: Any = fuse(model("long"))
    expected = predict(fused, ANION)
    for other in (copy.deepcopy(fused), pickle.loads(pickle.dumps(fused)), copy.copy(fused)):
        assert equal(predict(other, ANION), expected)


def test_what_cannot_be_is_refused() -> None:
    fused = fuse(model("all-pairs"))
    with pytest.raises(ValueError, match=r"periodic cell.*coulomb_cutoff=12\.0"):
        fused(SYSTEMS["crystal"].graph())
    both = batch_graphs([ANION.graph(), CATION.graph()])
    mixed = both._replace(system=torch.arange(18) % 2)
    with pytest.raises(ValueError, match="atoms of a system are not consecutive"):
        fused(mixed)
    with pytest.raises(ValueError, match="not sorted by receiver, then sender"):
        fuse(model("plain"))(swapped(ANION.graph()))


def swapped(graph: Graph) -> Graph:
    """The first two edges of the first atom in the other order."""
    order = torch.arange(graph.edge_index.shape[1])
    order[:2] = torch.tensor([1, 0])
    return graph._replace(
        edge_index=graph.edge_index[:, order], edge_shift=graph.edge_shift[order]
    )


def test_memory_of_earlier_lists_is_used_again() -> None:
    """For the same atoms, where it is large enough; results are those of new memory."""
    potential = make_tensornet2(channels=32, coulomb=6.0).float()
    fused, system, kept = fuse(potential), water(40), 0
    for step in range(4):
        moved = system.moved(system.positions * (1 + 0.02 * step), system.cell * (1 + 0.02 * step))
        before = fused._memory  # type: ignore[union-attr]
        assert equal(predict(fused, moved), predict(fuse(potential), moved))
        kept += before is not None and before.edges.tape is fused._memory.edges.tape  # type: ignore
    assert kept > 0
