"""Physics of TensorNet2: derivatives, symmetries, charges, distant fragments, the cutoffs."""

from __future__ import annotations

import functools
import math
from typing import Any

import numpy as np
import pytest
import torch
from ase.data import covalent_radii
from support.helpers import (
    CUTOFF,
    System,
    crystal,
    ethanol,
    gap_to_cutoff,
    numerical_forces,
    numerical_hessian,
    numerical_virial,
    predict,
    predict_batch,
    relative_error,
    rotation,
    slab,
    supercell,
    tiny,
)
from support.tensornet2 import REACTION_FIELD, make_tensornet2

from tensormd.models import Committee, NeighborList, Potential, TensorNet
from tensormd.models.analysis import layout_of
from tensormd.models.graph import Graph, within
from tensormd.models.heads.charges import ChargeReadout
from tensormd.models.heads.coulomb import COULOMB_EV_ANGSTROM, CoulombEnergy
from tensormd.models.heads.repulsion import CovalentRepulsion, ZBLRepulsion
from tensormd.models.inference.hessian import hessian
from tensormd.models.networks.tensornet2 import TensorNet2

INF = math.inf
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all-pairs": {"coulomb": INF},
    "reaction-field": {"coulomb": REACTION_FIELD, "repulsion": True},
    "SO(3)": {"group": "SO(3)", "layers": 1, "coulomb": REACTION_FIELD},
    "0-layers": {"layers": 0, "coulomb": REACTION_FIELD, "radial": "gauss"},
}
IN_CELLS = [name for name in VARIANTS if name != "all-pairs"]
MOLECULES = {"molecule": ethanol(), "cation": ethanol(charge=1.0), "anion": ethanol(charge=-1.0)}
CELLS = {"crystal": crystal(charge=1.0), "slab": slab(), "1-atom-cell": tiny(1)}


@functools.cache
def model(name: str) -> Potential:
    return make_tensornet2(**VARIANTS[name])


def charges(potential: Potential, system: System) -> torch.Tensor:
    """All charges, (N, levels, channels), from within the network's own cutoff."""
    graph, vectors = within(system.graph(potential.cutoff), potential.representation.cutoff)
    found = potential.representation.features_and_charges(graph, vectors)[1]
    return found.detach().view(len(found), potential.representation.charge_levels, -1)


@pytest.mark.parametrize(
    ("name", "kind"),
    [(name, kind) for name in VARIANTS for kind in ("cation",)]
    + [(name, kind) for name in IN_CELLS for kind in ("crystal",)]
    + [("reaction-field", kind) for kind in ("anion", "slab", "1-atom-cell")],
)
def test_forces_and_virial_are_derivatives(name: str, kind: str) -> None:
    potential, system = model(name), (MOLECULES | CELLS)[kind]
    for cutoff in {CUTOFF, min(potential.cutoff, 6.0)}:
        assert gap_to_cutoff(system, cutoff) > 0.002
    prediction = predict(potential, system)
    virial = prediction.virial[0]
    assert relative_error(numerical_virial(potential, system), virial) < 1e-7
    if len(system.numbers) == 1:
        assert prediction.forces.abs().max() < 1e-12
        return
    assert prediction.forces.abs().max() > 0.03
    assert relative_error(numerical_forces(potential, system), prediction.forces) < 1e-7
    assert prediction.forces.sum(0).abs().max() < 1e-10


@pytest.mark.parametrize(("name", "kind"), [("all-pairs", "anion"), ("reaction-field", "crystal")])
def test_hessian_is_the_gradient_of_the_forces(name: str, kind: str) -> None:
    potential, system = model(name), (MOLECULES | CELLS)[kind]
    matrix = hessian(potential.total_energy, system.graph(potential.cutoff))
    assert matrix.view(-1, len(system.numbers), 3).sum(1).abs().max() < 1e-10
    assert relative_error(numerical_hessian(potential, system), matrix) < 1e-7


@pytest.mark.parametrize("name", VARIANTS)
def test_rotation_translation_permutation_inversion(name: str) -> None:
    potential, system = model(name), MOLECULES["anion"]
    prediction, q = predict(potential, system), rotation()
    found = charges(potential, system)
    size = prediction.forces.abs().max()
    rotated = system.moved(system.positions @ q.T + 100.0)
    turned = predict(potential, rotated)
    assert abs(turned.energy - prediction.energy) < 1e-10
    turned_forces = prediction.forces @ torch.from_numpy(q.T)
    assert (turned.forces - turned_forces).abs().max() < 1e-10 * size
    assert (charges(potential, rotated) - found).abs().max() < 1e-11

    order = np.random.default_rng(0).permutation(len(system.numbers))
    moved = system._replace(numbers=system.numbers[order], positions=system.positions[order])
    permuted = predict(potential, moved)
    assert (permuted.forces - prediction.forces[order]).abs().max() < 1e-10 * size
    assert (charges(potential, moved) - found[order]).abs().max() < 1e-11

    mirrored = predict(potential, system.moved(-system.positions))
    change = abs(mirrored.energy - prediction.energy).item()
    assert (change > 1e-4) if name == "SO(3)" else (change < 1e-10)


@pytest.mark.parametrize("name", VARIANTS)
@pytest.mark.parametrize("total", [-1.0, 0.0, 2.0])
def test_charges_of_every_level_and_channel_sum_to_the_total(name: str, total: float) -> None:
    potential, system = model(name), ethanol(charge=total)
    found = charges(potential, system)
    sums = found.sum(0)
    # The published formula divides by the sum of the shares plus 1e-6.
    assert (sums - total).abs().max() < 1e-4
    assert found.abs().max() > 0.02
    graph = system.graph(potential.cutoff)
    (reported,) = potential.properties(graph, names=["charges"]).values()
    assert reported.shape == (len(system.numbers),)
    assert abs(reported.sum().item() - total) < 1e-4
    weights = torch.tensor(potential.heads["charges"].weights, dtype=torch.float64)
    assert torch.allclose(reported, found.mean(2) @ weights, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", IN_CELLS)
def test_supercell_has_the_energy_of_its_cells(name: str) -> None:
    """Copies of a cell have copies of its charges, and every image within the cutoff counts."""
    potential = model(name)
    for system in (crystal(charge=1.0), tiny(1), tiny(2)):
        one = predict(potential, system)
        large = supercell(system, (2, 1, 2))
        four = predict(potential, large._replace(charge=4 * system.charge))
        assert four.energy.item() == pytest.approx(4 * one.energy.item(), rel=1e-5)
        assert (four.forces[: len(system.numbers)] - one.forces).abs().max() < 1e-4


def beside(system: System, distance: float, charge: float) -> System:
    """A system and a copy of it at a distance."""
    points = np.vstack([system.positions, system.positions + np.array([distance, 0.0, 0.0])])
    return System(np.tile(system.numbers, 2), points, charge=charge)


@pytest.mark.parametrize("name", ["plain", "all-pairs"])
@pytest.mark.parametrize("charge", [-1.0, 0.0, 1.0])
def test_copies_far_apart(name: str, charge: float) -> None:
    """Neutral copies are additive; charged ones repel each other as k / r."""
    potential, distance = model(name), 300.0
    one = predict(potential, ethanol(charge=charge))
    pair = predict(potential, beside(ethanol(), distance, 2 * charge))
    expected = COULOMB_EV_ANGSTROM * charge**2 / distance if name == "all-pairs" else 0.0
    change = pair.energy.item() - 2 * one.energy.item()
    # What is left: the 1e-6 of the formula, and dipoles.
    assert change == pytest.approx(expected, abs=5e-4)
    if expected:
        force = pair.forces[len(one.forces) :].sum(0)[0].item()
        assert force == pytest.approx(expected / distance, rel=0.02)


def test_edges_beyond_the_networks_cutoff_change_nothing_but_the_coulomb_energy() -> None:
    """A carbon atom crosses the cutoff of the network: nothing jumps, whatever the edges."""
    base = ethanol()
    outermost = int(base.positions[:, 0].argmax())
    for name in ("plain", "reaction-field", "all-pairs"):
        potential, found = model(name), []
        for gap in (-2e-5, 2e-5):
            guest = base.positions[outermost] + np.array([CUTOFF + gap, 0.0, 0.0])
            system = System(np.append(base.numbers, 6), np.vstack([base.positions, guest]))
            found.append(predict(potential, system))
        inside, outside = found
        assert abs(inside.energy - outside.energy) < 1e-3
        assert (inside.forces - outside.forces).abs().max() < 1e-2
        assert outside.forces.abs().max() > 0.1


def test_reaction_field_ends_continuously_and_nearly_smoothly() -> None:
    coulomb, unit = CoulombEnergy([1.0], 1, cutoff=6.0), torch.ones(2, 1, dtype=torch.float64)

    def energy(r: float) -> tuple[float, float]:
        vectors = torch.tensor([[r, 0, 0], [-r, 0, 0]], dtype=torch.float64, requires_grad=True)
        total = coulomb(unit, pair_graph(), vectors).sum()
        (gradient,) = torch.autograd.grad([total], [vectors])
        return total.item(), 2 * gradient[0, 0].item()

    inside, slope = energy(6.0 - 1e-9)
    assert abs(inside) < 1e-9
    assert slope == pytest.approx(-3 / (2 * 78.3 + 1) / 36 * COULOMB_EV_ANGSTROM, rel=1e-6)
    assert energy(6.0 + 1e-9) == (0.0, 0.0)
    # Without a cutoff, and beyond the damping, it is Coulomb's law.
    coulomb = CoulombEnergy([1.0], 1)
    assert energy(9.0)[0] == pytest.approx(COULOMB_EV_ANGSTROM / 9.0, rel=1e-12)
    # Damped towards a finite value: opposite charges do not fall into each other.
    assert energy(1e-3)[0] == pytest.approx(COULOMB_EV_ANGSTROM * 1e-3 / 4.6**2, rel=1e-3)


def pair_graph() -> Graph:
    return NeighborList(10.0).graph([6, 8], [[0.0, 0, 0], [5.0, 0, 0]])


def test_products_of_charges_are_the_same_for_few_and_for_many_pairs() -> None:
    """Rows gathered by pair, or one matrix product: whichever is less work."""
    coulomb = CoulombEnergy([0.3, 1.0], 2, cutoff=3.0)
    torch.manual_seed(0)
    system = supercell(crystal(), (2, 2, 2))
    all_of_it = torch.randn(len(system.numbers), 4, dtype=torch.float64)
    for cutoff, dense in ((3.0, False), (9.0, True)):
        graph = system.graph(cutoff)
        n, edges = len(system.numbers), graph.edge_index.shape[1]
        assert (n * n <= edges * 4) == dense
        i, j = graph.edge_index
        weights = torch.tensor([0.3, 0.3, 1.0, 1.0], dtype=torch.float64) / 2.6
        expected = (weights * all_of_it[i] * all_of_it[j]).sum(1)
        torch.testing.assert_close(coulomb._products(all_of_it, graph), expected)


def test_repulsion_is_the_written_formula() -> None:
    repulsion = CovalentRepulsion(20, 4.5)
    r = 1.1
    vectors = torch.tensor([[r, 0, 0], [-r, 0, 0]], dtype=torch.float64)
    a = 0.4543 / 1.8897261258369282 / (6**0.3 + 8**0.3)
    terms = ((0.1818, 3.2), (0.5099, 0.9423), (0.2802, 0.4029), (0.02817, 0.2016))
    screening = sum(c * math.exp(-k * r / a) for c, k in terms)
    rho = r / (covalent_radii[6] + covalent_radii[8])
    envelope = 1 - 28 * rho**6 + 48 * rho**7 - 21 * rho**8
    expected = 14.399645 * 48 / r * screening * envelope
    found = repulsion(pair_graph(), vectors)
    assert found.sum().item() == pytest.approx(expected, rel=1e-12)
    assert found[0] == found[1]
    assert repulsion(pair_graph(), 2 * vectors).abs().max() == 0  # beyond the radii


# Compiled, in batches, in committees


@pytest.mark.parametrize("name", VARIANTS)
def test_batches_equal_single_systems_and_torchscript_eager(name: str) -> None:
    potential = model(name)
    compiled: Any = potential
    if name in ("all-pairs", "reaction-field"):  # with and without pairs to leave out
        compiled = torch.jit.script(make_tensornet2(**VARIANTS[name]))
    systems = [ethanol(charge=-1.0), ethanol(3), System(np.array([8]), np.zeros((1, 3)))]
    if name != "all-pairs":
        systems += [crystal(charge=1.0), tiny(1)]
    singles = [predict(potential, system) for system in systems]
    together = predict_batch(potential, systems)
    for field in ("energy", "energies", "forces", "virial"):
        apart = torch.cat([getattr(single, field) for single in singles])
        torch.testing.assert_close(getattr(together, field), apart, rtol=1e-11, atol=1e-11)
    for system, single in zip(systems, singles, strict=True):
        for a, b in zip(predict(compiled, system), single, strict=True):
            torch.testing.assert_close(a, b, rtol=1e-11, atol=1e-11)


def test_committee_of_different_cutoffs() -> None:
    """Members see the pairs within their own cutoff only."""
    members = [model("plain"), model("all-pairs")]
    committee = Committee(members)
    assert committee.cutoff == INF
    found = committee(ethanol().graph(INF))
    alone = [predict(member, ethanol()) for member in members]
    mean = 0.5 * (alone[0].forces + alone[1].forces)
    torch.testing.assert_close(found.mean.forces, mean, rtol=0, atol=1e-12)
    assert found.energy_std.item() > 1e-3


def test_float32_is_near_float64() -> None:
    for name in ("all-pairs", "reaction-field"):
        exact, single = model(name), make_tensornet2(**VARIANTS[name]).float()
        a, b = predict(exact, ethanol(charge=1.0)), predict(single, ethanol(charge=1.0))
        assert b.forces.dtype == torch.float64
        assert (a.forces - b.forces).abs().max() < 2e-5 * a.forces.abs().max()


# Bad input


def test_its_orders_are_not_measured() -> None:
    with pytest.raises(ValueError, match="orders of a TensorNet2 cannot be measured"):
        layout_of(make_tensornet2())


def test_coulomb_energy_of_a_network_without_charges() -> None:
    network = TensorNet(channels=8, radial_functions=4, max_number=10)
    for coulomb in (CoulombEnergy([1.0], 4), CoulombEnergy([1.0, 1.0], 4)):
        with pytest.raises(ValueError, match=r"TensorNet predicts 0 of 0.*leave the Coulomb"):
            Potential(network, network.new_readout(), elements=[1], coulomb=coulomb)
    with pytest.raises(ValueError, match="TensorNet predicts no charges"):
        ChargeReadout(network)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: CoulombEnergy([1.0, -1.0], 4), "sum that is not zero"),
        (lambda: CoulombEnergy([1.0], 4, cutoff=-2.0), "cutoff of the Coulomb energy is -2"),
        (lambda: CoulombEnergy([1.0], 4, cutoff=INF), "None for all pairs"),
        (lambda: TensorNet2(charge_channels=0), "charge_channels is 0"),
        (lambda: TensorNet2(group="E(3)"), "unknown group"),
        (lambda: TensorNet2(cutoff=-1.0), "cutoffs 0.0 and -1.0"),
        (lambda: CovalentRepulsion(1000, 4.5), "elements is 1000: expected 2 to"),
        (lambda: ChargeReadout(TensorNet2(layers=1), [1.0]), "expected 2 numbers, one per level"),
    ],
)
def test_bad_options(make: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()


def test_plain_repulsion_is_still_torchmdnets_prior() -> None:
    potential = make_tensornet2()
    potential.repulsion = ZBLRepulsion(3.0)
    assert relative_error(numerical_forces(potential, ethanol()), predict(
        potential, ethanol()).forces) < 1e-7  # fmt: skip
