"""`tensormd evaluate` and `tensormd export`: their numbers, files and errors."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from ase import Atoms
from ase.calculators.singlepoint import SinglePointCalculator
from ase.db import connect
from ase.io import read, write
from matplotlib.image import imread
from scipy.stats import spearmanr
from support.data import data_file
from support.md_runs import ethanol, run, waters, write_tiny_potential

from tensormd.calculators import PotentialCalculator
from tensormd.md_runs.evaluate.evaluation import (
    Evaluation,
    batches,
    evaluate_checkpoint,
    read_labelled,
)
from tensormd.models.training import calibration, error_statistics
from tensormd.models.units import kcal_per_mol_in_ev

FRAMES = 12
BAD = 7
"""The frame whose label is far off."""


def labelled(noise: float = 0.02) -> list[Atoms]:
    """Ethanols with the tiny potential's labels and noise; in `BAD` one force is 2 eV/A off."""
    rng = np.random.default_rng(4)
    structures = [ethanol(seed) for seed in range(FRAMES)]
    results = PotentialCalculator("tiny.safetensors", dtype="float64").evaluate(structures)
    for k, (atoms, result) in enumerate(zip(structures, results, strict=True)):
        forces = result["forces"] + noise * rng.normal(size=(len(atoms), 3))
        forces[4, 1] += 2.0 * (k == BAD)
        energy = result["energy"] + noise * rng.normal()
        atoms.calc = SinglePointCalculator(atoms, energy=energy, forces=forces)
    return structures


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_tiny_potential(tmp_path / "tiny.safetensors")
    write("frames.extxyz", labelled())
    return tmp_path


def errors_of(frames: list[Atoms]) -> tuple[np.ndarray, np.ndarray]:
    """Energies (F,), eV, and forces (F, N, 3), eV/A, less the labels; one frame at a time."""
    calculator = PotentialCalculator("tiny.safetensors", dtype="float64", backend="reference")
    found = [calculator.evaluate([atoms])[0] for atoms in frames]
    energy = [r["energy"] - a.get_potential_energy() for r, a in zip(found, frames, strict=True)]
    force = [r["forces"] - a.get_forces() for r, a in zip(found, frames, strict=True)]
    return np.array(energy), np.array(force)


def check_statistics(found: dict[str, float], errors: np.ndarray) -> None:
    assert found["mae"] == pytest.approx(1e3 * np.abs(errors).mean(), rel=1e-6)
    assert found["rmse"] == pytest.approx(1e3 * np.sqrt((errors**2).mean()), rel=1e-6)
    assert found["largest"] == pytest.approx(1e3 * np.abs(errors).max(), rel=1e-6)
    assert found["bias"] == pytest.approx(1e3 * errors.mean(), abs=1e-6)
    assert found["compared"] == errors.size


def test_numbers_are_numpys(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames: Any = read("frames.extxyz", ":")
    energy, force = errors_of(frames)
    options = ["--dtype", "float64", "--batch", "5", "-o", "out", "--json", "-"]
    assert run("evaluate", "tiny.safetensors", "frames.extxyz", *options) == 0
    found = json.loads(capsys.readouterr().out)
    assert found == json.loads(Path("out/evaluation.json").read_text())
    assert (found["frames"], found["atoms"]) == (FRAMES, 9 * FRAMES)
    assert found["force_mev_per_angstrom"]["largest"] > 1500
    check_statistics(found["energy_mev"], energy)
    check_statistics(found["energy_less_bias_mev"], energy - energy.mean())
    check_statistics(found["energy_mev_per_atom"], energy / 9)
    check_statistics(found["force_mev_per_angstrom"], force)
    numbers = frames[0].numbers
    by_element = found["force_by_element_mev_per_angstrom"]
    assert set(by_element) == {"H", "C", "O"}
    for symbol, z in (("H", 1), ("C", 6), ("O", 8)):
        check_statistics(by_element[symbol], force[:, numbers == z])
    length = np.linalg.norm([atoms.get_forces() for atoms in frames], axis=2).ravel()
    order, flat = np.argsort(length), force.reshape(-1, 3)
    quarters = found["force_by_magnitude_mev_per_angstrom"]
    for each, part in zip(quarters, np.array_split(order, 4), strict=True):
        check_statistics(each, flat[part])
        assert each["to_ev_per_angstrom"] == pytest.approx(length[part[-1]])
    assert found["stress_mev_per_cubic_angstrom"] is None
    assert found["calibration"] is None
    assert found["doubt"] is None


def test_worst_structures_are_the_worst(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames: Any = read("frames.extxyz", ":")
    options = ["--dtype", "float64", "--worst", "3", "--json", "all.json"]
    assert run("evaluate", "tiny.safetensors", "frames.extxyz", *options) == 0
    shown = capsys.readouterr().out
    for text in ("forces on C", "worst frames", "meV/A", "frames_evaluation/worst.extxyz"):
        assert text in shown
    largest = np.linalg.norm(errors_of(frames)[1], axis=2).max(1)
    expected = np.argsort(-largest)[:3].tolist()
    assert expected[0] == BAD
    worst: Any = read("frames_evaluation/worst.extxyz", ":")
    assert [atoms.info["frame"] for atoms in worst] == expected
    content = json.loads(Path("all.json").read_text())
    assert [each["frame"] for each in content["worst_frames"]] == expected
    for atoms, k in zip(worst, expected, strict=True):
        np.testing.assert_allclose(atoms.positions, frames[k].positions, atol=1e-7)
        np.testing.assert_allclose(
            atoms.arrays["reference_forces"], frames[k].get_forces(), atol=1e-7
        )
        error = atoms.arrays["predicted_forces"] - atoms.arrays["reference_forces"]
        assert np.linalg.norm(error, axis=1).max() == pytest.approx(largest[k], abs=1e-6)
        assert atoms.info["largest_force_error"] == pytest.approx(largest[k], abs=1e-6)
    assert Path("frames_evaluation/parity.png").read_bytes().startswith(b"\x89PNG")
    assert not [path for path in here.rglob("*") if path.suffix == ".tmp"]
    assert run("evaluate", "tiny.safetensors", "frames.extxyz") == 2
    assert "frames_evaluation exists already" in capsys.readouterr().err


def test_npz_database_and_extxyz_agree(here: Path) -> None:
    frames: Any = read("frames.extxyz", ":")
    write_npz(frames)
    with connect("frames.db") as database:
        for atoms in frames:
            database.write(atoms)
    found = [
        evaluate_checkpoint("tiny.safetensors", f"frames.{name}", dtype="float64", limit=9)
        for name in ("extxyz", "npz", "db")
    ]
    for each in found:
        assert len(each.frames) == 9
        np.testing.assert_allclose(each.energy_errors, found[0].energy_errors, atol=1e-9)
        np.testing.assert_allclose(each.force_errors, found[0].force_errors, atol=1e-9)


def write_npz(frames: list[Atoms], **changed: Any) -> None:
    content = {
        "nuclear_charges": frames[0].numbers.astype(np.uint8),
        "coords": np.array([atoms.positions for atoms in frames]),
        "energies": np.array([a.get_potential_energy() for a in frames]) / kcal_per_mol_in_ev,
        "forces": np.array([atoms.get_forces() for atoms in frames]) / kcal_per_mol_in_ev,
    }
    content = {key: value for key, value in (content | changed).items() if value is not None}
    np.savez("frames.npz", **content)


def test_stress_and_frames_of_several_sizes(here: Path) -> None:
    crystal, shift = waters(), np.array([1e-3, -2e-3, 3e-3, 0.0, 5e-4, -4e-3])
    expected = PotentialCalculator("tiny.safetensors", dtype="float64").evaluate([crystal])[0]
    crystal.calc = SinglePointCalculator(
        crystal,
        energy=expected["energy"],
        forces=expected["forces"],
        stress=expected["stress"] + shift,
    )
    write("mixed.extxyz", [*labelled()[:2], crystal])
    options = ["--dtype", "float64", "-o", "out"]
    assert run("evaluate", "tiny.safetensors", "mixed.extxyz", *options) == 0
    found = json.loads(Path("out/evaluation.json").read_text())
    stress = found["stress_mev_per_cubic_angstrom"]
    assert stress["mae"] == pytest.approx(1e3 * np.abs(shift).mean(), rel=1e-4)
    assert stress["bias"] == pytest.approx(-1e3 * shift.mean(), rel=1e-4)
    sizes, energy = np.array([9, 9, 12]), found["energy_mev"]["bias"]
    assert found["atoms"] == sizes.sum()
    assert abs(found["energy_mev_per_atom"]["bias"]) == pytest.approx(abs(energy) / 9, rel=1e-4)


def test_committee(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_tiny_potential(here / "second.safetensors", seed=1)
    options = ["-m", "second.safetensors", "--dtype", "float64", "-o", "out"]
    assert run("evaluate", "tiny.safetensors", "frames.extxyz", *options) == 0
    found = json.loads(Path("out/evaluation.json").read_text())
    assert found["model"]["members"] == 2
    high, wide = imread("out/parity.png").shape[:2]
    assert wide > 2.5 * high, "the third panel is the calibration"
    frames: Any = read("frames.extxyz", ":")
    alone = np.array(
        [
            [r["forces"] for r in PotentialCalculator(name, dtype="float64").evaluate(frames)]
            for name in ("tiny.safetensors", "second.safetensors")
        ]
    )
    error = np.abs(alone.mean(0) - [atoms.get_forces() for atoms in frames]).ravel()
    deviation = alone.std(0, ddof=1).ravel()
    force = found["calibration"]["force"]
    assert force["within_one_sigma"] == pytest.approx((error <= deviation).mean())
    assert force["within_two_sigma"] == pytest.approx((error <= 2 * deviation).mean())
    rank = spearmanr(deviation, error).statistic
    assert abs(rank) > 0.01
    assert force["rank_correlation"] == pytest.approx(rank, abs=1e-4)
    largest = alone.std(0, ddof=1).max(axis=(1, 2))
    doubt = found["doubt"]
    assert doubt["ev_per_angstrom"] == pytest.approx(np.quantile(largest, 0.99), rel=1e-4)
    assert doubt["share_below"] == pytest.approx(1 - 1 / len(frames))
    assert doubt["error_ev_per_angstrom"] == pytest.approx(
        force["ratio"] * doubt["ev_per_angstrom"], rel=1e-6
    )
    assert f"--doubt {doubt['ev_per_angstrom']:.3g} (" in capsys.readouterr().out


def test_calibration_of_known_errors() -> None:
    rng = np.random.default_rng(0)
    sigma = np.exp(rng.normal(size=40_000))
    good = calibration(sigma, sigma * rng.normal(size=sigma.shape))
    assert good.within_one_sigma == pytest.approx(0.683, abs=0.01)
    assert good.within_two_sigma == pytest.approx(0.954, abs=0.01)
    assert good.ratio == pytest.approx(1.0, abs=0.05)
    assert good.rank_correlation is not None
    assert good.rank_correlation > 0.4
    bold = calibration(sigma / 3, sigma * rng.normal(size=sigma.shape))
    assert bold.within_two_sigma < 0.6
    assert bold.ratio == pytest.approx(3.0, abs=0.15)
    blind = calibration(sigma, rng.normal(size=sigma.shape))
    assert blind.rank_correlation == pytest.approx(0.0, abs=0.02)
    constant = calibration(np.zeros(5), np.ones(5))
    assert constant.rank_correlation is None
    assert constant.ratio is None
    assert calibration([1, 2, 3], [5, -6, 7]).rank_correlation == pytest.approx(1.0)
    with pytest.raises(ValueError, match="expected one of each"):
        calibration(np.ones(3), np.ones(4))


def test_statistics_by_hand() -> None:
    found = error_statistics([[1.0, -2.0], [3.0, 0.0]])
    assert found == (1.5, pytest.approx(np.sqrt(3.5)), 3.0, 0.5, 4)
    with pytest.raises(ValueError, match="expected at least one"):
        error_statistics([])


def test_batches_cover_every_frame() -> None:
    assert list(batches([9] * 7, 3)) == [slice(0, 3), slice(3, 6), slice(6, 7)]
    assert list(batches([1500, 600, 1400, 5000, 3])) == [
        slice(0, 1),
        slice(1, 3),
        slice(3, 4),
        slice(4, 5),
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["bare.extxyz"], "frame 0 of bare.extxyz has no energy, no forces"),
        (["dipole.extxyz"], "labels of dipole, dipole_norm, of which the model predicts none"),
        (["xenon.extxyz"], "frame 0 of xenon.extxyz: the model does not know Xe"),
        (["nan.extxyz"], "frame 3 of nan.extxyz has a label that is not finite (forces)"),
        (["clash.extxyz"], "frame 1 of clash.extxyz: atoms 0 and 1 (H, H) are in one place"),
        (["missing.extxyz"], "missing.extxyz: no such file"),
        (["missing.npz"], "missing.npz: no such file"),
        (["empty.extxyz"], "empty.extxyz is empty"),
        (["none.npz"], "none.npz holds no frame"),
        (["keys.npz"], "keys.npz has no forces"),
        (["damaged.npz"], "damaged.npz is no npz file"),
        (["shape.npz"], "expected (N,), (F, N, 3), (F,)"),
        (["noise.dat"], "noise.dat"),
        (["frames.extxyz", "--limit", "0"], "--limit is 0: expected 1 or more"),
        (["frames.extxyz", "--format", "xyz"], "format is 'xyz': expected one of extxyz"),
        (["frames.extxyz", "--label", "energy"], "--label is 'energy': expected NAME=VALUE"),
        (
            ["frames.extxyz", "--label", "energy=E"],
            "no frame of frames.extxyz has 'E', which keys names for energy",
        ),
        (["frames.extxyz", "--data-units", "energy=cal"], "unknown energy unit 'cal'"),
        (["frames.extxyz", "--batch", "0"], "--batch is 0: expected 1 or more"),
        (["frames.extxyz", "--worst", "0"], "--worst is 0: expected 1 or more"),
        (["frames.extxyz", "--dtype", "half"], "dtype is 'half'"),
        (["frames.extxyz", "-m", "no.ckpt"], "no.ckpt"),
        (["frames.extxyz", "-o", "full"], "full exists already"),
        (["frames.extxyz", "--json", "no/x.json"], "there is no folder no"),
    ],
)
def test_bad_input(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames = labelled()
    write_bad_files(frames)
    before = sorted(here.iterdir())
    assert run("evaluate", "tiny.safetensors", *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert sorted(here.iterdir()) == before, "a mistake must leave nothing behind"


def write_bad_files(frames: list[Atoms]) -> None:
    write("bare.extxyz", [ethanol(), ethanol()])
    polar = ethanol()
    polar.info["dipole"] = [0.1, 0.2, 0.3]
    write("dipole.extxyz", polar)
    xenon = Atoms("Xe", [[0, 0, 0]])
    clash = Atoms("H2", [[0, 0, 0], [0, 0, 0]])
    for atoms in (xenon, clash):
        atoms.calc = SinglePointCalculator(atoms, energy=0.0, forces=np.zeros((len(atoms), 3)))
    write("xenon.extxyz", xenon)
    write("clash.extxyz", [frames[0], clash])
    write_npz(frames, forces=None)
    Path("frames.npz").rename("keys.npz")
    write_npz(frames, coords=np.zeros((FRAMES, 8, 3)))
    Path("frames.npz").rename("shape.npz")
    write_npz(frames, **dict.fromkeys(("coords", "forces"), np.zeros((0, 9, 3))), energies=[])
    Path("frames.npz").rename("none.npz")
    Path("damaged.npz").write_bytes(Path("keys.npz").read_bytes()[:200])
    Path("empty.extxyz").touch()
    Path("noise.dat").write_bytes(bytes(range(256)))
    Path("full").mkdir()
    Path("full/notes").touch()
    frames[3].calc.results["forces"][2, 0] = np.nan
    write("nan.extxyz", frames)


def test_labels_of_other_names_and_units(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same frames, with the names that MACE's users give, in kcal/mol."""
    options = ["--json", "-", "--dtype", "float64"]
    assert run("evaluate", "tiny.safetensors", "frames.extxyz", "-o", "a", *options) == 0
    expected = json.loads(capsys.readouterr().out)
    frames: Any = read("frames.extxyz", ":")
    for atoms in frames:
        labels, atoms.calc = atoms.calc.results, None
        atoms.info["REF_energy"] = labels["energy"] / kcal_per_mol_in_ev
        atoms.arrays["REF_forces"] = labels["forces"] / kcal_per_mol_in_ev
    write("named.xyz", frames, format="extxyz")
    options += ["--label", "energy=REF_energy", "--label", "forces=REF_forces", "--label=stress="]
    options += ["--data-units", "energy=kcal/mol", "--format", "extxyz", "-o", "b"]
    assert run("evaluate", "tiny.safetensors", "named.xyz", *options) == 0
    found = json.loads(capsys.readouterr().out)
    for name in ("energy_mev", "force_mev_per_angstrom"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


def test_limit_reads_no_further(here: Path) -> None:
    frames = labelled()
    frames[3].calc.results["energy"] = np.nan
    write("nan.extxyz", frames)
    found = read_labelled("nan.extxyz", limit=3)
    assert len(found) == 3
    assert all(set(frame.labels) == {"energy", "forces"} for frame in found)
    with pytest.raises(ValueError, match="frame 3 "):
        read_labelled("nan.extxyz", limit=4)
    assert len(read_labelled("nan.extxyz@4:", limit=2)) == 2


def test_shipped_model_on_revised_md17(tmp_path: Path) -> None:
    file = data_file("rmd17/rmd17_ethanol_test_01.npz")
    found = evaluate_checkpoint("ethanol", file, limit=60, backend="reference")
    assert isinstance(found, Evaluation)
    numbers = found.summary()
    # Over all 1,000 frames 0.69 meV and 4.76 meV/A: the model card.
    assert 0.3 < numbers["energy_mev"]["mae"] < 1.5
    assert 3.0 < numbers["force_mev_per_angstrom"]["mae"] < 8.0


# Export


def test_export_portable_and_openmm(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    frames: Any = read("frames.extxyz", ":")
    write("ethanol.xyz", frames[0])
    expected = PotentialCalculator("tiny.safetensors", dtype="float64").evaluate(frames[:1])[0]
    options = ["--dtype", "float64", "--no-tables"]
    assert run("export", "tiny.safetensors", "model.pt", *options) == 0
    assert "wrote model.pt" in capsys.readouterr().err
    positions, numbers = (torch.tensor(x) for x in (frames[0].positions, frames[0].numbers))
    portable = torch.jit.load("model.pt")
    energy, forces = portable(positions, numbers, torch.zeros(3, 3), torch.zeros(3).bool())
    assert energy.item() == pytest.approx(expected["energy"], abs=1e-9)
    np.testing.assert_allclose(forces, expected["forces"], atol=1e-9)
    assert run("export", "tiny.safetensors", "gmx.pt", "--target", "gromacs", *options) == 0
    kj_per_mol = torch.jit.load("gmx.pt")(positions / 10, numbers)
    assert kj_per_mol.item() == pytest.approx(expected["energy"] * 96.485332, rel=1e-6)
    openmm = ["--target", "openmm", *options]
    given = ["--numbers", ",".join(frames[0].get_chemical_symbols())]
    assert run("export", "tiny.safetensors", "given.pt", *openmm, *given) == 0
    assert run("export", "tiny.safetensors", "read.pt", *openmm, "--structure", "ethanol.xyz") == 0
    for name in ("given.pt", "read.pt"):
        kj_per_mol, _ = torch.jit.load(name)(positions / 10)
        assert kj_per_mol.item() == pytest.approx(expected["energy"] * 96.485332, rel=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--target", "lammps"],
            "--target is 'lammps': expected one of gromacs, openmm, portable",
        ),
        (["--target", "openmm"], "give its atoms by --structure FILE or by --numbers"),
        (["--target", "openmm", "--numbers", "H,Qq"], "--numbers: 'Qq' is no element"),
        (["--target", "openmm", "--numbers", "Xe"], "the model does not know Xe"),
        (["--target", "openmm", "--structure", "no.xyz"], "no.xyz: no such file"),
        (["--target", "openmm", "--structure", "slab.extxyz"], "give --periodic or --no-periodic"),
        (["--numbers", "H"], "--numbers is an option of --target openmm only"),
        (["--target", "gromacs", "--periodic"], "--periodic is an option of --target openmm only"),
        (["--charge", "1"], "--charge is an option of --target openmm and gromacs only"),
        (["--dtype", "half"], "dtype is 'half'"),
    ],
)
def test_export_refuses(
    arguments: list[str], message: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    slab = waters()
    slab.pbc = [True, True, False]
    write("slab.extxyz", slab)
    assert run("export", "tiny.safetensors", "model.pt", *arguments) == 2
    errors = capsys.readouterr().err
    assert message in errors
    assert len(errors.strip().splitlines()) == 1, errors
    assert not Path("model.pt").exists()
