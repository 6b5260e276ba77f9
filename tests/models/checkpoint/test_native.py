"""The native format: files are read back exactly as written, or not at all."""

from __future__ import annotations

import errno
import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from support.checkpoint_files import rewrite
from support.helpers import ELEMENTS, REFERENCES, ethanol, make_potential, predict

from tensormd.models import EnergyReadout, Potential, TensorNet
from tensormd.models.checkpoint import convert, describe, load_potential, save_potential
from tensormd.models.committee import Committee
from tensormd.models.heads.repulsion import ZBLRepulsion

VARIANTS: dict[str, dict[str, Any]] = {
    "plain": {},
    "gauss, SO(3)": {"radial": "gauss", "group": "SO(3)", "trainable_radial": True},
    "bessel, gated": {"radial": "bessel", "head": "gated", "self_interaction": False},
    "linear, ZBL, nm": {
        "head": "linear",
        "zbl": True,
        "length_unit": "nm",
        "energy_unit": "kJ/mol",
        "cutoff": 0.45,
    },
    "no layers, lower cutoff": {"layers": 0, "cutoff_lower": 1.0, "activation": "ssp"},
    "references": {"references": REFERENCES},
}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("variant", VARIANTS)
def test_round_trip(variant: str, dtype: torch.dtype, tmp_path: Path) -> None:
    potential = make_potential(**VARIANTS[variant]).to(dtype)
    potential.metadata = {"name": "toy", "errors": {"forces_mev_per_angstrom": 3.5}}
    path = tmp_path / "toy.safetensors"
    save_potential(potential, path)
    again = load_potential(path)
    assert isinstance(again, Potential)
    assert again.dtype == dtype
    assert not again.training
    assert describe(again) == describe(potential)
    assert again.metadata == potential.metadata
    expected, found = predict(potential, ethanol()), predict(again, ethanol())
    assert found.forces.abs().max() > 1e-3
    for a, b in zip(expected, found, strict=True):
        assert torch.equal(a, b)


def test_same_bytes_twice_and_after_reading(tmp_path: Path) -> None:
    paths = [tmp_path / f"{i}.safetensors" for i in range(3)]
    potential = make_potential(zbl=True)
    potential.metadata = {"name": "toy", "training": {"a": 1, "b": [1, 2]}}
    save_potential(potential, paths[0])
    save_potential(potential, paths[1])
    save_potential(load_potential(paths[0]), paths[2])
    first, second, third = (path.read_bytes() for path in paths)
    assert first == second == third


def test_reading_leaves_the_weights_writable_and_scriptable(tmp_path: Path) -> None:
    save_potential(make_potential(), tmp_path / "toy.safetensors")
    potential = load_potential(tmp_path / "toy.safetensors")
    with torch.no_grad():
        for parameter in potential.parameters():
            parameter.mul_(1.5)
    torch.jit.script(potential)
    molecule = ethanol().graph(potential.cutoff)
    potential.train()(molecule).forces.pow(2).sum().backward()
    assert any(p.grad is not None and p.grad.abs().max() > 0 for p in potential.parameters())


def test_a_built_potential_is_returned_as_it_is() -> None:
    potential = make_potential()
    assert load_potential(potential) is potential
    with pytest.raises(ValueError, match="a potential has its own"):
        load_potential(potential, units=("nm", "ev"))
    with pytest.raises(ValueError, match="Linear is no potential"):
        load_potential(torch.nn.Linear(1, 1))


def test_committees(tmp_path: Path) -> None:
    members = [make_potential(seed) for seed in range(11)]  # 10 sorts before 2 as a name
    path = tmp_path / "committee.zip"
    save_potential(Committee(members), path)
    again = load_potential(path)
    assert isinstance(again, Committee)
    expected = Committee(members).eval()(ethanol().graph())
    found = again(ethanol().graph())
    assert found.energy_std.item() > 1e-6
    assert torch.equal(found.mean.energy, expected.mean.energy)
    assert torch.equal(found.forces_std, expected.forces_std)
    assert all(
        torch.equal(a(ethanol().graph()).energy, b(ethanol().graph()).energy)
        for a, b in zip(members, again.members, strict=True)
    )
    save_potential(again, tmp_path / "twice.zip")
    assert path.read_bytes() == (tmp_path / "twice.zip").read_bytes()
    assert len(describe(again)["members"]) == 11


def test_sequences_are_committees(tmp_path: Path) -> None:
    paths = [tmp_path / f"{seed}.safetensors" for seed in range(3)]
    for seed, path in enumerate(paths):
        save_potential(make_potential(seed), path)
    committee = load_potential([str(paths[0]), paths[1], paths[2]])
    assert isinstance(committee, Committee)
    assert len(committee.members) == 3
    save_potential(Committee(list(committee.members)[:2]), tmp_path / "two.zip")
    nested = load_potential([tmp_path / "two.zip", paths[2]])
    assert torch.equal(
        nested(ethanol().graph()).mean.energy, committee(ethanol().graph()).mean.energy
    )
    assert isinstance(load_potential([paths[0]]), Potential)
    with pytest.raises(ValueError, match="empty sequence"):
        load_potential([])


def test_convert_adds_metadata(tmp_path: Path) -> None:
    save_potential(make_potential(), tmp_path / "a.safetensors")
    convert(
        tmp_path / "a.safetensors",
        tmp_path / "b.safetensors",
        elements=[1, 8],
        metadata={"licence": "CC0-1.0"},
    )
    potential = load_potential(tmp_path / "b.safetensors")
    assert potential.metadata["licence"] == "CC0-1.0"
    assert potential.elements == [1, 8]


def test_units_of_the_file_win(tmp_path: Path) -> None:
    save_potential(make_potential(energy_unit="kcal/mol"), tmp_path / "a.safetensors")
    same = load_potential(tmp_path / "a.safetensors", units=("Angstrom", "kcal/mol"))
    assert same.energy_unit == "kcal/mol"
    with pytest.raises(ValueError, match=r"a\.safetensors states.*kcal/mol.*leave units out"):
        load_potential(tmp_path / "a.safetensors", units=("angstrom", "ev"))
    with pytest.raises(ValueError, match="unknown energy unit 'joule'"):
        load_potential(tmp_path / "a.safetensors", units=("angstrom", "joule"))
    with pytest.raises(ValueError, match="expected two names"):
        load_potential(tmp_path / "a.safetensors", units="angstrom")  # type: ignore[arg-type]


def test_elements_can_only_be_fewer(tmp_path: Path) -> None:
    save_potential(make_potential(), tmp_path / "a.safetensors")
    assert load_potential(tmp_path / "a.safetensors", elements=[8]).elements == [8]
    with pytest.raises(ValueError, match=r"elements has \[92\].*\[1, 6, 7, 8\]"):
        load_potential(tmp_path / "a.safetensors", elements=[8, 92])


# Writing that fails


def test_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(OSError, match=r"cannot write.*missing/toy\.safetensors"):
        save_potential(make_potential(), tmp_path / "missing" / "toy.safetensors")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_folder_that_cannot_be_written_to(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=r"cannot write.*toy\.safetensors"):
        save_potential(make_potential(), tmp_path / "toy.safetensors")


@pytest.mark.parametrize("step", ["fsync", "replace"])
def test_full_disk_leaves_what_was_there(
    step: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "toy.safetensors"
    save_potential(make_potential(0), path)
    before = path.read_bytes()

    def fail(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, step, fail)
    with pytest.raises(OSError, match=r"cannot write .*toy\.safetensors: No space left"):
        save_potential(make_potential(1), path)
    monkeypatch.undo()
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["toy.safetensors"]


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    with pytest.raises(ValueError, match="cannot save a Linear"):
        save_potential(torch.nn.Linear(1, 1), path)
    with pytest.raises(ValueError, match="cannot save"):
        save_potential(torch.jit.script(make_potential()), path)
    potential = make_potential()
    potential.metadata = {"path": Path("x")}
    with pytest.raises(ValueError, match=r"toy\.safetensors.*metadata.*JSON"):
        save_potential(potential, path)
    potential = make_potential()
    with torch.no_grad():
        next(potential.parameters())[0] = torch.inf
    with pytest.raises(ValueError, match=r"toy\.safetensors.*NaN or infinite"):
        save_potential(potential, path)
    assert list(tmp_path.iterdir()) == []


# Files that are not right


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d, t: d.update(version=3), "version 3.*install a newer"),
        (lambda d, t: d.update(version="1"), "version '1'"),
        (lambda d, t: d.update(format="other"), "another program"),
        (lambda d, t: d.update(architecture="TensorNet9"), "unknown architecture 'TensorNet9'"),
        (lambda d, t: d.pop("network"), "network = None: expected a dict"),
        (lambda d, t: d.pop("metadata"), "metadata = None"),
        (lambda d, t: d["network"].pop("radial"), None),
        (lambda d, t: d["network"].update(depth=3), "makes no model.*depth"),
        (lambda d, t: d["network"].update(radial="sine"), "makes no model.*'sine'"),
        (lambda d, t: d["network"].update(layers=10**9), "layers is 1000000000"),
        (lambda d, t: d["network"].update(layers=3), r"lacks representation\.layers\.2"),
        (lambda d, t: d["network"].update(layers=1), r"unexpected representation\.layers\.1"),
        (lambda d, t: d["network"].update(channels=8), r"shape .*expected"),
        (lambda d, t: d["units"].update(length="parsec"), "unknown length unit 'parsec'"),
        (lambda d, t: d.update(elements=[]), "elements is \\[\\]"),
        (lambda d, t: d.update(elements=["H"]), "list of atomic numbers"),
        (lambda d, t: d.update(elements=[1, 99]), r"makes no model.*\[1, 99\].*1 to 8"),
        (lambda d, t: d.update(elements=[0, 1]), r"makes no model.*\[0, 1\]"),
        (lambda d, t: d.update(repulsion={"radius": 1.0}), "makes no model.*radius"),
        (lambda d, t: t.pop("readout.norm.weight"), r"lacks readout\.norm\.weight"),
        (lambda d, t: t.pop("atomic_scale.mean"), r"no tensor atomic_scale\.mean"),
        (lambda d, t: t.update(extra=torch.ones(1)), "unexpected extra"),
        (lambda d, t: t["readout.norm.weight"].fill_(torch.nan), "NaN or infinite"),
        (
            lambda d, t: t.update({"readout.norm.weight": t["readout.norm.weight"].float()}),
            r"torch\.float32, torch\.float64.*expected all",
        ),
    ],
)
def test_descriptions_that_are_wrong(change: Any, message: str | None, tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    save_potential(make_potential(references=REFERENCES), path)
    rewrite(path, change)
    if message is None:  # what has a default may be left out
        load_potential(path)
        return
    with pytest.raises(ValueError, match=rf"toy\.safetensors.*{message}"):
        load_potential(path)


def test_truncated_at_any_length(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    save_potential(make_potential(channels=4, layers=0), path)
    data = path.read_bytes()
    for length in (1, 7, 8, 9, 20, 500, len(data) // 2, len(data) - 1):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"toy\.safetensors is (damaged|no checkpoint)"):
            load_potential(path)
    path.write_bytes(data + b"more")
    with pytest.raises(ValueError, match=r"toy\.safetensors is damaged"):
        load_potential(path)


def test_safetensors_of_another_program(tmp_path: Path) -> None:
    save_file({"weight": torch.ones(3)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"other\.safetensors.*another program"):
        load_potential(tmp_path / "other.safetensors")


def test_member_that_is_damaged(tmp_path: Path) -> None:
    path = tmp_path / "committee.zip"
    save_potential(Committee([make_potential(seed) for seed in range(2)]), path)
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", "which this is")
        archive.writestr("member-0.safetensors", members["member-0.safetensors"])
        archive.writestr("member-1.safetensors", members["member-1.safetensors"][:-10])
    with pytest.raises(ValueError, match=r"committee\.zip/member-1\.safetensors is damaged"):
        load_potential(path)


def test_everything_the_description_needs_is_in_the_config() -> None:
    # The test of the round trip above uses few values: any other must be in config as well.
    import inspect

    for kind, built in (
        (TensorNet, TensorNet(channels=4, layers=0, radial_functions=4)),
        (EnergyReadout, EnergyReadout(4, hidden_layers=1)),
        (ZBLRepulsion, ZBLRepulsion(3.0)),
    ):
        arguments = set(inspect.signature(kind).parameters) - {"channels"}
        assert arguments <= set(built.config) | {"channels"}
    assert ELEMENTS
