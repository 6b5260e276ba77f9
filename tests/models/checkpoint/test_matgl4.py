"""matgl's model version 2, against energies, forces and stresses that matgl 4.1.2 computed."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support.paths import ROOT

from tensormd.models import NeighborList, Potential
from tensormd.models.checkpoint import load_potential
from tensormd.models.graph import Graph, within

FOLDER = ROOT / "tests" / "matgl4"
NUMBERS = json.loads((FOLDER / "numbers.json").read_text())


def graph_of(potential: Potential, structure: dict[str, Any], charge: int) -> Graph:
    return NeighborList(potential.cutoff).graph(
        structure["numbers"],
        structure["positions"],
        np.array(structure["cell"]),
        structure["periodic"],
        charge,
    )


def evaluated(
    potential: Potential, structure: dict[str, Any], charge: int = 0
) -> tuple[Any, Any, Any]:
    """Energy (eV), forces (eV/A) and stress (eV/A^3) of one of the structures."""
    found = potential(graph_of(potential, structure, charge))
    volume = abs(np.linalg.det(structure["cell"])) or 1.0
    return found.energy.item(), found.forces.numpy(), -found.virial[0].numpy() / volume


@pytest.mark.parametrize("model", NUMBERS["models"])
def test_reference_numbers(model: str) -> None:
    potential = load_potential(FOLDER / model).double()
    assert isinstance(potential, Potential)
    version = 1 if model.startswith("qet") else 2
    assert potential.metadata["source"]["model_version"] == version
    largest = {"forces": 0.0, "stress": 0.0}
    charged = {"charges"} & set(potential.heads)
    assert bool(charged) == model.startswith("qet")
    assert len(NUMBERS["structures"]) >= 10
    for name, structure in NUMBERS["structures"].items():
        wanted = NUMBERS["models"][model][name]
        energy, forces, stress = evaluated(potential, structure, wanted.get("charge", 0))
        assert abs(energy - wanted["energy"]) < 1e-7 * len(forces), name
        assert np.abs(forces - wanted["forces"]).max() < 1e-6, name
        if charged:
            graph = graph_of(potential, structure, wanted["charge"])
            [charges] = potential.properties(*within(graph, potential.cutoff)).values()
            np.testing.assert_allclose(charges.detach(), wanted["charges"], atol=1e-7)
        largest["forces"] = max(largest["forces"], np.abs(forces).max())
        if structure["periodic"]:
            assert np.abs(stress - wanted["stress"]).max() < 1e-7, name
            largest["stress"] = max(largest["stress"], np.abs(stress).max())
    assert largest["forces"] > 0.4
    assert largest["stress"] > 0.01


@pytest.mark.parametrize(("model", "differs"), [("gaussian", True), ("bessel", False)])
def test_direction_of_the_messages_matters(model: str, differs: bool) -> None:
    """The control: with the other sign of A an SO(3) model is another one, O(3) the same."""
    potential = load_potential(FOLDER / model).double()
    state = potential.representation.embedding.radial
    with torch.no_grad():
        for tensor in (state.weight, state.bias):
            tensor[8:16] *= -1
    name = "NaCl cubic, rattled"
    energy, _, _ = evaluated(potential, NUMBERS["structures"][name])
    change = abs(energy - NUMBERS["models"][model][name]["energy"])
    assert change > 1e-4 if differs else change < 1e-7


def test_joined_projections_of_matgls_warp_code(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "bessel", tmp_path / "m")
    state = torch.load(tmp_path / "m" / "state.pt", weights_only=True)
    for part in ("weight", "bias"):
        names = [f"model.tensor_embedding.distance_proj{k}.{part}" for k in (1, 2, 3)]
        state[f"model.tensor_embedding.distance_proj.{part}"] = torch.cat(
            [state.pop(name) for name in names]
        )
    torch.save(state, tmp_path / "m" / "state.pt")
    joined, separate = load_potential(tmp_path / "m"), load_potential(FOLDER / "bessel")
    for name, tensor in separate.state_dict().items():
        assert torch.equal(joined.state_dict()[name], tensor)


def test_other_versions_are_named(tmp_path: Path) -> None:
    shutil.copytree(FOLDER / "bessel", tmp_path / "m")
    path = tmp_path / "m" / "model.json"
    text = path.read_text()
    for old, new in (('"@model_version": 2', '"@model_version": 3'), ("_tensornet", "_other")):
        path.write_text(text.replace(old, new))
        version = 3 if "version" in old else 2
        with pytest.raises(ValueError, match=rf"m has model version {version} of .*expected.* 1 "):
            load_potential(tmp_path / "m")
    path.write_text(text.replace('"@model_version": 2', '"@model_version": [2]'))
    with pytest.raises(ValueError, match=r"m has model version \[2\] of "):
        load_potential(tmp_path / "m")
