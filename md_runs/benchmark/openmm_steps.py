"""Steps per second in OpenMM: `create_force` against openmm-ml's own torchmd-net, in one run."""

from __future__ import annotations

import copy
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from ase import Atoms
from torch import nn

from ...calculators import create_force
from ...calculators.openmm_versions import choose_force_class
from ...models import load_potential
from ...models.checkpoint import write_torchmdnet_checkpoint
from ...models.units import kj_per_mol_in_ev, nm_in_angstrom
from ..md.openmm_system import require_openmm
from .machine import describe_machine, using_threads
from .model import random_potential
from .programs import peer_quiet
from .rounds import ns_per_day
from .systems import TEMPERATURE, collect_systems
from .worker import one_line

TIMESTEP_PS = 0.001
WARM_UP = 20
"""Steps in which TorchScript, and inductor, optimise."""


def openmm_steps(
    system: str = "alanine_dipeptide",
    model: str | None = None,
    *,
    engine: str = "auto",
    platform: str = "CPU",
    threads: int | None = None,
    rounds: int = 7,
    steps: int = 30,
    peer: bool = True,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any]:
    """Time both, round by round, from the same structure and velocities.

    Parameters
    ----------
    system
        Name of a system or a structure file; see `collect_systems`.
    model
        Checkpoint; None: random weights.
    engine
        Of `create_force`.
    platform
        OpenMM's.
    threads
        CPU threads; None: torch's own choice.
    rounds, steps
        Rounds, and steps of 1 fs in each.
    peer
        Whether ``MLPotential("torchmdnet")`` is measured: it compiles for a minute.
    say
        Takes lines that report progress.

    Returns
    -------
    ``atoms``, ``machine``, ``platform``, and for ``tensormd`` and ``openmmml``: ``ms`` a step (the
    median of rounds), ``steps_per_second``, ``ns_per_day``, ``energy_kj_per_mol`` at the start;
    or ``failed``, with the reason. ``ratio``: steps per second of the first to the second.

    Raises
    ------
    ValueError
        If an option or the structure is no good.
    """
    require_openmm()
    import openmm

    for name, value in (("rounds", rounds), ("steps", steps)):
        if value < 1:
            raise ValueError(f"--{name} is {value}: expected 1 or more")
    names = [
        openmm.Platform.getPlatform(k).getName() for k in range(openmm.Platform.getNumPlatforms())
    ]
    if platform not in names:
        raise ValueError(f"--platform is {platform!r}: expected one of {', '.join(names)}")
    atoms = collect_systems((system,), (), None)[0].atoms
    potential = random_potential() if model is None else load_potential(model)
    engine = choose_force_class(engine)
    threads = threads or torch.get_num_threads()
    makers: dict[str, Callable[[], Any]] = {
        "tensormd": lambda: _our_system(potential, atoms, engine)
    }
    if peer:
        makers["openmmml"] = lambda: _their_system(potential, atoms)
    with using_threads(threads):
        results = _time_in_turn(makers, atoms, platform, rounds, steps, say)
    results["tensormd"]["engine"] = engine
    theirs = results.get("openmmml", {}).get("ms")
    return {
        "atoms": len(atoms),
        "platform": platform,
        "machine": describe_machine(torch.device("cpu"), threads),
        **results,
        "ratio": None if theirs is None else theirs / results["tensormd"]["ms"],
    }


def _time_in_turn(
    makers: dict[str, Callable[[], Any]],
    atoms: Atoms,
    platform: str,
    rounds: int,
    steps: int,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Results of each System, as `openmm_steps` returns them."""
    runs: dict[str, _Run] = {}
    results: dict[str, dict[str, Any]] = {}
    for name, make in makers.items():
        say(f"{name}: first steps")
        try:
            with peer_quiet():
                runs[name] = _Run(make(), atoms, platform)
        except Exception as error:
            if name == "tensormd":
                raise
            results[name] = {"failed": one_line(error)}
    say(f"{rounds} rounds")
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(run.time(steps))
    for name, run in runs.items():
        ms = statistics.median(times[name])
        results[name] = {
            "ms": ms,
            "ms_by_round": times[name],
            "steps_per_second": 1e3 / ms,
            "ns_per_day": ns_per_day(ms),
            "energy_kj_per_mol": run.energy,
        }
    return results


class _Run:
    """A context that begins again in every round, so that both see the same positions."""

    def __init__(self, system: Any, atoms: Atoms, platform: str) -> None:
        import openmm

        self.context = openmm.Context(
            system,
            openmm.VerletIntegrator(TIMESTEP_PS),
            openmm.Platform.getPlatformByName(platform),
        )
        self.positions = atoms.positions / nm_in_angstrom
        self._restart()
        energy = self.context.getState(getEnergy=True).getPotentialEnergy()
        self.energy = float(energy._value)
        self.context.getIntegrator().step(WARM_UP)

    def _restart(self) -> None:
        self.context.setPositions(self.positions)
        self.context.setVelocitiesToTemperature(TEMPERATURE, 1)
        self.context.getIntegrator().step(1)

    def time(self, steps: int) -> float:
        """Milliseconds of a step."""
        self._restart()
        integrator = self.context.getIntegrator()
        began = time.perf_counter()
        integrator.step(steps)
        self.context.getState(getEnergy=True)  # waits for a GPU
        return 1e3 * (time.perf_counter() - began) / steps


def _our_system(potential: nn.Module, atoms: Atoms, engine: str) -> Any:
    import openmm

    system = openmm.System()
    for mass in atoms.get_masses():
        system.addParticle(mass)
    system.addForce(create_force(potential, atoms.numbers, engine=engine))
    return system


def _their_system(potential: nn.Module, atoms: Atoms) -> Any:
    """As its documentation has it, the weights in the layout it takes every file for."""
    import openmm.app
    from openmmml import MLPotential

    topology = openmm.app.Topology()
    residue = topology.addResidue("MOL", topology.addChain())
    for number, symbol in zip(atoms.numbers, atoms.get_chemical_symbols(), strict=True):
        element = openmm.app.Element.getByAtomicNumber(int(number))
        topology.addAtom(symbol, element, residue)
    with tempfile.TemporaryDirectory(prefix="tensormd-benchmark-") as folder:
        path = Path(folder) / "torchmdnet.ckpt"
        write_torchmdnet_checkpoint(copy.deepcopy(potential).float(), path, old_layout=True)
        unit = float(potential.energy_in_ev) / kj_per_mol_in_ev  # type: ignore[arg-type]
        learned = MLPotential("torchmdnet", modelPath=str(path), energyScale=unit)
        return learned.createSystem(topology, removeCMMotion=False, charge=0)
