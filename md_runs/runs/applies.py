"""Which options have an effect: the one table, for every command.

An option that would be ignored is refused. The table is read by `main`, with the options that were
typed, and by the settings, with the values that differ from their defaults.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

Values = Mapping[str, Any]
"""Values of all options of a command by the names of its parameters."""


class Need(NamedTuple):
    """Something that an option requires to have an effect."""

    words: str
    """The rest of the message, after the option's name."""
    met: Callable[[Values], bool]


def _fresh(words: str, met: Callable[[Values], bool]) -> Need:
    """A need of a new run of md; of a resumed one, every option is compared with the run's own."""
    return Need(words, lambda values: values.get("resume") is not None or met(values))


ASE = _fresh("is an option of --engine ase only", lambda v: v["engine"] == "ase")
OPENMM = _fresh("is an option of --engine openmm only", lambda v: v["engine"] == "openmm")
NPT = _fresh("is an option of --ensemble npt only", lambda v: v["ensemble"] == "npt")
THERMOSTAT = _fresh("is an option of --ensemble nvt or npt only", lambda v: v["ensemble"] != "nve")
RANDOM = _fresh(
    "has no effect in nve with --keep-velocities: nothing is drawn, and there is no thermostat",
    lambda v: v["ensemble"] != "nve" or not v["keep_velocities"],
)
FORCE_FIELD = _fresh(
    "is an option of the force field: choose the atoms of the potential with --ml-atoms",
    lambda v: v["ml_atoms"] is not None,
)
CELL = Need("has no effect while the cell is fixed: add --cell", lambda v: v["cell"])
DOUBT = Need("has no effect without a threshold: add --doubt", lambda v: v["doubt"] is not None)
RESUMED_DOUBT = _fresh(DOUBT.words, DOUBT.met)
WHOLE = _fresh(
    "is for a potential of all atoms: with --ml-atoms nothing tells of doubt",
    lambda v: v["ml_atoms"] is None,
)
FOR_OPENMM = Need(
    "is an option of --target openmm only: other files take any structure at each call",
    lambda v: v["target"] == "openmm",
)
CHARGE_IN_FILE = Need(
    "is an option of --target openmm and gromacs only: a portable file takes it at each call",
    lambda v: v["target"] != "portable",
)
TCP = Need("is an option of --port only: a UNIX socket is on this machine", lambda v: v["port"])
STARTED_HERE = Need(
    "cannot be given with --scheduler, whose workers are started elsewhere",
    lambda v: v["scheduler"] is None,
)
PEER = Need("is about torchmd-net, which --no-peer leaves out", lambda v: not v["no_peer"])
PROTEINS = Need(
    "is the folder of chignolin and dhfr: name one of them with --systems",
    lambda v: any(name in v["systems"] for name in ("chignolin", "dhfr")),
)
CHECKPOINT = Need("is for a checkpoint: give one with --model", lambda v: v["model"] is not None)
NO_EXAMPLE = Need("cannot be given with --example, which only prints", lambda v: not v["example"])

NO_DRY_RUN = Need(
    "cannot be given with --dry-run, which trains nothing", lambda v: not v["dry_run"]
)
NO_SEARCH = Need(
    "cannot be given with --find-lr, which writes nothing", lambda v: not v["find_lr"]
)


def _new(why: str) -> Need:
    return Need(f"cannot be given with --resume: {why}", lambda v: v["resume"] is None)


KEEPS = _new("the run keeps its configuration")

NEEDS: dict[str, dict[str, tuple[Need, ...]]] = {
    "md": {
        "structure": (_new("the run has its structure already"),),
        "thermostat": (THERMOSTAT,),
        "thermostat_time": (THERMOSTAT,),
        "temperature": (RANDOM,),
        "seed": (RANDOM,),
        "pressure": (NPT,),
        "barostat_time": (ASE, NPT),
        "compressibility": (ASE, NPT),
        "barostat": (OPENMM, NPT),
        "minimize": (OPENMM,),
        "trajectory": (OPENMM,),
        "platform": (OPENMM,),
        "engine_force": (OPENMM,),
        "ml_atoms": (OPENMM,),
        "force_field": (OPENMM, FORCE_FIELD),
        "constraints": (OPENMM, FORCE_FIELD),
        "hydrogen_mass": (OPENMM, FORCE_FIELD),
        "doubt": (WHOLE,),
        "stop_on_doubt": (RESUMED_DOUBT,),
    },
    "relax": {"pressure": (CELL,), "stop_on_doubt": (DOUBT,)},
    "serve": {"host": (TCP,)},
    "campaign": dict.fromkeys(("workers", "batch"), (STARTED_HERE,)),
    "train": {
        "config": (NO_EXAMPLE, KEEPS),
        "out": (NO_EXAMPLE, KEEPS, NO_SEARCH),
        "change": (NO_EXAMPLE,),
        "dry_run": (NO_EXAMPLE, _new("it starts nothing")),
        "find_lr": (NO_EXAMPLE, _new("the run keeps its learning rate"), NO_DRY_RUN),
        "watch": (NO_EXAMPLE, NO_DRY_RUN, NO_SEARCH),
        "resume": (NO_EXAMPLE,),
        "as_json": (NO_EXAMPLE,),
    },
    "export": {
        **dict.fromkeys(("numbers", "structure", "periodic"), (FOR_OPENMM,)),
        "charge": (CHARGE_IN_FILE,),
    },
    "benchmark": {"compile_peer": (PEER,), "data": (PROTEINS,), "units": (CHECKPOINT,)},
}
"""For each command, what its options need; one without a row always has an effect."""


def without_effect(command: str, values: Values, names: Iterable[str]) -> dict[str, str]:
    """Those of the named options that would be ignored, each with the words that say why."""
    rows = NEEDS.get(command, {})
    found: dict[str, str] = {}
    for name in names:
        unmet = [need.words for need in rows.get(name, ()) if not need.met(values)]
        if unmet:
            found[name] = unmet[0]
    return found


def check_options(command: str, values: Values, given: Mapping[str, str]) -> None:
    """Raise a ValueError if an option that was given would be ignored.

    Parameters
    ----------
    command
        Name of the command.
    values
        Values of all its options, defaults included.
    given
        For each option that was given, its name on the command line.
    """
    for name, words in without_effect(command, values, given).items():
        raise ValueError(f"{given[name]} {words}")
