"""Other architectures of torchmd-net, run as its own modules with our edges."""

from __future__ import annotations

import copy
import pickle
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.calculator import PropertyNotImplementedError
from support.checkpoint_helpers import (
    ATOMREF,
    D2,
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
from support.helpers import (
    System,
    numerical_forces,
    numerical_virial,
    relative_error,
    supercell,
)

from tensormd.calculators import PotentialCalculator
from tensormd.models import NeighborList, batch_graphs
from tensormd.models.checkpoint import describe, load_potential, save_potential
from tensormd.models.graph import displacements
from tensormd.models.inference.hessian import hessian
from tensormd.models.networks.torchmdnet import TorchMDNetPotential
from tensormd.models.units import kcal_per_mol_in_ev

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not state its units"),
    pytest.mark.filterwarnings("ignore:Skipping gradients for"),
]


@pytest.fixture(autouse=True)
def _plain(monkeypatch: pytest.MonkeyPatch) -> None:
    plain_operators(monkeypatch)


# With sums over atoms it is a network of our own: see test_tensornet2.
TENSORNET2 = {"model": "tensornet2", "reduce_op": "mean"}
COULOMB = TENSORNET2 | {
    "output_model": "ScalarPlusWeightedCoulomb",
    "q_weights": [0.2, 0.3, 1.0],
}
VARIANTS: dict[str, dict[str, Any]] = {
    "graph-network": {"model": "graph-network"},
    "graph-network, plain": {"model": "graph-network", "neighbor_embedding": False},
    "graph-network, mean": {"model": "graph-network", "reduce_op": "mean"},
    "transformer": {"model": "transformer"},
    "transformer, lower cutoff": {"model": "transformer", "cutoff_lower": 1.2},
    "equivariant-transformer": {"model": "equivariant-transformer"},
    "equivariant-transformer, gauss": {
        "model": "equivariant-transformer",
        "rbf_type": "gauss",
        "vector_cutoff": False,
        "cutoff_lower": 1.2,
        "prior_model": ["Atomref"],
        "prior_args": [ATOMREF],
    },
    "tensornet2": TENSORNET2,
    "tensornet2, SO(3)": TENSORNET2 | {"equivariance_invariance_group": "SO(3)"},
    "tensornet2, repulsion": TENSORNET2 | {"repulsion": True},
    "tensornet2, Coulomb": COULOMB,
    "tensornet2, Coulomb with a cutoff": COULOMB | {"coulomb_cutoff": 5.5},
    "tensornet, D2": {"prior_model": ["Atomref", "D2"], "prior_args": [ATOMREF, D2]},
    "tensornet, mean": {"reduce_op": "mean"},
    "tensornet, two ZBL": {"prior_model": ["ZBL", "ZBL"], "prior_args": [ZBL, ZBL]},
}
NO_ATOM_ENERGIES = {
    "graph-network, mean",
    "tensornet2",
    "tensornet2, SO(3)",
    "tensornet2, repulsion",
    "tensornet2, Coulomb",
    "tensornet2, Coulomb with a cutoff",
    "tensornet, D2",
    "tensornet, mean",
    "tensornet, two ZBL",
}


def load(tmp_path: Path, model: Any, arguments: Any, **options: Any) -> TorchMDNetPotential:
    potential = load_potential(save(tmp_path / "m.ckpt", model, arguments, **options))
    assert isinstance(potential, TorchMDNetPotential)
    return potential


@pytest.mark.parametrize("variant", VARIANTS)
def test_equals_torchmdnet(variant: str, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS[variant])
    potential = load(tmp_path, model, arguments)
    assert potential.dtype == torch.float64
    charge = 1.0 if arguments["model"] == "tensornet2" else 0.0
    energy, forces = reference(model, NUMBERS, positions(), charge)
    molecule = graph(potential, NUMBERS, positions(), charge)
    with default_dtype(torch.float64):
        prediction = potential(molecule)
    assert_agree(prediction, energy, forces, energy_relative=1e-9, forces_absolute=1e-9)
    assert not any(tensor.requires_grad for tensor in prediction)
    if variant in NO_ATOM_ENERGIES:
        assert not potential.has_atom_energies
        assert prediction.energies.isnan().all()
    else:
        assert prediction.energies.sum().item() == pytest.approx(energy, rel=1e-9)
        assert prediction.energies.std() > 1e-3


@pytest.mark.parametrize("variant", ["graph-network", "equivariant-transformer", "tensornet2"])
def test_equals_torchmdnet_in_float32(variant: str, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS[variant], precision=32)
    potential = load(tmp_path, model, arguments)
    energy, forces = reference(model, NUMBERS, positions(), 0, torch.float32)
    prediction = potential(graph(potential, NUMBERS, positions()))
    assert_agree(prediction, energy, forces, energy_relative=1e-5, forces_relative=1e-5)


def test_old_layout(tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS["tensornet2"])
    released = arguments | {"model": "tensornetv2_alt"}  # the name in the file of AceFF 2
    energy, forces = reference(model, NUMBERS, positions(), -1)
    path = save(tmp_path / "old.ckpt", model, arguments, old_layout=True)
    content = torch.load(path, weights_only=True)
    content["hyper_parameters"]["model"] = released["model"]
    torch.save(content, path)
    potential = load_potential(path)
    prediction = potential(graph(potential, NUMBERS, positions(), -1))
    assert_agree(prediction, energy, forces, energy_relative=1e-9, forces_absolute=1e-9)
    assert potential.architecture == "TensorNet2"
    # The control: without the mark of its age the file is another potential.
    del content["hyper_parameters"]["check_errors"]
    torch.save(content, path)
    other = load_potential(path)(graph(potential, NUMBERS, positions(), -1)).energy.item()
    assert abs(other - energy) > 1e-3


def test_compiled_operators_of_torchmdnet_stay_as_they_were(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    import torchmdnet.models.tensornet2 as module

    before = (module.OPT, module.compose_tensor)
    model, arguments = make_model(**VARIANTS["tensornet2, SO(3)"])
    potential = load(tmp_path, model, arguments)
    same, _ = reference(model, NUMBERS, positions())
    mirrored, _ = reference(model, NUMBERS, -positions())  # theirs flip the sign of A
    found = potential(graph(potential, NUMBERS, positions())).energy.item()
    assert found == pytest.approx(mirrored, rel=1e-6)  # theirs have constants in float32
    assert found != pytest.approx(same, rel=1e-4)
    assert (module.OPT, module.compose_tensor) == before


def crystal_of(numbers: Array, edge: float, seed: int = 5) -> System:
    """A dense triclinic cell, rotated so that no lattice vector lies on an axis."""
    cell = np.array([[edge, 0.3, -0.2], [-0.4, edge, 0.5], [0.6, -0.3, edge + 0.4]])
    scaled = positions(len(numbers), seed, 5.0) / 5.0
    return System(numbers, scaled @ cell, cell, True)


def crystal_away_from(*cutoffs: float) -> System:
    """The first crystal in which finite differences are sharp.

    No atoms are near each other, and no pair is near a cutoff, where energies have kinks.
    """
    for seed in range(5000):
        system = crystal_of(NUMBERS, 5.2, seed)
        distances = displacements(system.graph(max(cutoffs) + 0.1)).norm(dim=1)
        if distances.min() > 0.85 and all((distances - c).abs().min() > 0.005 for c in cutoffs):
            return system
    raise AssertionError("no such crystal: change the limits")


PERIODIC = {
    "graph-network": VARIANTS["graph-network"],
    "transformer": VARIANTS["transformer"],
    "equivariant-transformer": VARIANTS["equivariant-transformer"],
    "tensornet2": VARIANTS["tensornet2"],
    "tensornet2, Coulomb with a cutoff": COULOMB | {"coulomb_cutoff": 5.5},
    "tensornet, D2": {"prior_model": ["D2"], "prior_args": [D2 | {"cutoff_distance": 6.0}]},
}


@pytest.mark.parametrize("variant", PERIODIC)
def test_any_cell_and_its_virial(variant: str, tmp_path: Path) -> None:
    # Where torchmd-net itself is wrong (rotated cells, cells below twice the cutoff) the
    # supercell, finite differences and the energy of an image are the measure.
    model, arguments = make_model(**PERIODIC[variant])
    potential = load(tmp_path, model, arguments)
    system = crystal_away_from(4.5, potential.cutoff)
    prediction = potential(system.graph(potential.cutoff))
    assert relative_error(prediction.forces, numerical_forces(potential, system)) < 1e-7
    assert relative_error(prediction.virial[0], numerical_virial(potential, system)) < 1e-7
    if "Coulomb" not in variant and variant != "tensornet2":  # charges are those of the cell
        doubled = potential(supercell(system, (2, 1, 1)).graph(potential.cutoff)).energy.item()
        assert doubled - 2 * prediction.energy.item() == pytest.approx(
            -potential.model.mean.item(),
            abs=1e-8,  # once a system
        )


def test_virial_of_a_coulomb_sum_over_all_pairs(tmp_path: Path) -> None:
    model, arguments = make_model(**COULOMB)
    potential = load(tmp_path, model, arguments)
    system = System(NUMBERS, positions() + 1000.0)
    prediction = potential(system.graph(potential.cutoff))
    assert relative_error(prediction.forces, numerical_forces(potential, system)) < 1e-6
    strained = numerical_virial(potential, System(NUMBERS, positions()))
    assert relative_error(prediction.virial[0], strained) < 1e-7


@pytest.mark.parametrize("variant", ["graph-network, plain", "tensornet, D2"])
def test_own_images_where_the_network_can_tell_them(variant: str, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS[variant])
    potential = load(tmp_path, model, arguments)
    if variant == "tensornet, D2":  # D2 reaches the images, the network does not
        system = crystal_of(NUMBERS, 5.2)
    else:
        system = crystal_of(NUMBERS[:3], 3.2)
    prediction = potential(system.graph(potential.cutoff))
    index = system.graph(potential.cutoff).edge_index
    assert (index[0] == index[1]).any()
    big = potential(supercell(system, (2, 2, 2)).graph(potential.cutoff)).energy.item()
    mean = potential.model.mean.item()
    assert (big - mean) / 8 == pytest.approx(prediction.energy.item() - mean, rel=1e-9)


@pytest.mark.parametrize("variant", VARIANTS)
def test_batch_equals_one_by_one(variant: str, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS[variant])
    potential = load(tmp_path, model, arguments)
    graphs = [
        graph(potential, NUMBERS, positions(seed=1), 1),
        graph(potential, NUMBERS[:5], positions(5, 2), 0),
        graph(potential, NUMBERS[:2], np.array([[0.0, 0, 0], [0, 0, 30.0]])),  # no pair in reach
    ]
    together = potential(batch_graphs(graphs))
    parts = [potential(one) for one in graphs]
    for field in ("energy", "energies", "forces", "virial"):
        apart = torch.cat([getattr(part, field) for part in parts])
        torch.testing.assert_close(
            getattr(together, field), apart, rtol=1e-10, atol=1e-10, equal_nan=True
        )
    assert together.forces.abs().max() > 1e-2


def test_more_neighbours_than_torchmdnet_allows(tmp_path: Path) -> None:
    model, arguments = make_model(model="graph-network", max_num_neighbors=2)
    potential = load(tmp_path, model, arguments)
    prediction = potential(graph(potential, NUMBERS, positions()))
    larger, _ = make_model(model="graph-network", max_num_neighbors=64)
    energy, _ = reference(larger, NUMBERS, positions())
    assert prediction.energy.item() == pytest.approx(energy, rel=1e-9)


def test_units(tmp_path: Path) -> None:
    model, arguments = make_model(model="equivariant-transformer")
    path = save(tmp_path / "m.ckpt", model, arguments)
    potential = load_potential(path, units=("nm", "kcal/mol"))
    energy, forces = reference(model, NUMBERS, positions())
    prediction = potential(graph(potential, NUMBERS, 10 * positions()))
    factor = kcal_per_mol_in_ev
    assert_agree(
        prediction,
        energy * factor,
        forces * factor / 10,
        energy_relative=1e-9,
        forces_absolute=1e-9,
    )


@pytest.mark.parametrize("variant", VARIANTS)
def test_native_file_gives_the_same_numbers(variant: str, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS[variant])
    potential = load(tmp_path, model, arguments)
    save_potential(potential, tmp_path / "native.safetensors")
    again = load_potential(tmp_path / "native.safetensors")
    assert describe(again) == describe(potential)
    molecule = graph(potential, NUMBERS, positions(), 1)
    assert torch.equal(again(molecule).energy, potential(molecule).energy)
    assert torch.equal(again(molecule).forces, potential(molecule).forces)
    save_potential(again, tmp_path / "twice.safetensors")
    first, second = (
        (tmp_path / n).read_bytes() for n in ("native.safetensors", "twice.safetensors")
    )
    assert first == second


@pytest.mark.parametrize(
    "copier", [copy.deepcopy, lambda p: pickle.loads(pickle.dumps(p))], ids=["deepcopy", "pickle"]
)
def test_copies(copier: Any, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS["tensornet2, SO(3)"])
    potential = load(tmp_path, model, arguments).float().requires_grad_(False)
    other = copier(potential)
    assert other.dtype == torch.float32
    assert not other.training
    assert not any(parameter.requires_grad for parameter in other.parameters())
    molecule = graph(potential, NUMBERS, positions(), 1)
    assert torch.equal(other(molecule).forces, potential(molecule).forces)
    with torch.no_grad():
        next(other.parameters()).zero_()
    assert next(potential.parameters()).abs().max() > 0


def test_coulomb_cutoff_can_be_set(tmp_path: Path) -> None:
    model, arguments = make_model(**COULOMB)
    potential = load(tmp_path, model, arguments).with_coulomb_cutoff(5.5)
    assert potential.cutoff == 5.5
    expected, _ = make_model(**COULOMB, coulomb_cutoff=5.5)
    energy, _ = reference(expected, NUMBERS, positions())
    found = potential(graph(potential, NUMBERS, positions())).energy.item()
    assert found == pytest.approx(energy, rel=1e-9)
    with pytest.raises(ValueError, match="Coulomb energy is -1"):
        potential.with_coulomb_cutoff(-1)


@pytest.mark.parametrize("variant", ["equivariant-transformer", "tensornet2, Coulomb"])
def test_second_derivatives(variant: str, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS[variant])
    potential = load(tmp_path, model, arguments)
    points, step = positions(), 1e-5
    matrix = hessian(potential.total_energy, graph(potential, NUMBERS, points))
    for atom, axis in ((0, 1), (4, 2)):
        moved = [points.copy(), points.copy()]
        moved[0][atom, axis] += step
        moved[1][atom, axis] -= step
        up, down = (potential(graph(potential, NUMBERS, p)).forces for p in moved)
        column = -(up - down).reshape(-1) / (2 * step)
        assert relative_error(matrix[:, 3 * atom + axis], column) < 1e-5


@pytest.mark.parametrize("variant", ["tensornet2, Coulomb", "tensornet, D2"])
def test_in_a_calculator(variant: str, tmp_path: Path) -> None:
    model, arguments = make_model(**VARIANTS[variant])
    path = save(tmp_path / "m.ckpt", model, arguments)
    calculator = PotentialCalculator(path, dtype="float64", charge=0)
    for other in (calculator, pickle.loads(pickle.dumps(calculator)), copy.deepcopy(calculator)):
        atoms = Atoms(NUMBERS, positions(), calculator=other)
        energy, forces = reference(model, NUMBERS, positions())
        assert atoms.get_potential_energy() == pytest.approx(energy, rel=1e-9)
        np.testing.assert_allclose(atoms.get_forces(), forces, rtol=0, atol=1e-6)
        if variant in NO_ATOM_ENERGIES:
            with pytest.raises(PropertyNotImplementedError):
                atoms.get_potential_energies()
        else:
            assert atoms.get_potential_energies().sum() == pytest.approx(energy, rel=1e-9)


def test_what_it_runs_as_and_what_that_costs_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    model, arguments = make_model(model="equivariant-transformer")
    path = save(tmp_path / "m.ckpt", model, arguments)
    said = describe(load_potential(path))["runs_as"]
    assert said.startswith("torchmd-net's own module")
    assert "times as long" in said
    calculator = PotentialCalculator(path)
    with caplog.at_level("INFO", logger="tensormd"):
        assert calculator.info()["runs_as"] == [said]
    assert f"TorchMD_ET runs as {said}" in caplog.text


def test_loading_leaves_the_process_as_it_was(tmp_path: Path) -> None:
    model, arguments = make_model(model="transformer")
    path = save(tmp_path / "m.ckpt", model, arguments)
    filters, random = list(warnings.filters), torch.get_rng_state()
    load_potential(path, units=("angstrom", "ev"))
    assert list(warnings.filters) == filters
    assert torch.equal(torch.get_rng_state(), random)
    assert torch.get_default_dtype() == torch.float32


# Bad input


def test_coulomb_sum_over_all_pairs_in_a_cell(tmp_path: Path) -> None:
    model, arguments = make_model(**COULOMB)
    potential = load(tmp_path, model, arguments)
    with pytest.raises(ValueError, match=r"periodic cell.*with_coulomb_cutoff"):
        potential(crystal_of(NUMBERS, 8.0).graph(potential.cutoff))


def test_cell_smaller_than_the_cutoff(tmp_path: Path) -> None:
    model, arguments = make_model(model="equivariant-transformer")
    potential = load(tmp_path, model, arguments)
    with pytest.raises(ValueError, match=r"own image.*repeat the structure"):
        potential(crystal_of(NUMBERS[:3], 3.2).graph(potential.cutoff))


@pytest.mark.parametrize("output", ["DipoleMoment", "ElectronicSpatialExtent", "VectorOutput"])
def test_outputs_that_are_no_energy(output: str, tmp_path: Path) -> None:
    model, arguments = make_model()
    path = save(tmp_path / "m.ckpt", model, arguments | {"output_model": output})
    with pytest.raises(ValueError, match=rf"m\.ckpt.*{output}.*no energy"):
        load_potential(path)


def test_atom_filter(tmp_path: Path) -> None:
    model, arguments = make_model()
    path = save(tmp_path / "m.ckpt", model, arguments | {"atom_filter": 1})
    with pytest.raises(ValueError, match="atom_filter"):
        load_potential(path)


def test_tensors_of_another_model(tmp_path: Path) -> None:
    model, arguments = make_model(model="graph-network")
    path = save(tmp_path / "m.ckpt", model, arguments | {"num_layers": 3})
    with pytest.raises(ValueError, match=r"m\.ckpt.*lacks representation_model\.interactions\.2"):
        load_potential(path)


def test_hyper_parameters_that_make_no_model(tmp_path: Path) -> None:
    model, arguments = make_model(model="transformer")
    path = save(tmp_path / "m.ckpt", model, arguments | {"num_heads": 3})
    with pytest.raises(ValueError, match=r"m\.ckpt.*cannot build the model.*heads"):
        load_potential(path)


def test_neighbor_list_is_ours() -> None:
    # The helper's graph has the edges in both directions and no edge of an atom to itself.
    index = NeighborList(4.5).graph(NUMBERS, positions()).edge_index
    assert index.shape[1] > 50
    assert (index[0] != index[1]).all()
