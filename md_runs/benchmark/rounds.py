"""tensormd against torchmd-net: the same weights and structures, in turn, in one run.

For each system every program, and every mode of torchmd-net, is first tried in a process of its
own (`worker`: memory, results, failures); those that are worth it are then timed here
in rounds, one after the other, round by round. A time is the median over rounds of the mean over
the steps of a round, so that it holds its share of neighbour searches.
"""

from __future__ import annotations

import copy
import dataclasses
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from ...calculators.checks import check_elements, parse_device
from ...models import NeighborList, Potential, load_potential, save_potential
from ...models.checkpoint import why_not_torchmdnet, write_torchmdnet_checkpoint
from ...models.potential import parse_dtype
from ..runs.versions import package_version
from .machine import describe_machine, using_threads
from .model import product_flops_per_atom, product_rate, random_potential
from .programs import (
    MODES,
    Contestant,
    Program,
    TensormdAse,
    fits_minimum_image,
    make_calculator,
    make_program,
    places_for_neighbors,
)
from .systems import Motion, System, collect_systems
from .worker import Trial, TrialError, one_line, run_trial, synchronize

Say = Callable[[str], None]

ROUND_SECONDS = 0.4
"""Approximate time of a program's turn, s."""
STEPS = 100
"""Maximum number of steps in a round."""
WORTH = 1.3
"""A mode of torchmd-net so many times slower than its fastest, when tried, is not timed again."""
WARM_UP = 3


@dataclass(frozen=True)
class BenchmarkSettings:
    """Options of a benchmark, named as on the command line."""

    model: str | None = None
    """Checkpoint; None: random weights, see `random_potential`."""
    network: str = "tensornet"
    """Network with random weights."""
    units: tuple[str, str] | None = None
    systems: tuple[str, ...] = ("alanine_dipeptide", "testosterone")
    sizes: tuple[int, ...] = (648,)
    """Atoms of boxes of water."""
    data: Path | None = None
    """Folder of the structures that are not built in."""
    device: str = "auto"
    backend: str = "auto"
    dtype: str = "float32"
    threads: int | None = None
    """None: all that torch would take."""
    rounds: int = 5
    peer: bool = True
    """Whether torchmd-net is measured."""
    modes: tuple[str, ...] = MODES
    """Modes of torchmd-net to try."""
    compile: bool = False
    """Whether its mode ``compile`` is tried on a CPU, which takes minutes; on CUDA it is."""
    limit: float = 600.0
    """Seconds that one trial may take."""

    def __post_init__(self) -> None:
        if self.model is not None and self.network != "tensornet":
            raise ValueError(f"--network is {self.network}, but --model has a network: give one")
        for name, least in (("threads", 1), ("rounds", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise ValueError(f"--{name} is {value}: expected {least} or more")


@dataclass(frozen=True)
class _Bench:
    """Settings and programs that all systems share."""

    settings: BenchmarkSettings
    potential: nn.Module
    ours: Contestant
    peer: Contestant | None
    peer_problem: str
    device: torch.device
    threads: int
    rate: float
    """Rate of matrix products, operations per second."""


def run_benchmark(
    settings: BenchmarkSettings,
    say: Say = lambda _: None,
    keep: Callable[[dict[str, Any]], None] = lambda _: None,
) -> dict[str, Any]:
    """Measure, and return everything as plain data.

    Parameters
    ----------
    settings
        Options.
    say
        Takes lines that report progress.
    keep
        Given the results so far after each system.

    Returns
    -------
    ``settings``, ``machine``, ``model``, and ``systems``: for each what `measure_system` says.

    Raises
    ------
    ValueError, OSError
        If a setting, a structure or the checkpoint is no good, before anything is measured.
    """
    device = parse_device(settings.device)
    parse_dtype(settings.dtype)
    systems = collect_systems(settings.systems, settings.sizes, settings.data)
    potential = (
        random_potential(network=settings.network)
        if settings.model is None
        else load_potential(settings.model, units=settings.units)
    )
    for system in systems:
        try:
            check_elements(system.atoms.numbers, potential.elements)
        except ValueError as error:
            raise ValueError(f"{system.name}: {error}") from None
    threads = settings.threads or torch.get_num_threads()
    folder = tempfile.TemporaryDirectory(prefix="tensormd-benchmark-")
    with using_threads(threads), folder as name:
        ours, peer, problem = _checkpoints(settings, potential, Path(name), device)
        info = make_calculator(ours).info()
        say("rate of matrix products")
        bench = _Bench(
            settings, potential, ours, peer, problem, device, threads, product_rate(device)
        )
        results: dict[str, Any] = {
            "settings": _plain(dataclasses.asdict(settings)),
            "machine": describe_machine(device, threads),
            "model": {
                "name": info["metadata"].get("name"),
                "architecture": info["architecture"],
                "network": getattr(getattr(potential, "representation", None), "config", None),
                "parameters": info["parameters"],
                "backend": settings.backend,
                "engine": info["engine"],
                "dtype": settings.dtype,
            },
            "matrix_product_gflops": bench.rate / 1e9,
            "product_mflops_per_atom": _scaled(product_flops_per_atom(potential), 1e-6),
            "systems": [],
        }
        for system in systems:
            results["systems"].append(measure_system(bench, system, say))
            keep(results)
        return results


def _checkpoints(
    settings: BenchmarkSettings, potential: nn.Module, folder: Path, device: torch.device
) -> tuple[Contestant, Contestant | None, str]:
    """Both programs with their files, and why there is no second one."""
    if settings.model is None:
        path = str(folder / "random.safetensors")
        save_potential(potential, path)
    else:
        path = settings.model
    common: dict[str, Any] = {"device": str(device), "dtype": settings.dtype}
    ours = Contestant("tensormd", path, backend=settings.backend, units=settings.units, **common)
    if not settings.peer:
        return ours, None, "not asked for"
    if package_version("torchmd-net") is None:
        return ours, None, "torchmd-net is not installed"
    reason = why_not_torchmdnet(potential)
    if reason is None and potential.length_unit != "angstrom":
        reason = f"its unit of length is {potential.length_unit}"
    if reason is not None:
        return ours, None, reason
    theirs = folder / "torchmdnet.ckpt"
    precise = copy.deepcopy(potential).to(parse_dtype(settings.dtype))
    write_torchmdnet_checkpoint(precise, theirs)
    unit = float(potential.energy_in_ev)  # type: ignore[arg-type]
    return ours, Contestant("torchmdnet", str(theirs), energy_in_ev=unit, **common), ""


def measure_system(bench: _Bench, system: System, say: Say) -> dict[str, Any]:
    """Everything about one system.

    Returns
    -------
    ``name``, ``source``, ``atoms``, ``edges``, ``periodic``; ``tensormd`` and ``torchmdnet`` with
    times (ms), ns/day at 1 fs, memory (MiB), deviations from float64; ``ratio`` of torchmd-net's
    bare model in its best mode to ``atoms.get_forces()`` of tensormd; ``products_ms``. Or, where
    tensormd does not run, why not, under ``failed``.
    """
    atoms = system.atoms
    # Without pairs that interact by their charges alone.
    found: Any = bench.potential
    cutoff = float(found.near_cutoff if isinstance(found, Potential) else found.cutoff)
    graph = NeighborList(cutoff).graph(atoms.numbers, atoms.positions, atoms.cell.array, atoms.pbc)
    about = {
        "name": system.name,
        "source": system.source,
        "atoms": len(atoms),
        "edges": int(graph.edge_index.shape[1]),
        "periodic": bool(atoms.pbc.any()),
    }
    say(f"{system.name}, {len(atoms)} atoms: trying tensormd")
    try:
        ours = _try(bench, bench.ours, atoms)
    except TrialError as error:
        return {**about, "failed": str(error)}
    reference: Trial | str
    exact = dataclasses.replace(bench.ours, backend="reference", dtype="float64")
    try:
        reference = _try(bench, exact, atoms)
    except TrialError as error:
        reference = str(error)
    modes, peer = _try_peer(bench, system, cutoff, say)

    say(f"{system.name}: {bench.settings.rounds} rounds")
    contenders = {
        "tensormd": (bench.ours, ours.seconds),
        "graph": (dataclasses.replace(bench.ours, program="tensormd-graph"), ours.seconds),
    }
    worth = _worth_timing(modes)
    contenders |= {mode: (peer[mode], modes[mode].seconds) for mode in worth}  # type: ignore[union-attr]
    if worth and bench.settings.dtype == "float32":  # its calculator knows no other
        best = min(worth, key=lambda mode: modes[mode].seconds)  # type: ignore[union-attr]
        ase = dataclasses.replace(peer[best], program="torchmdnet-ase")
        contenders["ase"] = (ase, modes[best].seconds)  # type: ignore[union-attr]
    timed = time_in_turn(contenders, atoms, bench.settings.rounds, bench.device)
    times = timed.ms

    best_ms = {mode: statistics.median(times[mode]) for mode in worth if mode in times}
    best_mode = min(best_ms, key=best_ms.__getitem__) if best_ms else None
    ms = statistics.median(times["tensormd"])
    flops = product_flops_per_atom(bench.potential)
    return {
        **about,
        "tensormd": {
            **_speed(times["tensormd"], len(atoms)),
            "graph_ms": statistics.median(times["graph"]),
            "adapter_ms": statistics.median(timed.adapter_ms),
            "steps_per_neighbor_search": timed.steps_per_search,
            "memory_mib": ours.memory_mib,
            "deviation": _deviation(ours, reference),
        },
        "torchmdnet": {
            "best_mode": best_mode,
            **(_speed(times[best_mode], len(atoms)) if best_mode else {}),
            "ase_ms": statistics.median(times["ase"]) if "ase" in times else None,
            "memory_mib": getattr(modes.get(best_mode or ""), "memory_mib", None),
            "deviation": _deviation(modes[best_mode], reference) if best_mode else None,
            "modes": {
                mode: _failed(timed.problems.get(mode)) or _mode(trial, times.get(mode))
                for mode, trial in modes.items()
            },
        },
        "ratio": best_ms[best_mode] / ms if best_mode else None,
        "ase_ratio": statistics.median(times["ase"]) / ms if "ase" in times else None,
        "products_ms": _scaled(flops, 1e3 * len(atoms) / bench.rate),
        "largest_force_ev_per_a": None
        if isinstance(reference, str)
        else float(np.abs(reference.forces).max(initial=0.0)),
    }


def _try(bench: _Bench, contestant: Contestant, atoms: Any) -> Trial:
    return run_trial(contestant, atoms, bench.threads, bench.settings.limit)


def _try_peer(
    bench: _Bench, system: System, cutoff: float, say: Say
) -> tuple[dict[str, Trial | str], dict[str, Contestant]]:
    """Each mode of torchmd-net, or why it does not run; and how it runs."""
    problem = bench.peer_problem
    if bench.peer is not None and not fits_minimum_image(system.atoms, cutoff):
        problem = "its neighbour list is wrong for this cell"
    if bench.peer is None or problem:
        return dict.fromkeys(bench.settings.modes, problem), {}
    places = places_for_neighbors(system.atoms, cutoff)
    modes: dict[str, Trial | str] = {}
    contestants = {}
    for mode in bench.settings.modes:
        contestant = dataclasses.replace(bench.peer, mode=mode, max_neighbors=places)
        contestants[mode] = contestant
        if mode == "compile" and bench.device.type == "cpu" and not bench.settings.compile:
            modes[mode] = "not tried: compiling takes minutes on a CPU; ask for it by --compile"
            continue
        say(f"{system.name}: trying torchmd-net, {mode}")
        try:
            modes[mode] = _try(bench, contestant, system.atoms)
        except TrialError as error:
            modes[mode] = str(error)
    return modes, contestants


def _worth_timing(modes: dict[str, Trial | str]) -> list[str]:
    seconds = {mode: t.seconds for mode, t in modes.items() if isinstance(t, Trial)}
    return [mode for mode, s in seconds.items() if s <= WORTH * min(seconds.values())]


class TimedRounds(NamedTuple):
    """Times that `time_in_turn` measures."""

    ms: dict[str, list[float]]
    """Times of a step, round by round, by name."""
    problems: dict[str, str]
    """Why others failed."""
    adapter_ms: list[float]
    """Time of a step of ``tensormd`` outside the evaluation of its graph."""
    steps_per_search: float | None
    """Of the same, of neighbours; None where none was made."""


def time_in_turn(
    contenders: dict[str, tuple[Contestant, float]],
    atoms: Any,
    rounds: int,
    device: torch.device,
) -> TimedRounds:
    """Time a step of each, round by round.

    Parameters
    ----------
    contenders
        The programs, and the approximate time of a step, s.
    atoms
        Where all of them start.
    rounds
        In each of which all have a turn, in the order given.
    device
        That is waited for.
    """
    ready: dict[str, tuple[Program, Motion, int]] = {}
    problems: dict[str, str] = {}
    for name, (contestant, seconds) in contenders.items():
        motion = Motion(atoms)
        try:
            program = make_program(contestant, atoms)
            program.load(atoms)
            for _ in range(WARM_UP):
                program.step(motion.next())
            synchronize(device)
        except Exception as error:
            if name in ("tensormd", "graph"):
                raise
            problems[name] = one_line(error)
            continue
        least = 8 if seconds < 1 else 2
        ready[name] = (program, motion, int(np.clip(ROUND_SECONDS / seconds, least, STEPS)))
    ours, _, our_steps = ready["tensormd"]
    assert isinstance(ours, TensormdAse)
    builds = ours.calculator.neighbors.builds
    times: dict[str, list[float]] = {name: [] for name in ready}
    adapter: list[float] = []
    for _ in range(rounds):
        evaluating = ours.evaluating
        for name, (program, motion, steps) in ready.items():
            times[name].append(1e3 * _time_block(program, motion, steps, device) / steps)
        evaluating = 1e3 * (ours.evaluating - evaluating) / our_steps
        adapter.append(times["tensormd"][-1] - evaluating)
    builds = ours.calculator.neighbors.builds - builds
    return TimedRounds(times, problems, adapter, rounds * our_steps / builds if builds else None)


def _time_block(program: Program, motion: Motion, steps: int, device: torch.device) -> float:
    """Seconds of some steps; positions are made beforehand."""
    path = [motion.next() for _ in range(steps)]
    if device.type == "cuda":
        with torch.cuda.device(device):
            event: Any = torch.cuda.Event
            first, last = event(enable_timing=True), event(enable_timing=True)
            first.record()
            for positions in path:
                program.step(positions)
            last.record()
            last.synchronize()
        return float(first.elapsed_time(last)) / 1e3
    began = time.perf_counter()
    for positions in path:
        program.step(positions)
    return time.perf_counter() - began


def _speed(times: list[float], atoms: int) -> dict[str, Any]:
    ms = statistics.median(times)
    return {
        "ms": ms,
        "ms_by_round": times,
        "us_per_atom": 1e3 * ms / atoms,
        "ns_per_day": ns_per_day(ms),
    }


def ns_per_day(ms: float) -> float:
    """Simulated ns per day for time steps of 1 fs without other work."""
    return 86400e3 / ms * 1e-6


def _mode(trial: Trial | str, times: list[float] | None) -> dict[str, Any]:
    if isinstance(trial, str):
        return {"failed": trial}
    return {
        "ms": statistics.median(times) if times else 1e3 * trial.seconds,
        "timed": bool(times),
        "memory_mib": trial.memory_mib,
    }


def _failed(problem: str | None) -> dict[str, Any]:
    return {"failed": problem} if problem else {}


def _deviation(trial: Trial | str, reference: Trial | str) -> dict[str, Any]:
    """From float64, of the structure as it is: eV, and eV/Angstrom."""
    if isinstance(trial, str) or isinstance(reference, str):
        return {"failed": trial if isinstance(trial, str) else f"float64: {reference}"}
    difference = trial.forces - reference.forces
    return {
        "energy_ev": trial.energy - reference.energy,
        "force_max_ev_per_a": float(np.abs(difference).max(initial=0.0)),
        "force_rms_ev_per_a": float(np.sqrt(np.mean(difference**2))),
    }


def _scaled(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _plain(content: dict[str, Any]) -> dict[str, Any]:
    return {
        key: str(value) if isinstance(value, Path) else value for key, value in content.items()
    }


def power_law(results: dict[str, Any], program: str) -> float | None:
    """Exponent of the cost in the number of atoms, over the boxes of water.

    None with fewer than two of them.
    """
    points = [
        (system["atoms"], system[program]["ms"])
        for system in results["systems"]
        if system["name"].startswith("water ") and "ms" in system.get(program, ())
    ]
    if len(points) < 2:
        return None
    atoms, ms = np.log(np.array(points)).T
    return float(np.polyfit(atoms, ms, 1)[0])
