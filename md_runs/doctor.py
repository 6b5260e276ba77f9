"""What is installed, what works, and why the rest does not: found out by trying."""

from __future__ import annotations

import os
import platform
from dataclasses import asdict, dataclass
from typing import Any

from .potentials import SHIPPED
from .versions import versions

BACKENDS = ("reference", "fused")


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    works: bool
    detail: str


def examine() -> dict[str, Any]:
    """Versions, devices and checks, as plain data."""
    checks = [check_model(), *(check_backend(name) for name in BACKENDS)]
    checks += [check_ase_engine(), *check_openmm()]
    return {
        "versions": versions(optional=True),
        "platform": platform.platform(),
        "cpu_cores": _cores(),
        "threads": _threads(),
        "devices": devices(),
        "checks": [asdict(check) for check in checks],
    }


def devices() -> list[str]:
    """Where models can run: the CPU, and each CUDA device by name."""
    import torch

    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found.append(f"cuda:{index} {name}, {memory:.0f} GiB")
    return found


def check_model() -> Check:
    """Load the checkpoint that ships and evaluate ethanol."""
    name = f"model {SHIPPED}"
    try:
        energy, force = _evaluate("auto")
    except Exception as error:
        return Check(name, False, _reason(error))
    return Check(name, True, f"ethanol: {energy:.4f} eV, largest force {force:.3f} eV/A")


def check_backend(backend: str) -> Check:
    """Evaluate ethanol with one implementation of the operators."""
    name = f"backend {backend}"
    try:
        _evaluate(backend)
    except Exception as error:
        return Check(name, False, _reason(error))
    return Check(name, True, "evaluates the model that ships")


def check_ase_engine() -> Check:
    """Five steps of molecular dynamics with ASE."""
    try:
        from ase import units
        from ase.build import molecule
        from ase.md.verlet import VelocityVerlet

        from ..calculators import PotentialCalculator

        atoms = molecule("CH3CH2OH")
        atoms.calc = PotentialCalculator(SHIPPED)
        VelocityVerlet(atoms, 0.5 * units.fs).run(5)
    except Exception as error:
        return Check("engine ase", False, _reason(error))
    return Check("engine ase", True, "runs nve, nvt and npt")


def check_openmm() -> list[Check]:
    """Whether OpenMM and its torch plugin load; this version does not run them yet."""
    missing = "this version of tensormd does not run OpenMM yet"
    checks = [Check("engine openmm", False, missing)]
    import torch  # before openmm: the plugin links against it

    try:
        import openmm
    except ImportError as error:
        return [*checks, Check("openmm imports", False, _reason(error))]
    names = [
        openmm.Platform.getPlatform(i).getName() for i in range(openmm.Platform.getNumPlatforms())
    ]
    checks.append(Check("openmm imports", True, "platforms " + ", ".join(names)))
    try:
        import openmmtorch  # noqa: F401
    except Exception as error:
        checks.append(Check("openmmtorch imports", False, _reason(error)))
    else:
        built_for = torch.__version__.startswith("2.9.")
        detail = "its TorchForce is built for torch 2.9"
        if not built_for:
            detail += f", but torch is {torch.__version__}: TorchForce would fail"
        checks.append(Check("openmmtorch imports", built_for, detail))
    return checks


def _evaluate(backend: str) -> tuple[float, float]:
    import numpy as np
    from ase.build import molecule

    from ..calculators import PotentialCalculator

    atoms = molecule("CH3CH2OH")
    atoms.calc = PotentialCalculator(SHIPPED, backend=backend)
    forces = atoms.get_forces()
    return float(atoms.get_potential_energy()), float(np.linalg.norm(forces, axis=1).max())


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _threads() -> int:
    import torch

    return int(torch.get_num_threads())
