"""A network of a few lines with a row in the registry works everywhere."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from ase import Atoms
from support.helpers import ethanol
from support.training_frames import CUTOFF, labelled, water
from torch import Tensor, nn

from tensormd.calculators import PotentialCalculator
from tensormd.models import (
    DipoleReadout,
    PolarizabilityReadout,
    Potential,
    ScalarReadout,
    load_potential,
    save_potential,
)
from tensormd.models.analysis import layout_of, measure_shares
from tensormd.models.analysis.pruning import projected, pruned
from tensormd.models.checkpoint import describe
from tensormd.models.graph import Graph, Pairs
from tensormd.models.inference.kernels import fused_problem
from tensormd.models.inference.tables import TabulatedPotential, tabulated
from tensormd.models.maths.cartesian import BASIS, ROWS
from tensormd.models.maths.radial import CosineCutoff
from tensormd.models.maths.splines import RadialTable
from tensormd.models.networks import NETWORKS, Architecture, Network
from tensormd.models.networks.base import FeatureLayout, consecutive_irreps
from tensormd.models.networks.tensornet import TensorNet
from tensormd.models.training import TrainingSettings, train


class Mix(nn.Module):
    """Scalars from the squared norms of the vectors."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        scalars = x[:, :1] + self.linear(x[:, 1:].square().sum(1, keepdim=True)).tanh()
        return torch.cat([scalars, x[:, 1:]], dim=1)


class Toy(Network):
    """Sums over neighbours of a radial function times 1 and the direction.

    Parameters
    ----------
    channels
        Features of each atom and component.
    layers
        Of the mixing.
    cutoff
        In the network's unit of length.
    max_number
        Size of the table of elements.
    """

    has_tables = True

    def __init__(
        self, *, channels: int = 8, layers: int = 1, cutoff: float = 4.5, max_number: int = 10
    ) -> None:
        config = {
            "channels": channels,
            "layers": layers,
            "cutoff": cutoff,
            "max_number": max_number,
        }
        super().__init__(config, channels=channels, cutoff=cutoff, max_number=max_number)
        self.species = nn.Embedding(max_number, channels)
        self.radial = nn.Linear(1, channels)
        self.envelope = CosineCutoff(cutoff)
        self.layers = nn.ModuleList([Mix(channels) for _ in range(layers)])

    def forward(self, graph: Graph, vectors: Tensor, pairs: Pairs | None = None) -> Tensor:
        i, j = graph.edge_index[0], graph.edge_index[1]
        distances = torch.linalg.vector_norm(vectors, dim=1)
        sent = self.edge_factors(distances, pairs)[0] * self.species(graph.numbers)[j]
        unit = vectors / distances.unsqueeze(1)
        edges = torch.cat([torch.ones_like(unit[:, :1]), unit], dim=1).unsqueeze(2)
        edges = edges * sent.unsqueeze(1)
        x = edges.new_zeros([graph.numbers.shape[0], 4, edges.shape[2]]).index_add(0, i, edges)
        for layer in self.layers:
            x = layer(x)
        return x

    def edge_factors(self, distances: Tensor, pairs: Pairs | None = None) -> list[Tensor]:
        if self.table is not None:
            return [self.table(distances)]
        else:
            radial = torch.tanh(self.radial(distances.unsqueeze(1)))
            return [radial * self.envelope(distances).unsqueeze(1)]

    def use_table(self, table: RadialTable) -> None:
        self.table = table
        del self.radial, self.envelope

    def feature_layout(self) -> FeatureLayout:
        irreps = consecutive_irreps([("l=0", 0), ("l=1", 1)])
        return FeatureLayout(irreps, axis=1, norms=False, tensor_basis=BASIS[ROWS["S"]])

    def new_readout(self, head: str | None = None) -> ScalarReadout:
        return ScalarReadout(self.channels)


@pytest.fixture(autouse=True)
def row(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(NETWORKS, "Toy", Architecture(Toy, ScalarReadout))


@pytest.fixture
def potential() -> Potential:
    torch.manual_seed(0)
    network = Toy(cutoff=CUTOFF)
    return Potential(
        network,
        network.new_readout(),
        elements=[1, 6, 8],
        heads={"dipole": DipoleReadout(network)},
    )


def test_it_is_configured_trained_saved_loaded_and_run(
    potential: Potential, tmp_path: Path
) -> None:
    module = "tensormd.md_runs.train.config"
    found = importlib.util.find_spec(module)
    assert found is not None
    assert found.origin is not None
    # Sections are made when the module is imported: a second copy, which sees the row.
    spec = importlib.util.spec_from_file_location(f"{module}_again", found.origin)
    assert spec is not None
    assert spec.loader is not None
    config = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(config)
    finally:
        del sys.modules[spec.name]
    options = {"channels": 4}
    section = config.NETWORK_SECTIONS["toy"](**options)
    model = config.ModelConfig(architecture="toy", toy=section)
    assert model.network is Toy
    assert model.network(**model.options).channels == 4

    settings = TrainingSettings(
        epochs=1, batch=2, warm_up_steps=1, validate_every=1, dtype="float64", compile=False
    )
    frames = labelled([water(k) for k in range(4)])
    fit, held = frames.split([2, 2], seed=0)
    bare = Potential(potential.representation, potential.readout, elements=[1, 6, 8])
    trained = train(bare, fit, held, settings)
    before = potential.double().state_dict()
    assert any(not torch.equal(t, before[k]) for k, t in trained.state_dict().items())

    trained.heads["dipole"] = potential.heads["dipole"]
    trained.double().eval()
    save_potential(trained, tmp_path / "toy.safetensors")
    loaded = load_potential(tmp_path / "toy.safetensors")
    assert isinstance(loaded, Potential)
    assert isinstance(loaded.representation, Toy)
    described = describe(loaded)
    assert described["architecture"] == "Toy"
    assert described["network"] == potential.representation.config
    expected = trained(ethanol().graph(CUTOFF))
    assert torch.equal(loaded(ethanol().graph(CUTOFF)).forces, expected.forces)
    assert expected.forces.abs().max() > 1e-3

    atoms = Atoms(numbers=ethanol().numbers, positions=ethanol().positions)
    atoms.calc = PotentialCalculator(tmp_path / "toy.safetensors", dtype="float64")
    np.testing.assert_allclose(atoms.get_forces(), expected.forces, rtol=0, atol=1e-12)
    graph = ethanol().graph(CUTOFF)
    dipole = loaded.properties(graph)["dipole"][0].detach()
    np.testing.assert_allclose(atoms.get_dipole_moment(), dipole, rtol=0, atol=1e-12)


def test_it_is_tabulated_or_refused(potential: Potential, monkeypatch: pytest.MonkeyPatch) -> None:
    potential.double().eval()
    graph = ethanol().graph(CUTOFF)
    table = tabulated(potential)
    assert isinstance(table, TabulatedPotential)
    change = (table(graph).forces - potential(graph).forces).abs().max()
    assert 0 < change < 2e-5
    monkeypatch.setattr(Toy, "has_tables", False)
    with pytest.raises(ValueError, match="Toy has no tables"):
        tabulated(potential)
    assert fused_problem(potential) == "there are no fused kernels for Toy"


def test_what_it_lacks_is_refused(potential: Potential) -> None:
    potential.double().eval()
    layout = layout_of(potential)
    assert [irrep.name for irrep in layout.orders] == ["l=0", "l=1"]
    shares = measure_shares(potential, labelled([water(0)]), layout)
    assert shares.norm.shape == (2, 2)
    for remove in (projected, pruned):
        with pytest.raises(ValueError, match="Toy has no orders to remove"):
            remove(potential, "I")
    with pytest.raises(ValueError, match="needs the tensor part"):
        PolarizabilityReadout(potential.representation)


def test_a_network_without_a_row_is_not_saved(
    potential: Potential, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The control."""
    monkeypatch.delitem(NETWORKS, "Toy")
    with pytest.raises(ValueError, match="cannot save a Potential"):
        save_potential(potential, tmp_path / "toy.safetensors")
    assert set(NETWORKS) == {"TensorNet", "TensorNet2", "QET", "TDN"}
    assert NETWORKS["TensorNet"].network is TensorNet
