"""Tables in place of radial networks: the spline, the bound on forces, the preserved physics."""

from __future__ import annotations

import copy
import functools
import math
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import pytest
import torch
from ase.build import molecule
from scipy.interpolate import CubicSpline
from support.data import data_file
from support.helpers import (
    REFERENCES,
    System,
    crossing,
    crystal,
    ethanol,
    jump,
    make_potential,
    make_tdn,
    numerical_forces,
    numerical_virial,
    predict,
    predict_batch,
    relative_error,
    rotation,
    tiny,
)
from support.script_cases import assert_equal_physics
from torch import Tensor, nn

from tensormd.models import Committee, Potential, TensorNet, save_potential
from tensormd.models.inference import tables
from tensormd.models.inference.tables import (
    TabulatedPotential,
    build_table,
    probes,
    tabulated,
    tabulated_potential,
)
from tensormd.models.maths.splines import RadialTable, end_slopes, spline_coefficients

CUTOFF = 4.5
BOUND = 2e-5
DTYPES = (torch.float32, torch.float64)
MODELS: dict[str, Any] = {
    "tensornet": make_potential,
    "gauss-SO(3)": lambda: make_potential(radial="gauss", group="SO(3)"),
    "bessel": lambda: make_potential(radial="bessel", radial_functions=5, head="gated"),
    "lower-cutoff": lambda: make_potential(cutoff_lower=0.8),
    "no-self-interaction": lambda: make_potential(self_interaction=False, layers=1),
    "0-layers": lambda: make_potential(layers=0),
    "nm": lambda: make_potential(length_unit="nm", energy_unit="kJ/mol", cutoff=0.45, scale=300.0),
    "zbl": lambda: make_potential(zbl=3.0, references=REFERENCES),
    "tdn": make_tdn,
    "tdn-L2-cp": lambda: make_tdn(lmax=2, product="cp"),
    "tdn-no-envelope": lambda: make_tdn(envelope="none", zbl=5.5),
}


@functools.cache
def network(name: str) -> Potential:
    return MODELS[name]()  # type: ignore[no-any-return]


@functools.cache
def table(name: str) -> TabulatedPotential:
    return tabulated_potential(network(name), BOUND)


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def smooth(distances: Tensor) -> Tensor:
    """Three functions with nothing special at the ends."""
    r = distances.unsqueeze(1)
    return torch.cat([torch.sin(3 * r), torch.exp(-r), r**3 - r], 1)


def distances(count: int = 400, end: float = CUTOFF, start: float = 0.0) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return start + (end - start) * torch.rand(count, generator=generator, dtype=torch.float64)


# The spline


@pytest.mark.parametrize("lower", [0.0, 1.3])
@pytest.mark.parametrize("intervals", [1, 2, 7, 64])
def test_spline_is_scipys_with_clamped_ends(intervals: int, lower: float) -> None:
    knots = torch.linspace(lower, CUTOFF, intervals + 1, dtype=torch.float64)
    slopes = end_slopes(smooth, CUTOFF, lower).numpy()
    expected = CubicSpline(knots, smooth(knots), bc_type=((1, slopes[0]), (1, slopes[1])))
    spline = RadialTable(spline_coefficients(smooth, CUTOFF, intervals, lower), CUTOFF, lower)
    r = torch.cat([distances(start=lower), knots[:-1]])
    values = expected(r.numpy())
    assert np.abs(spline(r).numpy() - values).max() < 1e-12 * np.abs(values).max()
    r = r.requires_grad_(True)
    for column in range(3):
        (slope,) = torch.autograd.grad(spline(r)[:, column].sum(), r)
        assert np.abs(slope.numpy() - expected(r.detach().numpy(), 1)[:, column]).max() < 1e-10


def test_end_slopes_are_those_of_autograd() -> None:
    ends = torch.tensor([0.0, CUTOFF], dtype=torch.float64, requires_grad=True)
    values = smooth(ends)
    expected = [torch.autograd.grad(v.sum(), ends, retain_graph=True)[0] for v in values.T]
    assert (end_slopes(smooth, CUTOFF) - torch.stack(expected, 1)).abs().max() < 1e-14


def test_error_falls_with_the_fourth_power() -> None:
    """The control: of the interpolation, and of the rates that it promises."""
    r = distances().requires_grad_(True)
    (exact_slope,) = torch.autograd.grad(smooth(r).sum(), r)
    values, slopes = [], []
    for intervals in (32, 64, 128):
        spline = RadialTable(spline_coefficients(smooth, CUTOFF, intervals), CUTOFF)
        values.append((spline(r) - smooth(r)).abs().max().item())
        (slope,) = torch.autograd.grad(spline(r).sum(), r)
        slopes.append((slope - exact_slope).abs().max().item())
    for k in (1, 2):
        assert 3.7 < math.log2(values[k - 1] / values[k]) < 4.3
        assert 2.7 < math.log2(slopes[k - 1] / slopes[k]) < 3.3


def test_value_and_slope_vanish_at_the_cutoff() -> None:
    net = network("tensornet").representation

    def factors(r: Tensor) -> Tensor:
        return torch.cat(net.edge_factors(r), 1)

    assert (end_slopes(factors, CUTOFF)[1] == 0).all()
    spline = RadialTable(spline_coefficients(factors, CUTOFF, 256), CUTOFF)
    gaps = torch.tensor([1e-3, 1e-5, 0.0, -1e-3, -10.0], dtype=torch.float64)
    r = (CUTOFF - gaps).requires_grad_(True)
    values = spline(r)
    (slope,) = torch.autograd.grad(values.abs().sum(), r)
    assert values[0].abs().max() > 1e-9  # it is not zero everywhere
    assert (values[2:] == 0).all()
    assert (slope[2:] == 0).all()
    assert values[1].abs().max() < 1e-8
    assert slope[1].abs() < 1.1e-2 * slope[0].abs()  # 1e-5 over 1e-3


def test_float32_distances_lose_nothing_more() -> None:
    """Slopes are differences over h: summed in float32 they would be wrong by 1e-3 here."""
    spline = RadialTable(spline_coefficients(smooth, CUTOFF, 16384), CUTOFF).float()
    assert spline.coefficients.dtype == torch.float64
    single = distances().float().requires_grad_(True)
    double = single.detach().double().requires_grad_(True)
    found, expected = spline(single), spline(double)
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() < 1e-7 * expected.abs().max()
    (slope,) = torch.autograd.grad(found.sum(), single)
    (exact,) = torch.autograd.grad(expected.sum(), double)
    assert (slope - exact).abs().max() < 1e-7 * exact.abs().max()


def test_no_edges() -> None:
    assert RadialTable(torch.zeros(5, 3), CUTOFF)(torch.zeros(0)).shape == (0, 3)


def test_impossible_tables() -> None:
    with pytest.raises(ValueError, match="0 intervals"):
        spline_coefficients(smooth, CUTOFF, 0)
    with pytest.raises(ValueError, match=r"from 5.0 to 4.5"):
        spline_coefficients(smooth, CUTOFF, 8, 5.0)


# Potentials


def clusters(seed: int, elements: list[int]) -> list[System]:
    """Distorted molecules, a crystal, tiny cells: none of them a probe."""
    generator = np.random.default_rng(seed)
    systems = [ethanol(seed), crystal(), crystal(charge=1.0), tiny(1), tiny(2)]
    for formula in ("C6H6", "CH3CONH2", "H2O"):
        atoms = molecule(formula)
        for size in (0.05, 0.2):
            moved = atoms.positions + size * generator.normal(size=atoms.positions.shape)
            systems.append(System(atoms.numbers, moved))
    assert {z for s in systems for z in s.numbers} <= set(elements)
    return systems


def test_forces_keep_the_bound_away_from_the_probes(name: str) -> None:
    exact, found = network(name), table(name)
    assert found.table_info.error < BOUND
    systems = [s for seed in (3, 4) for s in clusters(seed, exact.elements)]
    a, b = predict_batch(found, systems), predict_batch(exact, systems)
    assert (a.forces - b.forces).abs().max() < BOUND
    assert (a.energy - b.energy).abs().max() < BOUND
    assert b.forces.abs().max() > 0.05
    assert (a.forces - b.forces).abs().max() > 0  # there are tables


@pytest.mark.parametrize("name", ["tensornet", "tdn"])
@pytest.mark.parametrize("size", [0.0, 0.1, 0.3])
def test_forces_of_a_protein_keep_the_bound(name: str, size: float) -> None:
    atoms = ase.io.read(data_file("systems/chignolin.pdb"), index=0)
    moved = atoms.positions + size * np.random.default_rng(0).normal(size=atoms.positions.shape)
    system = System(atoms.numbers, moved)
    error = predict(table(name), system).forces - predict(network(name), system).forces
    assert error.abs().max() < BOUND


def test_too_few_intervals_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: the measurement sees a bad table, and says so."""
    monkeypatch.setenv("TENSORMD_CACHE", str(tmp_path))
    monkeypatch.setattr("tensormd.models.inference.tables.FEWEST_INTERVALS", 32)
    monkeypatch.setattr("tensormd.models.inference.tables.MOST_INTERVALS", 64)
    with pytest.warns(UserWarning, match=r"64 intervals leave an error of .* above the bound"):
        found = tabulated_potential(network("tensornet"))
    assert found.table_info.intervals == 64
    assert found.table_info.error > BOUND
    error = predict(found, ethanol()).forces - predict(network("tensornet"), ethanol()).forces
    assert error.abs().max() > BOUND


def test_a_looser_bound_takes_fewer_intervals() -> None:
    chosen = [build_table(network("tensornet"), bound)[1] for bound in (1e-2, 1e-7)]
    assert chosen[0].intervals < chosen[1].intervals
    assert all(info.error < info.bound for info in chosen)


def test_probes_are_the_same_every_time_and_cover_distances_and_elements() -> None:
    potential = network("tensornet")
    first, second = probes(potential), probes(copy.deepcopy(potential))
    assert torch.equal(first.positions, second.positions)
    assert torch.equal(first.numbers, second.numbers)
    assert set(first.numbers.tolist()) == set(potential.elements)
    i, j = first.edge_index
    lengths = (first.positions[i] - first.positions[j]).norm(dim=1)
    assert 0.7 <= lengths.min() < 0.75
    assert lengths.max() > 0.99 * CUTOFF
    counts = torch.histc(lengths, bins=15, min=0.7, max=CUTOFF)
    assert counts.min() > 10


@pytest.mark.parametrize("name", [n for n in MODELS if n != "tdn-no-envelope"])
def test_forces_and_virial_are_derivatives_of_the_tabulated_energy(name: str) -> None:
    found = table(name)
    for system in (ethanol(), crystal()):
        forces = predict(found, system).forces
        assert relative_error(numerical_forces(found, system), forces) < 1e-7
    virial = predict(found, crystal()).virial[0]
    assert relative_error(numerical_virial(found, crystal()), virial) < 1e-7


@pytest.mark.parametrize("name", ["tensornet", "gauss-SO(3)", "tdn", "tdn-L2-cp"])
def test_rotation_stays_exact(name: str) -> None:
    turn, system = rotation(), ethanol()
    before = predict(table(name), system)
    after = predict(table(name), system.moved(system.positions @ turn.T))
    assert abs(before.energy - after.energy).item() < 1e-11
    assert (before.forces @ torch.tensor(turn.T) - after.forces).abs().max() < 1e-10


@pytest.mark.parametrize("name", ["tensornet", "gauss-SO(3)", "bessel", "lower-cutoff", "nm"])
def test_continuous_through_the_cutoff(name: str) -> None:
    found = table(name)
    cutoff = found.cutoff
    assert predict(found, crossing(found, cutoff - 1e-2)).forces[-1].abs().max() > 1e-8
    energy, force = jump(found, 1e-8)
    assert energy < 1e-12
    assert force < 3e-8


def test_a_distance_of_zero_takes_the_table_at_zero() -> None:
    """An atom alone sees nothing but itself."""
    alone = System(np.array([6]), np.zeros((1, 3)))
    found, exact = (predict(p("tensornet"), alone).energy.item() for p in (table, network))
    assert found == pytest.approx(exact, abs=1e-12)
    assert predict(network("no-self-interaction"), alone).energy.item() != pytest.approx(exact)


@pytest.mark.parametrize("name", ["tensornet", "tdn"])
def test_float32_is_as_good_as_the_network(name: str) -> None:
    single = copy.deepcopy(network(name)).float()
    found = tabulated_potential(single)
    assert found.dtype == torch.float32
    assert found.table_info.error < BOUND
    systems = clusters(3, found.elements)
    exact = predict_batch(network(name), systems).forces
    rounding = (predict_batch(single, systems).forces - exact).abs().max()
    error = (predict_batch(found, systems).forces - exact).abs().max()
    assert error < BOUND + 1.5 * rounding


def test_committee() -> None:
    exact = Committee([network("tensornet"), network("tdn")])
    found = tabulated(exact)
    assert isinstance(found, Committee)
    assert all(isinstance(member, TabulatedPotential) for member in found.members)
    graph = ethanol().graph()
    a, b = found(graph), exact(graph)
    assert (a.mean.forces - b.mean.forces).abs().max() < BOUND
    assert (a.forces_std - b.forces_std).abs().max() < 2 * BOUND


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["tensornet", "lower-cutoff", "tdn"])
def test_scripting(name: str, dtype: torch.dtype) -> None:
    found = tabulated_potential(copy.deepcopy(network(name)).to(dtype))
    scripted = torch.jit.script(found)
    if dtype == torch.float64:
        assert_equal_physics(scripted, found, dtype)
    for system in (ethanol(), crystal(), ethanol()):
        error = predict(scripted, system).forces - predict(found, system).forces
        assert error.abs().max() < (1e-11 if dtype == torch.float64 else 3e-4)


def test_the_copy_says_what_it_is_and_keeps_what_is_known() -> None:
    exact, found = network("zbl"), table("zbl")
    for attribute in ("architecture", "elements", "cutoff", "dtype", "metadata", "energy_unit"):
        assert getattr(found, attribute) == getattr(exact, attribute)
    assert isinstance(exact.representation, TensorNet)
    assert exact.representation.table is None
    assert not any("table" in key for key in exact.state_dict())
    assert not any(".radial." in key for key in found.state_dict())
    assert tabulated(found) is found
    assert found.table_info.bound == BOUND
    assert found.table_info.intervals == found.representation.table.intervals


def test_it_can_not_be_trained_or_saved(tmp_path: Any) -> None:
    found = table("tensornet")
    with pytest.raises(ValueError, match="train the potential it was made from"):
        found.train()
    assert not found.training
    with pytest.raises(ValueError, match="for gradients"):
        found.requires_grad_()
    assert not any(parameter.requires_grad for parameter in found.parameters())
    assert found.eval() is found
    with pytest.raises(ValueError, match="tabulated"):
        save_potential(found, tmp_path / "model.ckpt")
    assert list(tmp_path.iterdir()) == []


def test_impossible_bounds_and_architectures() -> None:
    with pytest.raises(ValueError, match="bound is 0"):
        tabulated(network("tensornet"), bound=0)
    with pytest.raises(ValueError, match="Linear has no tables"):
        tabulated(nn.Linear(1, 1))


def test_intervals_found_before_are_used_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the same weights, bound and units; whatever the folder holds, the table is right."""
    monkeypatch.setenv("TENSORMD_CACHE", str(tmp_path))
    searched = []
    choose = tables._choose_intervals
    monkeypatch.setattr(
        tables, "_choose_intervals", lambda *given: searched.append(given) or choose(*given)
    )
    potential = network("tensornet")
    first, again = build_table(potential), build_table(copy.deepcopy(potential))
    assert len(searched) == 1
    assert again[1] == first[1]
    assert torch.equal(again[0].coefficients, first[0].coefficients)
    [file] = (tmp_path / "tables").iterdir()
    for content in ("[512", "null", '{"a": 1}', '["x", 2]'):
        file.write_text(content)
        assert build_table(potential)[1] == first[1]
    assert len(searched) == 5
    build_table(potential, bound=1e-3)
    other = copy.deepcopy(potential)
    with torch.no_grad():
        next(other.parameters()).mul_(1.0 + 1e-6)
    build_table(other)
    assert len(searched) == 7
    monkeypatch.setenv("TENSORMD_CACHE", str(file))  # no folder
    assert build_table(potential)[1] == first[1]
