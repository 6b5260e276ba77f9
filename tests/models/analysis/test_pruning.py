"""Networks without an order: the projected one, the smaller one, and their weights."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from support.helpers import crystal, ethanol, make_potential, make_tdn, predict
from torch import Tensor, nn

from tensormd.calculators import PotentialCalculator
from tensormd.models import (
    TDN,
    DipoleReadout,
    EnergyReadout,
    PolarizabilityReadout,
    Potential,
    TensorNet,
    export_torchscript,
    load_potential,
    save_potential,
)
from tensormd.models.analysis.pruning import projected, pruned
from tensormd.models.inference.tables import tabulated
from tensormd.models.maths.cartesian import ROWS
from tensormd.models.maths.harmonics import degree_slices

SYSTEMS = {"ion": ethanol(charge=-1.0), "crystal": crystal()}
TENSORNETS: dict[str, dict[str, Any]] = {
    "default": {},
    "SO(3)-gated": {"group": "SO(3)", "head": "gated"},
    "linear-bessel": {"head": "linear", "radial": "bessel", "self_interaction": False},
    "no-layers": {"layers": 0},
}
TDNS: dict[str, dict[str, Any]] = {
    "L2": {"lmax": 2, "scale": 1.4},
    "L2-SO(3)-cp": {"lmax": 2, "scale": 1.3, "group": "SO(3)", "product": "cp"},
    "L2-factored": {"lmax": 2, "product": "cp", "evaluation": "factored"},
    "L3-by-path": {"lmax": 3, "layers": 1, "scale": 1.5, "evaluation": "factored"},
}


def features(potential: nn.Module, system: Any) -> list[Tensor]:
    """What enters each layer, and what leaves the last one."""
    found: list[Tensor] = []
    network: Any = potential.representation
    handles = [network.register_forward_hook(lambda module, args, out: found.append(out))]
    for layer in network.layers:
        handles.append(layer.register_forward_pre_hook(lambda module, args: found.append(args[0])))
    predict(potential, system)
    for handle in handles:
        handle.remove()
    return found


def assert_same(found: Any, expected: Any, bound: float = 1e-12) -> None:
    for field, a, b in zip(expected._fields, found, expected, strict=True):
        size = max(1.0, float(b.abs().max()))
        assert float((a - b).abs().max()) < bound * size, field


def differ(a: Any, b: Any) -> bool:
    return float((a.forces - b.forces).abs().max()) > 1e-3 * float(b.forces.abs().max())


# TensorNet


@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize("irreps", ["IS", "IA", "I"])
@pytest.mark.parametrize("name", TENSORNETS)
def test_a_network_without_irreps_is_the_projected_one(name: str, irreps: str, kind: str) -> None:
    whole = make_potential(**TENSORNETS[name])
    expected = predict(projected(whole, irreps), SYSTEMS[kind])
    fewer = pruned(whole, irreps)
    assert_same(predict(fewer, SYSTEMS[kind]), expected)
    assert differ(expected, predict(whole, SYSTEMS[kind]))
    size = sum(p.numel() for p in whole.parameters())
    assert sum(p.numel() for p in fewer.parameters()) < size
    assert fewer.representation.config["irreps"] == irreps


@pytest.mark.parametrize("irreps", ["IS", "IA", "I"])
def test_what_is_projected_out_is_zero_at_every_layer(irreps: str) -> None:
    whole = make_potential(group="SO(3)")
    found = features(projected(whole, irreps), SYSTEMS["ion"])
    fewer = features(pruned(whole, irreps), SYSTEMS["ion"])
    assert len(found) == 3
    kept = torch.cat([torch.arange(9)[ROWS[irrep]] for irrep in irreps])
    for x, y in zip(found, fewer, strict=True):
        assert not x[[k for k in range(9) if k not in kept]].any()
        torch.testing.assert_close(x[kept], y, rtol=1e-12, atol=1e-13)


def test_weights_of_zero_make_a_network_without_the_irrep() -> None:
    """For O(3), where products of symmetric tensors have no antisymmetric part."""
    whole = make_potential(irreps="IAS")
    network = whole.representation
    assert isinstance(network, TensorNet)
    f = network.channels
    with torch.no_grad():
        network.embedding.radial.weight[f : 2 * f] = 0
        network.embedding.radial.bias[f : 2 * f] = 0
        for name, parameter in network.named_parameters():
            if "mix" in name:
                parameter[1] = 0
    assert max(float(x[1:4].detach().abs().max()) for x in features(whole, SYSTEMS["ion"])) < 1e-14
    without = TensorNet(**network.config | {"irreps": "IS"}).double()
    tensors = network.state_dict()
    for name, tensor in without.state_dict().items():
        if tensor.shape != tensors[name].shape:
            i, _, s = tensors[name].chunk(3)
            tensors[name] = torch.cat([i, s])
    without.load_state_dict(tensors)
    graph = SYSTEMS["ion"].graph()
    vectors = graph.positions[graph.edge_index[1]] - graph.positions[graph.edge_index[0]]
    x = network(graph, vectors)
    torch.testing.assert_close(
        x[[0, *range(4, 9)]], without(graph, vectors), rtol=1e-14, atol=1e-14
    )
    assert_same(predict(pruned(whole, "IS"), SYSTEMS["ion"]), predict(whole, SYSTEMS["ion"]))


def test_one_irrep_after_the_other() -> None:
    whole = make_potential()
    twice = pruned(pruned(whole, "IS"), "I")
    assert_same(
        predict(twice, SYSTEMS["crystal"]), predict(projected(whole, "I"), SYSTEMS["crystal"])
    )
    assert_same(
        predict(projected(pruned(whole, "IS"), "I"), SYSTEMS["crystal"]),
        predict(projected(whole, "I"), SYSTEMS["crystal"]),
    )


def test_all_irreps_are_the_network_as_it_was() -> None:
    torch.manual_seed(3)
    plain = TensorNet(channels=8)
    torch.manual_seed(3)
    named = TensorNet(channels=8, irreps="IAS")
    for (name, a), (other, b) in zip(
        plain.state_dict().items(), named.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)
    whole = make_potential()
    assert_same(predict(projected(whole, "IAS"), SYSTEMS["ion"]), predict(whole, SYSTEMS["ion"]))


# TDN


@pytest.mark.parametrize("kind", SYSTEMS)
@pytest.mark.parametrize("degrees", [(0,), (0, 1), (0, 2)], ids=str)
@pytest.mark.parametrize("name", TDNS)
def test_a_network_without_degrees_is_the_projected_one(
    name: str, degrees: tuple[int, ...], kind: str
) -> None:
    whole = make_tdn(**TDNS[name])
    expected = predict(projected(whole, degrees), SYSTEMS[kind])
    fewer = pruned(whole, degrees)
    assert_same(predict(fewer, SYSTEMS[kind]), expected)
    assert differ(expected, predict(whole, SYSTEMS[kind]))
    network = fewer.representation
    assert isinstance(network, TDN)
    assert network.degrees == list(degrees)


def test_what_is_projected_out_of_a_tdn_is_zero_at_every_layer() -> None:
    whole = make_tdn(lmax=3, group="SO(3)", product="cp")
    kept = (0, 1, 3)
    found = features(projected(whole, kept), SYSTEMS["ion"])
    fewer = features(pruned(whole, kept), SYSTEMS["ion"])
    before, after = degree_slices(range(4)), degree_slices(kept)
    for x, y in zip(found, fewer, strict=True):
        assert not x[:, before[2]].any()
        for degree in kept:
            torch.testing.assert_close(
                x[:, before[degree]], y[:, after[degree]], rtol=1e-11, atol=1e-12
            )


def test_all_degrees_are_the_network_as_it_was() -> None:
    torch.manual_seed(3)
    plain = TDN(channels=8, lmax=2)
    torch.manual_seed(3)
    named = TDN(channels=8, degrees=(0, 1, 2))
    assert plain.config == named.config
    for (name, a), (other, b) in zip(
        plain.state_dict().items(), named.state_dict().items(), strict=True
    ):
        assert name == other
        assert torch.equal(a, b)


def test_degrees_without_those_between() -> None:
    """Paths only among them: 0 3 3, 0 4 4, 3 3 4, ...; not one that touches 1 or 2."""
    network = TDN(channels=8, degrees=(0, 3, 4), radial_functions=4).double()
    assert network.config["lmax"] == 4
    tensor = network.coupling.tensor
    places = degree_slices((0, 3, 4))
    assert isinstance(tensor, Tensor)
    assert tensor.shape == (17, 17, 17)
    assert tensor[places[3], places[3], places[4]].norm() == pytest.approx(1)
    assert not tensor[places[3], places[4], places[4]].any()  # odd: another parity


# Both


@pytest.mark.parametrize("make", [make_potential, lambda: make_tdn(lmax=2)], ids=["IS", "l"])
def test_the_whole_network_is_left_as_it_is(make: Any) -> None:
    whole: Potential = make()
    kept: Any = "IS" if isinstance(whole.representation, TensorNet) else (0, 2)
    before = {name: tensor.clone() for name, tensor in whole.state_dict().items()}
    expected = predict(whole, SYSTEMS["ion"])
    twin = projected(whole, kept)
    fewer = pruned(whole, kept)
    with torch.no_grad():
        for parameter in fewer.parameters():
            parameter += 1
    assert all(torch.equal(before[name], t) for name, t in whole.state_dict().items())
    assert_same(predict(whole, SYSTEMS["ion"]), expected, 1e-15)
    assert type(whole) is Potential
    for a, b in zip(whole.parameters(), twin.parameters(), strict=True):
        assert a is b
    with torch.no_grad():
        whole.readout.head.get_parameter("2.bias" if kept != "IS" else "network.4.bias").add_(1.0)
    energies = predict(twin, SYSTEMS["ion"]).energies
    with torch.no_grad():
        whole.readout.head.get_parameter("2.bias" if kept != "IS" else "network.4.bias").sub_(1.0)
    change = energies - predict(twin, SYSTEMS["ion"]).energies
    torch.testing.assert_close(change, torch.full_like(change, float(whole.atomic_scale.scale)))


@pytest.mark.parametrize("make", [make_potential, lambda: make_tdn(lmax=2)], ids=["IS", "l"])
def test_checkpoints(make: Any, tmp_path: Path) -> None:
    whole: Potential = make()
    kept: Any = "IS" if isinstance(whole.representation, TensorNet) else (0, 2)
    fewer = pruned(whole, kept)
    save_potential(fewer, tmp_path / "fewer.safetensors")
    loaded = load_potential(tmp_path / "fewer.safetensors")
    assert_same(predict(loaded, SYSTEMS["ion"]), predict(fewer, SYSTEMS["ion"]), 1e-15)
    assert (tmp_path / "fewer.safetensors").stat().st_size < len(_bytes(whole))
    with pytest.raises(ValueError, match="cannot save a ProjectedPotential"):
        save_potential(projected(whole, kept), tmp_path / "projected.safetensors")


@pytest.mark.parametrize("tables", [True, False])
@pytest.mark.parametrize("make", [make_potential, lambda: make_tdn(lmax=2)], ids=["IS", "l"])
def test_exported_files(make: Any, tables: bool, tmp_path: Path) -> None:
    whole: Potential = make()
    kept: Any = "IS" if isinstance(whole.representation, TensorNet) else (0, 2)
    fewer = pruned(whole, kept)
    export_torchscript(fewer, tmp_path / "model.pt", tables=tables)
    ion = SYSTEMS["ion"]
    energy, forces = torch.jit.load(tmp_path / "model.pt")(
        torch.tensor(ion.positions),
        torch.tensor(ion.numbers),
        torch.zeros(3, 3, dtype=torch.float64),
        torch.zeros(3, dtype=torch.bool),
        ion.charge,
    )
    expected = predict(tabulated(fewer) if tables else fewer, ion)
    assert energy.item() == pytest.approx(expected.energy.item(), abs=1e-10)
    torch.testing.assert_close(forces, expected.forces, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("make", [make_potential, lambda: make_tdn(lmax=2)], ids=["IS", "l"])
def test_calculators(make: Any) -> None:
    whole: Potential = make()
    kept: Any = "IS" if isinstance(whole.representation, TensorNet) else (0, 2)
    fewer = pruned(whole, kept)
    atoms = Atoms(SYSTEMS["ion"].numbers, SYSTEMS["ion"].positions, info={"charge": -1})
    expected = predict(fewer, SYSTEMS["ion"])
    for potential in (fewer, projected(whole, kept)):
        atoms.calc = PotentialCalculator(potential, dtype="float64", backend="reference")
        np.testing.assert_allclose(atoms.get_forces(), expected.forces, atol=1e-10)
        assert atoms.get_potential_energy() == pytest.approx(expected.energy.item(), abs=1e-10)


def _bytes(potential: Potential) -> bytes:
    buffer = io.BytesIO()
    torch.save(potential.state_dict(), buffer)
    return buffer.getvalue()


def test_heads() -> None:
    """Of a TDN those whose degree is left stay, as they are."""
    whole = make_tdn(lmax=2)
    network = whole.representation
    heads = {"dipole": DipoleReadout(network), "polarizability": PolarizabilityReadout(network)}
    whole.heads.update(heads)
    whole.double()
    fewer = pruned(whole, (0, 2))
    assert list(fewer.heads) == ["polarizability"]
    graph = SYSTEMS["ion"].graph()
    expected = projected(whole, (0, 2)).properties(graph, names=["polarizability"])
    for name, value in fewer.properties(graph).items():
        torch.testing.assert_close(value, expected[name], rtol=1e-11, atol=1e-12)
    tensornet = make_potential()
    tensornet.heads.update({"dipole": DipoleReadout(tensornet.representation).double()})
    with pytest.raises(ValueError, match="has heads"):
        pruned(tensornet, "IA")


def test_mistakes() -> None:
    with pytest.raises(ValueError, match="irreps is 'AS'"):
        TensorNet(irreps="AS")
    with pytest.raises(ValueError, match="no part of them"):
        pruned(pruned(make_potential(), "IS"), "IA")
    with pytest.raises(ValueError, match="not degrees"):
        projected(make_potential(), (0, 1))
    with pytest.raises(ValueError, match="not degrees"):
        pruned(make_potential(), (0, 1))
    with pytest.raises(ValueError, match="not irreps"):
        projected(make_tdn(), "IS")
    with pytest.raises(ValueError, match=r"degrees are \[1, 2\]"):
        TDN(degrees=(1, 2))
    with pytest.raises(ValueError, match="expected none above it"):
        TDN(lmax=2, degrees=(0, 3))
    with pytest.raises(ValueError, match="no part of them"):
        pruned(make_tdn(), (0, 2))
    with pytest.raises(ValueError, match="irreps IS, the readout reads IAS"):
        Potential(TensorNet(channels=8, irreps="IS"), EnergyReadout(8), elements=[1])
    with pytest.raises(ValueError, match="norm_size is 10"):
        EnergyReadout(8, norm_size=10)


def test_features_hold_what_is_left() -> None:
    assert [len(features(make_potential(irreps=i), SYSTEMS["ion"])[-1]) for i in ("IA", "I")] == [
        4,
        1,
    ]
    assert features(make_tdn(degrees=(0, 3)), SYSTEMS["ion"])[-1].shape[1] == 8
    assert predict(make_tdn(degrees=(0,)), SYSTEMS["ion"]).energies.isfinite().all()
