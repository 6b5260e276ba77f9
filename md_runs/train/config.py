"""Every key of a training's configuration, and the documentation and example made from them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterable
from typing import Any

import yaml
from pydantic.dataclasses import dataclass

from ...models.data.readers import FORMATS
from ...models.networks import NETWORKS, Network
from ...models.options import (
    STRICT,
    fields_of,
    one_line_errors,
    option,
    section_type,
    type_text,
)
from ...models.quantities import HEADS as PROPERTIES
from ...models.quantities import QUANTITIES
from ...models.training.settings import TrainingSettings

ARCHITECTURES = {name.lower(): kind for name, kind in NETWORKS.items()}
"""Networks by the name that a configuration has for them."""
DEFAULT_ARCHITECTURE = "tensornet"
REFERENCES = ("fit", "none")
REFIT = ("none", "all")
REQUIRED = "required"

UNITS = {"cutoff": "Å", "cutoff_lower": "Å"}
"""Units of options of the networks."""


def _one_of(names: Iterable[str]) -> str:
    """``a, b or c``."""
    *others, last = names
    return f"{', '.join(others)} or {last}" if others else last


def _network_section(name: str, network: type) -> type:
    """The options of a network's constructor as a section, described by its docstring."""
    texts = parameter_texts(network)
    content: dict[str, Any] = {
        name: option(texts.get(name, ""), parameter.default, UNITS.get(name, ""))
        for name, parameter in inspect.signature(network).parameters.items()
    }
    hints = typing.get_type_hints(network.__init__)  # type: ignore[misc]
    content["__annotations__"] = {name: hints[name] for name in content}
    section = type(f"{name}Config", (), {**content, "__module__": __name__})
    return one_line_errors(dataclass(section, frozen=True, config=STRICT))


def parameter_texts(cls: type) -> dict[str, str]:
    """First sentences of the parameters that a class describes in NumPy style."""
    doc = inspect.getdoc(cls) or ""
    _, _, rest = doc.partition("Parameters\n----------\n")
    body = re.split(r"\n\n\w+\n-{3,}\n", rest)[0]
    found = {}
    for match in re.finditer(r"^(\w[\w, ]*)\n((?:    .*\n?|\n)+)", body, re.MULTILINE):
        text = " ".join(match.group(2).split()).replace("`", "").replace("None:", "null:")
        text = re.sub(r" \(see [^)]*\)|, see \w+", "", text)
        sentence = re.split(r"\.(?:\s|$)", text, maxsplit=1)[0]
        sentence = re.sub(r"^[A-Z](?=[a-z ])", lambda first: first.group().lower(), sentence)
        for name in match.group(1).split(","):
            found[name.strip()] = sentence
    return found


NETWORK_SECTIONS = {
    name.lower(): _network_section(name, kind.network) for name, kind in NETWORKS.items()
}
"""Sections of options, one for each network."""


def _with_network_sections(cls: type) -> type:
    """Add a field for the section of each network."""
    for name in NETWORKS:
        section = name.lower()
        cls.__annotations__[section] = NETWORK_SECTIONS[section] | None
        setattr(cls, section, option(f"options of {name}; see below", None))
    return cls


def _check_entry(entry: str | dict[str, str | float]) -> None:
    if isinstance(entry, str):
        return
    unknown = sorted(set(entry) - {"file", "weight"})
    if unknown or not isinstance(entry.get("file"), str):
        wrong = f"the key {unknown[0]}" if unknown else "no file"
        raise ValueError(f"train has {wrong} in {entry}: expected {{file: a.xyz, weight: 2}}")
    weight = entry.get("weight", 1.0)
    if isinstance(weight, str) or not 0 < weight < float("inf"):
        raise ValueError(f"train has the weight {weight} of {entry['file']}: expected above 0")


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class DataConfig:
    """Frames to train, validate and test on."""

    train: list[str | dict[str, str | float]] | str = option(
        "file or files to train on; qm9 is the package qm9pack; {file: a.xyz, weight: 2} gives "
        "the frames of a file a weight"
    )
    validation: list[str] | str | None = option(
        "files for validation; null: a part of train", None
    )
    test: list[str] | str | None = option("files to test on at the end", None)
    split: list[int] | list[float] | list[str] | str | None = option(
        "parts of train: numbers or shares of frames for training, validation and test (by "
        "default the rest), torchmd-net's npz file of indices, or two or three text files of them",
        None,
    )
    split_seed: int = option("seed of a random split", 0)
    limit: int | None = option(
        "read at most this many frames per file, from the start; null: all", None, "frames", ge=1
    )
    limit_seed: int | None = option(
        "with limit: take random frames of each file, with this seed", None
    )
    format: str | None = option(
        f"format of all files ({', '.join(FORMATS)}); null: by their names", None
    )
    units: dict[str, str] | None = option(
        "units of length, energy, forces, stress, ... in the files; null: the format's", None
    )
    keys: dict[str, str | None] | None = option(
        "names of labels in the files, such as {energy: REF_energy}, and of the weight of a frame "
        "(config_weight); null ignores a label",
        None,
    )

    def __post_init__(self) -> None:
        for entry in self.train if isinstance(self.train, list) else ():
            _check_entry(entry)
        if self.validation is None and self.split is None:
            raise ValueError(
                "validation is missing: give files, or split: [950, 50] to take a part of train"
            )
        if self.split is not None and self.validation is not None:
            raise ValueError("split makes the validation frames: leave validation out")
        if isinstance(self.split, list):
            most = 3 if self.test is None else 2
            if not 2 <= len(self.split) <= most:
                raise ValueError(
                    f"split has {len(self.split)} parts: expected training and validation"
                    + (", and test if you like" if most == 3 else "; test has its own files")
                )
            if any(not isinstance(part, str) and part <= 0 for part in self.split):
                raise ValueError(f"split is {self.split}: expected numbers above zero")
        if self.limit_seed is not None and (self.limit is None or self.limit_seed < 0):
            raise ValueError(
                f"limit_seed is {self.limit_seed}: expected 0 or more, and a limit beside it"
            )
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}: expected one of {', '.join(FORMATS)}")


@one_line_errors
@dataclass(frozen=True, config=STRICT)
@_with_network_sections
class ModelConfig:
    """Network and heads, new or from a checkpoint."""

    architecture: str | None = option(
        f"{_one_of(ARCHITECTURES)}; null: start_from's, or {DEFAULT_ARCHITECTURE}", None
    )
    readout: str | None = option(
        "; ".join(
            f"kind of readout of a {name}: {', '.join(kind.heads)}; null: {kind.heads[0]}"
            for name, kind in NETWORKS.items()
            if kind.heads
        ),
        None,
    )
    repulsion_cutoff: float | None = option(
        "cutoff of a screened nuclear repulsion (ZBL); null: none", None, "Å", gt=0, le=100
    )
    coulomb_weights: list[float] | None = option(
        "weights of the levels of charges in a Coulomb energy (tensornet2), one more than layers; "
        "null: no Coulomb energy",
        None,
    )
    coulomb_cutoff: float | None = option(
        "cutoff of the Coulomb energy, with a reaction field beyond it, which periodic frames "
        "need; null: all pairs of a molecule, or as in start_from",
        None,
        "Å",
        gt=0,
        le=100,
    )
    properties: list[str] = option(
        f"properties besides energy and forces: {', '.join(PROPERTIES)}", default_factory=list
    )
    dipole_charges: bool = option("whether the dipole has a term of atomic charges", True)
    elements: list[str] | None = option(
        "symbols; null: those of the training frames, or start_from's", None
    )
    references: str | dict[str, float] = option(
        "energies of elements: fit (least squares), none, or a section such as {H: -13.6}",
        "fit",
        "eV",
    )
    start_from: str | None = option(
        "checkpoint whose weights are trained further: a file, a folder or a name", None
    )
    start_from_units: list[str] | None = option(
        "its units of length and energy, where its file does not state them: [angstrom, kcal/mol]",
        None,
    )
    refit: str | list[str] = option(
        "elements of start_from whose energies are refitted (least squares): none, all (of the "
        "training frames), or a list of symbols",
        "none",
    )
    freeze: list[str] = option(
        "parts of start_from whose weights stay as they are, such as representation or "
        "representation.layers.0",
        default_factory=list,
    )

    def __post_init__(self) -> None:
        if self.architecture is not None and self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture is {self.architecture!r}: expected {_one_of(ARCHITECTURES)}"
            )
        if self.start_from is not None:
            for name in (
                "architecture", *ARCHITECTURES, "readout", "repulsion_cutoff", "coulomb_weights"
            ):  # fmt: skip
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is that of start_from: leave one of the two out")
            if self.references != "fit":
                raise ValueError("references are those of start_from: refit says which to change")
        else:
            if self.coulomb_cutoff is not None and self.coulomb_weights is None:
                raise ValueError(
                    "coulomb_cutoff is given, but there is no Coulomb energy: set coulomb_weights "
                    "too, or leave it out"
                )
            for name in ("start_from_units", "refit", "freeze"):
                if getattr(self, name) not in (None, "none", []):
                    raise ValueError(f"{name} is of start_from, which is not given: leave it out")
            for other in ARCHITECTURES:
                if other != self.name and getattr(self, other) is not None:
                    raise ValueError(
                        f"{other} has options, but the architecture is {self.name}: leave them "
                        f"out, or set architecture: {other}"
                    )
        if self.readout is not None and self.readout not in ARCHITECTURES[self.name].heads:
            raise ValueError(f"readout is {self.readout!r}: expected one of {_readouts()}")
        for name in self.properties:
            if name not in PROPERTIES:
                raise ValueError(f"properties has {name!r}: expected of {', '.join(PROPERTIES)}")
        if isinstance(self.references, str) and self.references not in REFERENCES:
            raise ValueError(
                f"references is {self.references!r}: expected fit, none, or a section such as "
                "{H: -13.6}"
            )
        if isinstance(self.refit, str) and self.refit not in REFIT:
            raise ValueError(f"refit is {self.refit!r}: expected none, all, or a list of symbols")
        if self.start_from_units is not None and len(self.start_from_units) != 2:
            raise ValueError(
                f"start_from_units is {self.start_from_units}: expected [angstrom, ev] or the like"
            )

    @property
    def name(self) -> str:
        """The architecture of a new network."""
        return self.architecture or DEFAULT_ARCHITECTURE

    @property
    def options(self) -> dict[str, Any]:
        """Arguments of the new network's constructor."""
        section = getattr(self, self.name) or NETWORK_SECTIONS[self.name]()
        return dataclasses.asdict(section)

    @property
    def network(self) -> type[Network]:
        """The class of a new network."""
        return ARCHITECTURES[self.name].network


def _readouts() -> str:
    """Kinds of readout that there are to choose from."""
    return "; ".join(
        f"{', '.join(kind.heads)}, of a {name}" for name, kind in NETWORKS.items() if kind.heads
    )


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class MachineConfig:
    """Device and threads of a training."""

    device: str = option("auto (CUDA where there is one), cpu, cuda, cuda:1", "auto")
    threads: int | None = option("CPU threads; null: torch's own number", None, ge=1, le=65536)


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class OutputConfig:
    """Files that a training writes."""

    folder: str | None = option(
        "run folder; null: the name of the configuration + _training", None
    )
    torchmdnet_ckpt: bool = option(
        "also write the trained TensorNet as a torchmd-net .ckpt", False
    )
    logger: typing.Literal["tensorboard", "wandb"] | None = option(
        "tensorboard or wandb: also send the rows of log.csv there; null: to neither", None
    )
    metadata: dict[str, Any] = option(
        "kept in the checkpoints: name, licence, reference, ...", default_factory=dict
    )


@one_line_errors
@dataclass(frozen=True, config=STRICT)
class TrainConfig:
    """A whole configuration."""

    data: DataConfig = option("frames to train, validate and test on")
    model: ModelConfig = option("network and heads", default_factory=ModelConfig)
    training: TrainingSettings = option("options of the loop", default_factory=TrainingSettings)
    machine: MachineConfig = option("device and threads", default_factory=MachineConfig)
    output: OutputConfig = option("files to write", default_factory=OutputConfig)

    def __post_init__(self) -> None:
        wanted = {
            name: [row.weight for row in QUANTITIES.values() if row.source == name]
            for name in PROPERTIES
        }
        for name, weights in wanted.items():
            learnt = any(getattr(self.training, w) > 0 for w in weights)
            if name in self.model.properties and not learnt:
                raise ValueError(
                    f"model.properties has {name}, but the loss does not: set "
                    f"training.{weights[0]} above 0"
                )
            if learnt and name not in self.model.properties and self.model.start_from is None:
                raise ValueError(
                    f"training.{weights[0]} asks for the {name}, which the model does not give: "
                    f"add it to model.properties"
                )

    @property
    def settings(self) -> TrainingSettings:
        """Options of the training loop."""
        return self.training


@dataclasses.dataclass(frozen=True)
class Key:
    """One line of the documentation."""

    name: str
    type: str
    default: str
    unit: str
    text: str


def keys_of(section: type) -> list[Key]:
    """The keys of a section that are no sections, in order."""
    found = []
    for name, each in fields_of(section).items():
        if section_type(each.annotation) is not None:
            continue
        default = REQUIRED
        if not each.is_required():
            default = yaml_text(each.get_default(call_default_factory=True))
        unit = typing.cast(dict[str, str], each.json_schema_extra)["unit"]
        found.append(Key(name, type_text(each.annotation), default, unit, each.description or ""))
    return found


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    **{f"model.{name}": section for name, section in NETWORK_SECTIONS.items()},
    "training": TrainingSettings,
    "machine": MachineConfig,
    "output": OutputConfig,
}
"""All sections, by the name that a file has for them."""


def yaml_text(value: Any) -> str:
    """A value in one line of YAML."""
    if isinstance(value, float) and value == float("inf"):
        return ".inf"
    if isinstance(value, tuple):
        value = list(value)
    text = yaml.safe_dump(value, default_flow_style=True, width=10_000)
    return text.removesuffix("\n").removesuffix("\n...")


def markdown_table(section: str) -> str:
    """The table of a section's keys for the documentation."""
    return table_of(SECTIONS[section])


def table_of(section: type) -> str:
    """The table of the keys of any section."""
    lines = ["| key | type | default | unit | |", "|---|---|---|---|---|"]
    for each in keys_of(section):
        default = each.default if each.default == REQUIRED else f"`{each.default}`"
        lines.append(f"| `{each.name}` | {each.type} | {default} | {each.unit} | {each.text} |")
    return "\n".join(lines)


def plain(config: TrainConfig) -> dict[str, Any]:
    """A configuration as plain data, without the sections that are not there."""
    content = dataclasses.asdict(config)
    content["model"] = {
        name: value
        for name, value in content["model"].items()
        if value is not None or name not in ARCHITECTURES
    }
    listed = {
        name: list(value) if isinstance(value, tuple) else value
        for section in ARCHITECTURES
        for name, value in content["model"].get(section, {}).items()
    }
    for section in ARCHITECTURES:
        if section in content["model"]:
            content["model"][section] = listed
    return content


def example() -> str:
    """A complete configuration with comments, to be edited."""
    shown: dict[str, dict[str, Any]] = {
        "data": {"train": "train.extxyz", "split": [950, 50]},
        "model": {"architecture": DEFAULT_ARCHITECTURE},
        f"model.{DEFAULT_ARCHITECTURE}": {"channels": 64},
    }
    text = [
        "# A training of tensormd: all keys with their defaults; only data.train has none.",
        "# Run it with: tensormd train FILE",
    ]
    for name in ("data", "model", "training", "machine", "output"):
        text += ["", f"{name}:"]
        for each in keys_of(SECTIONS[name]):
            value = shown.get(name, {}).get(each.name)
            text += _example_key(each, each.default if value is None else yaml_text(value), "  ")
        if name == "model":
            shown_network = DEFAULT_ARCHITECTURE
            text += [
                f"  # For architecture {other}: a section {other} instead, with its own options."
                for other in ARCHITECTURES
                if other != shown_network
            ]
            text.append(f"  {shown_network}:")
            for each in keys_of(NETWORK_SECTIONS[shown_network]):
                value = shown[f"model.{shown_network}"].get(each.name)
                text += _example_key(
                    each, each.default if value is None else yaml_text(value), "    "
                )
    return "\n".join(text) + "\n"


def _example_key(each: Key, value: str, indent: str) -> list[str]:
    comment = each.text + (f" ({each.unit})" if each.unit else "")
    line = f"{indent}{each.name}: {value}"
    if len(line) + len(comment) + 4 <= 99:
        return [f"{line}  # {comment}"]
    wrapped = textwrap.wrap(comment, 95 - len(indent))
    return [*(f"{indent}# {part}" for part in wrapped), line]
