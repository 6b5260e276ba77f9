"""The project's own checkpoints: safetensors files with the full description of a potential.

A JSON text under the key ``tensormd`` of the file's metadata has everything except the tensors;
``docs/reference/checkpoints.md`` lists its fields. A committee is a zip of such files.
"""

from __future__ import annotations

import io
import json
import struct
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import nn

from ..committee import Committee
from ..files import write_atomically
from ..inference.tables import TabulatedPotential
from ..networks import NETWORKS
from ..networks.torchmdnet import TorchMDNetPotential
from ..potential import Potential
from .build import build_potential
from .files import is_zip, require_finite, unzip
from .formats import Format, Request, agreed

KEY = "tensormd"
VERSION = 2
"""Version of files with heads, which older programs must refuse; other files have version 1."""
MEMBER_DATE = (1980, 1, 1, 0, 0, 0)  # fixed, so that a committee always gives the same bytes


def is_safetensors(data: bytes) -> bool:
    """Whether the bytes begin like a safetensors file."""
    if len(data) < 10 or data[8:9] != b"{":
        return False
    # A plausible length beyond the end of the data means a truncated file.
    return 2 <= struct.unpack("<Q", data[:8])[0] < 2**27


# Writing


def save_potential(potential: nn.Module, path: str | Path) -> None:
    """Write a potential, or a committee, to a file that `load_potential` reads.

    The same potential gives the same bytes. The file is written under another name and
    then renamed, so that it is never incomplete.

    Parameters
    ----------
    potential
        `Potential`, `TorchMDNetPotential` or `Committee`.
    path
        Path of the file, usually ``*.safetensors``, or ``*.zip`` for a committee. An existing
        file is replaced.

    Raises
    ------
    ValueError
        If the potential cannot be described in a file, or its weights are not finite.
    OSError
        If the file cannot be written.
    """
    path = Path(path)
    write_atomically(path, potential_to_bytes(potential, str(path)))


def potential_to_bytes(potential: nn.Module, name: str) -> bytes:
    """Contents of the file of a potential or a committee; ``name`` is for error messages.

    Raises
    ------
    ValueError
        If the potential cannot be described in a file, or its weights are not finite.
    """
    if isinstance(potential, Committee):
        return _committee_to_bytes(potential, name)
    description = _describe(potential)
    if isinstance(potential, TorchMDNetPotential):
        tensors = potential.tensors()
        exempt = potential.allowed_nan(tensors)
    else:
        tensors, exempt = potential.state_dict(), []
    require_finite(tensors, name, exempt)
    try:
        text = json.dumps(description, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{name}: the metadata of the potential cannot be written as JSON ({error}): "
            "expected strings, finite numbers, lists and dicts"
        ) from error
    # Copies: shared memory is refused, and weights may be on another device.
    copies = {k: t.detach().to("cpu", copy=True).contiguous() for k, t in tensors.items()}
    return safetensors.torch.save(copies, metadata={KEY: text})


def _describe(potential: nn.Module) -> dict[str, Any]:
    heads = getattr(potential, "heads", {})
    description: dict[str, Any] = {"format": KEY, "version": VERSION if heads else 1}
    if isinstance(potential, TorchMDNetPotential):
        description |= {
            "architecture": potential.architecture,
            "torchmd_net": potential.hyper_parameters,
        }
    elif isinstance(potential, TabulatedPotential):
        raise ValueError(
            "a tabulated potential has lost its radial networks: save the potential that it was "
            "made from"
        )
    elif isinstance(potential, Potential) and potential.architecture in NETWORKS:
        repulsion = potential.repulsion
        description |= {
            "architecture": potential.architecture,
            "network": potential.representation.config,
            "readout": {"channels": potential.representation.channels} | potential.readout.config,
            "repulsion": None if repulsion is None else repulsion.config,
        }
        if potential.coulomb is not None:
            description["coulomb"] = potential.coulomb.config
        if heads:
            description["heads"] = {name: head.config for name, head in heads.items()}
    else:
        raise ValueError(
            f"cannot save a {type(potential).__name__}: expected a Potential with one of "
            f"{', '.join(NETWORKS)}, a TorchMDNetPotential or a Committee (and not its "
            "compiled form)"
        )
    return description | {
        "elements": list(potential.elements),
        "units": {"length": potential.length_unit, "energy": potential.energy_unit},
        "metadata": potential.metadata,
    }


def _committee_to_bytes(committee: Committee, name: str) -> bytes:
    buffer = io.BytesIO()
    width = len(str(len(committee.members) - 1))
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_STORED) as archive:
        for i, member in enumerate(committee.members):
            info = zipfile.ZipInfo(f"member-{i:0{width}}.safetensors", MEMBER_DATE)
            info.external_attr = 0o644 << 16
            archive.writestr(info, potential_to_bytes(member, name))
    return buffer.getvalue()


# Reading


def potential_from_bytes(data: bytes, name: str) -> Potential | TorchMDNetPotential | Committee:
    """Read a potential or a committee from the bytes of `potential_to_bytes`.

    Raises
    ------
    ValueError
        As for `read_native`.
    """
    if not is_zip(data):
        return read_native(data, name)
    members = unzip(data, name).items()
    return Committee([read_native(content, f"{name}/{member}") for member, content in members])


def read_native(data: bytes, name: str) -> Potential | TorchMDNetPotential:
    """Read a potential from the bytes of a file.

    Raises
    ------
    ValueError
        If they are damaged, or from another program or a newer version of the format.
    """
    description = _read_description(data, name)
    try:
        tensors = safetensors.torch.load(data)
    except (SafetensorError, RuntimeError, KeyError) as error:
        raise ValueError(
            f"{name} is damaged or truncated ({error}): copy or download it again"
        ) from error
    # Copies: the loaded tensors are views of bytes that must not change.
    tensors = {key: tensor.clone() for key, tensor in tensors.items()}
    elements = _field(description, "elements", list, name)
    if not all(isinstance(z, int) and not isinstance(z, bool) for z in elements) or not elements:
        raise ValueError(f"{name}: elements is {elements!r}: expected a list of atomic numbers")
    units = _field(description, "units", dict, name)
    length, energy = (str(units.get(kind)) for kind in ("length", "energy"))
    metadata = _field(description, "metadata", dict, name)
    architecture = _field(description, "architecture", str, name)
    if "torchmd_net" in description:
        require_finite(tensors, name, TorchMDNetPotential.allowed_nan(tensors))
        try:
            return TorchMDNetPotential(
                _field(description, "torchmd_net", dict, name),
                tensors,
                elements=elements,
                length_unit=length,
                energy_unit=energy,
                metadata=metadata,
            ).eval()
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from error
    require_finite(tensors, name)
    repulsion = description.get("repulsion")
    if repulsion is not None:
        repulsion = _field(description, "repulsion", dict, name)
    return build_potential(
        name=name,
        architecture=architecture,
        network=_field(description, "network", dict, name),
        readout=_field(description, "readout", dict, name),
        repulsion=repulsion,
        coulomb=_field(description, "coulomb", dict, name) if "coulomb" in description else None,
        heads=_field(description, "heads", dict, name) if "heads" in description else {},
        tensors=tensors,
        elements=elements,
        units=(length, energy),
        metadata=metadata,
    )


def _read_description(data: bytes, name: str) -> dict[str, Any]:
    size = struct.unpack("<Q", data[:8])[0]
    try:
        header = json.loads(data[8 : 8 + size])
        text = header.get("__metadata__", {}).get(KEY)
        description = None if text is None else json.loads(text)
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{name} is damaged or truncated ({error}): copy or download it again"
        ) from error
    if not isinstance(description, dict) or description.get("format") != KEY:
        raise ValueError(
            f"{name} is a safetensors file of another program: expected the description that "
            "tensormd keeps in its metadata; convert the original checkpoint with "
            "`tensormd convert`"
        )
    version = description.get("version")
    if not isinstance(version, int) or not 1 <= version <= VERSION:
        raise ValueError(
            f"{name} has version {version!r} of the format: this tensormd reads versions up to "
            f"{VERSION}; install a newer one"
        )
    return description


def _field(description: Mapping[str, Any], key: str, kind: type, name: str) -> Any:
    value = description.get(key)
    if not isinstance(value, kind):
        raise ValueError(
            f"{name}: its description has {key} = {value!r}: expected a {kind.__name__}; "
            "the file was not written by tensormd, or was changed since"
        )
    return value


# Format


def _read(data: bytes, name: str, request: Request) -> Potential | TorchMDNetPotential:
    potential = read_native(data, name)
    agreed((potential.length_unit, potential.energy_unit), request.units, name)
    if request.elements is not None:
        _restrict(potential, request.elements, name)
    return potential


def _restrict(potential: Potential | TorchMDNetPotential, elements: list[int], name: str) -> None:
    known = set(potential.elements)
    # A file converted without known elements lists all rows.
    if not elements or not set(elements) <= known:
        raise ValueError(
            f"elements has {sorted(set(elements) - known) or 'nothing'}, but {name} knows "
            f"{sorted(known)}: leave elements out, or choose among these"
        )
    potential.elements = sorted(set(elements))
    potential.metadata["elements_stated"] = True


FORMAT = Format("tensormd safetensors file", "file", is_safetensors, _read, units=None)
