"""Recording and replaying the fused pass.

The logic of recordings is tested everywhere, with a stand-in for CUDA's capture; tests that need
a device are skipped without one.
"""

from __future__ import annotations

import contextlib
import copy
import pickle
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import (
    REFERENCES,
    System,
    crystal,
    ethanol,
    make_potential,
    supercell,
    tiny,
)
from support.kernel_cases import random_graph
from support.kernel_equations import TorchOperators, plain_pass

from tensormd.models import batch_graphs
from tensormd.models.graph import Graph
from tensormd.models.inference.kernels.cuda.potential import CUDATensorNet
from tensormd.models.inference.kernels.cuda.recording import CudaGraphStep, Room, Run, room_for
from tensormd.models.inference.kernels.cuda.rows import edge_rows
from tensormd.models.inference.kernels.cuda.step import StepInputs
from tensormd.models.inference.tables import build_table
from tensormd.models.potential import Potential, Prediction

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


def assert_same(found: Any, expected: Any, bound: float) -> None:
    """Within ``bound`` of the largest magnitude (or of 1) of each part."""
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert (a.cpu() - b.cpu()).abs().max() <= bound * max(1.0, float(b.abs().max()))


# Recordings, with a stand-in for the capture


class FakeCapture:
    """Like a CUDA graph: each replay reads and writes the tensors it was recorded with."""

    def __init__(self) -> None:
        self.replays = 0
        self.fail = False

    def __call__(self, run: Run) -> tuple[Prediction, Any]:
        if self.fail:
            raise RuntimeError("out of memory")
        result = run()
        for tensor in result:
            tensor.fill_(torch.nan)  # a capture computes nothing

        def replay() -> None:
            self.replays += 1
            for kept, new in zip(result, run(), strict=True):
                kept.copy_(new)

        return result, replay


@pytest.fixture(scope="module")
def potential() -> Potential:
    return make_potential(references=REFERENCES)


@pytest.fixture(scope="module")
def fused(potential: Potential) -> CUDATensorNet:
    return plain_pass(potential)


@pytest.fixture
def capture() -> FakeCapture:
    return FakeCapture()


@pytest.fixture
def recorded(fused: CUDATensorNet, capture: FakeCapture) -> CudaGraphStep:
    return CudaGraphStep(fused.step, capture, keep=2)


def inputs_of(graph: Graph) -> StepInputs:
    return StepInputs(
        graph.positions, graph.cell, graph.system, graph.numbers, graph.charge, *edge_rows(graph)
    )


def test_room_grows_in_small_steps() -> None:
    graph = random_graph(33)
    room = room_for(inputs_of(graph))
    assert 33 <= room.atoms <= 33 * 1.25
    assert graph.edge_index.shape[1] <= room.edges <= max(256, 1.25 * graph.edge_index.shape[1])
    assert room.systems == 3
    assert room_for(inputs_of(random_graph(0))) == (16, 256, 2)


def test_replays_give_what_the_pass_gives(
    fused: CUDATensorNet, recorded: CudaGraphStep, capture: FakeCapture
) -> None:
    graphs = [ethanol(seed=seed, charge=seed).graph(cutoff=3.0) for seed in range(1, 4)]
    assert len({g.edge_index.shape[1] for g in graphs}) > 1
    for graph in graphs:
        inputs = inputs_of(graph)
        assert_same(recorded(inputs), fused.step(inputs), 1e-13)
    assert (recorded.captures, capture.replays) == (1, 3)


def test_more_edges_than_room_lead_to_another_recording(
    fused: CUDATensorNet, recorded: CudaGraphStep
) -> None:
    near, cell = ethanol(), supercell(crystal(), (4, 1, 1))
    for system, captures in ((near, 1), (cell, 2), (near, 2), (cell, 2)):
        inputs = inputs_of(system.graph())
        assert_same(recorded(inputs), fused.step(inputs), 1e-13)
        assert recorded.captures == captures


def test_the_last_recordings_are_kept(fused: CUDATensorNet, recorded: CudaGraphStep) -> None:
    small, medium, large = (inputs_of(supercell(crystal(), (n, 1, 1)).graph()) for n in (1, 4, 8))
    assert len({room_for(i) for i in (small, medium, large)}) == 3
    for inputs, captures in (
        (small, 1),
        (medium, 2),
        (small, 2),
        (large, 3),
        (small, 3),
        (medium, 4),
    ):
        assert_same(recorded(inputs), fused.step(inputs), 1e-13)
        assert recorded.captures == captures


def test_fewer_atoms_in_the_same_room(fused: CUDATensorNet, recorded: CudaGraphStep) -> None:
    for system in (ethanol(), System(np.array([8]), np.zeros((1, 3))), crystal(-1.0), tiny(2)):
        inputs = inputs_of(system.graph(cutoff=4.0))
        assert room_for(inputs) == (16, 256, 2)
        assert_same(recorded(inputs), fused.step(inputs), 1e-13)
    assert recorded.captures == 1


def test_positions_written_behind_torchs_back_are_seen(
    fused: CUDATensorNet, recorded: CudaGraphStep
) -> None:
    graph = ethanol().graph()
    inputs = inputs_of(graph)
    before = recorded(inputs)
    graph.positions.numpy()[0] += 0.1
    after = recorded(inputs)
    assert_same(after, fused.step(inputs), 1e-13)
    assert (after.forces - before.forces).abs().max() > 1e-3


def test_results_are_not_overwritten(recorded: CudaGraphStep) -> None:
    first = recorded(inputs_of(ethanol(seed=1).graph()))
    kept = Prediction(*(t.clone() for t in first))
    second = recorded(inputs_of(ethanol(seed=2).graph()))
    assert_same(first, kept, 0.0)
    assert (first.forces - second.forces).abs().max() > 1e-3


def test_a_failed_recording_leaves_no_trace(
    fused: CUDATensorNet, recorded: CudaGraphStep, capture: FakeCapture
) -> None:
    inputs = inputs_of(ethanol().graph())
    capture.fail = True
    with pytest.raises(RuntimeError, match="out of memory"):
        recorded(inputs)
    capture.fail = False
    assert_same(recorded(inputs), fused.step(inputs), 1e-13)
    assert recorded.captures == 1


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_a_copy_records_for_itself(potential: Potential, copied: Any) -> None:
    operators: Any = TorchOperators()
    original = CUDATensorNet(potential, operators, build_table(potential)[0], graphs=True)
    assert isinstance(original._step, CudaGraphStep)
    original._step._recordings[Room(16, 256, 2)] = lambda: None  # type: ignore[assignment]
    again = copied(original)
    assert isinstance(again._step, CudaGraphStep)
    assert not again._step._recordings
    assert again._step._run.__self__ is again


def test_nothing_to_keep_is_refused(fused: CUDATensorNet) -> None:
    with pytest.raises(ValueError, match="expected at least 1"):
        CudaGraphStep(fused.step, keep=0)


# On a device


def triton_operators() -> Any:
    """Triton may be missing where there is no device."""
    from tensormd.models.inference.kernels.cuda.operators import TritonOperators

    return TritonOperators()


def move(graph: Graph, device: str) -> Graph:
    return Graph(*(tensor.to(device) for tensor in graph))


@contextlib.contextmanager
def no_transfers() -> Iterator[None]:
    """An error wherever the host waits for the device."""
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@needs_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("channels", [16, 24, 64, 128, 160])
@pytest.mark.parametrize("graphs", [False, True], ids=["launched", "recorded"])
def test_parity_on_the_device(dtype: torch.dtype, channels: int, graphs: bool) -> None:
    potential = make_potential(channels=channels, references=REFERENCES, zbl=2.0)
    table, _ = build_table(potential)
    expected_of = plain_pass(potential, table)
    fused = CUDATensorNet(potential.to("cuda", dtype), triton_operators(), table, graphs=graphs)
    bound = 1e-10 if dtype == torch.float64 else 2e-5
    alone = System(np.array([6]), np.zeros((1, 3)))
    for systems in ([ethanol()], [crystal(1.0), tiny(1), alone], [ethanol(seed=3)]):
        graph = batch_graphs([s.graph(skin=0.5) for s in systems])
        assert_same(fused(move(graph, "cuda")), expected_of(graph), bound)


@needs_cuda
def test_replay_and_another_recording_on_the_device(potential: Potential) -> None:
    table, _ = build_table(potential)
    expected_of = plain_pass(potential, table)
    fused = CUDATensorNet(copy.deepcopy(potential).to("cuda"), triton_operators(), table)
    assert isinstance(fused._step, CudaGraphStep)
    for system, captures in (
        (ethanol(seed=1), 1),
        (ethanol(seed=2), 1),
        (supercell(crystal(), (2, 2, 1)), 2),
        (ethanol(seed=3), 2),
    ):
        graph = system.graph()
        assert_same(fused(move(graph, "cuda")), expected_of(graph), 1e-10)
        assert fused._step.captures == captures


@needs_cuda
@pytest.mark.parametrize("zbl", [0.0, 2.0], ids=["", "ZBL"])
def test_a_step_does_not_wait_for_the_device(zbl: float) -> None:
    fused = CUDATensorNet(make_potential(zbl=zbl).to("cuda"), triton_operators())
    graph = move(crystal().graph(skin=0.5), "cuda")
    first = fused(graph)
    moved = graph._replace(positions=graph.positions + 0.01)
    with no_transfers():
        second = fused(moved)
    assert_same(second.forces, first.forces, 1e-9)
    with pytest.raises(RuntimeError), no_transfers():
        second.energy.item()


@needs_cuda
def test_runs_repeat_to_the_last_bit(potential: Potential) -> None:
    fused = CUDATensorNet(copy.deepcopy(potential).to("cuda").float(), triton_operators())
    graph = move(supercell(crystal(), (2, 2, 2)).graph(), "cuda")
    first = fused(graph)
    for _ in range(5):
        assert all(map(torch.equal, fused(graph), first))
