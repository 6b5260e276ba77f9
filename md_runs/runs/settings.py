"""Options of a run, checked once and kept in its config.json."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from .applies import check_options, without_effect

ENGINES = ("ase", "openmm")
ENSEMBLES = ("nve", "nvt", "npt")
THERMOSTATS = ("langevin", "bussi")
OPTIMIZERS = ("lbfgs", "fire", "bfgs")
BAROSTATS = ("isotropic", "anisotropic")
CONSTRAINTS = ("none", "hbonds")
TRAJECTORIES = ("extxyz", "dcd", "xtc")
ENGINE_FORCES = ("auto", "torchforce", "python")


@dataclass(frozen=True)
class ModelSettings:
    """The potential of a run, and how it is evaluated."""

    model: tuple[str, ...]
    """A path or a registry name; several make a committee."""
    charge: int | None = None
    """Total charge, e; None takes the structure's."""
    dtype: str = "float32"
    device: str = "auto"
    backend: str = "auto"
    units: tuple[str, str] | None = None
    """Units of length and energy of the checkpoint, where its file does not state them."""
    threads: int | None = None
    """Largest number of CPU threads; None: see `default_threads`. Kept with a run, since the last
    bit of torch's sums depends on how they were divided; that of fused kernels does not."""
    coulomb_cutoff: float | None = None
    """Cutoff of a Coulomb energy of predicted charges, A; None: as in the checkpoint."""
    dispersion: str | None = None
    """Functional whose D3(BJ) dispersion is added; None: none."""

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"--threads is {self.threads}: expected 1 or more")


@dataclass(frozen=True)
class MDSettings:
    """A molecular dynamics run. Names are those of the command line's options."""

    ensemble: str = "nve"
    thermostat: str = "langevin"
    temperature: float = 300.0
    """Temperature of the initial velocities and of the thermostat, K."""
    pressure: float = 1.0
    """Pressure, bar; npt only."""
    timestep: float = 0.5
    """Time step, fs."""
    steps: int = 1000
    """Total number of steps, those before a resume included."""
    seed: int = 0
    interval: int = 10
    """Steps between lines of the log and frames of the trajectory."""
    thermostat_time: float = 100.0
    """Time constant, fs: the inverse of Langevin's friction, or Bussi's tau."""
    barostat_time: float = 1000.0
    """Time constant, fs; npt with ASE only."""
    compressibility: float | None = None
    """Compressibility, 1/bar; npt with ASE only. None: estimated from the model."""
    keep_velocities: bool = False
    """Start from the structure's velocities instead of drawing new ones."""
    doubt: float | None = None
    """Frames in which a committee disagrees by more, eV/A, are kept in their own file."""
    stop_on_doubt: bool = False
    """End the run at such a frame."""
    engine: str = "ase"
    # The following options are OpenMM's only.
    barostat: str = "isotropic"
    """npt: how the Monte Carlo barostat scales the box."""
    minimize: bool = False
    """Minimise the energy before the first step."""
    trajectory: str = "extxyz"
    """Format of a copy of the trajectory for other programs."""
    ml_atoms: str | None = None
    """Atoms that the potential describes; a force field describes the others. None: all."""
    force_field: tuple[str, ...] = ()
    """OpenMM's XML files of the force field of the other atoms."""
    constraints: str = "none"
    """Constraints of the force field's atoms: ``hbonds`` fixes bonds to hydrogen, and water."""
    hydrogen_mass: float | None = None
    """Mass of hydrogens, u, taken from the bonded atom; None leaves the masses as they are."""
    platform: str | None = None
    """OpenMM platform; None: chosen when the run starts."""
    engine_force: str = "auto"
    """How OpenMM calls the potential."""

    def __post_init__(self) -> None:
        _one_of("engine", self.engine, ENGINES)
        _one_of("ensemble", self.ensemble, ENSEMBLES)
        _one_of("thermostat", self.thermostat, THERMOSTATS)
        _one_of("barostat", self.barostat, BAROSTATS)
        _one_of("trajectory", self.trajectory, TRAJECTORIES)
        _one_of("constraints", self.constraints, CONSTRAINTS)
        _one_of("engine_force", self.engine_force, ENGINE_FORCES)
        self._check_engine()
        for name, unit in (
            ("temperature", "K"),
            ("timestep", "fs"),
            ("thermostat_time", "fs"),
            ("barostat_time", "fs"),
            ("compressibility", "1/bar"),
            ("hydrogen_mass", "u"),
            ("doubt", "eV/A"),
        ):
            value = getattr(self, name)
            if value is not None and not (value > 0 and math.isfinite(value)):
                raise ValueError(
                    f"{option(name)} is {value} {unit}: expected a finite number above zero"
                )
        if not math.isfinite(self.pressure):
            raise ValueError(f"--pressure is {self.pressure} bar: expected a finite number")
        for name, least in (("steps", 0), ("interval", 1), ("seed", 0)):
            if getattr(self, name) < least:
                raise ValueError(
                    f"{option(name)} is {getattr(self, name)}: expected {least} or more"
                )
        if self.timestep > self.thermostat_time and self.ensemble != "nve":
            raise ValueError(
                f"--thermostat-time is {self.thermostat_time} fs, shorter than the time step "
                f"of {self.timestep} fs: expected some hundred steps"
            )

    def _check_engine(self) -> None:
        """Refuse what engine and ensemble would ignore, and what the engine has not."""
        check_options("md", vars(self), _given(self))
        if self.engine == "openmm" and self.thermostat != "langevin":
            raise ValueError(
                f"--thermostat {self.thermostat} is ASE's: with --engine openmm expected langevin "
                "(LangevinMiddle)"
            )
        if self.ml_atoms is not None and not self.force_field:
            raise ValueError(
                "--ml-atoms needs a --force-field for the other atoms, for example "
                "--force-field amber14-all.xml,amber14/tip3p.xml"
            )


@dataclass(frozen=True)
class RelaxSettings:
    """A relaxation with one of ASE's optimizers."""

    fmax: float = 0.01
    """Converged when no force on an atom is larger, eV/A (with a cell: no gradient of it)."""
    optimizer: str = "lbfgs"
    steps: int = 1000
    """Maximum number of steps."""
    cell: bool = False
    """Relax the cell as well."""
    pressure: float = 0.0
    """External pressure, bar; with ``cell`` only."""
    doubt: float | None = None
    """Steps at which a committee disagrees by more, eV/A, are kept in their own file."""
    stop_on_doubt: bool = False
    """End the relaxation at such a step."""

    def __post_init__(self) -> None:
        _one_of("optimizer", self.optimizer, OPTIMIZERS)
        if not self.fmax > 0:
            raise ValueError(f"--fmax is {self.fmax} eV/A: expected a number above zero")
        if self.doubt is not None and not (self.doubt > 0 and math.isfinite(self.doubt)):
            raise ValueError(f"--doubt is {self.doubt} eV/A: expected a finite number above zero")
        if self.steps < 0:
            raise ValueError(f"--steps is {self.steps}: expected 0 or more")
        check_options("relax", vars(self), _given(self))


def option(name: str) -> str:
    """Name of a setting on the command line."""
    return "--" + name.replace("_", "-")


def _given(settings: MDSettings | RelaxSettings) -> dict[str, str]:
    """Options that differ from their defaults, with their names on the command line.

    The seed is not among them: every run has one, whether something is drawn or not.
    """
    return {
        field.name: option(field.name)
        for field in dataclasses.fields(settings)
        if field.name != "seed" and getattr(settings, field.name) != field.default
    }


def to_json(settings: Any) -> dict[str, Any]:
    """A settings object as plain data: infinity as a word, which JSON does not have."""
    return {
        name: "inf" if value == math.inf else value
        for name, value in dataclasses.asdict(settings).items()
    }


def md_settings(content: dict[str, Any]) -> MDSettings:
    """The settings that `to_json` wrote, less options that earlier versions took and ignored."""
    values = {**content, "force_field": tuple(content.get("force_field", ()))}
    everything = {**vars(MDSettings()), **values}
    ignored = without_effect("md", everything, values.keys() - {"seed"})
    return MDSettings(**{name: value for name, value in values.items() if name not in ignored})


def model_settings(content: dict[str, Any]) -> ModelSettings:
    """The settings that `to_json` wrote."""
    units, cutoff = content["units"], content.get("coulomb_cutoff")
    return ModelSettings(
        **{
            **content,
            "model": tuple(content["model"]),
            "units": None if units is None else (units[0], units[1]),
            "coulomb_cutoff": None if cutoff is None else float(cutoff),
        }
    )


def _one_of(name: str, value: str, allowed: tuple[str, ...], note: str = "") -> None:
    if value not in allowed:
        raise ValueError(f"{option(name)} is {value!r}: expected {' or '.join(allowed)}{note}")
