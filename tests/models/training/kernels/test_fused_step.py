"""The fused training step agrees with the plain one, for every kind of batch and network."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import System, crystal, ethanol, make_potential, slab, tiny
from support.training_frames import CUTOFF, labelled, water

from tensormd.models import EnergyReadout, Potential, TensorNet
from tensormd.models.analysis.pruning import pruned
from tensormd.models.heads.repulsion import ZBLRepulsion
from tensormd.models.training import Batch, Frames, TrainingSettings, TrainingStep, train
from tensormd.models.training.backends import choose_backend
from tensormd.models.training.kernels import fused_energies, fused_step_problem

EXACT = TrainingSettings(energy_weight=0.7, force_weight=1.3, radial_intervals=0)
CPU = torch.device("cpu")


def atom() -> System:
    return System(np.array([8]), np.zeros((1, 3)))


MIXED = labelled([ethanol(1), water(1), crystal(1.0), atom(), slab(), tiny(2), water(2)])
BATCHES = [[0, 1, 2, 3], [6, 0], [4, 5, 2, 6, 3], [3], [2]]


def potential(dtype: torch.dtype = torch.float64, head: str = "mlp", **options: Any) -> Potential:
    torch.manual_seed(0)
    given = {"channels": 20, "layers": 2, "radial_functions": 6, "cutoff": CUTOFF, "max_number": 9}
    network = TensorNet(**given | options)  # type: ignore[arg-type]
    readout = EnergyReadout(network.channels, head, "mish", network.irreps)
    return Potential(network, readout, elements=[1, 6, 7, 8], scale=0.8).to(dtype)


def gradients(step: TrainingStep, batch: Batch) -> tuple[float, dict[str, torch.Tensor]]:
    losses = step.step(batch)
    found = {name: p.grad for name, p in step.potential.named_parameters()}
    return losses.total, {name: g.clone() for name, g in found.items() if g is not None}


def compare(model: Potential, settings: TrainingSettings, batch: Batch, tolerance: float) -> None:
    """Loss, and every gradient relative to the largest one."""
    weighted = bool(batch.weights)
    plain, expected = gradients(TrainingStep(model, settings, weighted=weighted), batch)
    fused, found = gradients(TrainingStep(model, settings, "fused", weighted=weighted), batch)
    assert fused == pytest.approx(plain, rel=tolerance)
    assert found.keys() == expected.keys()
    largest = max(float(g.abs().max()) for g in expected.values())
    assert largest > 1e-3
    for name, gradient in found.items():
        assert gradient.is_contiguous()
        assert float((gradient - expected[name]).abs().max()) <= tolerance * largest, name


@pytest.mark.parametrize("index", BATCHES)
def test_batches(index: list[int]) -> None:
    compare(potential(), EXACT, MIXED.batch(index), 1e-12)


def test_weights_of_frames() -> None:
    weights = [2.0, 0.0, 0.5, 1.0, 1.0, 3.0, 1.0]
    weighted = Frames(list(MIXED.graphs), MIXED.energies, MIXED.forces, weights=weights)
    compare(potential(), EXACT, weighted.batch([0, 1, 2, 3]), 1e-12)


@pytest.mark.parametrize(
    "options",
    [
        {"group": "SO(3)", "cutoff_lower": 0.3, "trainable_radial": True},
        {"self_interaction": False, "layers": 0, "head": "linear"},
        {"radial": "gauss", "activation": "ssp", "layers": 1},
        {"radial": "bessel", "activation": "tanh", "channels": 16},
    ],
)
def test_networks(options: dict[str, Any]) -> None:
    compare(potential(**options), EXACT, MIXED.batch([0, 2]), 1e-12)


def test_stress_units_repulsion_and_losses() -> None:
    """With frames in which the repulsion reaches beyond the network's cutoff."""
    frames = labelled([crystal(), tiny(2), slab()._replace(pbc=True)], stress=True)
    model = potential(cutoff=3.0)
    bohr = Potential(
        model.representation, model.readout, elements=[1, 6, 7, 8], scale=0.8,
        repulsion=ZBLRepulsion(4.0), length_unit="bohr",
        energy_unit="hartree",
    )  # fmt: skip
    settings = dataclasses.replace(EXACT, stress_weight=2.0, loss="mse", energy_per_atom=True)
    compare(bohr.double(), settings, frames.batch(range(3)), 1e-12)


def test_a_frozen_part_gets_no_gradient() -> None:
    model = potential()
    model.representation.embedding.requires_grad_(False)
    compare(model, EXACT, MIXED.batch([0, 1]), 1e-12)


def test_a_pruned_network() -> None:
    """Its readout's norm has zeros for the irreps that are gone."""
    smaller = pruned(potential(), "IS")
    assert smaller.readout.norm_size > smaller.readout.norm.weight.numel()
    compare(smaller.float(), EXACT, MIXED.batch([0, 1]), 2e-5)


def test_splines_come_close() -> None:
    settings = dataclasses.replace(EXACT, radial_intervals=256)
    model = potential(radial_functions=16)
    compare(model, settings, MIXED.batch([0, 1, 2]), 1e-6)
    step = TrainingStep(model, settings, "fused")
    assert not step.reads_pairs
    with_pairs, without = (step.step(MIXED.batch([0, 1], pairs=p)).total for p in (True, False))
    assert with_pairs == without


def test_labels_that_some_frames_lack() -> None:
    """Losses are those of the plain step."""
    graphs = MIXED.graphs[:3]
    forces = [MIXED.forces[0], None, MIXED.forces[2]]
    frames = Frames(graphs, [0.3, -0.2, None], forces)
    batch, model = frames.batch(range(3)), potential()
    steps = [TrainingStep(model, EXACT, name, frames.partial) for name in ("plain", "fused")]
    (plain, expected), (fused, found) = (gradients(step, batch) for step in steps)
    assert fused == pytest.approx(plain, rel=1e-12)
    for name, gradient in found.items():
        torch.testing.assert_close(gradient, expected[name], rtol=1e-9, atol=1e-11, msg=name)


def test_finite_differences_of_the_loss() -> None:
    model = potential()
    step = TrainingStep(model, dataclasses.replace(EXACT, loss="mse"), "fused")
    batch = MIXED.batch([0, 1])
    _, found = gradients(step, batch)
    rng = np.random.default_rng(0)
    names = rng.choice(sorted(found), size=20)
    for name in names:
        weight = dict(model.named_parameters())[name]
        place = tuple(rng.integers(weight.shape))
        ends = []
        for change in (-1e-5, 1e-5):
            with torch.no_grad():
                weight[place] += change
            ends.append(step.step(batch).total)
            with torch.no_grad():
                weight[place] -= change
        slope = (ends[1] - ends[0]) / 2e-5
        assert slope == pytest.approx(float(found[name][place]), rel=1e-5, abs=1e-7), name


def test_the_same_bits_with_one_thread_and_two() -> None:
    model = potential(torch.float32, channels=32, irreps="I")  # of which kernels compile quickly
    batch = MIXED.batch([0, 1, 2, 4])
    settings = dataclasses.replace(EXACT, radial_intervals=32)
    threads = torch.get_num_threads()
    found = []
    try:
        for count in (1, 2):
            torch.set_num_threads(count)
            found.append(gradients(TrainingStep(model, settings, "fused"), batch))
            assert torch.get_num_threads() == count
    finally:
        torch.set_num_threads(threads)
    assert found[0][0] == found[1][0]
    for name, gradient in found[0][1].items():
        assert torch.equal(gradient, found[1][1][name]), name
    compare(model, EXACT, batch, 1e-5)


def test_unsorted_edges_are_refused() -> None:
    batch = MIXED.batch([0])
    graph = batch.graph
    order = torch.arange(graph.edge_index.shape[1]).flip(0)
    graph = graph._replace(
        edge_index=graph.edge_index[:, order], edge_shift=graph.edge_shift[order]
    )
    step = TrainingStep(potential(), dataclasses.replace(EXACT, radial_intervals=32), "fused")
    with pytest.raises(ValueError, match="not sorted by receiver"):
        step.step(dataclasses.replace(batch, graph=graph))


def test_a_run_resumes_to_the_bit(tmp_path: Path) -> None:
    frames = labelled([water(k) for k in range(10)])
    fit, held = frames.split([8, 2], 0)
    settings = TrainingSettings(
        epochs=4,
        batch=4,
        warm_up_steps=2,
        validate_every=2,
        backend="fused",
        ema_decay=0.5,
        dtype="float64",
    )

    class KilledError(Exception):
        pass

    def kill(epoch: int, step: int, *_: object) -> None:
        if step == 5:
            raise KilledError

    whole = train(potential(), fit, held, settings).state_dict()
    with pytest.raises(KilledError):
        train(potential(), fit, held, settings, tmp_path / "a.pt", step_done=kill)
    told = []
    resumed = train(potential(), fit, held, settings, tmp_path / "a.pt", told.append)
    assert {progress.backend for progress in told} == {"fused"}
    for name, value in whole.items():
        assert torch.equal(value, resumed.state_dict()[name]), name


# Choice


@pytest.mark.parametrize(
    ("model", "quantities", "device", "reason"),
    [
        (potential(), ["energy", "forces", "stress"], "cpu", None),
        (make_potential(1), ["energy", "dipole"], "cpu", "no dipole"),
        (potential(head="gated"), ["forces"], "cpu", "gated"),
        (potential(), ["forces"], "cuda", "only on a CPU"),
    ],
)
def test_which_steps_can_be_fused(
    model: Potential, quantities: list[str], device: str, reason: str | None
) -> None:
    problem = fused_step_problem(model, quantities, torch.device(device))
    if reason is None:
        assert problem is None
    else:
        assert problem is not None
        assert reason in problem


def test_the_choice_of_a_backend() -> None:
    model = potential()
    auto = TrainingSettings()

    def chosen(settings: TrainingSettings = auto, steps: int = 10_000, **state: Any) -> str:
        return choose_backend(model, settings, steps, CPU, state or None)

    assert chosen() == "fused"
    assert chosen(steps=20) == "plain"
    assert chosen(dataclasses.replace(auto, compile=False)) == "plain"
    assert chosen(dataclasses.replace(auto, backend="plain")) == "plain"
    # A run that has begun goes on as it began; earlier versions only told whether it was compiled.
    assert chosen(backend="plain") == "plain"
    assert chosen(steps=20, backend="fused") == "fused"
    assert chosen(compiled=False) == "plain"
    with pytest.raises(ValueError, match="backend is fused, but there is no fused training step"):
        choose_backend(
            potential(head="gated"), dataclasses.replace(auto, backend="fused"), 1, CPU, None
        )


def test_settings_that_contradict_each_other() -> None:
    with pytest.raises(ValueError, match="backend is fused, but compile is True"):
        TrainingSettings(backend="fused", compile=True)
    with pytest.raises(ValueError, match="radial_intervals is 3"):
        TrainingSettings(radial_intervals=3)


def test_intervals_by_default() -> None:
    assert fused_energies(potential(), "auto").knots.intervals == 24  # type: ignore[attr-defined]
