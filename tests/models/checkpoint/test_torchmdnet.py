"""TensorNets of torchmd-net, read as our potentials, against torchmd-net 3.1.0 itself."""

from __future__ import annotations

import argparse
import copy
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from support.checkpoint_helpers import (
    ATOMREF,
    NUMBERS,
    REFERENCE_ENERGIES,
    ZBL,
    assert_agree,
    graph,
    make_model,
    plain_operators,
    positions,
    reference,
    save,
)

from tensormd.models import Potential
from tensormd.models.checkpoint import load_potential
from tensormd.models.units import kcal_per_mol_in_ev

pytestmark = pytest.mark.filterwarnings("ignore:.*does not state its units")


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_operators(monkeypatch)


# Every value of every option, and pairs that meet in the formulas.
VARIANTS: dict[str, tuple[dict[str, Any], float, bool]] = {
    "0 layers": ({"num_layers": 0}, 0, False),
    "0 layers, old": ({"num_layers": 0, "rbf_type": "gauss"}, 1, True),
    "1 layer, charge": ({"num_layers": 1}, 1, False),
    "1 layer, old": ({"num_layers": 1, "activation": "ssp"}, -1, True),
    "2 layers": ({}, 0, False),
    "2 layers, old": ({}, 2, True),
    "3 layers": ({"num_layers": 3}, -2, False),
    "3 layers, old": ({"num_layers": 3, "rbf_type": "gauss"}, 0, True),
    "gauss": ({"rbf_type": "gauss"}, 1, False),
    "gauss, trainable": ({"rbf_type": "gauss", "trainable_rbf": True}, 0, False),
    "expnorm, trainable": ({"trainable_rbf": True}, 1, True),
    "ssp": ({"activation": "ssp"}, 0, False),
    "tanh": ({"activation": "tanh"}, 1, False),
    "sigmoid": ({"activation": "sigmoid"}, 0, False),
    "swish": ({"activation": "swish"}, 0, True),
    "mish": ({"activation": "mish"}, 1, False),
    "SO(3)": ({"equivariance_invariance_group": "SO(3)"}, 0, False),
    "SO(3), charge, old": ({"equivariance_invariance_group": "SO(3)"}, 1, True),
    "SO(3), gauss": ({"equivariance_invariance_group": "SO(3)", "rbf_type": "gauss"}, -1, False),
    "lower cutoff": ({"cutoff_lower": 1.2}, 0, False),
    "lower cutoff, gauss": ({"cutoff_lower": 1.2, "rbf_type": "gauss"}, 1, True),
    "Atomref": ({"prior_model": "Atomref", "prior_args": ATOMREF}, 0, False),
    "Atomref in a list": ({"prior_model": [{"Atomref": ATOMREF}]}, 1, True),
    "Atomref, off": (
        {"prior_model": ["Atomref"], "prior_args": [ATOMREF | {"enable": False}]},
        0,
        False,
    ),
    "ZBL": ({"prior_model": ["ZBL"], "prior_args": [ZBL]}, 0, False),
    "ZBL beyond the cutoff": (
        {"prior_model": ["ZBL"], "prior_args": [ZBL | {"cutoff_distance": 6.0}]},
        1,
        False,
    ),
    "Atomref and ZBL": (
        {"prior_model": ["Atomref", "ZBL"], "prior_args": [ATOMREF, ZBL]},
        1,
        True,
    ),
    "two Atomrefs": (
        {"prior_model": ["Atomref", "Atomref"], "prior_args": [ATOMREF] * 2},
        0,
        False,
    ),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torchmdnet_in_float64(variant: str, tmp_path: Path) -> None:
    changes, charge, old = VARIANTS[variant]
    model, arguments = make_model(**changes)
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments, old_layout=old))
    assert isinstance(potential, Potential)
    assert potential.dtype == torch.float64
    assert not potential.training
    energy, forces = reference(model, NUMBERS, positions(), charge)
    prediction = potential(graph(potential, NUMBERS, positions(), charge))
    assert_agree(prediction, energy, forces, energy_relative=1e-9, forces_absolute=1e-9)
    assert prediction.energies.sum().item() == pytest.approx(energy, rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torchmdnet_in_float32(variant: str, tmp_path: Path) -> None:
    changes, charge, old = VARIANTS[variant]
    model, arguments = make_model(**changes, precision=32)
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments, old_layout=old))
    assert potential.dtype == torch.float32
    energy, forces = reference(model, NUMBERS, positions(), charge, torch.float32)
    prediction = potential(graph(potential, NUMBERS, positions(), charge))
    assert_agree(prediction, energy, forces, energy_relative=1e-5, forces_relative=1e-5)


def test_float32_file_in_float64(tmp_path: Path) -> None:
    model, arguments = make_model(precision=32)
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments)).double()
    energy, forces = reference(model.double(), NUMBERS, positions(), 1)
    prediction = potential(graph(potential, NUMBERS, positions(), 1))
    assert_agree(prediction, energy, forces, energy_relative=1e-9, forces_absolute=1e-9)


def test_only_the_file_says_which_layout_it_has(tmp_path: Path) -> None:
    # A control: the same tensors read in the other layout are another potential.
    model, arguments = make_model()
    new = save(tmp_path / "new.ckpt", model, arguments)
    mislabelled = save(tmp_path / "wrong.ckpt", model, arguments | {"check_errors": False})
    energies = []
    for path in (new, mislabelled):
        potential = load_potential(path)
        energies.append(potential(graph(potential, NUMBERS, positions())).energy.item())
    assert energies[0] == pytest.approx(reference(model, NUMBERS, positions())[0], rel=1e-9)
    assert abs(energies[1] - energies[0]) > 1e-3


def test_charge_and_sign_of_directions_matter(tmp_path: Path) -> None:
    # Controls of the parity above: what it must have compared changes the energy.
    model, arguments = make_model(equivariance_invariance_group="SO(3)")
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments))
    energy = potential(graph(potential, NUMBERS, positions())).energy.item()
    charged = potential(graph(potential, NUMBERS, positions(), 1)).energy.item()
    mirrored = potential(graph(potential, NUMBERS, -positions())).energy.item()
    assert abs(charged - energy) > 1e-4
    assert abs(mirrored - energy) > 1e-4


def test_names_of_older_versions(tmp_path: Path) -> None:
    model, arguments = make_model(prior_model="Atomref", prior_args=ATOMREF)
    content = torch.load(save(tmp_path / "m.ckpt", model, arguments), weights_only=True)
    content["state_dict"] = {
        key.replace("output_network.layers.", "output_network.").replace(
            "prior_model.0.", "prior_model."
        ): tensor
        for key, tensor in content["state_dict"].items()
        if not key.endswith("distance.box")
    }
    for key in ("equivariance_invariance_group", "static_shapes", "precision", "atom_filter"):
        del content["hyper_parameters"][key]
    torch.save(content, tmp_path / "old.ckpt")
    potential = load_potential(tmp_path / "old.ckpt")
    energy, forces = reference(model, NUMBERS, positions())
    prediction = potential(graph(potential, NUMBERS, positions()))
    assert_agree(prediction, energy, forces, energy_relative=1e-9, forces_absolute=1e-9)


def test_learnable_references(tmp_path: Path) -> None:
    # torchmd-net cannot create this prior from the options that it writes itself.
    model, arguments = make_model(prior_model="Atomref", prior_args=ATOMREF)
    learnable = arguments | {
        "prior_model": ["LearnableAtomref"],
        "prior_args": [{"max_z": 20, "trainable": True, "enable": True}],
    }
    potential = load_potential(save(tmp_path / "m.ckpt", model, learnable))
    energy, _ = reference(model, NUMBERS, positions())
    found = potential(graph(potential, NUMBERS, positions())).energy.item()
    assert found == pytest.approx(energy, rel=1e-9)


@pytest.mark.parametrize(
    ("changes", "given", "expected", "stated"),
    [
        ({}, None, list(range(1, 20)), False),
        ({}, [8, 1], [1, 8], True),
        ({"prior_model": "Atomref", "prior_args": ATOMREF}, None, list(REFERENCE_ENERGIES), True),
        (
            {"prior_model": "Atomref", "prior_args": ATOMREF | {"enable": False}},
            None,
            list(REFERENCE_ENERGIES),
            True,
        ),
        (
            {"prior_model": "ZBL", "prior_args": ZBL | {"atomic_number": [0, 1, 0, 0, 0, 0, 6]}},
            None,
            [1, 6],
            False,
        ),
    ],
)
def test_elements(
    changes: dict[str, Any],
    given: list[int] | None,
    expected: list[int],
    stated: bool,
    tmp_path: Path,
) -> None:
    model, arguments = make_model(**changes)
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments), elements=given)
    assert potential.elements == expected
    assert potential.metadata["elements_stated"] is stated


def test_units(tmp_path: Path) -> None:
    model, arguments = make_model()
    path = save(tmp_path / "m.ckpt", model, arguments)
    energy, forces = reference(model, NUMBERS, positions())
    potential = load_potential(path, units=("nm", "kcal/mol"))
    assert potential.cutoff == pytest.approx(45.0)
    prediction = potential(graph(potential, NUMBERS, 10 * positions()))
    factor = kcal_per_mol_in_ev
    assert_agree(
        prediction,
        energy * factor,
        forces * factor / 10,
        energy_relative=1e-9,
        forces_absolute=1e-9,
    )
    assert potential.metadata["units_stated"] is True


def test_one_warning_where_units_are_assumed(tmp_path: Path) -> None:
    model, arguments = make_model()
    paths = [save(tmp_path / f"{i}.ckpt", model, arguments) for i in range(3)]
    with pytest.warns(UserWarning, match="does not state its units") as warned:
        load_potential(paths)
    assert len(warned) == 1


def test_metadata_tells_where_it_comes_from(tmp_path: Path) -> None:
    model, arguments = make_model(charge=True, remove_ref_energy=True)
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments, old_layout=True))
    metadata = potential.metadata
    assert metadata["source"]["format"] == "torchmd-net checkpoint"
    assert metadata["source"]["file"] == "m.ckpt"
    assert metadata["source"]["layout"] == "[F, 3]"
    assert metadata["training"] == {"dataset": "Custom", "lr": 1e-3}
    assert metadata["trained_with_charge"] is True
    assert "removed" in metadata["reference_energies"]
    assert potential.architecture == "TensorNet"


def test_loading_draws_no_random_numbers_and_keeps_the_default_dtype(tmp_path: Path) -> None:
    model, arguments = make_model()
    path = save(tmp_path / "m.ckpt", model, arguments)
    before = torch.get_rng_state()
    load_potential(path)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.get_default_dtype() == torch.float32


def test_scripts_and_copies(tmp_path: Path) -> None:
    model, arguments = make_model(prior_model=["ZBL"], prior_args=[ZBL])
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments))
    molecule = graph(potential, NUMBERS, positions())
    expected = potential(molecule).energy.item()
    assert torch.jit.script(potential)(molecule).energy.item() == pytest.approx(expected)
    assert copy.deepcopy(potential)(molecule).energy.item() == expected


# Bad input


def test_types_that_are_no_elements(tmp_path: Path) -> None:
    mapped = ZBL | {"atomic_number": [0, 1, 6, 8] + [0] * 16}
    model, arguments = make_model(prior_model=["ZBL"], prior_args=[mapped])
    path = save(tmp_path / "m.ckpt", model, arguments)
    with pytest.raises(ValueError, match=r"m\.ckpt.*type 2 are element 6.*atomic numbers"):
        load_potential(path)


def test_elements_without_a_row(tmp_path: Path) -> None:
    model, arguments = make_model()
    path = save(tmp_path / "m.ckpt", model, arguments)
    with pytest.raises(ValueError, match=r"\[20, 92\].*1 to 19"):
        load_potential(path, elements=[1, 20, 92])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["state_dict"].pop("model.representation_model.linear.bias"), "no tensor"),
        (lambda c: c["state_dict"].update({"model.extra": torch.ones(1)}), "not have.*extra"),
        (
            lambda c: c["state_dict"].update(
                {"model.representation_model.linear.bias": torch.ones(3).double()}
            ),
            r"shape \(3,\).*expected \(16,\)",
        ),
        (
            lambda c: c["state_dict"]["model.representation_model.linear.bias"].fill_(torch.nan),
            "16 of 16 values.*NaN or infinite",
        ),
        (
            lambda c: c["state_dict"].update({"model.mean": torch.ones(2)}),
            "2 values: expected one",
        ),
        (lambda c: c["hyper_parameters"].update(model="mace"), "unknown architecture 'mace'"),
        (lambda c: c["hyper_parameters"].pop("num_rbf"), "lack num_rbf"),
        (lambda c: c["hyper_parameters"].update(rbf_type="sine"), "no tensor"),
        (lambda c: c["hyper_parameters"].update(activation="relu"), "unknown activation 'relu'"),
        (lambda c: c.update(hyper_parameters=[1]), "expected a dict"),
        (lambda c: c.update(state_dict=[1]), "no dict of tensors"),
        (lambda c: c["hyper_parameters"].update(prior_model=["Magic"]), "unknown prior 'Magic'"),
        (lambda c: c["hyper_parameters"].update(prior_model=["ZBL"]), "ZBL prior lacks cutoff"),
        (
            lambda c: c["hyper_parameters"].update(prior_model=["Coulomb"]),
            "Coulomb prior.*partial charges",
        ),
    ],
)
def test_what_is_wrong_with_a_checkpoint_is_said(
    change: Any, message: str, tmp_path: Path
) -> None:
    model, arguments = make_model()
    content = torch.load(save(tmp_path / "m.ckpt", model, arguments), weights_only=True)
    change(content)
    torch.save(content, tmp_path / "bad.ckpt")
    with pytest.raises(ValueError, match=rf"bad\.ckpt.*{message}"):
        load_potential(tmp_path / "bad.ckpt")


def test_plain_data_that_checkpoints_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # Lightning before 1.5 kept the states of callbacks under their classes.
    module = ModuleType("pytorch_lightning.callbacks.early_stopping")
    early_stopping = type("EarlyStopping", (), {"__module__": module.__name__})
    monkeypatch.setattr(module, "EarlyStopping", early_stopping, raising=False)
    for name in ("pytorch_lightning", "pytorch_lightning.callbacks", module.__name__):
        monkeypatch.setitem(sys.modules, name, module)
    model, arguments = make_model()
    arguments["cutoff_upper"] = np.float64(4.5)
    arguments["log_dir"] = tmp_path
    content = torch.load(save(tmp_path / "m.ckpt", model, arguments), weights_only=False)
    content["hyper_parameters"] = argparse.Namespace(**content["hyper_parameters"])
    content["callbacks"] = {early_stopping: {"patience": 3}}
    torch.save(content, tmp_path / "m.ckpt")
    monkeypatch.undo()
    assert load_potential(tmp_path / "m.ckpt").cutoff == 4.5


def test_files_read_by_many_threads(tmp_path: Path) -> None:
    model, arguments = make_model(num_layers=0)
    arguments["cutoff_upper"] = np.float64(4.5)
    path = save(tmp_path / "m.ckpt", model, arguments)
    with ThreadPoolExecutor(4) as pool:
        potentials = list(pool.map(lambda _: load_potential(path), range(16)))
    assert {potential.cutoff for potential in potentials} == {4.5}
