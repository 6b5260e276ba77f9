"""State dicts of the released TDN, against an implementation from its description."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.helpers import System, ethanol, numerical_forces, relative_error
from support.tdn_release_model import ReleasedTDN
from torch import Tensor

from tensormd.calculators import TDNCalculator
from tensormd.models import Potential, batch_graphs
from tensormd.models.checkpoint import describe, load_potential, save_potential
from tensormd.models.checkpoint.loading import convert
from tensormd.models.checkpoint.tdn_release import HARTREE, REFERENCES, read_tdn_release
from tensormd.models.inference.backends import script

SHAPES: dict[str, dict[str, Any]] = {
    "L1": {},
    "L1-exact-rank-no-force-head": {"rank": 8, "force_head": False},
    "L1-full-rank": {"rank": 16, "blocks": 1, "widths": (12,), "heads": 1},
    "L2": {"lmax": 2, "rank": 28, "channels": 12, "heads": 3, "basis": 6, "widths": (10, 14)},
    "L2-no-force-head": {
        "lmax": 2,
        "rank": 5,
        "channels": 8,
        "heads": 2,
        "blocks": 3,
        "widths": (8, 9, 10),
        "force_head": False,
    },
    "no-blocks": {"blocks": 0},
}
NO_WARNINGS = {"cutoff": 4.5, "average_degree": 18.6, "average_atoms": 36.6}

pytestmark = pytest.mark.filterwarnings("ignore:.*:UserWarning")


def fluorosulfide() -> System:
    """Nine atoms, no symmetry, some pairs beyond the cutoff."""
    random = np.random.default_rng(5)
    grid = np.array(list(np.ndindex(3, 3, 1)), dtype=float)[:, [0, 2, 1]] * 2.1
    positions = grid + 0.3 * random.normal(size=(9, 3))
    return System(np.array([6, 9, 16, 1, 7, 17, 6, 35, 8]), positions)


SYSTEMS = {"ethanol": ethanol(), "fluorosulfide": fluorosulfide()}


def reference(
    model: ReleasedTDN, system: System, *, per_atom: bool = True, references: bool = True
) -> tuple[float, Tensor]:
    """Energy in eV and forces by autograd of the network written out."""
    numbers = torch.as_tensor(system.numbers)
    positions = torch.tensor(system.positions, requires_grad=True)
    energy = model(numbers, positions) * (len(numbers) if per_atom else 1)
    forces = -torch.autograd.grad(energy, positions)[0]
    free = sum(REFERENCES[int(z)] * HARTREE for z in numbers) if references else 0.0
    return energy.item() + free, forces


def assert_same(potential: Any, model: ReleasedTDN, system: System, **options: bool) -> None:
    energy, forces = reference(model, system, **options)
    prediction = potential(system.graph(potential.cutoff))
    assert abs(prediction.energy.item() - energy) < 1e-10
    assert (prediction.forces - forces).abs().max() < 1e-10
    assert forces.abs().max() > 1e-2


def load(state: Any, tmp_path: Path, **options: Any) -> Potential:
    path = tmp_path / "tdn_best_model_True_2_64_0.0005.pth"
    torch.save(state, path)
    potential = load_potential(path, **options)
    assert isinstance(potential, Potential)
    return potential


@pytest.mark.parametrize("system", SYSTEMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_energies_and_forces(shape: str, system: str, tmp_path: Path) -> None:
    model = ReleasedTDN(**SHAPES[shape])
    potential = load(model.state(), tmp_path)
    assert potential.architecture == "TDN"
    assert_same(potential, model, SYSTEMS[system])


def exchange(name: str) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    def change(state: dict[str, Tensor]) -> dict[str, Tensor]:
        if name == "harmonics y, z, x":
            return {k: t[[0, 2, 3, 1]] if k.endswith("cp_b") else t for k, t in state.items()}
        if name == "r_i - r_j":
            sign = torch.tensor([1.0, -1, -1, -1], dtype=torch.float64)[:, None]
            return {k: sign * t if k.endswith("cp_b") else t for k, t in state.items()}
        if name == "factors in another order":
            swapped = {"cp_a": "cp_c", "cp_c": "cp_a"}
            return {k[:-4] + swapped.get(k[-4:], k[-4:]): t for k, t in state.items()}
        if name == "gates first":
            keys = (".lin_value.linear.weight", ".ffn.0.linear.weight")
            return {k: t.roll(len(t) // 2, 0) if k.endswith(keys) else t for k, t in state.items()}
        return {k: 0 * t if k.endswith(name) else t for k, t in state.items()}

    return change


@pytest.mark.parametrize(
    "name",
    [
        "harmonics y, z, x",
        "r_i - r_j",
        "factors in another order",
        "gates first",
        "atom_type_lin.bias",
        "exp.bias",
        "edge_embed.proj.bias",
        "rad.offset",
        "merge_src.bias",
        "lin_alpha.bias",
        "lin_value.bias",
        "attn.proj.bias",
        "ffn.2.bias",
        "norm.affine_bias",
        "head.2.bias",
        "rbf.bias",
    ],
)
def test_every_part_counts(name: str, tmp_path: Path) -> None:
    """The control: reading one of them otherwise is seen."""
    model = ReleasedTDN()
    potential = load(exchange(name)(model.state()), tmp_path)
    energy, _ = reference(model, ethanol())
    found = potential(ethanol().graph(potential.cutoff)).energy.item()
    assert abs(found - energy) > 1e-3
    assert_same(load(model.state(), tmp_path), model, ethanol())


@pytest.mark.parametrize("spelling", ["compiled", "whole", "parallel"])
@pytest.mark.parametrize("part", ["", "model_state_dict", "state_dict", "model", "ema"])
def test_wrapped(spelling: str, part: str, tmp_path: Path) -> None:
    model = ReleasedTDN(blocks=1)
    state: Any = model.state(spelling)
    assert any("_orig_mod." in key for key in state)
    if part:
        state = {"epoch": 3, part: state, "optimizer_state_dict": {"state": {}}}
    potential = load(state, tmp_path)
    assert potential.metadata["source"]["part"] == part
    assert_same(potential, model, ethanol())


def test_settings_that_no_tensor_tells() -> None:
    settings = {"cutoff": 3.1, "average_degree": 16.7, "average_atoms": 30.0}
    model = ReleasedTDN(**settings)
    for output, references in (("total", False), ("per_atom", True), ("per_atom", False)):
        potential = read_tdn_release(
            model.state(), "tdn.pth", **settings, output=output, references=references
        )
        assert potential.metadata["assumed"] == {}
        assert potential.cutoff == 3.1
        assert_same(
            potential, model, ethanol(), per_atom=output == "per_atom", references=references
        )


def test_what_the_description_says(tmp_path: Path) -> None:
    potential = load(ReleasedTDN(**SHAPES["L2"]).state(), tmp_path)
    described = describe(potential)
    assert described["network"] == {
        "channels": 12,
        "layers": 2,
        "lmax": 2,
        "heads": 3,
        "radial_functions": 6,
        "radial_widths": [10, 14],
        "cutoff": 4.5,
        "max_number": 80,
        "group": "SO(3)",
        "product": "cp",
        "rank": 28,
        "evaluation": "auto",
        "envelope": "none",
        "norm_epsilon": 1e-5,
        "average_degree": 18.6,
        "dropout": 0.0,
        "weights": "shared",
        "self_product": False,
        "sender_species": False,
        "degrees": None,
    }
    assert described["readout"] == {"per_atom": True}
    assert described["elements"] == sorted(REFERENCES)
    assert described["metadata"]["assumed"] == NO_WARNINGS
    assert potential.atomic_scale.scale.item() == pytest.approx(36.6**-0.5, abs=1e-15)


def test_energies_per_atom_in_a_batch(tmp_path: Path) -> None:
    potential = load(ReleasedTDN().state(), tmp_path)
    alone = [potential(system.graph(4.5)) for system in SYSTEMS.values()]
    batch = potential(batch_graphs([system.graph(4.5) for system in SYSTEMS.values()]))
    torch.testing.assert_close(batch.energy, torch.cat([p.energy for p in alone]))
    torch.testing.assert_close(batch.forces, torch.cat([p.forces for p in alone]))
    atoms = len(ethanol().numbers)
    torch.testing.assert_close(batch.energies[:atoms].sum(), batch.energy[0])


def test_an_atom_apart_counts_as_an_atom(tmp_path: Path) -> None:
    """It is not dropped; the energy, being one per atom times N, is not extensive."""
    potential = load(ReleasedTDN().state(), tmp_path)
    system = ethanol()
    before = potential(system.graph(4.5)).forces
    numbers = np.append(system.numbers, 8)
    apart = System(numbers, np.vstack([system.positions, [0, 0, 40.0]]))
    after = potential(apart.graph(4.5))
    torch.testing.assert_close(after.forces[:-1], before * len(numbers) / (len(numbers) - 1))
    assert after.forces[-1].abs().max() == 0
    assert_same(potential, ReleasedTDN(), apart)


def test_forces_are_the_gradient(tmp_path: Path) -> None:
    potential = load(ReleasedTDN().state(), tmp_path)
    forces = potential(ethanol().graph(4.5)).forces.numpy()
    assert relative_error(forces, numerical_forces(potential, ethanol())) < 1e-6


def test_float32_file(tmp_path: Path) -> None:
    model = ReleasedTDN()
    state = {key: tensor.float() for key, tensor in model.state().items()}
    potential = load(state, tmp_path)
    assert potential.dtype == torch.float32
    assert potential.representation.coupling.b.dtype == torch.float64
    found = potential(ethanol().graph(4.5))
    energy, forces = reference(model, ethanol())
    assert abs(found.energy.item() - energy) < 1e-3
    assert (found.forces - forces).abs().max() < 1e-3 * forces.abs().max()


@pytest.mark.parametrize("shape", ["L1-full-rank", "L2"])
def test_native_file_gives_the_same_numbers(shape: str, tmp_path: Path) -> None:
    model = ReleasedTDN(**SHAPES[shape])
    potential = load(model.state("compiled"), tmp_path)
    save_potential(potential, tmp_path / "native.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # it states what the other file does not
        again = load_potential(tmp_path / "native.safetensors")
    graph = ethanol().graph(4.5)
    for field in ("energy", "energies", "forces", "virial"):
        assert torch.equal(getattr(again(graph), field), getattr(potential(graph), field))
    assert describe(again) == describe(potential)
    assert_same(again, model, ethanol())


def test_convert(tmp_path: Path) -> None:
    torch.save(ReleasedTDN().state(), tmp_path / "tdn.pth")
    convert(tmp_path / "tdn.pth", tmp_path / "tdn.safetensors", elements=[1, 6, 8])
    potential = load_potential(tmp_path / "tdn.safetensors")
    assert potential.elements == [1, 6, 8]
    assert potential.metadata["elements_stated"] is True


def test_compiled(tmp_path: Path) -> None:
    model = ReleasedTDN(blocks=1)
    potential = load(model.state(), tmp_path)
    scripted = script(potential)
    energy, forces = reference(model, ethanol())
    found = scripted(ethanol().graph(4.5))
    assert abs(found.energy.item() - energy) < 1e-10
    assert (found.forces - forces).abs().max() < 1e-10


def test_calculator(tmp_path: Path) -> None:
    from ase import Atoms

    model = ReleasedTDN()
    torch.save(model.state(), tmp_path / "tdn.pth")
    system = ethanol()
    atoms = Atoms(system.numbers, system.positions)
    atoms.calc = TDNCalculator(tmp_path / "tdn.pth", dtype="float64")
    energy, forces = reference(model, system)
    assert abs(atoms.get_potential_energy() - energy) < 1e-10
    assert np.abs(atoms.get_forces() - forces.numpy()).max() < 1e-10


# Warnings


def messages(state: Any, **options: Any) -> list[str]:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        read_tdn_release(state, "tdn.pth", **options)
    return [str(warning.message) for warning in caught]


def test_warnings() -> None:
    plain, head = ReleasedTDN(force_head=False).state(), ReleasedTDN().state()
    assert messages(plain, **NO_WARNINGS) == []
    (assumed,) = messages(plain, average_degree=16.7)
    assert "cutoff = 4.5, average_atoms = 36.6" in assumed
    assert "average_degree" not in assumed
    (forces,) = messages(head, **NO_WARNINGS)
    assert "head that gives forces" in forces
    assert "gradient of the energy" in forces
    assert len(messages(head)) == 2


def test_a_head_that_was_never_trained_is_not_warned_of() -> None:
    """As it is where forces were the gradient: its biases are still zero."""
    state = ReleasedTDN().state()
    for key in state:
        if key.startswith("force_") and key.endswith("bias") and ".rad." not in key:
            state[key].zero_()
    assert messages(state, **NO_WARNINGS) == []
    state["force_head.lin_value.bias"][0, -1] = 1e-3
    assert len(messages(state, **NO_WARNINGS)) == 1


# Bad files

Change = Callable[[dict[str, Any]], Any]


def drop(key: str) -> Change:
    return lambda state: state.pop(key)


def put(key: str, value: Any) -> Change:
    return lambda state: state.update({key: value})


@pytest.mark.parametrize("key", list(ReleasedTDN(blocks=1).state()))
def test_every_tensor_is_needed_and_has_its_shape(key: str, tmp_path: Path) -> None:
    state = ReleasedTDN(blocks=1).state()
    tensor = state.pop(key)
    with pytest.raises(ValueError, match=rf"tdn_best.*has no tensor {re.escape(key)}: expected"):
        load(state, tmp_path)
    state[key] = torch.zeros(())
    with pytest.raises(ValueError, match=rf"tdn_best.*: {re.escape(key)} has the shape \(\)"):
        load(state, tmp_path)
    # Sizes are read off these: others misfit then, or a longer table of elements is right.
    misfit = {"edge_embed.tp.cp_tp.cp_a": "edge_embed.tp.cp_tp.cp_b", "rbf.mean": "rbf.std"}
    if key != "atom_embed.atom_type_lin.weight":
        state[key] = torch.cat([tensor, tensor], dim=-1)
        named = re.escape(misfit.get(key, key))
        with pytest.raises(ValueError, match=rf"tdn_best.*: {named} has the shape .* expected \("):
            load(state, tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (drop("rbf.std"), "no tensor rbf.std"),
        (drop("atom_embed.atom_type_lin.weight"), "no tensor atom_embed.atom_type_lin.weight"),
        (drop("edge_embed.tp.cp_tp.cp_a"), "no tensor edge_embed.tp.cp_tp.cp_a"),
        (drop("force_head.proj.bias"), "no tensor force_head.proj.bias"),
        (put("blocks.1.attn.extra", torch.zeros(3)), r"does not have, blocks\.1\.attn\.extra"),
        (put("blocks.3.norm1.affine_bias", torch.zeros(1, 1, 16)), r"no tensor blocks\.2\."),
        (put("rbf.mean", torch.zeros(8).double()), r"rbf\.mean has the shape \(8,\)"),
        (put("head.2.bias", torch.zeros(1, 2)), r"head\.2\.bias has the shape \(1, 2\)"),
        (put("step", 3), "step is a int: expected the tensors"),
        (put("_orig_mod.rbf.std", torch.ones(1, 8)), r"has rbf\.std twice"),
        (put("rbf.std", torch.full((1, 8), torch.nan)), r"values of rbf\.std are NaN"),
        (put("rbf.std", torch.ones(1, 8)), "weights are torch.float32, torch.float64"),
        (
            put("blocks.1.attn.tp2.cp_tp.cp_b", torch.ones(4, 7).double()),
            r"blocks\.1\.attn\.tp2\.cp_tp\.cp_b differs from edge_embed.* one set of factors",
        ),
    ],
)
def test_what_is_wrong_with_a_file_is_said(change: Change, message: str, tmp_path: Path) -> None:
    state = ReleasedTDN().state()
    load(state, tmp_path)
    change(state)
    with pytest.raises(ValueError, match=rf"tdn_best_model.*{message}") as error:
        load(state, tmp_path)
    assert "\n" not in str(error.value)


def test_degrees_without_factors(tmp_path: Path) -> None:
    state = ReleasedTDN(lmax=5, channels=4, blocks=0, rank=3).state()
    with pytest.raises(ValueError, match=r"tdn_best.*maximum degree L is 5: expected"):
        load(state, tmp_path)


def test_options(tmp_path: Path) -> None:
    state = ReleasedTDN().state()
    assert load(state, tmp_path, units=("angstrom", "eV"), elements=[8, 1]).elements == [1, 8]
    with pytest.raises(ValueError, match="leave units out"):
        load(state, tmp_path, units=("angstrom", "hartree"))
    with pytest.raises(ValueError, match=r"elements has \[30\]: expected some of those"):
        load(state, tmp_path, elements=[30])
    with pytest.raises(ValueError, match="elements has nothing"):
        load(state, tmp_path, elements=[])
    known = read_tdn_release(state, "tdn.pth", elements=[30], references=False)
    assert known.elements == [30]
    for options, message in (
        ({"cutoff": 0.0}, "cutoff is 0"),
        ({"average_atoms": float("nan")}, "average_atoms is nan"),
        ({"average_degree": -1.0}, "average_degree is -1"),
        ({"output": "mean"}, "unknown output 'mean': expected one of per_atom, total"),
    ):
        with pytest.raises(ValueError, match=message):
            read_tdn_release(state, "tdn.pth", **options)
    with pytest.raises(ValueError, match="no state dict of the released TDN"):
        read_tdn_release({"weight": torch.zeros(1)}, "tdn.pth")
