"""TensorNet2 of torchmd-net as a network of our own, against torchmd-net's modules."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoint_helpers import (
    ATOMREF,
    NUMBERS,
    ZBL,
    Array,
    assert_agree,
    default_dtype,
    graph,
    make_model,
    plain_operators,
    positions,
    reference,
    save,
)
from support.helpers import System
from torch import nn

from tensormd.models import Potential, batch_graphs
from tensormd.models.checkpoint import (
    describe,
    load_potential,
    save_potential,
    write_torchmdnet_checkpoint,
)
from tensormd.models.graph import Graph, within
from tensormd.models.heads.coulomb import CoulombEnergy
from tensormd.models.networks.tensornet2 import TensorNet2
from tensormd.models.units import kcal_per_mol_in_ev

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not state its units"),
    pytest.mark.filterwarnings("ignore:Skipping gradients for"),
    pytest.mark.filterwarnings("ignore:Old-format checkpoint"),
]
PLAIN = {"model": "tensornet2"}
COULOMB = PLAIN | {"output_model": "ScalarPlusWeightedCoulomb", "q_weights": [0.2, 0.3, 1.0]}
VARIANTS: dict[str, dict[str, Any]] = {
    "plain": PLAIN,
    "SO(3)": PLAIN | {"equivariance_invariance_group": "SO(3)"},
    "1 layer": COULOMB | {"num_layers": 1, "q_weights": [0.5, 1.0]},
    "3 layers": COULOMB | {"num_layers": 3, "q_weights": [0.1, 0.2, 0.3, 1.0]},
    "lower cutoff": PLAIN | {"cutoff_lower": 0.5, "rbf_type": "gauss"},
    "repulsion": PLAIN | {"repulsion": True},
    "zbl": PLAIN | {"prior_model": ["Atomref", "ZBL"], "prior_args": [ATOMREF, ZBL]},
    "Coulomb": COULOMB,
    "Coulomb, SO(3), repulsion": COULOMB
    | {"equivariance_invariance_group": "SO(3)", "repulsion": True, "activation": "tanh"},
    "reaction field": COULOMB | {"coulomb_cutoff": 5.5},
    "short reaction field": COULOMB | {"coulomb_cutoff": 4.0, "q_weights": [0.0, 0.0, 2.0]},
    "deep output": COULOMB | {"output_mlp_num_layers": 2, "trainable_rbf": True},
}


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_operators(monkeypatch)


def made(variant: str, **changes: Any) -> tuple[nn.Module, dict[str, Any]]:
    with default_dtype(torch.float64):  # torchmd-net rounds the tables of its repulsion to it
        return make_model(**VARIANTS[variant], **changes)


def loaded(tmp_path: Path, variant: str) -> tuple[Potential, nn.Module]:
    model, arguments = made(variant)
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments))
    assert isinstance(potential, Potential)
    assert isinstance(potential.representation, TensorNet2)
    assert potential.dtype == torch.float64
    return potential, model


def charges_of(model: Any, charge: float, points: Array) -> Array:
    """All charges that torchmd-net's network appends to its features."""
    network = model.representation_model
    network.output_charges = True
    z = torch.as_tensor(NUMBERS, dtype=torch.int64)
    x = network(
        z, torch.tensor(points), torch.zeros_like(z), q=torch.tensor([charge], dtype=torch.float64)
    )[0]
    found: Array = x[:, network.hidden_channels :].detach().numpy()
    return found


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torchmdnet(variant: str, tmp_path: Path) -> None:
    potential, model = loaded(tmp_path, variant)
    for charge in (-1.0, 0.0, 1.0):
        energy, forces = reference(model, NUMBERS, positions(), charge)
        molecule = graph(potential, NUMBERS, positions(), charge)
        prediction = potential(molecule)
        assert_agree(prediction, energy, forces, energy_relative=1e-11, forces_absolute=1e-10)
        assert prediction.energies.sum().item() == pytest.approx(energy, rel=1e-10)
    assert abs(energy - reference(model, NUMBERS, positions(), 0.0)[0]) > 1e-3
    found = charges_here(potential, molecule)
    np.testing.assert_allclose(found, charges_of(model, 1.0, positions()), rtol=0, atol=1e-10)
    assert np.abs(found).max() > 0.01


def charges_here(potential: Potential, molecule: Graph) -> Array:
    """All charges that our network predicts."""
    near, vectors = within(molecule, potential.representation.cutoff)
    found: Array = potential.representation.features_and_charges(near, vectors)[1].detach().numpy()
    return found


@pytest.mark.parametrize("variant", ["plain", "Coulomb", "reaction field"])
def test_equals_torchmdnet_in_float32(variant: str, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS[variant], precision=32)
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments))
    energy, forces = reference(model, NUMBERS, positions(), -1, torch.float32)
    prediction = potential(graph(potential, NUMBERS, positions(), -1))
    assert_agree(prediction, energy, forces, energy_relative=1e-5, forces_relative=2e-5)


@pytest.mark.parametrize("variant", ["plain", "repulsion", "reaction field"])
def test_box_equals_torchmdnet(variant: str, tmp_path: Path) -> None:
    """A cell of more than twice every cutoff, where its minimum image is right."""
    potential, model = loaded(tmp_path, variant)
    cell = np.array([[12.0, 0, 0], [1.5, 12.5, 0], [-1.0, 2.0, 13.0]])
    points = positions(box=5.0) + 9.0  # across the boundary
    with default_dtype(torch.float64):
        energy, forces = model(
            torch.as_tensor(NUMBERS), torch.tensor(points), box=torch.tensor(cell),
            q=torch.tensor([1.0], dtype=torch.float64),
        )  # fmt: skip
    system = System(NUMBERS, points, cell, True, 1.0)
    prediction = potential(system.graph(potential.cutoff))
    assert_agree(
        prediction,
        energy.item(),
        forces.detach().numpy(),
        energy_relative=1e-11,
        forces_absolute=1e-9,
    )


@pytest.mark.parametrize("variant", ["Coulomb", "reaction field", "plain"])
def test_batch_equals_torchmdnet(variant: str, tmp_path: Path) -> None:
    potential, model = loaded(tmp_path, variant)
    molecules = [
        (NUMBERS, positions(seed=1), 1.0),
        (NUMBERS[:5], positions(5, 2), -1.0),
        (NUMBERS[:1], np.zeros((1, 3)), 1.0),  # an atom alone
        (NUMBERS[:2], np.array([[0.0, 0, 0], [0, 0, 30.0]]), 0.0),  # no pair in reach
    ]
    together = potential(batch_graphs([graph(potential, *each) for each in molecules]))
    numbers, points, charges = zip(*molecules, strict=True)
    system = np.repeat(np.arange(len(molecules)), [len(n) for n in numbers])
    with default_dtype(torch.float64):
        energies, forces = model(
            torch.as_tensor(np.concatenate(numbers)), torch.tensor(np.vstack(points)),
            batch=torch.as_tensor(system), q=torch.tensor(charges, dtype=torch.float64),
        )  # fmt: skip
    torch.testing.assert_close(together.energy, energies[:, 0].detach(), rtol=1e-11, atol=1e-10)
    torch.testing.assert_close(together.forces, forces.detach(), rtol=0, atol=1e-10)
    assert together.forces.abs().max() > 1


def test_gradients_of_a_training_step_equal_torchmdnets(tmp_path: Path) -> None:
    """Of a loss of energy and forces, by every parameter."""
    potential, model = loaded(tmp_path, "Coulomb")
    model.train()
    with default_dtype(torch.float64):
        energy, forces = model(
            torch.as_tensor(NUMBERS), torch.tensor(positions()),
            q=torch.tensor([-1.0], dtype=torch.float64),
        )  # fmt: skip
    (energy.sum() + forces.square().sum()).backward()
    potential.train()
    found = potential(graph(potential, NUMBERS, positions(), -1.0))
    (found.energy.sum() + found.forces.square().sum()).backward()
    named = dict(potential.named_parameters())
    theirs = {n: p.grad for n, p in model.named_parameters()}
    for ours, other in (
        ("representation.embedding.species.weight", "tensor_embedding.emb.weight"),
        ("representation.charges.network.0.weight", "charge_predict_0.q_mlp.layers.0.weight"),
        ("representation.layers.0.radial.0.weight", "layers.0.linears_scalar.0.weight"),
        (
            "representation.layers.1.charges.network.4.bias",
            "charge_predicts.1.q_mlp.layers.4.bias",
        ),
        ("readout.norm.weight", "out_norm.weight"),
    ):
        wanted = theirs[f"representation_model.{other}"]
        assert wanted.abs().max() > 1e-3
        torch.testing.assert_close(named[ours].grad, wanted, rtol=1e-8, atol=1e-8)
    total = sum(float(p.grad.square().sum()) for p in named.values() if p.grad is not None)
    expected = sum(float(g.square().sum()) for g in theirs.values() if g is not None)
    assert total == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("model_name", ["tensornetv2_alt", "tensornet-nqe", "tensornet2"])
def test_old_layout(model_name: str, tmp_path: Path) -> None:
    model, arguments = made("Coulomb")
    energy, forces = reference(model, NUMBERS, positions(), -1)
    path = save(tmp_path / "old.ckpt", model, arguments, old_layout=True)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["model"] = model_name  # the first is in the file of AceFF 2
    torch.save(content, path)
    potential = load_potential(path)
    prediction = potential(graph(potential, NUMBERS, positions(), -1))
    assert_agree(prediction, energy, forces, energy_relative=1e-11, forces_absolute=1e-10)
    assert potential.metadata["source"]["layout"] == "[F, 3]"
    # The control: without the mark of its age the file is another potential.
    del content["hyper_parameters"]["check_errors"]
    torch.save(content, path)
    other = load_potential(path)(graph(potential, NUMBERS, positions(), -1)).energy.item()
    assert abs(other - energy) > 1e-3


@pytest.mark.parametrize("variant", VARIANTS)
def test_written_files_give_the_same_numbers(variant: str, tmp_path: Path) -> None:
    """The native format, and torchmd-net's own, which torchmd-net reads."""
    potential, _ = loaded(tmp_path, variant)
    molecule = graph(potential, NUMBERS, positions(), 1)
    wanted = potential(molecule)
    save_potential(potential, tmp_path / "native.safetensors")
    native = load_potential(tmp_path / "native.safetensors")
    assert describe(native) == describe(potential)
    assert torch.equal(native(molecule).forces, wanted.forces)

    write_torchmdnet_checkpoint(potential, tmp_path / "again.ckpt")
    again = load_potential(tmp_path / "again.ckpt")
    assert describe(again)["coulomb"] == describe(potential)["coulomb"]
    for name, tensor in potential.state_dict().items():
        if name != "repulsion.powers":  # that of element zero, which there is not
            assert torch.equal(again.state_dict()[name], tensor), name
    assert torch.equal(again(molecule).forces, wanted.forces)
    theirs = torchmdnet_reads(tmp_path / "again.ckpt")
    energy, forces = reference(theirs, NUMBERS, positions(), 1)
    assert_agree(wanted, energy, forces, energy_relative=1e-11, forces_absolute=1e-9)


def torchmdnet_reads(path: Path) -> nn.Module:
    from torchmdnet.models.model import load_model

    with default_dtype(torch.float64):
        model: nn.Module = load_model(str(path), derivative=True)
    return model


def test_old_layout_written_for_openmm_ml(tmp_path: Path) -> None:
    potential, _ = loaded(tmp_path, "Coulomb")
    write_torchmdnet_checkpoint(potential, tmp_path / "old.ckpt", old_layout=True)
    again = load_potential(tmp_path / "old.ckpt")
    assert again.metadata["source"]["layout"] == "[F, 3]"
    for name, tensor in potential.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    energy, _ = reference(torchmdnet_reads(tmp_path / "old.ckpt"), NUMBERS, positions(), 1)
    found = potential(graph(potential, NUMBERS, positions(), 1)).energy.item()
    assert found == pytest.approx(energy, rel=1e-11)


def test_scale_of_our_own_is_written_into_the_last_layer(tmp_path: Path) -> None:
    """torchmd-net would multiply the Coulomb energy by it too."""
    torch.manual_seed(0)
    network = TensorNet2(
        channels=16, charge_channels=4, radial_functions=8, cutoff=4.5, max_number=20
    )
    potential = Potential(
        network,
        network.new_readout(),
        elements=[1, 6, 7, 8, 9, 16],
        scale=3.0,
        mean=0.5,
        coulomb=CoulombEnergy([0.0, 1.0, 1.0], 4),
    )
    potential.double().eval()
    write_torchmdnet_checkpoint(potential, tmp_path / "own.ckpt")
    wanted = potential(graph(potential, NUMBERS, positions(), 1))
    energy, forces = reference(torchmdnet_reads(tmp_path / "own.ckpt"), NUMBERS, positions(), 1)
    assert_agree(wanted, energy, forces, energy_relative=1e-9, forces_absolute=1e-9)


def test_units(tmp_path: Path) -> None:
    """The numbers of the formulas stand in the units of the model, whatever they are."""
    model, arguments = made("reaction field")
    path = save(tmp_path / "m.ckpt", model, arguments)
    energy, forces = reference(model, NUMBERS, positions())
    potential = load_potential(path, units=("nm", "kcal/mol"))
    assert potential.cutoff == 55.0
    prediction = potential(graph(potential, NUMBERS, 10 * positions()))
    factor = kcal_per_mol_in_ev
    assert_agree(
        prediction,
        energy * factor,
        forces * factor / 10,
        energy_relative=1e-10,
        forces_absolute=1e-9,
    )


def test_coulomb_cutoff_can_be_set(tmp_path: Path) -> None:
    potential, _ = loaded(tmp_path, "Coulomb")
    assert potential.cutoff == np.inf
    assert describe(potential)["cutoff_angstrom"] is None
    cut = potential.with_coulomb_cutoff(5.5)
    assert cut.cutoff == 5.5
    expected, _ = made("reaction field")
    energy, _ = reference(expected, NUMBERS, positions())
    found = cut(graph(cut, NUMBERS, positions())).energy.item()
    assert found == pytest.approx(energy, rel=1e-11)
    back = cut.with_coulomb_cutoff(np.inf)
    molecule = graph(potential, NUMBERS, positions())
    assert torch.equal(back(molecule).forces, potential(molecule).forces)
    assert abs(potential(molecule).energy.item() - found) > 1e-3
    save_potential(cut, tmp_path / "cut.safetensors")
    assert load_potential(tmp_path / "cut.safetensors").cutoff == 5.5


# Bad input


@pytest.mark.parametrize("cutoff", [-1.0, 0.0, 200.0, np.nan])
def test_coulomb_cutoff_that_cannot_be(cutoff: float, tmp_path: Path) -> None:
    potential, _ = loaded(tmp_path, "Coulomb")
    with pytest.raises(ValueError, match=rf"Coulomb energy is {cutoff} A: expected .* 100 A"):
        potential.with_coulomb_cutoff(cutoff)


def test_coulomb_cutoff_of_a_model_without(tmp_path: Path) -> None:
    potential, _ = loaded(tmp_path, "plain")
    with pytest.raises(ValueError, match="no Coulomb energy to cut off"):
        potential.with_coulomb_cutoff(12.0)


def test_all_pairs_in_a_cell(tmp_path: Path) -> None:
    potential, _ = loaded(tmp_path, "Coulomb")
    system = System(NUMBERS, positions(), 8 * np.eye(3), True)
    with pytest.raises(ValueError, match=r"periodic cell.*with_coulomb_cutoff"):
        system.graph(potential.cutoff)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["output_model.qweights"].mul_(torch.arange(12.0)), "qweights .* 3 weights"),
        (lambda s: s["output_model.qweights"].zero_(), "sum that is not zero"),
        (lambda s: s.pop("output_model.qweights"), "no tensor output_model.qweights"),
        (lambda s: s.pop("representation_model.charge_predict_0.q_norm.bias"), "q_norm.bias"),
    ],
)
def test_damaged_files(change: Any, message: str, tmp_path: Path) -> None:
    model, arguments = made("Coulomb")
    path = save(tmp_path / "m.ckpt", model, arguments)
    content = torch.load(path, weights_only=True)
    state = {k.removeprefix("model."): v.double() for k, v in content["state_dict"].items()}
    change(state)
    content["state_dict"] = state
    torch.save(content, path)
    with pytest.raises(ValueError, match=rf"m\.ckpt.*{message}"):
        load_potential(path)


def test_not_written(tmp_path: Path) -> None:
    potential, _ = loaded(tmp_path, "Coulomb")
    assert potential.coulomb is not None
    config = potential.coulomb.config | {"damping": 3.0}
    potential.coulomb = CoulombEnergy(**config)
    with pytest.raises(ValueError, match=r"damping 4\.6, this one 3\.0"):
        write_torchmdnet_checkpoint(potential, tmp_path / "no.ckpt")
