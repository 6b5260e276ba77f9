"""Every key of a campaign's plan, and the runs that follow from it."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterator
from typing import Any, Literal, TypeVar

from pydantic.dataclasses import dataclass

from ...models.options import STRICT, one_line_errors, option
from ..runs.settings import (
    ENSEMBLES,
    OPTIMIZERS,
    THERMOSTATS,
    MDSettings,
    ModelSettings,
    RelaxSettings,
    to_json,
)

Start = Literal["given", "relaxed"]
START = "structure to begin with: given or relaxed; null: relaxed where the plan has relax"

T = TypeVar("T")


def _checked(make: Callable[..., T], renamed: dict[str, str] | None = None, **values: Any) -> T:
    """Settings of a run; errors name the keys of the plan, not options of the command line."""
    try:
        return make(**values)
    except ValueError as error:
        keys = renamed or {}

        def key(found: re.Match[str]) -> str:
            name = found.group(1).replace("-", "_")
            return keys.get(name, name)

        raise ValueError(re.sub(r"--([a-z][a-z-]*)", key, str(error))) from None


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class StructuresSection:
    """Structures of a campaign."""

    files: list[str] | str | None = option(
        "files that ASE reads, with all their structures; file@index takes one; * is any name",
        None,
    )
    smiles: list[str] | str | None = option(
        "a list of SMILES, or a file of them (a .csv with a column smiles, or one at the start of "
        "each line, then a name); needs RDKit",
        None,
    )
    limit: int | None = option(
        "take at most this many structures, from the start; null: all", None, ge=1
    )

    def __post_init__(self) -> None:
        if not self.files and not self.smiles:
            raise ValueError("files is missing: give files, or smiles")


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class ModelSection:
    """The potential of all runs, and how it is evaluated."""

    checkpoint: list[str] | str | None = option(
        "a file, a folder or a registry name; several make a committee; null: organic, where it "
        "is for the structure",
        None,
    )
    charge: int | None = option("total charge; null: that of each structure", None, "e")
    dtype: str = option("precision: float32 or float64", "float32")
    device: str = option("auto (CUDA where there is one), cpu, cuda, cuda:1", "auto")
    backend: str = option("auto, reference or fused", "auto")
    threads: int = option("CPU threads of a run", 1, ge=1)
    units: list[str] | None = option(
        "units of length and energy of a checkpoint that does not state them: [angstrom, ev]", None
    )
    coulomb_cutoff: float | None = option(
        "cutoff of a Coulomb energy of predicted charges; null: as in the checkpoint", None, "Å"
    )
    dispersion: str | None = option(
        "functional whose D3(BJ) dispersion is added, such as wb97x; null: none", None
    )

    def __post_init__(self) -> None:
        if self.units is not None and len(self.units) != 2:
            raise ValueError(f"units is {self.units}: expected [angstrom, ev] or the like")

    @property
    def settings(self) -> ModelSettings:
        """The same as settings of a run."""
        names = self.checkpoint or []
        return ModelSettings(
            **{
                **{k: v for k, v in dataclasses.asdict(self).items() if k != "checkpoint"},
                "model": (names,) if isinstance(names, str) else tuple(names),
                "units": None if self.units is None else (self.units[0], self.units[1]),
            }
        )


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class RelaxSection:
    """Relaxations."""

    fmax: float = option(
        "converged when no force on an atom is larger", RelaxSettings.fmax, "eV/Å"
    )
    optimizer: str = option(", ".join(OPTIMIZERS), RelaxSettings.optimizer)
    steps: int = option(
        "largest number of steps; a relaxation that needs more has failed", RelaxSettings.steps
    )
    cell: bool = option("relax the cell too", RelaxSettings.cell)
    pressure: float = option("external pressure, with cell", RelaxSettings.pressure, "bar")
    doubt: float | None = option(
        "keep steps about which a committee disagrees by more; null: none", None, "eV/Å"
    )
    stop_on_doubt: bool = option("such a step ends the relaxation, which has failed", False)

    def __post_init__(self) -> None:
        _ = self.settings

    @property
    def settings(self) -> RelaxSettings:
        """The same as settings of a run."""
        return _checked(RelaxSettings, **dataclasses.asdict(self))


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class MDSection:
    """Molecular dynamics, with ASE's integrators."""

    start: Start | None = option(START, None)
    ensemble: str = option(", ".join(ENSEMBLES), MDSettings.ensemble)
    thermostat: str = option(f"{', '.join(THERMOSTATS)}; nvt and npt", MDSettings.thermostat)
    temperatures: list[float] = option(
        "a run for each: of the initial velocities and the thermostat", unit="K",
        default_factory=lambda: [MDSettings.temperature],
    )  # fmt: skip
    seeds: list[int] = option("a run for each, at each temperature", default_factory=lambda: [0])
    pressure: float = option("npt", MDSettings.pressure, "bar")
    timestep: float = option("time step", MDSettings.timestep, "fs")
    steps: int = option("number of steps", MDSettings.steps)
    interval: int = option(
        "steps between lines of the log and frames of the trajectory", MDSettings.interval
    )
    thermostat_time: float = option(
        "1/friction of langevin, tau of bussi", MDSettings.thermostat_time, "fs"
    )
    barostat_time: float = option("npt", MDSettings.barostat_time, "fs")
    compressibility: float | None = option("npt; null: estimated from the model", None, "1/bar")
    doubt: float | None = option(
        "keep frames about which a committee disagrees by more; null: none", None, "eV/Å"
    )
    stop_on_doubt: bool = option("such a frame ends the run, which has failed", False)
    save_every: float = option("wall time between restarts: the most that a kill loses", 10.0, "s")

    def __post_init__(self) -> None:
        for name in ("temperatures", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) < len(values):
                raise ValueError(f"{name} is {values}: expected one or more, each once")
        if not self.save_every > 0:
            raise ValueError(f"save_every is {self.save_every} s: expected a number above zero")
        _ = list(self.each)

    @property
    def each(self) -> Iterator[MDSettings]:
        """Settings of every run of a structure."""
        common = dataclasses.asdict(self)
        for name in ("start", "temperatures", "seeds", "save_every"):
            del common[name]
        renamed = {"temperature": "temperatures", "seed": "seeds"}
        for temperature in self.temperatures:
            for seed in self.seeds:
                yield _checked(MDSettings, renamed, temperature=temperature, seed=seed, **common)


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class EvaluateSection:
    """Energies and forces of structures as they are."""

    start: Start | None = option(START, None)


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class HessianSection:
    """Second derivatives and harmonic frequencies."""

    start: Start | None = option(START, None)


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class Plan:
    """A whole plan: the structures, the model, and a section for each kind of run."""

    structures: StructuresSection = option("what is run")
    model: ModelSection = option("the potential of all runs", default_factory=ModelSection)
    relax: RelaxSection | None = option("relax every structure", None)
    md: MDSection | None = option("molecular dynamics of every structure", None)
    evaluate: EvaluateSection | None = option("energy and forces of every structure", None)
    hessian: HessianSection | None = option("Hessian and frequencies of every structure", None)

    def __post_init__(self) -> None:
        kinds = {kind: getattr(self, kind) for kind in KINDS}
        if not any(kinds.values()):
            raise ValueError(f"no run is planned: add {', '.join(KINDS[:-1])} or {KINDS[-1]}")
        for kind, section in kinds.items():
            if getattr(section, "start", None) == "relaxed" and self.relax is None:
                raise ValueError(
                    f"{kind}.start is relaxed, but the plan relaxes nothing: add relax, or leave "
                    "start out"
                )


KINDS = ("relax", "md", "evaluate", "hessian")
"""The kinds of run; each is a section of a plan."""

SECTIONS: dict[str, type] = {
    "structures": StructuresSection,
    "model": ModelSection,
    "relax": RelaxSection,
    "md": MDSection,
    "evaluate": EvaluateSection,
    "hessian": HessianSection,
}
"""All sections by their names."""


@dataclasses.dataclass(frozen=True)
class Task:
    """One run of one structure."""

    name: str
    """``STRUCTURE/RUN``, also the place of its folder."""
    kind: str
    structure: int
    """Number of the given structure, from 0."""
    settings: dict[str, Any]
    """Settings of the run as `to_json` writes them."""
    after: str | None
    """Name of the task whose result it begins with; None: the given structure."""
    save_every: float = 10.0
    """Wall time between restarts of molecular dynamics, s."""


def tasks_of(plan: Plan, structures: list[str]) -> list[Task]:
    """All runs, those of a structure beside each other and each after what it begins with.

    Parameters
    ----------
    plan
        What to run.
    structures
        Name of every structure.
    """
    return [task for k, name in enumerate(structures) for task in _tasks_of_one(plan, k, name)]


def _tasks_of_one(plan: Plan, number: int, name: str) -> Iterator[Task]:
    relax = f"{name}/relax"

    def after(start: Start | None) -> str | None:
        return relax if plan.relax is not None and start != "given" else None

    if plan.relax is not None:
        yield Task(relax, "relax", number, to_json(plan.relax.settings), None)
    if plan.md is not None:
        runs = list(plan.md.each)
        for settings in runs:
            folder = f"md-{settings.temperature:g}K-seed{settings.seed}"
            yield Task(
                f"{name}/{folder}", "md", number, to_json(settings), after(plan.md.start),
                plan.md.save_every,
            )  # fmt: skip
    for kind, section in (("evaluate", plan.evaluate), ("hessian", plan.hessian)):
        if section is not None:
            yield Task(f"{name}/{kind}", kind, number, {}, after(section.start))
