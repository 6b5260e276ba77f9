"""matgl's model folders, against energies, forces and stresses that matgl 2.0.6 computed."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase.data import atomic_numbers
from support.checkpoint_files import ELEMENT_TYPES, write_folder
from support.checkpoint_files import MATPES as FOLDER
from support.data import FOLDER as DATA_FOLDER
from support.helpers import System, ethanol

from tensormd.models import NeighborList, Potential
from tensormd.models.checkpoint import load_potential, save_potential
from tensormd.models.maths.radial import SmoothBesselBasis

REFERENCE = DATA_FOLDER / "reference" / "matgl-TensorNet-MatPES-PBE-v2025.1.json"
needs_weights = pytest.mark.skipif(
    not (FOLDER / "state.pt").exists(), reason=f"needs the weights of matgl in {FOLDER}"
)
STRUCTURES = json.loads(REFERENCE.read_text()) if REFERENCE.exists() else {"(no data)": None}


@pytest.fixture(scope="module")
def potentials() -> dict[torch.dtype, Potential]:
    return {t: load_potential(FOLDER).to(t) for t in (torch.float32, torch.float64)}


@needs_weights
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", STRUCTURES)
def test_reference_numbers(
    name: str, dtype: torch.dtype, potentials: dict[torch.dtype, Potential]
) -> None:
    reference = STRUCTURES[name]
    potential = potentials[dtype]
    # matgl takes a cell that is periodic in some directions for a molecule.
    pbc = all(reference["pbc"])
    graph = NeighborList(potential.cutoff).graph(
        reference["numbers"], reference["positions"], reference["cell"], pbc
    )
    prediction = potential(graph)
    atoms = len(reference["numbers"])
    assert abs(prediction.energy.item() - reference["energy"]) / atoms < 2e-5
    forces = np.array(reference["forces"])
    assert np.abs(prediction.forces.numpy() - forces).max() < 1e-4
    if atoms > 1:
        assert np.abs(forces).max() > 0.1
    if reference["stress"] is not None:
        volume = abs(np.linalg.det(reference["cell"]))
        stress = -prediction.virial[0].numpy() / volume
        expected = np.array(reference["stress"])
        assert np.abs(expected).max() > 1e-4  # so that the sign is compared too
        assert np.abs(stress - expected).max() < 1e-5


@needs_weights
def test_description(potentials: dict[torch.dtype, Potential]) -> None:
    potential = load_potential(FOLDER / "state.pt")  # either file stands for the folder
    assert len(potential.elements) == 89
    assert {1, 8, 94} <= set(potential.elements)
    assert not {84, 85, 86, 87, 88} & set(potential.elements)
    assert potential.cutoff == 5.0
    assert potential.dtype == torch.float32
    assert (potential.length_unit, potential.energy_unit) == ("angstrom", "ev")
    assert potential.metadata["source"]["format"] == "matgl folder"
    assert potential.metadata["name"] == FOLDER.name
    assert potential.atomic_scale.scale.item() == pytest.approx(3.1115448)


@needs_weights
def test_native_file_gives_the_same_numbers(
    tmp_path: Path, potentials: dict[torch.dtype, Potential]
) -> None:
    potential = potentials[torch.float32]
    save_potential(potential, tmp_path / "m.safetensors")
    again = load_potential(tmp_path / "m.safetensors")
    assert again.elements == potential.elements
    graph = ethanol().graph(potential.cutoff)
    assert torch.equal(again(graph).forces, potential(graph).forces)


def test_bessel_functions_are_the_written_formula() -> None:
    cutoff, r = 5.0, torch.linspace(0.05, 5.0, 200, dtype=torch.float64)

    def f(n: int) -> torch.Tensor:
        x, y = (n + 1) * math.pi * r / cutoff, (n + 2) * math.pi * r / cutoff
        size = (n + 1) * (n + 2) / math.sqrt((n + 1) ** 2 + (n + 2) ** 2)
        factor = (-1) ** n * math.sqrt(2) * math.pi * cutoff**-1.5 * size
        return factor * (x.sin() / x + y.sin() / y)

    def e(n: int) -> float:
        return n**2 * (n + 2) ** 2 / (4 * (n + 1) ** 4 + 1)

    d = [1.0, 1 - e(1)]
    d.append(1 - e(2) / d[1])
    g = [f(0)]
    for n in (1, 2):
        g.append((f(n) + math.sqrt(e(n) / d[n - 1]) * g[-1]) / math.sqrt(d[n]))
    found = SmoothBesselBasis(cutoff, 3)(r)
    torch.testing.assert_close(found, torch.stack(g, dim=1), rtol=1e-12, atol=1e-13)
    # Orthonormal under r^2 dr, which the recursion is for.
    r = torch.linspace(1e-6, cutoff, 20001, dtype=torch.float64)
    b = SmoothBesselBasis(cutoff, 3)(r)
    overlap = torch.trapezoid(b.unsqueeze(2) * b.unsqueeze(1) * (r**2)[:, None, None], r, dim=0)
    torch.testing.assert_close(overlap, torch.eye(3, dtype=torch.float64), rtol=0, atol=1e-6)


# A small folder with random weights, for what the published one does not have


@pytest.mark.parametrize("radial", ["SphericalBessel", "Gaussian", "ExpNorm"])
def test_radial_functions(radial: str, tmp_path: Path) -> None:
    potential = load_potential(write_folder(tmp_path / "m", rbf_type=radial))
    r = torch.linspace(0.5, 3.9, 7)
    found = potential.representation.radial(r)
    if radial == "Gaussian":
        expected = torch.exp(-0.5 * (r.unsqueeze(1) - torch.linspace(0, 5.0, 5)) ** 2)
        torch.testing.assert_close(found, expected)
    if radial == "ExpNorm":
        decay = torch.exp(-5 / 4.0 * r).unsqueeze(1)
        switch = 0.5 * (torch.cos(math.pi * r / 4.0) + 1).unsqueeze(1)
        expected = switch * torch.exp(-7 * (decay - torch.linspace(0.1, 1, 5)) ** 2)
        torch.testing.assert_close(found, expected)
    prediction = potential(ethanol().graph(potential.cutoff))
    assert prediction.forces.abs().max() > 1e-2


def test_rows_by_atomic_number(tmp_path: Path) -> None:
    potential = load_potential(write_folder(tmp_path / "m"))
    assert potential.elements == sorted(atomic_numbers[s] for s in ELEMENT_TYPES)
    references = potential.atomic_scale.references
    assert [references[atomic_numbers[s]].item() for s in ELEMENT_TYPES] == [-4, -1, -3, -2]
    # One atom alone: its reference, the mean once, and what the network says of nothing.
    apart = potential(System(np.array([8, 1]), np.array([[0.0, 0, 0], [0, 0, 50]])).graph(4.0))
    alone = [potential(System(np.array([z]), np.zeros((1, 3))).graph(4.0)) for z in (8, 1)]
    assert apart.energy.item() == pytest.approx(sum(p.energy.item() for p in alone) - 0.5)


def edit(folder: Path, change: Callable[[Any], Any]) -> None:
    description = json.loads((folder / "model.json").read_text())
    change(description)
    (folder / "model.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d["kwargs"]["model"].update({"@model_version": 3}), "version 3.*expected"),
        (
            lambda d: d["kwargs"]["model"].update({"@module": "matgl.models._tensornet_dgl"}),
            "_tensornet_dgl.*expected",
        ),
        (lambda d: d["kwargs"]["model"].update({"@class": "M3GNet"}), "holds a M3GNet"),
        (lambda d: d["kwargs"].pop("model"), "describes no matgl potential"),
        (lambda d: d["kwargs"].update(calc_repuls=True), "calc_repuls"),
        (lambda d: d["kwargs"]["model"]["init_args"].update(is_intensive=True), "is_intensive"),
        (lambda d: d["kwargs"]["model"]["init_args"].update(use_smooth=False), "use_smooth"),
        (lambda d: d["kwargs"]["model"]["init_args"].update(rbf_type="Sine"), "'sine'"),
        (
            lambda d: d["kwargs"]["model"]["init_args"].update(activation_type="softexp"),
            "softexp.*activations",
        ),
        (lambda d: d["kwargs"]["model"]["init_args"].update(nblocks=2), "no tensor layers.1"),
        (lambda d: d["kwargs"]["model"]["init_args"].update(nblocks=0), "does not have"),
        (lambda d: d["kwargs"]["model"]["init_args"]["element_types"].append("Xx"), "'Xx'"),
        (lambda d: d["kwargs"]["model"]["init_args"]["element_types"].append("F"), "4 rows"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said(
    change: Callable[[Any], Any], message: str, tmp_path: Path
) -> None:
    folder = write_folder(tmp_path / "matgl-model")
    load_potential(folder)
    edit(folder, change)
    with pytest.raises(ValueError, match=rf"matgl-model.*{message}"):
        load_potential(folder)


@pytest.mark.parametrize("missing", ["model.json", "state.pt"])
def test_missing_file(missing: str, tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / missing).unlink()
    with pytest.raises(ValueError, match=rf"folder .*m has no {missing}: expected a matgl folder"):
        load_potential(folder)


def test_folder_without_either(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no model\.json and no state\.pt"):
        load_potential(tmp_path)


def test_state_without_its_folder(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    shutil.copy(folder / "state.pt", tmp_path / "alone.pt")
    with pytest.raises(ValueError, match=r"alone\.pt.*without its hyper-parameters.*model\.json"):
        load_potential(tmp_path / "alone.pt")


def test_description_that_is_no_json(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    (folder / "model.json").write_text("{")
    with pytest.raises(ValueError, match=r"model\.json describes no matgl potential"):
        load_potential(folder)


def test_units_and_elements(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m")
    assert load_potential(folder, units=("angstrom", "eV"), elements=[1, 8]).elements == [1, 8]
    with pytest.raises(ValueError, match="leave units out"):
        load_potential(folder, units=("nm", "ev"))
    with pytest.raises(ValueError, match=r"\[9\]: expected some of the 4 elements"):
        load_potential(folder, elements=[1, 9])
