"""Helpers of the checkpoint tests: models of torchmd-net with random weights, and files."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tensormd.models import NeighborList, Prediction
from tensormd.models.graph import Graph

Array = NDArray[np.float64]

# What torchmd-train would write; the models are small and the molecule fits in the cutoff.
ARGUMENTS: dict[str, Any] = {
    "model": "tensornet",
    "embedding_dimension": 16,
    "num_layers": 2,
    "num_rbf": 8,
    "rbf_type": "expnorm",
    "trainable_rbf": False,
    "activation": "silu",
    "cutoff_lower": 0.0,
    "cutoff_upper": 4.5,
    "max_z": 20,
    "max_num_neighbors": 64,
    "equivariance_invariance_group": "O(3)",
    "precision": 64,
    "derivative": True,
    "output_model": "Scalar",
    "reduce_op": "add",
    "prior_model": None,
    "prior_args": None,
    "atom_filter": -1,
    "static_shapes": False,
    "neighbor_embedding": True,
    "aggr": "add",
    "attn_activation": "silu",
    "num_heads": 4,
    "distance_influence": "both",
    "vector_cutoff": True,
    "q_dim": 4,
    "dataset": "Custom",
    "lr": 1e-3,
}

NUMBERS = np.array([6, 8, 1, 7, 1, 16, 1, 6, 9, 1, 8, 6])
REFERENCE_ENERGIES = {1: -13.6, 6: -1029.9, 7: -1485.3, 8: -2042.6, 9: -2713.5, 16: -10831.1}

ZBL = {
    "cutoff_distance": 3.0,
    "max_num_neighbors": 64,
    "atomic_number": list(range(20)),
    "distance_scale": 1e-10,
    "energy_scale": 1.602176634e-19,
}
D2 = ZBL | {"cutoff_distance": 9.0}
ATOMREF = {"max_z": 20}


def positions(atoms: int = len(NUMBERS), seed: int = 3, box: float = 5.0) -> Array:
    """Random points no nearer than 0.9 A to each other."""
    random = np.random.default_rng(seed)
    points: list[Array] = []
    while len(points) < atoms:
        point = random.uniform(0, box, 3)
        if all(np.linalg.norm(point - other) > 0.9 for other in points):
            points.append(point)
    return np.array(points)


def plain_operators(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have torchmd-net build its models with the plain torch operators, until the test ends."""
    import torchmdnet.models.tensornet
    import torchmdnet.models.tensornet2

    for module in (torchmdnet.models.tensornet, torchmdnet.models.tensornet2):
        monkeypatch.setattr(module, "OPT", False)
        for name in (
            "compose_tensor",
            "decompose_tensor",
            "tensor_matmul_o3",
            "tensor_matmul_so3",
        ):
            monkeypatch.setattr(module, name, getattr(module, f"_{name}"))


@contextmanager
def default_dtype(dtype: torch.dtype) -> Iterator[None]:
    """torchmd-net's ZBL makes some of its constants in the default dtype."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


def make_model(seed: int = 0, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    """A model of torchmd-net with random weights, and its hyper-parameters.

    The weights are larger than those of an untrained network, so that its forces are not
    nearly zero, and no bias, norm or statistic is left at a value that hides it.
    """
    from torchmdnet.models.model import create_model

    arguments = ARGUMENTS | changes
    torch.manual_seed(seed)
    mean, std = torch.tensor(-3.25), torch.tensor(1.75)
    model = create_model(dict(arguments), mean=mean, std=std)
    skipped = ("distance_expansion.", "prior_model.", "repulsion.", "mean", "std", "qweights")
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.startswith(skipped) or ".distance_expansion." in name:
                continue
            if parameter.ndim > 1:
                parameter *= 1.7
            else:
                parameter += 0.3 * torch.randn_like(parameter)
        if arguments["trainable_rbf"]:
            for parameter in model.representation_model.distance_expansion.parameters():
                parameter *= 1.1
        for prior in model.prior_model or ():
            if hasattr(prior, "atomref"):
                for z, energy in REFERENCE_ENERGIES.items():
                    prior.atomref.weight[z] += energy
    return model, arguments


def interleave(tensor: Tensor) -> Tensor:
    """Outputs in the order [3, F] -> [F, 3]."""
    outputs = tensor.shape[0]
    return tensor.reshape(3, outputs // 3, -1).transpose(0, 1).reshape(tensor.shape)


def save(
    path: Path, model: nn.Module, arguments: dict[str, Any], *, old_layout: bool = False
) -> Path:
    """Write a model as Lightning does, or as it did before the order of outputs changed."""
    state = {f"model.{key}": tensor.clone() for key, tensor in model.state_dict().items()}
    hyper_parameters = dict(arguments)
    if old_layout:
        hyper_parameters["check_errors"] = True
        for key in state:
            embedding = ".tensor_embedding.linears_scalar.1." in key
            layer = ".layers." in key and ".linears_scalar.2." in key
            if embedding or (layer and arguments["model"] == "tensornet"):
                state[key] = interleave(state[key])
    content = {
        "epoch": 3,
        "global_step": 100,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": state,
        "optimizer_states": [],
        "callbacks": {"EarlyStopping": {"best_score": torch.tensor(1.0)}},
        "hparams_name": "hparams",
        "hyper_parameters": hyper_parameters,
    }
    torch.save(content, path)
    return path


def reference(
    model: nn.Module,
    numbers: Array,
    points: Array,
    charge: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> tuple[float, Array]:
    """torchmd-net's own energy and forces of a molecule."""
    with default_dtype(dtype):
        energy, forces = model(
            torch.as_tensor(numbers, dtype=torch.int64),
            torch.tensor(points, dtype=dtype),
            q=torch.tensor([charge], dtype=dtype),
        )
    return energy.item(), forces.detach().double().numpy()


def graph(potential: nn.Module, numbers: Array, points: Array, charge: float = 0.0) -> Graph:
    """The graph of a molecule."""
    return NeighborList(float(potential.cutoff)).graph(numbers, points, charge=charge)


def assert_agree(
    prediction: Prediction,
    energy: float,
    forces: Array,
    *,
    energy_relative: float,
    forces_absolute: float = 0.0,
    forces_relative: float = 0.0,
) -> None:
    """Compare with a reference whose forces are not zero.

    Bounds of the forces: eV/A, and of the largest force. Random networks have forces of 10 to
    30 eV/A, which float32 leaves uncertain by some 1e-5 eV/A in either program: in float32 only
    a relative bound means something.
    """
    assert np.abs(forces).max() > 1e-2, "nothing to compare"
    assert prediction.energy.item() == pytest.approx(energy, rel=energy_relative, abs=0)
    difference = np.abs(prediction.forces.detach().numpy() - forces).max()
    assert difference < forces_absolute + forces_relative * np.abs(forces).max()
