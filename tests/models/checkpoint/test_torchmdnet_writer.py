"""Potentials written for torchmd-net: it gives the same energies, and we read the same weights."""

from __future__ import annotations

import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoint_helpers import (
    ARGUMENTS,
    ATOMREF,
    NUMBERS,
    ZBL,
    assert_agree,
    graph,
    make_model,
    plain_operators,
    positions,
    reference,
    save,
)
from support.md_runs import run
from torch import nn

from tensormd.models import (
    TDN,
    Committee,
    DipoleReadout,
    EnergyReadout,
    Potential,
    ScalarReadout,
    TensorNet,
    load_potential,
    save_potential,
    write_torchmdnet_checkpoint,
)
from tensormd.models import files as model_files
from tensormd.models.heads.repulsion import ZBLRepulsion
from tensormd.models.inference.tables import tabulated

ELEMENTS = sorted(set(NUMBERS.tolist()))


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_operators(monkeypatch)


def make_ours(seed: int = 0, dtype: torch.dtype = torch.float64, **changes: Any) -> Potential:
    """A potential of our own with every term, and forces that are far from zero."""
    options: dict[str, Any] = {
        "channels": 16,
        "layers": 2,
        "radial_functions": 8,
        "max_number": 20,
        **changes.pop("network", {}),
    }
    torch.manual_seed(seed)
    network = TensorNet(**options)
    readout = EnergyReadout(16, activation=options.get("activation", "silu"))
    references = torch.zeros(17, dtype=torch.float64)
    references[ELEMENTS] = -(torch.tensor(ELEMENTS, dtype=torch.float64) ** 2) * 13.6
    settings: dict[str, Any] = {
        "references": references,
        "scale": 1.7,
        "mean": -3.3,
        "metadata": {"name": "mine", "training": {"epochs": 3}},
    }
    potential = Potential(network, readout, elements=ELEMENTS, **settings | changes)
    with torch.no_grad():
        for parameter in potential.parameters():
            if parameter.ndim > 1:
                parameter *= 1.7
            else:
                parameter += 0.1 * torch.randn_like(parameter)
    return potential.to(dtype).eval()


VARIANTS: dict[str, tuple[dict[str, Any], float]] = {
    "plain": ({}, 0),
    "charge": ({}, 1),
    "no references, no scale": ({"references": None, "scale": 1.0, "mean": 0.0}, 0),
    "SO(3)": ({"network": {"group": "SO(3)"}}, 1),
    "gauss": ({"network": {"radial": "gauss", "trainable_radial": True}}, 0),
    "trainable, lower cutoff": ({"network": {"trainable_radial": True, "cutoff_lower": 0.5}}, 0),
    "0 layers, tanh": ({"network": {"layers": 0, "activation": "tanh"}}, 0),
    "3 layers, ssp": ({"network": {"layers": 3, "activation": "ssp"}}, -1),
    "ZBL": ({"repulsion": ZBLRepulsion(3.0)}, 0),
    "ZBL, no references": ({"repulsion": ZBLRepulsion(3.0), "references": None}, 0),
}


def load_theirs(path: Path) -> nn.Module:
    from torchmdnet.models.model import load_model

    return load_model(str(path), derivative=True)


def torchmdnet_says(path: Path, charge: float, dtype: torch.dtype) -> tuple[float, np.ndarray]:
    return reference(load_theirs(path), NUMBERS, positions(), charge, dtype)


@pytest.mark.parametrize("variant", VARIANTS)
def test_torchmdnet_gives_the_same_energies_and_forces(variant: str, tmp_path: Path) -> None:
    changes, charge = VARIANTS[variant]
    for dtype, relative in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        potential = make_ours(dtype=dtype, **changes)
        write_torchmdnet_checkpoint(potential, tmp_path / "m.ckpt")
        energy, forces = torchmdnet_says(tmp_path / "m.ckpt", charge, dtype)
        prediction = potential(graph(potential, NUMBERS, positions(), charge))
        assert_agree(
            prediction, energy, forces, energy_relative=relative, forces_relative=relative
        )


def test_units_stay_those_of_the_network(tmp_path: Path) -> None:
    potential = make_ours(length_unit="bohr", energy_unit="kcal/mol")
    write_torchmdnet_checkpoint(potential, tmp_path / "m.ckpt")
    theirs = load_theirs(tmp_path / "m.ckpt")
    energy, forces = reference(theirs, NUMBERS, positions() / potential.length_in_angstrom)
    prediction = potential(graph(potential, NUMBERS, positions()))
    factor = potential.energy_in_ev
    forces = forces * factor / potential.length_in_angstrom
    assert_agree(prediction, energy * factor, forces, energy_relative=1e-10, forces_relative=1e-10)
    back = load_potential(tmp_path / "m.ckpt")
    assert (back.length_unit, back.energy_unit) == ("bohr", "kcal/mol")
    with pytest.raises(ValueError, match=r"states \('bohr', 'kcal/mol'\)"):
        load_potential(tmp_path / "m.ckpt", units=("angstrom", "ev"))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.filterwarnings("error")  # of units that would have to be assumed
def test_read_back_to_the_last_bit(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    potential = make_ours(dtype=dtype, **VARIANTS[variant][0])
    write_torchmdnet_checkpoint(potential, tmp_path / "m.ckpt")
    back = load_potential(tmp_path / "m.ckpt")
    assert isinstance(back, Potential)
    ours, theirs = potential.state_dict(), back.state_dict()
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        if name != "atomic_scale.references":
            assert torch.equal(tensor, theirs[name]), name
            assert tensor.dtype == theirs[name].dtype, name
    # torchmd-net has one place for every row of the embedding.
    references = theirs["atomic_scale.references"]
    assert torch.equal(
        references[: len(ours["atomic_scale.references"])], ours["atomic_scale.references"]
    )
    assert not references[len(ours["atomic_scale.references"]) :].any()
    assert back.representation.config == potential.representation.config
    assert back.readout.config == potential.readout.config
    assert back.elements == potential.elements
    assert back.metadata == potential.metadata | {"source": back.metadata["source"]}
    if potential.repulsion is not None:
        assert back.repulsion is not None
        for name, value in potential.repulsion.config.items():
            assert back.repulsion.config[name] == pytest.approx(value, rel=3e-16, abs=0), name


def test_torchmdnets_own_file_survives_the_way_there_and_back(tmp_path: Path) -> None:
    model, arguments = make_model(prior_model=["Atomref", "ZBL"], prior_args=[ATOMREF, ZBL])
    save(tmp_path / "theirs.ckpt", model, arguments)
    potential = load_potential(tmp_path / "theirs.ckpt", units=("angstrom", "ev"))
    write_torchmdnet_checkpoint(potential, tmp_path / "again.ckpt")
    written = torch.load(tmp_path / "again.ckpt", weights_only=True)
    state = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    assert written["state_dict"].keys() == state.keys()
    for name, tensor in state.items():
        if not name.endswith("initial_atomref"):  # of before the training
            assert torch.equal(written["state_dict"][name], tensor), name
    kept = {
        "embedding_dimension",
        "num_layers",
        "num_rbf",
        "rbf_type",
        "cutoff_upper",
        "max_z",
        "cutoff_lower",
        "activation",
        "equivariance_invariance_group",
        "precision",
    }
    assert {k: written["hyper_parameters"][k] for k in kept} == {k: ARGUMENTS[k] for k in kept}


def test_their_lightning_module_and_their_training_take_it(tmp_path: Path) -> None:
    from torchmdnet.models.model import create_model
    from torchmdnet.module import LNNP
    from torchmdnet.scripts.train import fix_state_dict

    potential = make_ours()
    write_torchmdnet_checkpoint(potential, tmp_path / "m.ckpt")
    module = LNNP.load_from_checkpoint(tmp_path / "m.ckpt", map_location="cpu")
    energy, forces = reference(module.model, NUMBERS, positions())
    prediction = potential(graph(potential, NUMBERS, positions()))
    assert_agree(prediction, energy, forces, energy_relative=1e-10, forces_relative=1e-10)
    # torchmd-train --load-weights: what it runs.
    content = torch.load(tmp_path / "m.ckpt", map_location="cpu", weights_only=True)
    fresh = create_model(dict(content["hyper_parameters"]))
    fresh.load_state_dict(fix_state_dict(content))
    assert reference(fresh, NUMBERS, positions())[0] == energy


def refused() -> dict[str, tuple[nn.Module, str]]:
    tdn = TDN(channels=4, layers=1, heads=1, max_number=9)
    return {
        "TDN": (Potential(tdn, ScalarReadout(4), elements=[1]), "TDN is not one of its networks"),
        "committee": (Committee([make_ours(0), make_ours(1)]), "write its members one by one"),
        "bessel": (make_ours(network={"radial": "bessel"}), "no smooth Bessel functions"),
        "no self": (make_ours(network={"self_interaction": False}), "messages to themselves"),
        "tables": (tabulated(make_ours(), 1e-2), "lost its radial networks"),
        "linear": (
            Potential(TensorNet(channels=4), EnergyReadout(4, "linear"), elements=[1]),
            "no head 'linear'",
        ),
        "no A": (
            Potential(
                TensorNet(channels=4, irreps="IS"), EnergyReadout(4, irreps="IS"), elements=[1]
            ),
            "its TensorNet has I, A and S, this one IS",
        ),
        "dipole": (
            make_ours(heads={"dipole": DipoleReadout(TensorNet(channels=16))}),
            "beside the energy it would lose dipole",
        ),
        "two activations": (
            Potential(TensorNet(channels=4), EnergyReadout(4, activation="ssp"), elements=[1]),
            "this model two .silu and ssp.",
        ),
    }


@pytest.mark.parametrize("case", refused())
def test_what_torchmdnet_cannot_hold_is_refused(case: str, tmp_path: Path) -> None:
    potential, reason = refused()[case]
    with pytest.raises(ValueError, match=rf"m.ckpt: cannot be written.*{reason}"):
        write_torchmdnet_checkpoint(potential, tmp_path / "m.ckpt")
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "m.ckpt"
    write_torchmdnet_checkpoint(make_ours(), path)
    before = path.read_bytes()

    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(model_files.os, "fsync", full)
    with pytest.raises(OSError, match=r"m.ckpt: No space left on device; free some space"):
        write_torchmdnet_checkpoint(make_ours(1), path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_a_damaged_note_is_an_error(tmp_path: Path) -> None:
    write_torchmdnet_checkpoint(make_ours(), tmp_path / "m.ckpt")
    content = torch.load(tmp_path / "m.ckpt", weights_only=True)
    content["tensormd"].pop("units")
    torch.save(content, tmp_path / "m.ckpt")
    with pytest.raises(ValueError, match=r"m.ckpt: its note of tensormd is damaged"):
        load_potential(tmp_path / "m.ckpt")
    # Without it, it is any checkpoint of torchmd-net: units are assumed, elements referenced.
    del content["tensormd"]
    torch.save(content, tmp_path / "m.ckpt")
    with pytest.warns(UserWarning, match="does not state its units"):
        assert load_potential(tmp_path / "m.ckpt").elements == ELEMENTS


def test_convert_writes_one_by_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_potential(make_ours(), tmp_path / "m.safetensors")
    target = tmp_path / "m.ckpt"
    assert run("convert", tmp_path / "m.safetensors", target) == 0
    energy, _ = torchmdnet_says(target, 0, torch.float64)
    found = make_ours()(graph(make_ours(), NUMBERS, positions())).energy.item()
    assert energy == pytest.approx(found, rel=1e-10, abs=0)
    assert run("convert", target, tmp_path / "again.safetensors") == 0
    state = make_ours().state_dict()
    again = load_potential(tmp_path / "again.safetensors").state_dict()
    assert all(torch.equal(state[k], again[k]) for k in state if "references" not in k)
    capsys.readouterr()
    assert run("convert", "ethanol-tdn", tmp_path / "tdn.ckpt") == 2
    assert "TDN is not one of its networks" in capsys.readouterr().err
