"""Loading of all checkpoints, whose format is recognised by their contents."""

from __future__ import annotations

import contextlib
import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from torch import nn

from ..committee import Committee
from ..networks.torchmdnet import TorchMDNetPotential
from ..potential import Potential
from ..units import energy_in_ev, length_in_angstrom
from . import matgl, modelforge, native, registry, tdn_release, torchmdnet_format
from .files import is_torch, is_torchscript, is_zip, load_torch, read_bytes, state_dict_of, unzip
from .formats import Format, Request, Units, agreed
from .native import save_potential

AnyPotential = Potential | TorchMDNetPotential | Committee
Checkpoint = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | nn.Module

FORMATS: tuple[Format, ...] = (
    native.FORMAT,
    torchmdnet_format.FORMAT,
    matgl.FORMAT,
    modelforge.FORMAT,
    tdn_release.FORMAT,
)
"""All formats in the order in which they are tried."""
READABLE = ", ".join(f"a {kind.name}" for kind in FORMATS) + ", or a zip of checkpoints"
TRAINED = ("best.safetensors", "last.safetensors")
"""Weights in the folder of a training."""
NOT_CHECKPOINTS = {".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".log"}


def load_potential(
    checkpoint: Checkpoint,
    *,
    units: tuple[str, str] | None = None,
    elements: Iterable[int] | None = None,
) -> AnyPotential:
    """Load a potential or a committee from a checkpoint of any supported format.

    Parameters
    ----------
    checkpoint
        Path, registry name, sequence of paths (a committee), or a potential, which is returned
        unchanged. Names take precedence over paths: write ``./ethanol`` for a file of that name.
    units
        Units of length and energy of a file that does not state them, such as
        ``("angstrom", "kcal/mol")``. None: Angstrom and eV are assumed, with a warning.
    elements
        Atomic numbers that the model was trained on, if the file does not state them.

    Returns
    -------
    Potential, TorchMDNetPotential or Committee
        On the CPU, in the dtype of the file, in evaluation mode.

    Raises
    ------
    ValueError
        If there is no such file, or it cannot be read; the message names it, what was expected
        and the remedy.
    """
    request = Request(
        _parse_units(units), None if elements is None else [int(z) for z in elements]
    )
    potential = _load(checkpoint, request)
    if request.assumed:
        files = ", ".join(request.assumed)
        warnings.warn(
            f"{files} does not state its units: Angstrom and eV are assumed; pass "
            "units=(length, energy) to say so, or to say otherwise",
            UserWarning,
            stacklevel=2,
        )
    return potential


def convert(
    checkpoint: Checkpoint,
    output: str | os.PathLike[str],
    *,
    units: tuple[str, str] | None = None,
    elements: Iterable[int] | None = None,
    metadata: Mapping[str, Any] | None = None,
) -> AnyPotential:
    """Convert a checkpoint of any supported format to the native format.

    Parameters
    ----------
    checkpoint, units, elements
        As for `load_potential`.
    output
        Path of the new file.
    metadata
        Entries added to the metadata of the checkpoint.

    Returns
    -------
    Potential, TorchMDNetPotential or Committee
        The potential that was written.

    Raises
    ------
    ValueError
        If the checkpoint cannot be read, or the potential cannot be saved.
    OSError
        If the file cannot be written.
    """
    potential = load_potential(checkpoint, units=units, elements=elements)
    members = list(potential.members) if isinstance(potential, Committee) else [potential]
    for member in members:
        member.metadata |= dict(metadata or {})  # type: ignore[operator]
    save_potential(potential, Path(output))
    return potential


def _parse_units(units: Sequence[str] | None) -> Units | None:
    if units is None:
        return None
    if isinstance(units, str) or len(units) != 2:
        raise ValueError(
            f"units is {units!r}: expected two names, of length and energy, such as "
            "('angstrom', 'ev')"
        )
    length, energy = units
    length_in_angstrom(length)
    energy_in_ev(energy)
    return length, energy


def _load(checkpoint: Checkpoint, request: Request) -> AnyPotential:
    if isinstance(checkpoint, nn.Module):
        missing = [a for a in ("cutoff", "elements", "metadata") if not hasattr(checkpoint, a)]
        if missing:
            raise ValueError(
                f"a {type(checkpoint).__name__} is no potential (it has no {missing[0]}): "
                "expected a Potential, a Committee, or a checkpoint"
            )
        if request.units is not None or request.elements is not None:
            raise ValueError("units and elements are for checkpoints: a potential has its own")
        return checkpoint  # type: ignore[return-value]
    if isinstance(checkpoint, str):
        entry = registry.find(checkpoint)
        if entry is not None:
            return _load_entry(entry, request)
    if isinstance(checkpoint, (str, os.PathLike)):
        with _explained(str(checkpoint)):
            return _load_path(Path(checkpoint), request)
    if isinstance(checkpoint, Sequence) and not isinstance(checkpoint, (bytes, bytearray)):
        if not checkpoint:
            raise ValueError("checkpoint is an empty sequence: expected the paths of a committee")
        return _committee([_load(member, request) for member in checkpoint])
    raise ValueError(
        f"checkpoint is a {type(checkpoint).__name__}: expected a path, a registry name, a "
        "sequence of paths or a potential"
    )


@contextlib.contextmanager
def _explained(name: str) -> Iterator[None]:
    """Turn remaining errors into one that names the file, e.g. those from impossible shapes."""
    try:
        yield
    except ValueError as error:
        if Path(name).name in str(error):
            raise
        raise ValueError(f"{name}: {error}") from error
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError) as error:
        reason = str(error).strip().split("\n")[0][:120]
        raise ValueError(
            f"{name} is not what it seems to be ({type(error).__name__}: {reason}): expected "
            f"{READABLE}"
        ) from error


def _committee(members: Sequence[AnyPotential]) -> AnyPotential:
    """Join members, and members of committees, into one committee; a single one is returned."""
    flat: list[nn.Module] = []
    for member in members:
        flat += list(member.members) if isinstance(member, Committee) else [member]
    return flat[0] if len(flat) == 1 else Committee(flat).eval()  # type: ignore[return-value]


def _load_entry(entry: registry.Entry, request: Request) -> AnyPotential:
    path = registry.fetch(entry)
    units = request.units
    if entry.units is not None:
        units = agreed(entry.units, request.units, entry.name)
    stated = None if entry.elements is None else list(entry.elements)
    potential = _load_path(path, Request(units, request.elements or stated, request.assumed))
    potential.metadata.setdefault("licence", entry.licence)
    for key in ("trained_with_charge", "dispersion"):
        if getattr(entry, key) is not None:
            potential.metadata.setdefault(key, getattr(entry, key))
    potential.metadata |= {"name": entry.name, "description": entry.description}
    if not isinstance(entry.files[0], Path):
        potential.metadata["source"] |= {"address": [str(file) for file in entry.files]}
    return potential


def _load_path(path: Path, request: Request) -> AnyPotential:
    if not path.exists():
        raise ValueError(
            f"no such file: {path}; {registry.suggest(str(path))} (a checkpoint is a path or "
            "a registry name)"
        )
    if any(
        path.name in kind.files[-1:] and all((path.parent / file).exists() for file in kind.files)
        for kind in FORMATS
    ):
        path = path.parent
    if path.is_dir():
        return _load_folder(path, request)
    return _load_bytes(read_bytes(path), str(path), request)


def _load_folder(path: Path, request: Request) -> AnyPotential:
    kinds = [kind for kind in FORMATS if kind.container == "folder"]
    for kind in kinds:
        if all((path / file).is_file() for file in kind.files):
            content = {file: read_bytes(path / file) for file in kind.files}
            if kind.recognises(content):
                return _read(kind, content, str(path.resolve()), request)
    trained = _trained_weights(path)
    if trained is not None:
        return _load_bytes(read_bytes(trained), str(trained), request)
    missing = [file for kind in kinds for file in kind.files if not (path / file).is_file()]
    expected = " or ".join(
        [
            *(f"a {kind.name} with {' and '.join(kind.files)}" for kind in kinds),
            f"a training with {' or '.join(TRAINED)}",
        ]
    )
    raise ValueError(
        f"the folder {path} has no {' and no '.join(missing)}: expected {expected}, or the path "
        "of a checkpoint in it"
    )


def _trained_weights(path: Path) -> Path | None:
    """The weights that a training kept; until it has ended, the best so far."""
    names = list(TRAINED)
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
        kept = json.loads((path / "results.json").read_text())["kept"]
        names.sort(key=lambda name: name != f"{kept}.safetensors")
    return next((path / name for name in names if (path / name).is_file()), None)


def _load_bytes(data: bytes, name: str, request: Request) -> AnyPotential:
    for kind in FORMATS:
        if kind.container == "file" and kind.recognises(data):
            return _read(kind, data, name, request)
    if is_torchscript(data, name):
        raise ValueError(
            f"{name} is a TorchScript archive, which is code: expected the checkpoint it was "
            "exported from"
        )
    if is_torch(data, name):
        return _load_torch(load_torch(data, name), name, request)
    if is_zip(data):
        return _load_zip(data, name, request)
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(f"{name} is a Git LFS pointer: run `git lfs pull` to get the file itself")
    raise ValueError(f"{name} is no checkpoint that tensormd reads: expected {READABLE}")


def _load_torch(content: Any, name: str, request: Request) -> AnyPotential:
    for kind in FORMATS:
        if kind.container == "torch" and kind.recognises(content):
            return _read(kind, content, name, request)
    tensors = state_dict_of(content)
    if not tensors:
        raise ValueError(
            f"{name} holds a {type(content).__name__} without named tensors: expected {READABLE}"
        )
    if any("tensor_embedding." in key for key in tensors):
        raise ValueError(
            f"{name} has the weights of a TensorNet without its hyper-parameters: expected the "
            "whole checkpoint of torchmd-net, or the folder of matgl with model.json beside "
            "state.pt"
        )
    raise ValueError(
        f"{name} holds the weights of an unknown architecture ({min(tensors)}, ...): expected "
        f"{READABLE}"
    )


def _read(kind: Format, content: Any, name: str, request: Request) -> AnyPotential:
    if kind.units is not None:
        agreed(kind.units, request.units, name)
    return kind.reads(content, name, request)


def _load_zip(data: bytes, name: str, request: Request) -> AnyPotential:
    members = {
        member: content
        for member, content in unzip(data, name).items()
        if PurePosixPath(member).suffix.lower() not in NOT_CHECKPOINTS
        and not PurePosixPath(member).name.startswith(".")
        and "__MACOSX" not in member
    }
    if not members:
        raise ValueError(f"{name} has no checkpoint in it: expected {READABLE}")
    potentials = []
    for member, content in members.items():
        label = f"{name}/{member}"
        if not content:
            raise ValueError(f"{label} is empty: expected a checkpoint; make the zip again")
        potentials.append(_load_bytes(content, label, request))
    return _committee(potentials)
