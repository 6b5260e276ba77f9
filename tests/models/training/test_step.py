"""A training step: its gradients agree with autograd, compiled or not, for every batch."""

from __future__ import annotations

import copy
import dataclasses
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from support.helpers import System, crystal, ethanol, make_potential, relative_error, slab, tiny
from support.training_frames import CUTOFF, labelled, tensornet, water, without
from torch import nn

from tensormd.models import TDN, Potential, ScalarReadout
from tensormd.models.training import (
    Batch,
    Frames,
    Progress,
    TrainingSettings,
    TrainingStep,
    compiled,
    train,
)
from tensormd.models.training.compiled import (
    Axis,
    CompilationError,
    CompiledFunction,
    Unfit,
    compiler_for,
)
from tensormd.models.training.losses import loss_terms

FORCES = TrainingSettings(energy_weight=0.7, force_weight=1.3)
compiles = pytest.mark.skipif(
    compiler_for(torch.device("cpu")) is not None, reason="there is no C++ compiler"
)


def atom() -> System:
    return System(np.array([8]), np.zeros((1, 3)))


MIXED = labelled(
    [ethanol(1), water(1), crystal(1.0), atom(), slab(), tiny(2), ethanol(2), water(2), atom()]
)
PAIR = System(np.array([8, 1]), np.array([[0.0, 0.0, 0.0], [0.9, 0.3, 0.1]]))
ONE_SYSTEM = labelled([ethanol(1), PAIR, crystal(1.0), atom()])
BATCHES = [[0, 1, 2, 3], [6, 0], [1, 7], [4, 5, 2, 6, 3, 8], [8, 1]]


def tdn(dropout: float) -> Potential:
    torch.manual_seed(0)
    network = TDN(
        channels=4, layers=2, lmax=1, heads=2, radial_functions=4, radial_widths=(6,),
        cutoff=CUTOFF, max_number=9, dropout=dropout,
    )  # fmt: skip
    return Potential(network, ScalarReadout(4), elements=[1, 6, 7, 8], scale=0.8).double()


def gradients(
    step: TrainingStep, batch: Batch, seed: int = 3
) -> tuple[float, dict[str, torch.Tensor]]:
    torch.manual_seed(seed)
    losses = step.step(batch)
    found = {name: p.grad for name, p in step.potential.named_parameters()}
    return losses.total, {name: g.clone() for name, g in found.items() if g is not None}


def compare(a: TrainingStep, b: TrainingStep, batch: Batch, tolerance: float) -> None:
    loss_a, found_a = gradients(a, batch)
    loss_b, found_b = gradients(b, batch)
    assert loss_a == pytest.approx(loss_b, rel=tolerance)
    assert found_a.keys() == found_b.keys()
    size = max(float(g.abs().max()) for g in found_b.values())
    assert size > 1e-3
    for name, gradient in found_a.items():
        assert gradient.is_contiguous()
        assert float((gradient - found_b[name]).abs().max()) <= tolerance * size, name


def test_gradients_are_those_of_the_potential_itself() -> None:
    potential = make_potential(1).train()
    frames = labelled([crystal(), tiny(2), slab()._replace(pbc=True)], stress=True)
    settings = TrainingSettings(stress_weight=2.0, loss="mse", energy_per_atom=True)
    batch = frames.batch(range(3))
    prediction = potential(batch.graph)
    volume = torch.linalg.det(batch.graph.cell).abs()
    atoms = torch.bincount(batch.graph.system).double()
    found = {
        "energy": prediction.energy,
        "forces": prediction.forces,
        "stress": -prediction.virial / volume.view(-1, 1, 1),
    }
    terms = loss_terms(found, batch.labels, atoms, settings)
    loss = 0.5 * terms["energy"] + terms["forces"] + 2 * terms["stress"]
    loss.backward()
    wanted = {name: p.grad for name, p in potential.named_parameters() if p.grad is not None}
    total, gradient = gradients(TrainingStep(potential, settings), batch)
    assert total == pytest.approx(loss.item(), rel=1e-12)
    assert gradient.keys() == wanted.keys()
    for name, value in gradient.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-9, atol=1e-11)


def test_edges_beyond_the_cutoff_change_nothing() -> None:
    potential = make_potential(1)
    near = labelled([crystal()])
    far = Frames([crystal().graph(CUTOFF, 1.0)], near.energies, near.forces)
    assert far.graphs[0].edge_index.shape[1] > near.graphs[0].edge_index.shape[1]
    step = TrainingStep(potential, FORCES)
    a, b = gradients(step, near.batch([0])), gradients(step, far.batch([0]))
    assert a[0] == pytest.approx(b[0], rel=1e-12)
    assert relative_error(a[1]["readout.norm.weight"], b[1]["readout.norm.weight"]) < 1e-11


def test_shares_of_a_batch_add_up() -> None:
    step = TrainingStep(make_potential(1), FORCES)
    _, whole = gradients(step, MIXED.batch([0, 1, 2]))
    atoms = [len(MIXED.graphs[k].numbers) for k in (0, 1, 2)]
    summed = {name: torch.zeros_like(g) for name, g in whole.items()}
    for index in ([0, 2], [1]):
        part = sum(len(MIXED.graphs[k].numbers) for k in index) / sum(atoms)
        step.step(MIXED.batch(index), {"energy": len(index) / 3, "forces": part})
        for name, p in step.potential.named_parameters():
            if p.grad is not None:
                summed[name] += p.grad
    for name, gradient in whole.items():
        torch.testing.assert_close(summed[name], gradient, rtol=1e-10, atol=1e-12)


# Inductor takes minutes: this is its only network; without layers it has half of the operators.


@pytest.fixture(scope="module")
def compiled_tensornet() -> TrainingStep:
    """With masks and weights, which change nothing where every frame has every label and 1."""
    masked = ("energy", "forces")
    return TrainingStep(tensornet(layers=0), FORCES, "compiled", masked, weighted=True)


@compiles
def test_compiled_tensornet(compiled_tensornet: TrainingStep) -> None:
    plain = TrainingStep(compiled_tensornet.potential, FORCES)
    for index in BATCHES:
        compare(compiled_tensornet, plain, MIXED.batch(index), 1e-12)
    assert compiled_tensornet.plain_steps == 0


@compiles
def test_compiled_with_labels_that_some_frames_lack(compiled_tensornet: TrainingStep) -> None:
    lacking = without(MIXED, {"energy": [1, 6, 0], "forces": [2, 5, 7, 8]})
    plain = TrainingStep(compiled_tensornet.potential, FORCES, masked=lacking.partial)
    for index in BATCHES:
        compare(compiled_tensornet, plain, lacking.batch(index), 1e-12)
    assert compiled_tensornet.plain_steps == 0
    terms = compiled_tensornet.step(lacking.batch([1, 6])).terms
    assert terms["energy"] == 0
    assert terms["forces"] > 0
    assert terms["forces"] == pytest.approx(plain.step(lacking.batch([1, 6])).terms["forces"])


@compiles
def test_compiled_with_weights(compiled_tensornet: TrainingStep) -> None:
    weights = [0.5 * k for k in range(len(MIXED))]
    weighted = Frames(list(MIXED.graphs), MIXED.energies, MIXED.forces, weights=weights)
    plain = TrainingStep(compiled_tensornet.potential, FORCES, weighted=True)
    for index in BATCHES:
        compare(compiled_tensornet, plain, weighted.batch(index), 1e-12)
    assert compiled_tensornet.plain_steps == 0


@compiles
def test_compiled_batches_of_one_system(compiled_tensornet: TrainingStep) -> None:
    """A graph traced for one system gave infinite losses: Inductor sums wrongly over a size 1."""
    plain = TrainingStep(compiled_tensornet.potential, FORCES)
    for index in ([0], [1], [2]):  # the second has one pair of atoms
        compare(compiled_tensornet, plain, ONE_SYSTEM.batch(index), 1e-12)
    assert compiled_tensornet.plain_steps == 0


@compiles
def test_what_fits_no_graph_runs_plainly_and_is_counted(compiled_tensornet: TrainingStep) -> None:
    plain = TrainingStep(compiled_tensornet.potential, FORCES)
    compare(compiled_tensornet, plain, ONE_SYSTEM.batch([3]), 1e-12)  # it has no edge
    assert compiled_tensornet.plain_steps == 1
    compiled_tensornet.plain_steps = 0


@compiles
def test_fused_optimizer_steps_the_same(compiled_tensornet: TrainingStep) -> None:
    """Fused AdamW reads gradients as if their strides were those of the parameters."""
    twin = copy.deepcopy(compiled_tensornet.potential)
    original = {k: v.clone() for k, v in twin.state_dict().items()}
    steps = (compiled_tensornet, TrainingStep(twin, FORCES))
    for step in steps:
        optimizer = torch.optim.AdamW(step.potential.parameters(), lr=1e-2, fused=True)
        for index in BATCHES[:3]:
            step.step(MIXED.batch(index))
            optimizer.step()
    for name, value in twin.state_dict().items():
        other = compiled_tensornet.potential.state_dict()[name]
        torch.testing.assert_close(other, value, rtol=1e-8, atol=1e-9)
    assert not torch.equal(twin.readout.norm.weight, original["readout.norm.weight"])
    compiled_tensornet.potential.load_state_dict(original)


TRACED: dict[str, Callable[[], Potential]] = {
    "tensornet": lambda: tensornet(layers=2),
    "tensornet-float32": lambda: tensornet(torch.float32),
    "tdn-dropout": lambda: tdn(0.3),
}


@pytest.mark.parametrize(
    "inductor", [False, pytest.param(True, marks=[pytest.mark.slow, compiles])]
)
@pytest.mark.parametrize("name", TRACED)
def test_traced_steps(name: str, inductor: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without Inductor, torch runs the trace as it is, operator by operator."""
    if not inductor:
        monkeypatch.setattr("torch._inductor.compile_fx.compile_fx", lambda graph, _: graph)
    # Chunks of edges, whose number a trace would fix: these batches have several.
    monkeypatch.setattr("tensormd.models.networks.tdn_product.chunk_size", lambda *_: 8)
    step = TrainingStep(TRACED[name](), FORCES, "compiled")
    plain = TrainingStep(step.potential, FORCES)
    tolerance = 1e-12 if step.potential.dtype == torch.float64 else 1e-5
    for index in ([0], *BATCHES):  # traced for any number of systems, though the first has one
        compare(step, plain, MIXED.batch(index), tolerance)
    assert step.plain_steps == 0


def test_training_steps_use_dropout() -> None:
    batch = MIXED.batch(BATCHES[0])
    none, some = (TrainingStep(tdn(p), FORCES) for p in (0.0, 0.3))
    losses = {gradients(some, batch, seed)[0] for seed in (3, 4)}
    assert len(losses) == 2
    assert gradients(none, batch)[0] not in losses


AXES = [Axis("atoms", 0), Axis("edges", 0), Axis("pairs", 0), Axis("systems", 0)]


def inputs_of(atoms: int) -> list[torch.Tensor]:
    return [torch.ones(n, dtype=torch.float32) for n in (atoms, 6, 3, 2)]


@compiles
def test_dropout_draws_what_plain_steps_draw() -> None:
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor([1.0]))

    def drops(of: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple:
        kept = nn.functional.dropout(of.weight * inputs[0], 0.5)
        return kept.sum(), kept

    function = CompiledFunction(module, drops)  # type: ignore[arg-type]
    for seed, atoms in enumerate((40, 50)):
        torch.manual_seed(seed)
        beside, (gradient,) = function(inputs_of(atoms), AXES)
        torch.manual_seed(seed)
        expected = nn.functional.dropout(torch.ones(atoms), 0.5)
        assert 0 < expected.count_nonzero() < atoms
        assert torch.equal(beside, expected)
        assert gradient == expected.sum()


def test_torch_says_nothing_of_cuda_while_it_compiles(
    caplog: pytest.LogCaptureFixture,
) -> None:
    logger = logging.getLogger("torch.utils.cpp_extension")
    with compiled._without_cuda_notice():
        logger.warning("No CUDA runtime is found, using CUDA_HOME='%s'", "/usr/local/cuda")
        logger.warning("something else")
    logger.warning("No CUDA runtime is found")
    assert [record.getMessage() for record in caplog.records] == [
        "something else", "No CUDA runtime is found"
    ]  # fmt: skip


@compiles
def test_conditions_on_sizes_are_found_and_checked() -> None:
    """A function that branches on a size: the branch taken holds for such sizes alone."""
    module = nn.Module()
    module.weight = nn.Parameter(torch.tensor([1.0, 2.0]))

    def branches(of: nn.Module, inputs: Sequence[torch.Tensor]) -> tuple:
        x = inputs[0]
        total = (of.weight.sum() * x).sum() if x.shape[0] > 4 else (of.weight[0] * x).sum()
        return total, total.reshape(1)

    function = CompiledFunction(module, branches)  # type: ignore[arg-type]
    for atoms in (7, 9):
        beside, gradient = function(inputs_of(atoms), AXES)
        assert beside.tolist() == [3.0 * atoms]
        assert gradient[0] is not None
        assert gradient[0].tolist() == [atoms, atoms]
    with pytest.raises(Unfit, match="atoms=3"):
        function(inputs_of(3), AXES)


def test_a_compilation_that_fails(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fails(*_: object) -> None:
        raise AssertionError("no such operator\nand more")

    monkeypatch.setattr("tensormd.models.training.compiled._trace", fails)
    batch = MIXED.batch([0, 1])
    explicit = dataclasses.replace(FORCES, compile=True)
    with pytest.raises(CompilationError, match="AssertionError: no such operator"):
        TrainingStep(tensornet(), explicit, "compiled").step(batch)
    step = TrainingStep(tensornet(), FORCES, "compiled")
    compare(step, TrainingStep(step.potential, FORCES), batch, 1e-12)
    assert step.backend == "plain"
    assert "steps run plainly from here on" in caplog.text


NAMELESS = """
import os, pwd
for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "TORCHINDUCTOR_CACHE_DIR"):
    os.environ.pop(name, None)


def unknown(uid):
    raise KeyError(f"getpwuid(): uid not found: {uid}")


pwd.getpwuid = unknown
import torch
from tensormd.models.training.compiled import compiler_for

print(compiler_for(torch.device("cpu")))
from torch._inductor.codecache import default_cache_dir

print(default_cache_dir().endswith(f"torchinductor_uid{os.getuid()}"))
"""


@compiles
@pytest.mark.skipif(sys.platform == "win32", reason="this platform has no user ids")
def test_a_user_id_without_a_name() -> None:
    """As in containers: torch asks for the user's name before it looks for a compiler."""
    environment = os.environ | {"HOME": os.path.expanduser("~")}  # ASE cannot do without
    done = subprocess.run(
        [sys.executable, "-c", NAMELESS], capture_output=True, text=True, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["None", "True"]


def test_why_there_is_no_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    from torch._inductor import cpp_builder, exc

    def fails(error: Exception) -> None:
        def fail() -> str:
            raise error

        monkeypatch.setattr(cpp_builder, "get_cpp_compiler", fail)

    fails(exc.InvalidCxxCompiler())
    problem = compiler_for(torch.device("cpu"))
    assert problem is not None
    assert problem.startswith("there is no C++ compiler (")
    fails(PermissionError("no such folder\nand more"))
    assert compiler_for(torch.device("cpu")) == (
        "torch cannot look for a C++ compiler (PermissionError: no such folder)"
    )


@compiles
def test_resume_of_compiled_steps(
    compiled_tensornet: TrainingStep, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    compiled_tensornet.step(MIXED.batch(BATCHES[0]))
    assert compiled_tensornet._compiled is not None
    graph = compiled_tensornet._compiled._graph  # of the same operators; weights are arguments
    monkeypatch.setattr("tensormd.models.training.compiled._trace", lambda *_: graph)
    lacking = {"energy": [0, 3, 6], "forces": [1, 4, 7]}
    weights = [1.0 + k for k in range(10)]  # the graph has masks of both labels, and weights
    frames = without(labelled([water(k) for k in range(10)]), lacking, weights)
    fit, held = frames.split([8, 2], 0)
    settings = dataclasses.replace(
        FORCES, epochs=4, batch=4, warm_up_steps=2, validate_every=2, compile=True, ema_decay=0.5,
        dtype="float64",
    )  # fmt: skip

    class KilledError(Exception):
        pass

    def kill(epoch: int, step: int, *_: object) -> None:
        if step == 5:
            raise KilledError

    told: list[Progress] = []
    whole = train(tensornet(layers=0), fit, held, settings, tell=told.append).state_dict()
    assert [(progress.compiled, progress.plain_steps) for progress in told] == 2 * [(True, 0)]
    with pytest.raises(KilledError):
        train(tensornet(layers=0), fit, held, settings, tmp_path / "a.pt", step_done=kill)
    resumed = train(tensornet(layers=0), fit, held, settings, tmp_path / "a.pt").state_dict()
    for name, value in whole.items():
        assert torch.equal(value, resumed[name]), name
    start = tensornet(layers=0).state_dict()
    assert not torch.equal(whole["readout.norm.weight"], start["readout.norm.weight"])
