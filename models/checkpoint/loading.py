"""One door for every checkpoint: what it is, is recognised by its contents."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from torch import Tensor, nn

from ..committee import Committee
from ..networks.torchmdnet import TorchMDNetPotential
from ..potential import Potential
from ..units import energy_in_ev, length_in_angstrom
from . import matgl, modelforge, registry, tdn_release
from .files import is_torch, is_torchscript, is_zip, load_torch, read_bytes, unzip
from .native import is_safetensors, read_native, save_potential
from .torchmdnet_format import is_torchmdnet, noted, read_torchmdnet

AnyPotential = Potential | TorchMDNetPotential | Committee
Checkpoint = str | os.PathLike[str] | Sequence[str | os.PathLike[str]] | nn.Module

ASSUMED_UNITS = ("angstrom", "ev")
READABLE = (
    "a tensormd safetensors file, a torchmd-net checkpoint, a matgl folder, a modelforge or TDN "
    "state dict, or a zip of checkpoints"
)
NOT_CHECKPOINTS = {".txt", ".md", ".json", ".yaml", ".yml", ".csv", ".log"}


@dataclass
class _Request:
    """What the caller said of the checkpoint, and what had to be assumed."""

    units: tuple[str, str] | None
    elements: list[int] | None
    assumed: list[str] = field(default_factory=list)


def load_potential(
    checkpoint: Checkpoint,
    *,
    units: tuple[str, str] | None = None,
    elements: Iterable[int] | None = None,
) -> AnyPotential:
    """Read a potential, or a committee, from whatever holds one.

    Parameters
    ----------
    checkpoint
        A path, a name of the registry, a sequence of paths (a committee), or a potential,
        which is returned as it is. Names go before paths: write ``./ethanol`` for a file of
        that name.
    units
        Units of length and energy of a file that does not state them, such as
        ``("angstrom", "kcal/mol")``. None takes Angstrom and eV, with a warning.
    elements
        Atomic numbers that the model was trained on, where the file does not state them.

    Returns
    -------
    On the CPU, in the dtype of the file, in evaluation mode.

    Raises
    ------
    ValueError
        If there is no such file, or it cannot be read: the message names it, what was
        expected and the remedy.
    """
    request = _Request(
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
    """Write any readable checkpoint in the native format.

    Parameters
    ----------
    checkpoint, units, elements
        As for `load_potential`.
    output
        Path of the new file.
    metadata
        Added to what the checkpoint says of itself.

    Returns
    -------
    The potential that was written.
    """
    potential = load_potential(checkpoint, units=units, elements=elements)
    members = list(potential.members) if isinstance(potential, Committee) else [potential]
    for member in members:
        member.metadata |= dict(metadata or {})  # type: ignore[operator]
    save_potential(potential, Path(output))
    return potential


def _parse_units(units: Sequence[str] | None) -> tuple[str, str] | None:
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


def _load(checkpoint: Checkpoint, request: _Request) -> AnyPotential:
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
    """The last net: tensors of the right names and impossible shapes fail in many ways."""
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
    """The members of committees stand beside the others; one alone is no committee."""
    flat: list[nn.Module] = []
    for member in members:
        flat += list(member.members) if isinstance(member, Committee) else [member]
    return flat[0] if len(flat) == 1 else Committee(flat).eval()  # type: ignore[return-value]


def _load_entry(entry: registry.Entry, request: _Request) -> AnyPotential:
    path = registry.fetch(entry)
    units = request.units
    if entry.units is not None:
        units = _agreed(entry.units, request.units, entry.name)
    stated = None if entry.elements is None else list(entry.elements)
    potential = _load_path(path, _Request(units, request.elements or stated, request.assumed))
    potential.metadata.setdefault("licence", entry.licence)
    potential.metadata |= {"name": entry.name, "description": entry.description}
    if not isinstance(entry.files[0], Path):
        potential.metadata["source"] |= {"address": [str(file) for file in entry.files]}
    return potential


def _load_path(path: Path, request: _Request) -> AnyPotential:
    if not path.exists():
        raise ValueError(
            f"no such file: {path}; {registry.suggest(str(path))} (a checkpoint is a path or "
            "a registry name)"
        )
    if path.name == "state.pt" and (path.parent / "model.json").exists():
        path = path.parent
    if path.is_dir():
        files = {name: path / name for name in ("model.json", "state.pt")}
        missing = [name for name, file in files.items() if not file.is_file()]
        if missing:
            raise ValueError(
                f"the folder {path} has no {' and no '.join(missing)}: expected a matgl folder "
                "with model.json and state.pt, or the path of a checkpoint in it"
            )
        _agreed(matgl.UNITS, request.units, str(path))
        description, state = (read_bytes(file) for file in files.values())
        name = str(path.resolve())
        return matgl.read_matgl(description, state, name, elements=request.elements)
    return _load_bytes(read_bytes(path), str(path), request)


def _load_bytes(data: bytes, name: str, request: _Request) -> AnyPotential:
    if is_safetensors(data):
        potential = read_native(data, name)
        _agreed((potential.length_unit, potential.energy_unit), request.units, name)
        if request.elements is not None:
            _restrict(potential, request.elements, name)
        return potential
    if is_torchscript(data, name):
        raise ValueError(
            f"{name} is a TorchScript archive, which is code: expected the checkpoint it was "
            "exported from"
        )
    if is_torch(data, name):
        return _load_torch(data, name, request)
    if is_zip(data):
        return _load_zip(data, name, request)
    if data.startswith(b"version https://git-lfs"):
        raise ValueError(f"{name} is a Git LFS pointer: run `git lfs pull` to get the file itself")
    raise ValueError(f"{name} is no checkpoint that tensormd reads: expected {READABLE}")


def _load_torch(data: bytes, name: str, request: _Request) -> AnyPotential:
    content = load_torch(data, name)
    if is_torchmdnet(content):
        note = noted(content, name)
        stated = request.units if note is None else _agreed(note.units, request.units, name)
        potential = read_torchmdnet(
            content,
            name,
            units=stated or ASSUMED_UNITS,
            units_stated=stated is not None,
            elements=request.elements or (note and note.elements),
        )
        if stated is None:
            request.assumed.append(name)
        if note is not None:
            potential.metadata = note.metadata | {"source": potential.metadata["source"]}
        return potential
    if tdn_release.is_tdn_release(content):
        _agreed(tdn_release.UNITS, request.units, name)
        return tdn_release.read_tdn_release(content, name, elements=request.elements)
    if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
        content = content["state_dict"]
    tensors = _tensors(content, name)
    if modelforge.is_modelforge(tensors):
        _agreed(modelforge.UNITS, request.units, name)
        return modelforge.read_modelforge(tensors, name, elements=request.elements)
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


def _tensors(content: Any, name: str) -> dict[str, Tensor]:
    if isinstance(content, Mapping):
        tensors = {
            key: tensor
            for key, tensor in content.items()
            if isinstance(key, str) and isinstance(tensor, Tensor)
        }
        if tensors:
            return tensors
    raise ValueError(
        f"{name} holds a {type(content).__name__} without named tensors: expected {READABLE}"
    )


def _load_zip(data: bytes, name: str, request: _Request) -> AnyPotential:
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
            raise ValueError(f"{label} is empty: expected a checkpoint; make the zip anew")
        potentials.append(_load_bytes(content, label, request))
    return _committee(potentials)


def _agreed(stated: tuple[str, str], given: tuple[str, str] | None, name: str) -> tuple[str, str]:
    """The units of a file that states them, unless somebody says otherwise."""
    if given is None:
        return stated
    ours = length_in_angstrom(stated[0]), energy_in_ev(stated[1])
    if ours != (length_in_angstrom(given[0]), energy_in_ev(given[1])):
        raise ValueError(f"units is {given!r}, but {name} states {stated!r}: leave units out")
    return stated


def _restrict(potential: Potential | TorchMDNetPotential, elements: list[int], name: str) -> None:
    known = set(potential.elements)
    # A file that was converted without knowing its elements lists every row it has.
    if not elements or not set(elements) <= known:
        raise ValueError(
            f"elements has {sorted(set(elements) - known) or 'nothing'}, but {name} knows "
            f"{sorted(known)}: leave elements out, or choose among these"
        )
    potential.elements = sorted(set(elements))
    potential.metadata["elements_stated"] = True
