"""`tensormd doctor`: versions, devices and what works, found out by trying."""

from __future__ import annotations

import platform
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import asdict, dataclass
from io import StringIO
from typing import Any

import numpy as np
import torch
from ase import Atoms, units
from ase.build import molecule
from ase.md.verlet import VelocityVerlet

from ...calculators import PotentialCalculator
from ...calculators.domain import DEFAULT
from ...calculators.openmm_versions import python_problem, torchforce_problem
from ...models import Potential, load_potential
from ...models.files import cache_folder
from ...models.inference.kernels import fuse
from ...models.inference.self_check import compare
from ...models.inference.threads import usable_cores
from ...models.units import kj_per_mol_in_ev
from ..runs.versions import versions
from .console import show_json, show_tree
from .options import Json

TRIAL_SECONDS = 0.3
"""Time in which steps choose their number of threads."""


def doctor(as_json: Json = False) -> None:
    """Report versions, devices, and which engines and backends work here, or why not."""
    found = examine()
    if as_json:
        show_json(found)
        return
    show_tree({name: found[name] for name in found if name != "checks"})
    print("checks")
    for check in found["checks"]:
        print(f"  {'ok ' if check['works'] else 'no '} {check['name']:24}{check['detail']}")


@dataclass(frozen=True)
class Check:
    """One thing that was tried."""

    name: str
    works: bool
    detail: str


def examine() -> dict[str, Any]:
    """Versions, devices and checks, as plain data."""
    checks = [check_model(), check_reference(), check_kernels("cpu"), check_cuda()]
    checks += [check_cache(), check_auto(), check_threads()]
    checks += [check_ase_engine(), *check_openmm()]
    return {
        "versions": versions(optional=True),
        "platform": platform.platform(),
        "cpu_cores": usable_cores(),
        "threads": torch.get_num_threads(),
        "devices": devices(),
        "checks": [asdict(check) for check in checks],
    }


def devices() -> list[str]:
    """Devices on which models can run: the CPU, and each CUDA device by name."""
    found = ["cpu"]
    for index in range(torch.cuda.device_count()):
        name = torch.cuda.get_device_name(index)
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        found.append(f"cuda:{index} {name}, {memory:.0f} GiB")
    return found


def check_model() -> Check:
    """Load the checkpoint that ships and evaluate ethanol."""
    name = f"model {DEFAULT}"
    try:
        energy, force, _ = _evaluate("auto", "auto")
    except Exception as error:
        return Check(name, False, _reason(error))
    return Check(name, True, f"ethanol: {energy:.4f} eV, largest force {force:.3f} eV/A")


def check_reference() -> Check:
    """Evaluate ethanol with plain torch operators, in float32 on the CPU."""
    name = "backend reference"
    try:
        _, force, engine = _evaluate("reference", "cpu")
    except Exception as error:
        return Check(name, False, _reason(error))
    return Check(name, True, f"{engine}: largest force {force:.3f} eV/A")


def check_cuda() -> Check:
    """Compare the fused kernels with the network itself on a CUDA device."""
    if not torch.cuda.is_available():
        built = torch.version.cuda
        reason = f"built for CUDA {built}" if built else "built without CUDA"
        detail = f"torch {torch.__version__} ({reason}) finds no CUDA device"
        return Check("backend fused on cuda", False, detail)
    return check_kernels("cuda")


def check_kernels(device: str) -> Check:
    """Compare the fused kernels with the network itself, as every machine does at first use."""
    name = "backend fused" if device == "cpu" else f"backend fused on {device}"
    try:
        potential = load_potential(DEFAULT).to(device, torch.float32)
        assert isinstance(potential, Potential)
        found = compare(fuse(potential), potential)
    except Exception as error:
        return Check(name, False, _reason(error))
    if found.problem:
        return Check(name, False, f"fused kernels are wrong: {found.problem}")
    detail = f"forces of 40 atoms within {found.forces:.1e} eV/A of the network itself"
    return Check(name, True, f"{detail} (allowed {found.bound:.1e})")


def check_cache() -> Check:
    """Whether compiled kernels are kept for later processes."""
    name = "kernel cache"
    try:
        from ...models.inference.kernels.cpu.compiled import folder
    except ImportError as error:
        return Check(name, False, f"no Numba ({_reason(error)}): pip install numba")
    wanted, found = cache_folder(), folder()
    if wanted not in found.parents:
        return Check(
            name,
            False,
            f"{wanted} cannot be written: kernels are compiled in each process, ten seconds; "
            "set TENSORMD_CACHE to a folder that can",
        )
    return Check(name, True, str(found))


def check_auto() -> Check:
    """Backend that ``--backend auto`` takes for the model that ships, and why."""
    try:
        info = PotentialCalculator(DEFAULT).info()
    except Exception as error:
        return Check("backend auto", False, _reason(error))
    taken, why = f"takes {info['engine']} on {info['device']}", info["why_not_fused"]
    if why:
        return Check("backend auto", True, f"{taken}: {why}")
    return Check("backend auto", True, f"{taken} (float64: the network itself)")


def check_threads() -> Check:
    """Number of threads that evaluates ethanol fastest at present, as every run chooses it."""
    try:
        atoms, calculator = ethanol(), PotentialCalculator(DEFAULT, device="cpu")
        end = time.perf_counter() + TRIAL_SECONDS
        while time.perf_counter() < end:
            calculator.calculate(atoms)
    except Exception as error:
        return Check("threads", False, _reason(error))
    bound = f"torch has {torch.get_num_threads()}, this process {usable_cores()} cores"
    return Check("threads", True, f"{calculator.info()['threads']}; {bound}")


def check_ase_engine() -> Check:
    """Five steps of molecular dynamics with ASE."""
    try:
        atoms = ethanol()
        atoms.calc = PotentialCalculator(DEFAULT)
        VelocityVerlet(atoms, 0.5 * units.fs).run(5)
    except Exception as error:
        return Check("engine ase", False, _reason(error))
    return Check("engine ase", True, "runs nve, nvt and npt")


def check_openmm() -> list[Check]:
    """Try each of OpenMM's ways to run a potential, and the engine of ``tensormd md``."""
    checks: list[Check] = []
    for engine, problem in (("torchforce", torchforce_problem), ("python", python_problem)):
        name = f"create_force {engine}"
        with redirect_stdout(StringIO()), redirect_stderr(StringIO()):  # the plugin chatters
            reason = problem()
        checks.append(Check(name, False, reason) if reason else _try_openmm(name, engine))
    best = next((check for check in checks if check.works), None)
    detail = "runs nve, nvt and npt, through " + best.name if best else checks[-1].detail
    return [Check("engine openmm", best is not None, detail), *checks]


OPENMM_TRIAL = """
import torch, openmm
from openmm import unit
from ase.build import molecule
from tensormd.calculators import create_force
atoms = molecule("CH3CH2OH")
system = openmm.System()
for mass in atoms.get_masses():
    system.addParticle(mass)
system.addForce(create_force({model!r}, atoms.numbers, engine={engine!r}))
context = openmm.Context(system, openmm.VerletIntegrator(0.0005))
context.setPositions(atoms.positions * 0.1)
energy = context.getState(getEnergy=True).getPotentialEnergy()
print("energy", energy.value_in_unit(unit.kilojoule_per_mole))
"""


def _try_openmm(name: str, engine: str) -> Check:
    """In a process of its own: a plugin that does not fit ends it without an exception."""
    code = OPENMM_TRIAL.format(model=DEFAULT, engine=engine)
    try:
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
        )
    except subprocess.TimeoutExpired:
        return Check(name, False, "no answer within two minutes")
    found = [line for line in done.stdout.splitlines() if line.startswith("energy ")]
    if done.returncode == 0 and found:
        energy = float(found[0].split()[1]) * kj_per_mol_in_ev
        return Check(name, True, f"ethanol: {energy:.4f} eV")
    errors = [line for line in done.stderr.splitlines() if line.strip()]
    return Check(name, False, errors[-1] if errors else f"ended with code {done.returncode}")


def ethanol() -> Atoms:
    """The molecule that every check runs."""
    atoms: Atoms = molecule("CH3CH2OH")
    return atoms


def _evaluate(backend: str, device: str) -> tuple[float, float, str]:
    """Energy (eV), largest force (eV/A), and the engine that ran."""
    atoms = ethanol()
    atoms.calc = PotentialCalculator(DEFAULT, backend=backend, device=device)
    forces = atoms.get_forces()
    largest = float(np.linalg.norm(forces, axis=1).max())
    return float(atoms.get_potential_energy()), largest, str(atoms.calc.info()["engine"])


def _reason(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
