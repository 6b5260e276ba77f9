"""A training step against torchmd-net 3.1.0: same weights, same batch, same loss and gradients.

The reference is `LNNP.training_step`, which torchmd-train calls for every batch: mean squared
errors of energies and forces, times ``y_weight`` and ``neg_dy_weight``. The gradients of its
parameters are compared with ours by means of the checkpoint reader, which is linear: it reads the
state dict of gradients as if it held weights.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from support.checkpoint_helpers import (
    ATOMREF,
    NUMBERS,
    REFERENCE_ENERGIES,
    ZBL,
    Array,
    default_dtype,
    make_model,
    plain_operators,
    positions,
)
from support.data import data_file
from torch import Tensor
from torchmdnet.module import LNNP

from tensormd.models import NeighborList, Potential
from tensormd.models.checkpoint.torchmdnet_format import read_torchmdnet
from tensormd.models.training import Frames, TrainingSettings, TrainingStep, read_rmd17, train

Y_WEIGHT, NEG_DY_WEIGHT = 0.3, 0.7  # unequal, so that a mix-up is seen
TRAINING: dict[str, Any] = {
    "y_weight": Y_WEIGHT,
    "neg_dy_weight": NEG_DY_WEIGHT,
    "ema_alpha_y": 1.0,
    "ema_alpha_neg_dy": 1.0,
    "train_loss": "mse_loss",
    "lr": 1e-3,
    "weight_decay": 1e-2,
    "lr_factor": 0.8,
    "lr_patience": 25,
    "lr_min": 1e-7,
    "lr_warmup_steps": 0,
    "load_model": None,
    "remove_ref_energy": False,
}

SETTINGS = TrainingSettings(
    epochs=5,
    batch=3,
    learning_rate=TRAINING["lr"],
    warm_up_steps=0,
    schedule="constant",
    loss="mse",
    energy_weight=Y_WEIGHT,
    force_weight=NEG_DY_WEIGHT,
    weight_decay=TRAINING["weight_decay"],
    largest_gradient=math.inf,
    validate_every=5,
    compile=False,
)


class Frame(NamedTuple):
    """One labelled molecule, eV and Angstrom."""

    numbers: Array
    positions: Array
    energy: float
    forces: Array
    charge: float = 0.0


class Contestants(NamedTuple):
    """The same network in both programs, and the same frames."""

    lnnp: LNNP
    potential: Potential
    theirs: Any
    """All of them as a batch of torch_geometric."""
    ours: Frames


def made_here(charge: float = 0.0, *, references: bool = False) -> list[Frame]:
    """Three molecules of different sizes with labels drawn at random.

    With ``references`` their energies hold those of the atoms, as a model with a prior has them.
    """
    frames = []
    for seed, atoms in enumerate((12, 5, 9)):
        random = np.random.default_rng(seed)
        points = positions(atoms, seed)
        energy, forces = 3.0 * random.normal(), 2.0 * random.normal(size=points.shape)
        if references:
            energy += sum(REFERENCE_ENERGIES[int(z)] for z in NUMBERS[:atoms])
        frames.append(Frame(NUMBERS[:atoms], points, energy, forces, charge * seed))
    return frames


def of_rmd17(molecule: str, count: int = 8) -> list[Frame]:
    """The first frames of the training set.

    Energies are less the mean: the first would fill float32, and torchmd-net adds in it.
    """
    found = read_rmd17(data_file(f"rmd17/rmd17_{molecule}_train_01.npz"), cutoff=4.5)
    energies = found.energies - found.energies.mean()
    return [
        Frame(
            found.graphs[k].numbers.numpy(),
            found.graphs[k].positions.numpy(),
            float(energies[k]),
            found.forces[k].numpy(),
        )
        for k in range(count)
    ]


def geometric_batch(frames: list[Frame], precision: int) -> Any:
    """As torchmd-net's data loader collates them."""
    from torch_geometric.data import Batch as GeometricBatch
    from torch_geometric.data import Data

    dtype = torch.float32 if precision == 32 else torch.float64

    def tensor(values: Any) -> Tensor:
        return torch.as_tensor(np.asarray(values)).to(dtype)

    return GeometricBatch.from_data_list(
        [
            Data(
                z=torch.as_tensor(f.numbers, dtype=torch.int64),
                pos=tensor(f.positions),
                y=tensor([f.energy]),
                neg_dy=tensor(f.forces),
                q=tensor([f.charge]),
            )
            for f in frames
        ]
    )


def read(lnnp: LNNP, tensors: dict[str, Tensor], arguments: dict[str, Any]) -> Potential:
    """Tensors under the names of torchmd-net's parameters as a potential of ours."""
    state = {f"model.{k}": t.detach().clone() for k, t in lnnp.model.state_dict().items()}
    state |= {f"model.{k}": t.detach().clone() for k, t in tensors.items()}
    potential = read_torchmdnet(
        {"state_dict": state, "hyper_parameters": arguments},
        "in memory",
        units=("angstrom", "ev"),
        units_stated=True,
    )
    assert isinstance(potential, Potential)
    return potential


def contestants(frames: list[Frame], **changes: Any) -> Contestants:
    model, arguments = make_model(**changes)
    lnnp = LNNP(arguments | TRAINING | {"charge": any(f.charge for f in frames)})
    lnnp.model = model.train()
    potential = read(lnnp, {}, arguments).train()
    lists = NeighborList(potential.cutoff)
    graphs = [lists.graph(f.numbers, f.positions, charge=f.charge) for f in frames]
    ours = Frames(graphs, [f.energy for f in frames], [f.forces for f in frames])
    return Contestants(lnnp, potential, geometric_batch(frames, arguments["precision"]), ours)


def our_step(pair: Contestants) -> float:
    """The loss; gradients are left in the parameters."""
    batch = pair.ours.batch(range(len(pair.ours)))
    return TrainingStep(pair.potential, SETTINGS).step(batch).total


def their_step(pair: Contestants) -> float:
    pair.lnnp.zero_grad()
    with default_dtype(pair.potential.dtype):
        loss = pair.lnnp.training_step(pair.theirs.clone(), 0)
    loss.backward()
    return float(loss.detach())


def their_gradients(pair: Contestants) -> dict[str, Tensor]:
    """Under the names that our parameters have."""
    # Not those of the references: torchmd-net may train them, here they are constants.
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in pair.lnnp.model.named_parameters()
        if not name.startswith("prior_model.")
    }
    found = read(pair.lnnp, gradients, dict(pair.lnnp.hparams))
    return {name: p.detach() for name, p in found.named_parameters()}


def assert_same_gradients(pair: Contestants, relative: float, absolute: float) -> None:
    """Compare all of them, each to the largest of all."""
    theirs = their_gradients(pair)
    ours = {
        name: torch.zeros_like(p) if p.grad is None else p.grad
        for name, p in pair.potential.named_parameters()
    }
    assert ours.keys() == theirs.keys()
    largest = max(float(g.abs().max()) for g in theirs.values())
    assert largest > 1e-2, "nothing to compare"
    zero = [name for name, g in theirs.items() if not g.any()]
    assert not zero, f"no gradient reaches {zero}"
    for name, gradient in theirs.items():
        difference = float((ours[name] - gradient).abs().max())
        assert difference <= min(absolute, relative * largest), f"{name}: {difference:.1e}"


VARIANTS: dict[str, dict[str, Any]] = {
    "2 layers": {},
    "no layer": {"num_layers": 0},
    "3 layers, ssp": {"num_layers": 3, "activation": "ssp"},
    "SO(3)": {"equivariance_invariance_group": "SO(3)"},
    "trainable expnorm": {"trainable_rbf": True},
    "trainable gauss": {"rbf_type": "gauss", "trainable_rbf": True},
    "lower cutoff": {"cutoff_lower": 1.2},
    "Atomref and ZBL": {"prior_model": ["Atomref", "ZBL"], "prior_args": [ATOMREF, ZBL]},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_equals_torchmdnets(variant: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_operators(monkeypatch)
    frames = made_here(references="Atomref" in variant)
    pair = contestants(frames, **VARIANTS[variant])
    assert our_step(pair) == pytest.approx(their_step(pair), rel=1e-10)
    assert_same_gradients(pair, relative=1e-10, absolute=1e-6)


def test_a_step_with_charges(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_operators(monkeypatch)
    pair = contestants(made_here(charge=1.0))
    assert our_step(pair) == pytest.approx(their_step(pair), rel=1e-10)
    assert_same_gradients(pair, relative=1e-10, absolute=1e-6)
    neutral = contestants(made_here())
    assert abs(our_step(neutral) - our_step(pair)) > 1e-3


@pytest.mark.parametrize("molecule", ["ethanol", "aspirin"])
@pytest.mark.parametrize(("precision", "bound"), [(64, 1e-10), (32, 1e-5)])
def test_a_step_on_rmd17(
    molecule: str, precision: int, bound: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    # In float32 either program is some 1e-6 of the largest gradient away from float64.
    plain_operators(monkeypatch)
    frames = of_rmd17(molecule)
    pair = contestants(frames, embedding_dimension=32, num_rbf=32, precision=precision)
    assert our_step(pair) == pytest.approx(their_step(pair), rel=bound)
    assert_same_gradients(pair, relative=bound, absolute=1e-6 if precision == 64 else np.inf)


def test_a_step_with_torchmdnets_own_kernels() -> None:
    # What torchmd-train runs; constants of these kernels are float32, in float64 too.
    pair = contestants(made_here())
    assert pair.lnnp.model.representation_model.opt
    assert our_step(pair) == pytest.approx(their_step(pair), rel=1e-6)
    assert_same_gradients(pair, relative=1e-6, absolute=np.inf)


@pytest.mark.parametrize(
    ("precision", "bound", "options", "changes"),
    [
        (64, 1e-12, {}, {}),
        (32, 5e-6, {}, {}),
        (
            64,
            1e-12,
            {"ema_alpha_y": 0.2, "ema_alpha_neg_dy": 0.7},
            {"energy_loss_ema": 0.2, "force_loss_ema": 0.7},
        ),
        (64, 1e-12, {"gradient_clipping": 40.0}, {"largest_gradient": 40.0}),
    ],
    ids=["float64", "float32", "running losses", "clipped"],
)
def test_weights_after_five_steps(
    precision: int,
    bound: float,
    options: dict[str, float],
    changes: dict[str, float],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain_operators(monkeypatch)
    pair = contestants(made_here(), precision=precision)
    pair.lnnp.hparams.update(options)
    before = {name: p.detach().clone() for name, p in pair.potential.named_parameters()}
    settings = replace(SETTINGS, dtype=f"float{precision}", **changes)
    ours: list[float] = []
    train(
        pair.potential,
        pair.ours,
        pair.ours,
        settings,
        step_done=lambda epoch, done, steps, loss: ours.append(loss),
    )
    optimizer = pair.lnnp.configure_optimizers()[0][0]
    theirs = []
    for _ in range(settings.epochs):
        theirs.append(their_step(pair))
        if "gradient_clipping" in options:
            parameters = pair.lnnp.parameters()
            norm = torch.nn.utils.clip_grad_norm_(parameters, options["gradient_clipping"])
            assert norm > options["gradient_clipping"], "nothing was clipped"
        optimizer.step()
    assert ours == pytest.approx(theirs, rel=10 * bound)
    found = dict(read(pair.lnnp, {}, dict(pair.lnnp.hparams)).named_parameters())
    for name, weight in pair.potential.named_parameters():
        assert float((weight - before[name]).detach().abs().max()) > 1e-3
        assert float((weight - found[name]).detach().abs().max()) < bound, name


@pytest.mark.slow
def test_a_compiled_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_operators(monkeypatch)
    pair = contestants(made_here(), num_layers=1)
    step = TrainingStep(pair.potential, SETTINGS, "compiled")
    batch = pair.ours.batch(range(len(pair.ours)))
    assert step.step(batch).total == pytest.approx(their_step(pair), rel=1e-10)
    assert step.plain_steps == 0
    assert_same_gradients(pair, relative=1e-10, absolute=1e-6)
