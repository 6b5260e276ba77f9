"""Checkpoints by name, as calculators: the one place where runs load models."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from ase.data import atomic_numbers, chemical_symbols
from torch import nn

from ...calculators import PotentialCalculator
from ...calculators.checks import charge_of
from ...calculators.domain import DEFAULT, why_not
from ...models.checkpoint import (
    convert,
    describe,
    load_potential,
    registry_names,
    write_torchmdnet_checkpoint,
)
from ...models.inference.threads import FEW_ATOMS
from . import structures
from .settings import ModelSettings, to_json
from .versions import package_version


def default_model(atoms: Atoms, charge: int | None = None) -> tuple[str, ...]:
    """The checkpoint that ships, if it is for the structure.

    Raises
    ------
    ValueError
        For any other structure: why, and which published potential would do.
    """
    reason = why_not(atoms, charge_of(atoms) if charge is None else charge)
    if reason:
        raise ValueError(f"{atoms.get_chemical_formula()}: {reason}")
    return (DEFAULT,)


def load_calculator(settings: ModelSettings) -> tuple[PotentialCalculator, dict[str, Any]]:
    """The calculator, and a record of the model for config.json.

    Raises
    ------
    ValueError, OSError
        If the checkpoint or an option is no good.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    names = settings.model
    potential = load_potential(names[0] if len(names) == 1 else list(names), units=settings.units)
    calculator = PotentialCalculator(
        potential,
        device=settings.device,
        dtype=settings.dtype,
        backend=settings.backend,
        charge=settings.charge,
        coulomb_cutoff=settings.coulomb_cutoff,
        dispersion=settings.dispersion,
    )
    info = calculator.info()
    record = {
        "name": str(info["metadata"].get("name") or ", ".join(Path(n).name for n in names)),
        "sha256": weights_digest(potential),
        **{
            key: info[key]
            for key in ("architecture", "members", "parameters", "elements", "cutoff_angstrom")
        },
        "device": info["device"],
        "engine": info["engine"],
    }
    if calculator.dispersion is not None:
        record["dispersion"] = (
            f"D3(BJ) of {calculator.dispersion.functional}, dftd3 {package_version('dftd3')}"
        )
    return calculator, record


def input_record(
    source: str, atoms: Atoms, settings: ModelSettings, model: dict[str, Any]
) -> dict[str, Any]:
    """What config.json of a run says of its structure and of its model (see `load_calculator`)."""
    return {
        "structure": {"source": source, "formula": structures.describe(atoms)},
        "model_settings": to_json(settings),
        "model": model,
    }


def default_threads(atoms: int, settings: ModelSettings) -> int:
    """Largest number of threads for a structure, where neither option nor environment sets it.

    Fused kernels choose among those; torch operators use all, which slow small structures down.
    """
    fused = settings.backend == "fused" or (settings.backend, settings.dtype) == (
        "auto",
        "float32",
    )
    if not fused and atoms <= FEW_ATOMS and "OMP_NUM_THREADS" not in os.environ:
        return 1
    return int(torch.get_num_threads())


def weights_digest(potential: nn.Module) -> str:
    """SHA-256 over names and bytes of all weights: the same model, whatever its file."""
    digest = hashlib.sha256()
    for name, tensor in sorted(potential.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}\n".encode())
        digest.update(array.tobytes())
    return digest.hexdigest()


def absolute(names: tuple[str, ...]) -> tuple[str, ...]:
    """File names made absolute, so that a run resumes from any folder; registry names kept."""
    known = set(registry_names())
    return tuple(
        str(Path(name).resolve()) if name not in known and Path(name).exists() else name
        for name in names
    )


def describe_checkpoint(checkpoint: str, units: tuple[str, str] | None = None) -> dict[str, Any]:
    """Architecture, elements, units, metadata and digest of a checkpoint."""
    potential = load_potential(checkpoint, units=units)
    return {**describe(potential), "sha256": weights_digest(potential)}


def convert_checkpoint(
    checkpoint: str, output: Path, units: tuple[str, str] | None, elements: str | None
) -> Path:
    """Write a checkpoint in the native format, or to ``*.ckpt`` in torchmd-net's.

    Raises
    ------
    ValueError, OSError
        If it cannot be read, an element is none, torchmd-net has no such model, or the file
        cannot be written.
    """
    numbers = None if elements is None else parse_elements(elements)
    if output.suffix.lower() == ".ckpt":
        potential = load_potential(checkpoint, units=units, elements=numbers)
        write_torchmdnet_checkpoint(potential, output)
    else:
        convert(checkpoint, output, units=units, elements=numbers)
    return output


def parse_elements(text: str, name: str = "--elements") -> list[int]:
    """``H,C,O`` or ``1,6,8`` -> atomic numbers; errors call the option ``name``.

    Raises
    ------
    ValueError
        If a part is neither a symbol nor an atomic number.
    """
    found = []
    for part in text.replace(",", " ").split():
        number = int(part) if part.isdigit() else atomic_numbers.get(part.capitalize(), 0)
        if not 0 < number < len(chemical_symbols):
            raise ValueError(
                f"{name}: {part!r} is no element: expected symbols or atomic numbers such as H,C,O"
            )
        found.append(number)
    if not found:
        raise ValueError(f"{name} is empty: expected symbols such as H,C,O")
    return found
