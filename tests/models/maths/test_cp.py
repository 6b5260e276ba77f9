"""CP factors of the Clebsch-Gordan tensors: their residual, and that a new fit reproduces it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

from tensormd.models.maths import cp, cp_als, cp_factors, cp_fit
from tensormd.models.maths.harmonics import coupling_tensor

CASES = [(lmax, group) for lmax in range(1, 5) for group in ("O(3)", "SO(3)")]


@pytest.mark.parametrize(("lmax", "group"), CASES)
def test_every_rank_of_the_table_ships(lmax: int, group: str) -> None:
    tensor = coupling_tensor(lmax, group)
    left = {}
    for rank in cp.shipped_ranks(lmax, group):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            factors = cp.factors_for(lmax, group, rank)
        assert cp_factors.is_shipped(lmax, group, rank)
        assert all(f.shape == ((lmax + 1) ** 2, rank) for f in factors)
        assert all(f.dtype == torch.float64 for f in factors)
        assert max(float(f.abs().max()) for f in factors) < 10  # no cancellation of large terms
        left[rank] = cp_factors.residual(tensor, np.stack([f.numpy() for f in factors]))
    print(f"L {lmax}, {group}: " + ", ".join(f"rank {r}: {x:.2e}" for r, x in left.items()))
    assert left[cp.EXACT_RANKS[group][lmax]] <= cp.EXACT
    values = [left[rank] for rank in sorted(left)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize(("lmax", "group"), [case for case in CASES if case[0] < 3])
def test_exact_factors_are_found_again(lmax: int, group: str) -> None:
    rank = cp.EXACT_RANKS[group][lmax]
    tensor = coupling_tensor(lmax, group)
    first = cp_als.fit(lmax, group, rank)
    assert cp_factors.residual(tensor, first) <= cp.EXACT
    if lmax == 1:
        assert np.array_equal(first, cp_als.fit(lmax, group, rank))


@pytest.mark.parametrize(("lmax", "group"), [case for case in CASES if case[0] < 3])
def test_one_term_less_is_not_exact(lmax: int, group: str) -> None:
    """The control: the bound does tell. It proves nothing about smaller ranks."""
    rank = cp.EXACT_RANKS[group][lmax] - 1
    found = cp_als.decompose(coupling_tensor(lmax, group), rank, cp_als.Schedule(2, 2000, 0.998))
    assert cp_factors.residual(coupling_tensor(lmax, group), found) > 1e-5


def test_inexact_factors_are_found_again() -> None:
    tensor = coupling_tensor(1, "SO(3)")
    found = cp_factors.residual(tensor, cp_als.fit(1, "SO(3)", 7))
    shipped = cp_factors.residual(
        tensor, np.stack([f.numpy() for f in cp.factors_for(1, "SO(3)", 7)])
    )
    assert abs(found - shipped) < 1e-6
    assert 0.01 < found < 0.02


def test_the_command_fits_and_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cp_fit.main(["--lmax", "1", "--group", "O(3)", "--output", str(tmp_path / "factors.npz")])
    assert "rank   6" in capsys.readouterr().out
    with np.load(tmp_path / "factors.npz") as data:
        assert data["O(3)-L1-R6"].shape == (3, 4, 6)


def test_ranks_by_name() -> None:
    assert [cp.paper_rank(lmax) for lmax in (1, 2, 3, 4)] == [7, 28, 63, 112]
    assert [cp.paper_rank(lmax, "linear") for lmax in (1, 2, 3, 4)] == [7, 14, 21, 28]
    assert [cp.paper_rank(lmax, "log") for lmax in (2, 3, 4)] == [16, 16, 32]
    assert cp.parse_rank("paper", 2, "SO(3)") == 28
    assert cp.parse_rank("exact", 2, "SO(3)") == 31
    assert cp.parse_rank("exact", 2, "O(3)") == 18
    assert cp.parse_rank("paper", 2, "O(3)") == 18  # more would change nothing
    assert cp.parse_rank(500, 2, "O(3)") == 18
    assert cp.parse_rank(5, 2, "O(3)") == 5


def test_a_rank_that_does_not_ship_is_fitted() -> None:
    with pytest.warns(UserWarning, match=r"rank 5 leaves a residual of 0\.\d+ of the O\(3\)"):
        factors = cp.factors_for(1, "O(3)", 5)
    assert factors.a.shape == (4, 5)
    assert not cp_factors.is_shipped(1, "O(3)", 5)


def test_no_warning_where_the_rank_is_useful() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for rank in ("exact", "paper"):
            cp.factors_for(2, "SO(3)", rank)


def test_without_memory() -> None:
    """A reader of files asks for shapes; a rank it names is taken as it is."""
    with torch.device("meta"):
        factors = cp.factors_for(2, "O(3)", 500)
    assert factors.b.shape == (9, 500)
    assert factors.b.is_meta


def test_the_caller_may_change_what_he_gets() -> None:
    cp.factors_for(1, "O(3)").a.zero_()
    assert cp.factors_for(1, "O(3)").a.abs().sum() > 0


@pytest.mark.parametrize("lmax", [0, 5, 1.5])
def test_degree_out_of_range(lmax: int) -> None:
    with pytest.raises(ValueError, match="expected a whole number from 1 to 4"):
        cp.factors_for(lmax)


def test_bad_ranks() -> None:
    for rank in ("best", 0, -3, 2.0, True):
        with pytest.raises(ValueError, match='expected "exact", "paper" or a positive number'):
            cp.factors_for(1, "O(3)", rank)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="expected L >= 2"):
        cp.paper_rank(1, "log")
    with pytest.raises(ValueError, match="expected one of quadratic, linear, log"):
        cp.paper_rank(1, "cubic")
