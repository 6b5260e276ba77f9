"""Measured shares of the orders of a network, against their definitions."""

from __future__ import annotations

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from ase.build import molecule
from scipy.spatial.transform import Rotation
from torch import Tensor

from tensormd.models import TDN, EnergyReadout, Potential, ScalarReadout, TensorNet
from tensormd.models.analysis import (
    Accuracy,
    analyse,
    changed,
    explained_by,
    graph_embeddings,
    layout_of,
    maps_of,
    measure_shares,
    predict,
    without_order,
    work,
    work_without,
)
from tensormd.models.analysis.advice import Scale, advise
from tensormd.models.analysis.batches import slices
from tensormd.models.analysis.maps import principal_map
from tensormd.models.analysis.removal import accuracy, predict_without
from tensormd.models.committee import Committee
from tensormd.models.maths.cartesian import BASIS
from tensormd.models.neighbors import NeighborList
from tensormd.models.networks.tdn import PUBLISHED
from tensormd.models.training import Frames

CUTOFF = 4.0


def tensornet(layers: int = 2, **options: object) -> Potential:
    torch.manual_seed(1)
    network = TensorNet(
        channels=6, layers=layers, radial_functions=8, cutoff=CUTOFF, max_number=10, **options
    )
    readout = EnergyReadout(6, irreps=network.config["irreps"])
    potential = Potential(network, readout, elements=[1, 6, 8], scale=5.0)
    return potential.double().eval()


def tdn(lmax: int = 2, layers: int = 2, **options: object) -> Potential:
    torch.manual_seed(2)
    network = TDN(
        channels=8, layers=layers, lmax=lmax, heads=2, radial_functions=8, radial_widths=(8,),
        cutoff=CUTOFF, max_number=10, average_degree=7.0, **options,
    )  # fmt: skip
    potential = Potential(network, ScalarReadout(8), elements=[1, 6, 8], scale=5.0)
    return potential.double().eval()


def frames_of(
    potential: Potential, names: tuple[str, ...] = ("H2O", "CH3OH", "H2CO"), noise: float = 0.01,
    rotation: Rotation | None = None, copies: int = 1,
) -> Frames:  # fmt: skip
    """Rattled molecules with the potential's own labels and some noise."""
    rng = np.random.default_rng(5)
    neighbors = NeighborList(CUTOFF)
    graphs = []
    for name in copies * names:
        atoms = molecule(name)
        positions = atoms.positions + 0.05 * rng.normal(size=(len(atoms), 3))
        if rotation is not None:
            positions = rotation.apply(positions)
        graphs.append(neighbors.graph(atoms.numbers, positions))
    found = [potential(graph) for graph in graphs]
    energies = [float(each.energy) + noise * rng.normal() for each in found]
    forces = [each.forces.numpy() + noise * rng.normal(size=each.forces.shape) for each in found]
    return Frames(graphs, energies, forces)


BOTH = pytest.mark.parametrize("make", [tensornet, tdn], ids=["TensorNet", "TDN"])


def features_at(potential: Potential, frames: Frames) -> list[Tensor]:
    found: list[Tensor] = []

    def keep(k: int, x: Tensor) -> Tensor:
        assert k == len(found)
        found.append(x.detach().clone())
        return x

    with changed(potential, keep):
        potential(frames.batch(range(len(frames))).graph)
    return found


@BOTH
def test_layers_are_those_of_the_network(make: Callable[[], Potential]) -> None:
    potential = make()
    frames = frames_of(potential)
    layout = layout_of(potential)
    features = features_at(potential, frames)
    assert layout.layers == ("embedding", "layer 1", "layer 2")
    assert len(features) == 3
    assert all(x.shape[layout.axis] == 9 for x in features)
    graph = frames.batch(range(len(frames))).graph
    before = potential(graph)
    with changed(potential, lambda k, x: x):
        same = potential(graph)
    assert torch.equal(before.energy, same.energy)
    energies = potential.readout(features[-1])
    scaled = potential.atomic_scale(energies, graph)
    torch.testing.assert_close(scaled, before.energies, rtol=1e-12, atol=1e-12)
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in potential.modules())


@BOTH
def test_norm_shares(make: Callable[[], Potential]) -> None:
    potential = make()
    frames = frames_of(potential)
    shares = measure_shares(potential, frames, layout_of(potential))
    for k, x in enumerate(features_at(potential, frames)):
        if make is tensornet:
            tensors = torch.einsum("kab,knf->nfab", BASIS, x)
            trace = torch.diagonal(tensors, dim1=2, dim2=3).mean(-1)
            scalar = trace[..., None, None] * torch.eye(3, dtype=torch.float64)
            antisymmetric = 0.5 * (tensors - tensors.mT)
            parts = [scalar, antisymmetric, tensors - scalar - antisymmetric]
        else:
            parts = [x[:, :1], x[:, 1:4], x[:, 4:]]
        norms = torch.stack([part.square().sum() for part in parts])
        torch.testing.assert_close(shares.norm[k], norms / norms.sum())
        by_component = norms / torch.tensor([1.0, 3.0, 5.0], dtype=torch.float64)
        torch.testing.assert_close(shares.norm_per_component[k], by_component / by_component.sum())
        rms = (by_component / x.numel() * 9).sqrt()
        torch.testing.assert_close(shares.rms[k], rms)


@BOTH
def test_energy_shares_are_first_order_changes(make: Callable[[], Potential]) -> None:
    """Each atom's and channel's part of each order is made 1 + h times as large."""
    potential = make()
    frames = frames_of(potential, ("H2O",))
    layout = layout_of(potential)
    shares = measure_shares(potential, frames, layout)
    graph, h = frames.graphs[0], 1e-4
    atoms, channels = 3, int(potential.representation.channels)
    for layer in range(3):
        sums = []
        for order in layout.orders:
            total = 0.0
            for atom in range(atoms):
                for channel in range(channels):

                    def energy(
                        factor: float,
                        place: tuple[int, int, int] = (layer, atom, channel),
                        order=order,
                    ) -> float:
                        def change(k: int, x: Tensor) -> Tensor:
                            if k != place[0]:
                                return x
                            x = x.clone()
                            part = layout.part(x, order)
                            part.select(1 - layout.axis, place[1])[..., place[2]] *= factor
                            return x

                        with changed(potential, change):
                            return float(potential(graph).energy)

                    total += abs(energy(1 + h) - energy(1 - h)) / (2 * h)
            sums.append(total)
        expected = torch.tensor(sums, dtype=torch.float64)
        torch.testing.assert_close(
            shares.energy[layer], expected / expected.sum(), rtol=1e-5, atol=1e-7
        )


@BOTH
def test_force_shares_are_what_a_stopped_gradient_takes(make: Callable[[], Potential]) -> None:
    potential = make()
    frames = frames_of(potential)
    layout = layout_of(potential)
    shares = measure_shares(potential, frames, layout)
    torch.testing.assert_close(shares.force.sum(1), torch.ones(3, dtype=torch.float64))
    graph = frames.batch(range(len(frames))).graph
    forces = potential(graph).forces
    for layer in range(3):
        for o, order in enumerate(layout.orders):

            def stop(k: int, x: Tensor, layer: int = layer, order=order) -> Tensor:
                if k != layer:
                    return x
                return layout.only(x, order).detach() + layout.without(x, [order])

            with changed(potential, stop):
                through = forces - potential(graph).forces
            share = float((through * forces).sum() / forces.square().sum())
            assert float(shares.force[layer, o]) == pytest.approx(share, abs=1e-10)
            rms = float(through.square().mean().sqrt())
            assert float(shares.force_rms[layer, o]) == pytest.approx(rms, abs=1e-10)
    assert abs(shares.force[0, -1]) > 1e-6, "later layers read edges of their own"
    assert abs(shares.force[2, -1]) < 1e-12


def test_last_layer_of_tdn_is_read_by_its_scalars_alone() -> None:
    potential = tdn(**PUBLISHED)  # whose vectors hold much of the norm
    shares = measure_shares(potential, frames_of(potential), layout_of(potential))
    assert shares.norm[2, 1] > 0.01
    assert shares.energy[2].tolist() == [1.0, 0.0, 0.0]
    assert shares.force[2].tolist() == pytest.approx([1.0, 0.0, 0.0, 0.0], abs=1e-12)


@BOTH
def test_nothing_depends_on_the_orientation(make: Callable[[], Potential]) -> None:
    potential = make()
    turned = Rotation.from_rotvec([0.4, -1.1, 2.0])
    layout = layout_of(potential)
    frames = [frames_of(potential, rotation=r, noise=0.0) for r in (None, turned)]
    one, other = (measure_shares(potential, each, layout) for each in frames)
    for name, values in vars(one).items():
        torch.testing.assert_close(getattr(other, name), values, rtol=1e-9, atol=1e-11)
    one, other = (graph_embeddings(potential, each, layout) for each in frames)
    torch.testing.assert_close(other, one, rtol=1e-9, atol=1e-11)


@BOTH
def test_batches_change_nothing(
    make: Callable[[], Potential], monkeypatch: pytest.MonkeyPatch
) -> None:
    potential = make()
    frames = frames_of(potential)
    layout = layout_of(potential)
    whole = measure_shares(potential, frames, layout), graph_embeddings(potential, frames, layout)
    assert len(list(slices(frames))) == 1
    monkeypatch.setattr("tensormd.models.analysis.batches.EDGES_AT_ONCE", 30)
    assert [part.stop for part in slices(frames)] == [2, 3] or len(list(slices(frames))) == 3
    parts = measure_shares(potential, frames, layout), graph_embeddings(potential, frames, layout)
    for name, values in vars(whole[0]).items():
        torch.testing.assert_close(getattr(parts[0], name), values)
    torch.testing.assert_close(parts[1], whole[1])


@BOTH
def test_errors_without_an_order(make: Callable[[], Potential]) -> None:
    potential = make()
    frames = frames_of(potential, noise=0.1)
    layout = layout_of(potential)
    whole = predict(potential, frames)
    found = accuracy(whole, whole, frames)
    energy = np.mean([abs(float(potential(g).energy) - float(e)) for g, e in
                      zip(frames.graphs, frames.energies, strict=True)])  # fmt: skip
    assert found.energy_mae_mev == pytest.approx(1e3 * energy)
    assert found.energy_change_mev == 0
    # At the last layer the readout is all that follows.
    scalars = layout.orders[0]
    less = predict_without(potential, frames, layout, scalars, 2, forces=False)
    x = features_at(potential, frames)[2]
    layout.part(x, scalars).zero_()
    graph = frames.batch(range(len(frames))).graph
    energies = potential.atomic_scale(potential.readout(x), graph)
    expected = torch.zeros_like(less.energy).index_add(0, graph.system, energies)
    torch.testing.assert_close(less.energy, expected, rtol=1e-12, atol=1e-12)
    less = predict_without(potential, frames, layout, layout.orders[1], 1, forces=True)
    assert accuracy(less, whole, frames).force_change_mev_per_angstrom > 0.01
    silent = predict(potential, frames, forces=False)
    torch.testing.assert_close(silent.energy, whole.energy, rtol=1e-12, atol=1e-12)
    assert accuracy(silent, whole, frames).force_mae_mev_per_angstrom is None


@pytest.mark.parametrize(
    ("make", "name"),
    [(tensornet, "A"), (tensornet, "S"), (tdn, "l=1"), (tdn, "l=2")],
)
def test_pruning_gives_the_predicted_error(make: Callable[[], Potential], name: str) -> None:
    potential = make()
    frames = frames_of(potential, noise=0.1)
    analysis = analyse(potential, frames)
    smaller = without_order(potential, analysis.layout.order(name)).eval()
    whole = predict(potential, frames)
    found = accuracy(predict(smaller, frames), whole, frames)
    assert found == pytest.approx(analysis.everywhere[name], rel=1e-9)
    assert found.force_change_mev_per_angstrom > 0.01
    assert [order.name for order in layout_of(smaller).orders] == [
        order.name for order in analysis.layout.orders if order.name != name
    ]
    assert analysis.work[name] < 0.9
    assert analyse(smaller, frames).whole.force_mae_mev_per_angstrom == pytest.approx(
        found.force_mae_mev_per_angstrom
    )


def without_s(potential: Potential) -> Potential:
    """Every weight that makes or reads S set to zero."""
    potential = copy.deepcopy(potential)
    network, f = potential.representation, int(potential.representation.channels)
    with torch.no_grad():
        network.embedding.radial.weight[2 * f :] = 0
        network.embedding.radial.bias[2 * f :] = 0
        for layer in network.layers:
            layer.mix_in.weight[2] = 0
            layer.mix_out.weight[2] = 0
        potential.readout.norm.weight[2 * f :] = 0
        potential.readout.norm.bias[2 * f :] = 0
    return potential


def test_a_network_that_does_not_use_s_is_recognised() -> None:
    used = tensornet()
    unused = without_s(used)
    found = analyse(unused, frames_of(unused, noise=0.02, copies=4))
    assert found.advice.order == "S"
    assert not found.advice.fine_tune
    assert found.advice.text.startswith("Prune S: without it the errors are")
    assert float(found.shares.norm[:, 2].max()) < 1e-3
    found = analyse(used, frames_of(used, noise=0.02, copies=4))
    assert found.advice.order is None
    assert found.advice.text.startswith("Prune nothing")


def test_fine_tuning_is_compared_with_fine_tuning() -> None:
    used = tensornet(layers=1)
    frames = frames_of(used, noise=0.02, copies=6)
    fit = frames.select(range(6, 18))
    found = analyse(used, frames.select(range(6)), fit=fit, epochs=8)
    assert set(found.tuned) == {"whole", "A", "S"}
    for name in ("A", "S"):
        assert (
            found.tuned[name].force_mae_mev_per_angstrom
            < found.everywhere[name].force_mae_mev_per_angstrom
        )
    assert found.networks["A"].representation.config["irreps"] == "IS"
    again = analyse(used, frames.select(range(6)), fit=fit, epochs=8)
    assert again.tuned == found.tuned, "the same seed, the same numbers"


def accuracies(energy: float | None, force: float | None) -> Accuracy:
    return Accuracy(energy, force, 0.0, 0.0)


def test_advice() -> None:
    scale, names = Scale(100.0, 1000.0), ["A", "S"]
    rest = ({"A": 0.6, "S": 0.5}, {"A": 0.2, "S": 0.1}, {"A": 0.2, "S": 0.1}, scale, names)
    whole = accuracies(1.0, 10.0)
    # Both could go: the one that saves more.
    without = {"A": accuracies(1.0, 10.5), "S": accuracies(1.0, 10.9)}
    assert advise(whole, without, None, *rest).order == "S"
    # Forces as before, energies not.
    without = {"A": accuracies(1.05, 10.5), "S": accuracies(2.0, 10.0)}
    assert advise(whole, without, None, *rest).order == "A"
    without = {"A": accuracies(5.0, 50.0), "S": accuracies(3.0, 200.0)}
    advice = advise(whole, without, None, *rest)
    assert advice.order is None
    assert "A is the order that matters least" in advice.text
    assert "--fine-tune" in advice.text
    # What counts then is the whole network with the same training.
    tuned = {"whole": accuracies(0.8, 8.0), "A": accuracies(0.85, 8.5), "S": accuracies(2, 20)}
    advice = advise(whole, without, tuned, *rest)
    assert (advice.order, advice.fine_tune) == ("A", True)
    tuned["A"] = accuracies(0.85, 10.0)
    assert advise(whole, without, tuned, *rest).order is None
    # Energies alone, and no error at all.
    whole = accuracies(0.0, None)
    without = {"A": accuracies(0.005, None), "S": accuracies(0.5, None)}
    assert advise(whole, without, None, *rest).order == "A"


def test_work_falls_with_the_orders() -> None:
    potential = tensornet()
    layout = layout_of(potential)
    i, a, s = layout.orders
    assert work(potential, [i], 10) < work(potential, [i, a], 10) < work(potential, [i, s], 10)
    assert work(potential, [i, s], 10) < work(potential, [i, a, s], 10)
    assert work_without(potential, layout, s, 10) < work_without(potential, layout, a, 10) < 1
    potential = tdn(lmax=3)
    layout = layout_of(potential)
    found = [work_without(potential, layout, order, 10) for order in layout.removable]
    assert 1 > found[0] > found[1] > found[2] > 0.1


def test_principal_maps() -> None:
    rng = np.random.default_rng(0)
    values = torch.from_numpy(rng.normal(size=(40, 6)) @ rng.normal(size=(6, 6)))
    values[:, 2] = 7.0  # the same in every frame
    found = principal_map("all", values)
    array = np.delete(values.numpy(), 2, axis=1)
    array = (array - array.mean(0)) / array.std(0)
    u, s, _ = np.linalg.svd(array, full_matrices=False)
    np.testing.assert_allclose(np.abs(found.points.numpy()), np.abs(u * s)[:, :2], atol=1e-9)
    np.testing.assert_allclose(found.explained, (s**2 / (s**2).sum())[:2])
    one = found.points[:, 0] * 3 - found.points[:, 1] + 2
    assert explained_by(found.points, one) == pytest.approx(1.0)
    noise = torch.from_numpy(rng.normal(size=40))
    assert 0 <= explained_by(found.points, noise) < 0.3
    assert explained_by(found.points, torch.full((40,), 4.0, dtype=torch.float64)) is None
    alone = principal_map("one frame", values[:1])
    assert alone.points.tolist() == [[0.0, 0.0]]


def test_maps_tell_molecules_apart() -> None:
    potential = tensornet()
    frames = frames_of(potential, copies=5)
    sizes = torch.tensor([float(len(g.numbers)) for g in frames.graphs], dtype=torch.float64)
    maps = maps_of(potential, frames, layout_of(potential))
    assert [each.name for each in maps] == ["all", "I", "A", "S"]
    assert explained_by(maps[0].points, sizes) > 0.8


def test_refusals() -> None:
    potential = tensornet()
    layout = layout_of(potential)
    assert layout.order("S").degree == 2
    with pytest.raises(ValueError, match=r"I is the scalars.*orders to remove are A, S"):
        layout.order("I")
    with pytest.raises(ValueError, match=r"no order l=2: those to remove are A, S"):
        layout.order("l=2")
    other = layout_of(tdn())
    assert other.order("2") == other.order("l=2")
    with pytest.raises(ValueError, match="l=0 is the scalars"):
        other.order("l=0")
    with pytest.raises(ValueError, match=r"no order l=7: those to remove are l=1, l=2"):
        other.order("l=7")
    with pytest.raises(ValueError, match="a Committee has no orders to measure"):
        layout_of(Committee([potential, tensornet(layers=1)]))
    frames = frames_of(potential)
    with pytest.raises(ValueError, match="neither energies nor forces"):
        analyse(potential, Frames(frames.graphs))
    graph = NeighborList(CUTOFF).graph([1, 7], [[0, 0, 0], [0, 0, 1.0]])
    with pytest.raises(ValueError, match="does not know N: it was trained on H, C, O"):
        analyse(potential, Frames([graph], [0.0]))


def test_scalars_alone() -> None:
    potential = tensornet(irreps="I")
    found = analyse(potential, frames_of(potential))
    assert found.layout.removable == ()
    assert found.advice.order is None
    assert found.shares.norm.tolist() == [[1.0]] * 3
