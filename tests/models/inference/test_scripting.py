"""TorchScript, copies and state dicts of a potential."""

from __future__ import annotations

import copy
import io
from typing import Any

import pytest
import torch
from support.helpers import (
    REFERENCES,
    crystal,
    ethanol,
    make_potential,
    predict,
)
from support.script_cases import assert_equal_physics

from tensormd.models.inference.backends import compile_potential
from tensormd.models.maths.activations import ACTIVATIONS

MODELS: dict[str, dict[str, Any]] = {
    "0-layers": {"layers": 0},
    "3-layers": {"layers": 3},
    "everything": {"zbl": 3.0, "references": REFERENCES, "head": "gated", "cutoff_lower": 0.3},
    "gauss": {"radial": "gauss", "trainable_radial": True},
    "bessel-SO(3)": {"radial": "bessel", "group": "SO(3)", "head": "linear"},
    "no-self-interaction": {"self_interaction": False},
    "no-A": {"irreps": "IS"},
    "nm": {"length_unit": "nm", "energy_unit": "kJ/mol", "cutoff": 0.45, "scale": 300.0},
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [*[(name, torch.float64) for name in MODELS], ("everything", torch.float32)],
)
def test_script_equals_eager(name: str, dtype: torch.dtype) -> None:
    potential = make_potential(**MODELS[name]).to(dtype)
    assert_equal_physics(torch.jit.script(potential), potential, dtype)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_compiles(activation: str) -> None:
    potential = make_potential(layers=1, activation=activation)
    scripted = compile_potential(potential)
    assert isinstance(scripted, torch.jit.ScriptModule)
    for system in (ethanol(), crystal(), ethanol()):
        forces = predict(potential, system).forces
        assert forces.abs().max() > 1e-2
        assert (predict(scripted, system).forces - forces).abs().max() < 1e-11


def test_saved_script_is_the_same_function() -> None:
    potential = make_potential(references=REFERENCES, zbl=3.0)
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(potential), buffer)
    buffer.seek(0)
    assert_equal_physics(torch.jit.load(buffer), potential, torch.float64)


def test_script_follows_new_weights() -> None:
    """A compiled potential shares its weights with the one it was made from."""
    potential = make_potential()
    scripted = torch.jit.script(potential)
    before = predict(scripted, ethanol()).energy
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter *= 1.1
    after = predict(scripted, ethanol()).energy
    assert abs(after - before).item() > 1e-3
    assert abs(after - predict(potential, ethanol()).energy).item() < 1e-11


def test_copy_is_independent() -> None:
    potential = make_potential(references=REFERENCES)
    copied = copy.deepcopy(potential)
    expected = predict(potential, ethanol())
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.zero_()
    potential.atomic_scale.references.zero_()
    for a, b in zip(predict(copied, ethanol()), expected, strict=True):
        assert torch.equal(a, b)
    assert (copied.elements, copied.cutoff) == (potential.elements, potential.cutoff)


@pytest.mark.parametrize("options", MODELS.values(), ids=MODELS.keys())
def test_state_dict_holds_all_that_varies(options: dict[str, Any]) -> None:
    potential = make_potential(seed=0, **options)
    other = make_potential(seed=1, **(options | {"references": None}))
    expected = predict(potential, ethanol())
    assert abs(predict(other, ethanol()).energy - expected.energy).item() > 1e-3
    names = potential.state_dict().keys()
    assert {"atomic_scale.references", "atomic_scale.scale", "atomic_scale.mean"} <= names
    assert not any("basis" in name for name in names)
    other.load_state_dict(potential.state_dict())
    for a, b in zip(predict(other, ethanol()), expected, strict=True):
        assert torch.equal(a, b)
