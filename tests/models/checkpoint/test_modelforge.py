"""State dicts of modelforge, against a second implementation of its equations."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from support.checkpoint_files import make_state
from support.checkpoint_helpers import NUMBERS, assert_agree, graph, positions
from torch import Tensor
from torch.nn.functional import layer_norm, linear, silu

from tensormd.models.checkpoint import load_potential
from tensormd.models.checkpoint.modelforge import read_modelforge
from tensormd.models.units import kj_per_mol_in_ev

CHANNELS, LAYERS, RADIAL, CUTOFF_NM, MAX_Z = 8, 2, 6, 0.5, 18
REPRESENTATION = "representation_module."


def equations(
    state: dict[str, Tensor], points: Tensor, group: str, charge: float, prefix: str
) -> Tensor:
    """Energy in kJ/mol of atoms at `points` (nm): every pair, channels before the 3x3."""

    def weights(name: str) -> tuple[Tensor, Tensor | None]:
        return state[f"{prefix}{name}.weight"], state.get(f"{prefix}{name}.bias")

    def apply(name: str, x: Tensor) -> Tensor:
        return linear(x, *weights(name))

    def mix(name: str, x: Tensor) -> Tensor:
        return torch.einsum("gf,nfab->ngab", weights(name)[0], x)

    def norm(x: Tensor) -> Tensor:
        return (x**2).sum((-2, -1))

    def split(x: Tensor) -> list[Tensor]:
        eye = torch.eye(3, dtype=x.dtype)
        scalar = x.diagonal(dim1=-2, dim2=-1).mean(-1)[..., None, None] * eye
        return [scalar, 0.5 * (x - x.mT), 0.5 * (x + x.mT) - scalar]

    numbers = torch.as_tensor(NUMBERS)
    i, j = torch.nonzero(~torch.eye(len(numbers), dtype=torch.bool)).t()
    r = points[j] - points[i]
    d = r.norm(dim=1)
    i, j, r, d = (x[d < CUTOFF_NM] for x in (i, j, r, d))
    switch = 0.5 * (torch.cos(math.pi * d / CUTOFF_NM) + 1)
    name = f"{prefix}{REPRESENTATION}radial_symmetry_function."
    centres, width = state[f"{name}radial_basis_centers"], state[f"{name}radial_scale_factor"]
    decay = torch.exp(-5 * d / CUTOFF_NM).unsqueeze(1)
    radial = torch.exp(-(((decay - centres) / width) ** 2)) * switch.unsqueeze(1)

    unit = r / d.unsqueeze(1)
    zero = torch.zeros_like(d)
    x, y, z = unit.unbind(1)
    skew = torch.stack([zero, -z, y, z, zero, -x, -y, x, zero], 1).view(-1, 3, 3)
    eye = torch.eye(3, dtype=d.dtype)
    symmetric = unit.unsqueeze(2) * unit.unsqueeze(1) - eye / 3
    species = state[f"{prefix}{REPRESENTATION}atomic_number_i_embedding_layer.weight"][numbers]
    pair = apply(
        f"{REPRESENTATION}atomic_number_ij_embedding_layer", torch.cat([species[i], species[j]], 1)
    )
    pair = (pair * switch.unsqueeze(1))[..., None, None]

    def gather(messages: Tensor) -> Tensor:
        shape = (len(numbers), *messages.shape[1:])
        return torch.zeros(shape, dtype=messages.dtype).index_add(0, i, messages)

    parts = [
        gather(
            apply(f"{REPRESENTATION}rsf_projections.{kind}", radial)[..., None, None]
            * pair
            * (shape.unsqueeze(1) if shape.ndim == 3 else shape)
        )
        for kind, shape in (("I", eye), ("A", skew), ("S", symmetric))
    ]
    gate = layer_norm(
        norm(sum(parts)), (CHANNELS,), *weights(f"{REPRESENTATION}batch_layer_normalization")
    )
    for k in range(2):
        gate = silu(apply(f"{REPRESENTATION}linears_scalar.{k}", gate))
    gate = gate.reshape(-1, CHANNELS, 3)[..., None, None]
    features: Any = sum(
        mix(f"{REPRESENTATION}linears_tensor.{k}", part) * gate[:, :, k]
        for k, part in enumerate(parts)
    )
    factor = 1 + 0.1 * charge
    for layer in range(LAYERS):
        name = f"interaction_modules.{layer}."
        f = radial
        for k in range(3):
            f = silu(apply(f"{name}mlp_scalar.{k}", f))
        f = (f * switch.unsqueeze(1)).view(-1, CHANNELS, 3)[..., None, None]
        features = features / (norm(features) + 1)[..., None, None]
        ys = [mix(f"{name}linear_layer.{k}", part) for k, part in enumerate(split(features))]
        ms: Any = sum(gather(f[:, :, k] * part[j]) for k, part in enumerate(ys))
        total: Any = sum(ys)
        product = factor * (ms @ total + total @ ms) if group == "O(3)" else 2 * total @ ms
        product_parts = [
            mix(f"{name}linear_layer.{3 + k}", part / (norm(product) + 1)[..., None, None])
            for k, part in enumerate(split(product))
        ]
        change: Any = sum(product_parts)
        features = features + change + factor * change @ change
    invariants = torch.cat([norm(part) for part in split(features)], -1)
    invariants = layer_norm(invariants, (3 * CHANNELS,), *weights("perform_layer_normalization"))
    energies = apply("output_layers.per_atom_energy.dense", invariants).sum(1)
    return (energies * 40.0 - 250.0).sum()


def expected(
    state: dict[str, Tensor], group: str, charge: float, prefix: str = "core_network."
) -> tuple[float, NDArray[np.float64]]:
    """Energy in eV and forces in eV/A of the molecule."""
    points = torch.tensor(positions() / 10.0, requires_grad=True)
    energy = equations(state, points, group, charge, prefix)
    gradient = torch.autograd.grad(energy, points)[0]
    return energy.item() * kj_per_mol_in_ev, -gradient.numpy() * kj_per_mol_in_ev / 10.0


@pytest.mark.parametrize("charge", [0.0, 1.0])
@pytest.mark.parametrize("group", ["O(3)", "SO(3)"])
@pytest.mark.parametrize("prefix", ["core_network.", "", "potential.core_network."])
def test_equations(group: str, charge: float, prefix: str) -> None:
    state = make_state(prefix)
    potential = read_modelforge(state, "state.pt", group=group)
    assert potential.cutoff == pytest.approx(5.0)
    assert potential.dtype == torch.float64
    energy, forces = expected(state, group, charge, prefix)
    prediction = potential(graph(potential, NUMBERS, positions(), charge))
    assert_agree(prediction, energy, forces, energy_relative=1e-9, forces_absolute=1e-9)


def test_the_sign_of_directions_matters_in_so3() -> None:
    # A control of the test above.
    state = make_state()
    potential = read_modelforge(state, "state.pt", group="SO(3)")
    energy, _ = expected(state, "SO(3)", 0)
    mirrored = potential(graph(potential, NUMBERS, -positions())).energy.item()
    assert abs(mirrored - energy) > 1e-4


@pytest.mark.parametrize("wrapped", [False, True])
def test_file(wrapped: bool, tmp_path: Path) -> None:
    state = make_state()
    torch.save({"state_dict": state} if wrapped else state, tmp_path / "forge.pt")
    potential = load_potential(tmp_path / "forge.pt", elements=[1, 6, 8])
    assert potential.elements == [1, 6, 8]
    assert (potential.length_unit, potential.energy_unit) == ("nm", "kj/mol")
    assert potential.metadata["assumed"] == {"group": "O(3)", "activation": "silu"}
    energy, forces = expected(state, "O(3)", 0)
    prediction = potential(graph(potential, NUMBERS, positions()))
    assert_agree(prediction, energy, forces, energy_relative=1e-9, forces_absolute=1e-9)
    assert load_potential(tmp_path / "forge.pt").elements == list(range(1, MAX_Z))
    with pytest.raises(ValueError, match="leave units out"):
        load_potential(tmp_path / "forge.pt", units=("angstrom", "ev"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda s: s.pop(f"core_network.{REPRESENTATION}rsf_projections.A.bias"),
            r"no tensor representation_module\.rsf_projections\.A\.bias",
        ),
        (
            lambda s: s.pop("core_network.interaction_modules.1.linear_layer.5.weight"),
            r"no tensor interaction_modules\.1\.linear_layer\.5\.weight",
        ),
        (lambda s: s.update({"core_network.interaction_modules.0.x": torch.ones(1)}), "not have"),
        (
            lambda s: s[
                f"core_network.{REPRESENTATION}radial_symmetry_function.radial_basis_centers"
            ].mul_(2),
            "minimum interaction radius",
        ),
        (
            lambda s: s["core_network.perform_layer_normalization.bias"].fill_(torch.inf),
            "infinite",
        ),
    ],
)
def test_what_is_wrong_is_said(change: Any, message: str, tmp_path: Path) -> None:
    state = make_state()
    change(state)
    torch.save(state, tmp_path / "forge.pt")
    with pytest.raises(ValueError, match=rf"forge\.pt.*{message}"):
        load_potential(tmp_path / "forge.pt")
