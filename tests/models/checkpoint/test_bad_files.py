"""Missing, damaged, foreign or malicious files: one clear line each, and no code is run."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from support.checkpoint_files import make_state, rewrite, write_folder
from support.checkpoint_helpers import ATOMREF, make_model, save
from support.helpers import make_potential

from tensormd.models.checkpoint import files, load_potential, save_potential
from tensormd.models.committee import Committee

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not state its units"),
    pytest.mark.filterwarnings("ignore:Detected pickle protocol"),  # torch's, before it refuses
]


class Payload:
    """What an attacker would put in a pickle: a call that leaves a trace."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.trace),)


def one_line(error: pytest.ExceptionInfo[ValueError], path: Path) -> str:
    message = str(error.value)
    assert path.name in message
    assert "\n" not in message
    return message


@pytest.mark.parametrize("kind", ["torch.save", "legacy torch.save", "pickle", "hyper-parameters"])
def test_pickle_that_would_run_code(kind: str, tmp_path: Path) -> None:
    trace, path = tmp_path / "trace", tmp_path / "evil.ckpt"
    if kind == "torch.save":
        torch.save(Payload(trace), path)
    elif kind == "legacy torch.save":
        torch.save({"a": Payload(trace)}, path, _use_new_zipfile_serialization=False)
    elif kind == "pickle":
        path.write_bytes(pickle.dumps(Payload(trace)))
    else:
        model, arguments = make_model()
        save(path, model, arguments | {"dataset_arg": Payload(trace)})
    with pytest.raises(ValueError, match="would run code when opened") as error:
        load_potential(path)
    assert "save the state dict" in one_line(error, path)
    assert not trace.exists()
    # The control: an unpickler that trusts the file does run it.
    content = path.read_bytes()
    if kind == "pickle":
        pickle.loads(content)
    else:
        torch.load(io.BytesIO(content), weights_only=False)
    assert trace.exists()


def test_whole_model_instead_of_its_state_dict(tmp_path: Path) -> None:
    torch.save(torch.nn.Linear(2, 2), tmp_path / "model.pt")
    with pytest.raises(ValueError, match=r"model\.pt .*torch\.nn\.modules\.linear\.Linear"):
        load_potential(tmp_path / "model.pt")


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"no such file: .*missing\.ckpt") as error:
        load_potential(tmp_path / "missing.ckpt")
    assert "aceff-1.0" in one_line(error, tmp_path / "missing.ckpt")


@pytest.mark.parametrize(
    ("given", "meant"),
    [("acef-2.0", "aceff-2.0"), ("AceFF2.0", "aceff-2.0"), ("etanol", "ethanol")],
)
def test_misspelt_name(given: str, meant: str) -> None:
    with pytest.raises(ValueError, match=f"did you mean '{meant}'"):
        load_potential(given)


@pytest.mark.parametrize("value", [None, 3, b"bytes", {"a": 1}])
def test_what_is_no_checkpoint_at_all(value: Any) -> None:
    with pytest.raises(ValueError, match="expected a path, a registry name"):
        load_potential(value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"\x00" * 100, "no checkpoint that tensormd reads"),
        (b"<!DOCTYPE html><html>not found</html>", "no checkpoint that tensormd reads"),
        (b"ITEM: TIMESTEP\n0\n", "no checkpoint that tensormd reads"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\n", "git lfs pull"),
        (b"PK\x03\x04 and no more", "damaged or truncated"),
        (b"\x80\x02}q\x00", "damaged or truncated"),
        (b"\x80\x04.", "damaged or truncated"),
    ],
)
def test_foreign_files(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "file.ckpt"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        load_potential(path)
    one_line(error, path)


@pytest.mark.parametrize("zipped", [True, False])
def test_truncated_at_any_length(zipped: bool, tmp_path: Path) -> None:
    model, arguments = make_model(num_layers=0)
    whole = save(tmp_path / "whole.ckpt", model, arguments)
    if not zipped:
        content = torch.load(whole, weights_only=True)
        torch.save(content, whole, _use_new_zipfile_serialization=False)
    load_potential(whole)
    data, path = whole.read_bytes(), tmp_path / "part.ckpt"
    for length in (1, 3, 30, 300, len(data) // 2, len(data) - 20):
        path.write_bytes(data[:length])
        with pytest.raises(
            ValueError, match=r"damaged|no checkpoint that tensormd reads"
        ) as error:
            load_potential(path)
        one_line(error, path)


def test_flipped_bits_are_noticed_or_harmless(tmp_path: Path) -> None:
    model, arguments = make_model(num_layers=0)
    data = save(tmp_path / "whole.ckpt", model, arguments).read_bytes()
    path = tmp_path / "flipped.ckpt"
    for position in range(0, len(data), len(data) // 40):
        path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with contextlib.suppress(ValueError):  # and nothing else
                load_potential(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": torch.ones(2)}, "unknown architecture"),
        ([1, 2, 3], "list without named tensors"),
        ({"a": 1}, "dict without named tensors"),
        ({"state_dict": {"x": torch.ones(1)}}, "unknown architecture"),
        (torch.ones(3), "Tensor without named tensors"),
        (
            {"representation_model.tensor_embedding.emb.weight": torch.ones(2, 2)},
            "without its hyper-parameters",
        ),
    ],
)
def test_torch_files_of_other_programs(content: Any, message: str, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    torch.save(content, path)
    with pytest.raises(ValueError, match=message) as error:
        load_potential(path)
    one_line(error, path)


def test_torchscript_archive(tmp_path: Path) -> None:
    torch.jit.script(make_potential()).save(tmp_path / "exported.pt")
    with pytest.raises(ValueError, match=r"exported\.pt is a TorchScript archive.*expected"):
        load_potential(tmp_path / "exported.pt")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read anything")
def test_file_that_may_not_be_read(tmp_path: Path) -> None:
    path = tmp_path / "secret.ckpt"
    path.write_bytes(b"x")
    path.chmod(0)
    with pytest.raises(ValueError, match=r"cannot read .*secret\.ckpt: Permission denied"):
        load_potential(path)


# Tensors of impossible shapes, one at a time


def test_shapes_in_torchmdnet_checkpoints(tmp_path: Path) -> None:
    for model, arguments in (
        make_model(prior_model="Atomref", prior_args=ATOMREF),
        make_model(model="graph-network"),
    ):
        path = save(tmp_path / "m.ckpt", model, arguments)
        content = torch.load(path, weights_only=True)
        state = content["state_dict"]
        for key in [k for k in state if not k.endswith((".box", "initial_atomref"))]:
            for wrong in (torch.ones(5).double(), torch.ones(0), torch.ones(3, 3, 3).double()):
                content["state_dict"] = state | {key: wrong}
                torch.save(content, path)
                with pytest.raises(ValueError, match=r"m\.ckpt"):
                    load_potential(path)


def test_shapes_in_state_dicts(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "matgl-folder")
    state = torch.load(folder / "state.pt", weights_only=True)
    for key in [k for k in state if not k.endswith("onehot")]:
        for wrong in (torch.ones(5), torch.ones(0), torch.ones(3, 3, 3)):
            torch.save(state | {key: wrong}, folder / "state.pt")
            with pytest.raises(ValueError, match="matgl-folder"):
                load_potential(folder)
    state = make_state("")
    unused = ("cutoff_module.cutoff", "dipole.dense.weight")
    for key in [k for k in state if not k.endswith(unused) and "postprocessing" not in k]:
        for wrong in (torch.ones(5).double(), torch.ones(0), torch.ones(3, 3, 3).double()):
            torch.save(state | {key: wrong}, tmp_path / "forge.pt")
            with pytest.raises(ValueError, match=r"forge\.pt"):
                load_potential(tmp_path / "forge.pt")


def test_shapes_in_native_files(tmp_path: Path) -> None:
    path = tmp_path / "toy.safetensors"
    save_potential(make_potential(channels=4, layers=1), path)
    content = path.read_bytes()
    for key in load_file(path):
        for wrong in (torch.ones(5), torch.ones(0), torch.tensor(1.0), torch.ones(3, 3, 3)):
            if key in ("atomic_scale.scale", "atomic_scale.mean") and wrong.ndim == 0:
                continue
            path.write_bytes(content)
            rewrite(path, lambda d, t, k=key, w=wrong: t.update({k: w}))
            with pytest.raises(ValueError, match=r"toy\.safetensors"):
                load_potential(path)


# Zips


def test_committee_of_torchmdnet_checkpoints(tmp_path: Path) -> None:
    paths = []
    for seed in range(3):
        model, arguments = make_model(seed)
        paths.append(save(tmp_path / f"{seed}.ckpt", model, arguments))
    with zipfile.ZipFile(tmp_path / "ensemble.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for path in paths:
            archive.write(path, f"folder/{path.name}")
        archive.writestr("hparams.yaml", "model: tensornet")
        archive.writestr("__MACOSX/._0.ckpt", "x")
    with pytest.warns(UserWarning, match="does not state its units") as warned:
        committee = load_potential(tmp_path / "ensemble.zip")
    assert len(warned) == 1
    assert isinstance(committee, Committee)
    assert [m.metadata["source"]["file"] for m in committee.members] == [p.name for p in paths]
    assert sorted(tmp_path.glob("**/*.ckpt")) == paths  # nothing was unpacked


@pytest.mark.parametrize("name", ["../out.ckpt", "/out.ckpt", "a/../../out.ckpt", "..\\out.ckpt"])
def test_zip_slip(name: str, tmp_path: Path) -> None:
    save_potential(make_potential(), tmp_path / "good.safetensors")
    path = tmp_path / "slip.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.write(tmp_path / "good.safetensors", "good.safetensors")
        archive.writestr(name, "x")
    before = sorted(tmp_path.parent.rglob("*"))
    with pytest.raises(ValueError, match="leads out of the archive") as error:
        load_potential(path)
    one_line(error, path)
    assert sorted(tmp_path.parent.rglob("*")) == before


def test_zip_with_nothing_in_it(tmp_path: Path) -> None:
    path = tmp_path / "notes.zip"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("README.md", "nothing here")
    with pytest.raises(ValueError, match=r"notes\.zip has no checkpoint in it"):
        load_potential(path)


def test_zip_with_a_foreign_member(tmp_path: Path) -> None:
    path = tmp_path / "mixed.zip"
    save_potential(make_potential(), tmp_path / "good.safetensors")
    for content, message in ((b"", "is empty"), (b"PDB file", "no checkpoint")):
        with zipfile.ZipFile(path, "w") as archive:
            archive.write(tmp_path / "good.safetensors", "good.safetensors")
            archive.writestr("other.bin", content)
        with pytest.raises(ValueError, match=rf"mixed\.zip/other\.bin {message}|other\.bin is no"):
            load_potential(path)


def test_zip_bomb(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(files, "MAX_UNPACKED_BYTES", 10**6)
    path = tmp_path / "bomb.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("zeros.ckpt", bytes(2 * 10**6))
    with pytest.raises(ValueError, match=r"bomb\.zip unpacks to more than"):
        load_potential(path)


def test_committee_without_a_common_element(tmp_path: Path) -> None:
    for name, elements in (("a", [1]), ("b", [8])):
        potential = make_potential()
        potential.elements = elements
        save_potential(potential, tmp_path / name)
    with pytest.raises(ValueError, match="no element in common"):
        load_potential([tmp_path / "a", tmp_path / "b"])
