"""Every key of a training's configuration, and the documentation and example made from them."""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
import typing
from dataclasses import dataclass, field, make_dataclass
from typing import Any

import yaml

from ...models.data.readers import FORMATS
from ...models.heads.properties import HEADS as PROPERTIES
from ...models.networks import NETWORKS, Network
from ...models.training.settings import TrainingSettings
from .schema import about, fields_of, section_type, type_text

ARCHITECTURES = {name.lower(): kind for name, kind in NETWORKS.items()}
"""Networks by the name that a configuration has for them."""
DEFAULT_ARCHITECTURE = "tensornet"
REFERENCES = ("fit", "none")
REFIT = ("none", "all")
REQUIRED = "required"

UNITS = {"cutoff": "Å", "cutoff_lower": "Å"}
"""Of options of the networks."""
TRAINING: dict[str, tuple[str, str]] = {
    "epochs": ("", "passes over the training frames"),
    "batch": ("frames", "size of one step"),
    "keep_last_batch": ("", "whether what is left of an epoch makes a last, smaller batch"),
    "learning_rate": ("", "highest; reached after the warm-up"),
    "warm_up_steps": ("steps", "time in which the learning rate rises linearly"),
    "schedule": ("", "cosine (down to a hundredth at the end), plateau or constant"),
    "plateau_factor": ("", "of the learning rate, at a plateau of the validation loss"),
    "plateau_patience": (
        "validations",
        "time without a lower validation loss that makes a plateau",
    ),
    "plateau_minimum": ("", "learning rate below which a plateau does not lower it"),
    "early_stopping": (
        "validations",
        "time without a lower validation loss that ends the run; 0: never",
    ),
    "loss": ("", "norm, l1, mse or huber; see below"),
    "huber_delta": ("that of the error", "where huber becomes linear"),
    "energy_weight": ("1/eV", "of the loss of the energy of a frame"),
    "energy_per_atom": ("", "whether energy errors are divided by the number of atoms"),
    "force_weight": ("Å/eV", "of the loss of forces"),
    "stress_weight": ("Å³/eV", "of the loss of the stress"),
    "dipole_weight": ("1/(e Å)", "of the loss of the dipole"),
    "dipole_norm_weight": ("1/(e Å)", "of the loss of the length of the dipole"),
    "polarizability_weight": ("eV/(e² Å²)", "of the loss of the polarizability"),
    "polarizability_isotropic_weight": (
        "eV/(e² Å²)",
        "of the loss of a third of the trace of the polarizability",
    ),
    "polarizability_anisotropy_weight": (
        "eV/(e² Å²)",
        "of the loss of the anisotropy of the polarizability",
    ),
    "energy_loss_ema": ("", "share of the newest value in the running loss of energies"),
    "force_loss_ema": ("", "the same of forces"),
    "ema_decay": ("", "of the moving average of the weights, which is what is kept"),
    "keep": ("", "which averaged weights are tested: last, or best (lowest validation loss)"),
    "weight_decay": ("", "of AdamW"),
    "largest_gradient": ("", "norm at which the gradient of a step is clipped; .inf: never"),
    "dtype": ("", "of the weights: float32 or float64"),
    "seed": ("", "of the first weights, the order of the frames and dropout"),
    "validate_every": ("epochs", "time between validations, at which the state is saved"),
    "compile": ("", "compile the step: auto (long runs, where there is a compiler), true, false"),
}
"""Unit and description of the fields of `TrainingSettings`."""


def _default(default: Any, text: str, unit: str) -> Any:
    return field(default=default, metadata=about(text, unit))


def _network_section(name: str, network: type) -> type:
    """The options of a network's constructor as a section, described by its docstring."""
    texts = parameter_texts(network)
    hints = typing.get_type_hints(network.__init__)  # type: ignore[misc]
    options = [
        (
            option,
            hints[option],
            _default(parameter.default, texts.get(option, ""), UNITS.get(option, "")),
        )
        for option, parameter in inspect.signature(network).parameters.items()
    ]
    return make_dataclass(f"{name}Config", options, frozen=True)


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
        text = about(f"options of {name}; see below")
        setattr(cls, section, field(default=None, metadata=text))
    return cls


@dataclass(frozen=True)
class DataConfig:
    """Which frames are learnt from, watched and tested on."""

    train: list[str] | str = field(
        metadata=about("file or files to train on; qm9 is the package qm9pack")
    )
    validation: list[str] | str | None = field(
        default=None, metadata=about("files to watch; null: a part of train")
    )
    test: list[str] | str | None = field(
        default=None, metadata=about("files to test on at the end")
    )
    split: list[int] | list[float] | list[str] | str | None = field(
        default=None,
        metadata=about(
            "parts of train: numbers or shares of frames for training, validation and test (left "
            "out: the rest), torchmd-net's npz file of numbers, or two or three text files of them"
        ),
    )
    split_seed: int = field(default=0, metadata=about("of the random parts"))
    limit: int | None = field(
        default=None,
        metadata=about("so many frames of each file, the first ones; null: all", "frames"),
    )
    limit_seed: int | None = field(
        default=None, metadata=about("with limit: random frames of each file instead of the first")
    )
    format: str | None = field(
        default=None, metadata=about(f"of all files ({', '.join(FORMATS)}); null: by their names")
    )
    units: dict[str, str] | None = field(
        default=None,
        metadata=about("of length, energy, forces, stress, ... in the files; null: the format's"),
    )
    keys: dict[str, str | None] | None = field(
        default=None,
        metadata=about(
            "names of labels in the files, such as {energy: REF_energy}; null leaves one out"
        ),
    )

    def __post_init__(self) -> None:
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
        if self.limit is not None and self.limit < 1:
            raise ValueError(f"limit is {self.limit}: expected 1 or more")
        if self.limit_seed is not None and (self.limit is None or self.limit_seed < 0):
            raise ValueError(
                f"limit_seed is {self.limit_seed}: expected 0 or more, and a limit beside it"
            )
        if self.format is not None and self.format not in FORMATS:
            raise ValueError(f"format is {self.format!r}: expected one of {', '.join(FORMATS)}")


@dataclass(frozen=True)
@_with_network_sections
class ModelConfig:
    """What is trained."""

    architecture: str | None = field(
        default=None,
        metadata=about(
            f"{' or '.join(ARCHITECTURES)}; null: start_from's, or {DEFAULT_ARCHITECTURE}"
        ),
    )
    readout: str | None = field(
        default=None,
        metadata=about(
            "; ".join(
                f"of a {name}: {', '.join(kind.heads)}; null: {kind.heads[0]}"
                for name, kind in NETWORKS.items()
                if kind.heads
            )
        ),
    )
    repulsion_cutoff: float | None = field(
        default=None, metadata=about("of a screened nuclear repulsion (ZBL); null: none", "Å")
    )
    properties: list[str] = field(
        default_factory=list, metadata=about(f"besides energy and forces: {', '.join(PROPERTIES)}")
    )
    dipole_charges: bool = field(
        default=True, metadata=about("whether the dipole has a term of atomic charges")
    )
    elements: list[str] | None = field(
        default=None,
        metadata=about("symbols; null: those of the training frames, or start_from's"),
    )
    references: str | dict[str, float] = field(
        default="fit",
        metadata=about(
            "energies of elements: fit (least squares), none, or a section such as {H: -13.6}",
            "eV",
        ),
    )
    start_from: str | None = field(
        default=None,
        metadata=about("checkpoint whose weights are trained further: a file, a folder or a name"),
    )
    start_from_units: list[str] | None = field(
        default=None,
        metadata=about(
            "its units of length and energy where its file does not say: [angstrom, kcal/mol]"
        ),
    )
    refit: str | list[str] = field(
        default="none",
        metadata=about(
            "elements of start_from whose energies are fitted anew (least squares): none, all (of "
            "the training frames), or a list of symbols"
        ),
    )

    def __post_init__(self) -> None:
        if self.architecture is not None and self.architecture not in ARCHITECTURES:
            raise ValueError(
                f"architecture is {self.architecture!r}: expected {' or '.join(ARCHITECTURES)}"
            )
        if self.start_from is not None:
            for name in ("architecture", *ARCHITECTURES, "readout", "repulsion_cutoff"):
                if getattr(self, name) is not None:
                    raise ValueError(f"{name} is that of start_from: leave one of the two out")
            if self.references != "fit":
                raise ValueError("references are those of start_from: refit says which to change")
        else:
            for name in ("start_from_units", "refit"):
                if getattr(self, name) not in (None, "none"):
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


@dataclass(frozen=True)
class MachineConfig:
    """Where a training runs."""

    device: str = field(
        default="auto", metadata=about("auto (CUDA where there is one), cpu, cuda, cuda:1")
    )
    threads: int | None = field(
        default=None, metadata=about("of the processor; null: torch's own number")
    )

    def __post_init__(self) -> None:
        if self.threads is not None and self.threads < 1:
            raise ValueError(f"threads is {self.threads}: expected 1 or more")


@dataclass(frozen=True)
class OutputConfig:
    """What is left."""

    folder: str | None = field(
        default=None, metadata=about("run folder; null: the name of the configuration + _training")
    )
    torchmdnet_ckpt: bool = field(
        default=False, metadata=about("write the trained TensorNet as a torchmd-net .ckpt too")
    )
    metadata: dict[str, Any] = field(
        default_factory=dict,
        metadata=about("kept in the checkpoints: name, licence, reference, ..."),
    )


def _training_section() -> type:
    """`TrainingSettings` as a section: its fields with their descriptions."""
    options = []
    for each in dataclasses.fields(TrainingSettings):
        unit, text = TRAINING.get(each.name, ("", ""))
        hints = typing.get_type_hints(TrainingSettings)
        options.append((each.name, hints[each.name], _default(each.default, text, unit)))

    def check(self: Any) -> None:
        TrainingSettings(**dataclasses.asdict(self))

    return make_dataclass(
        "TrainingConfig", options, frozen=True, namespace={"__post_init__": check}
    )


TrainingConfig = _training_section()


@dataclass(frozen=True)
class TrainConfig:
    """A whole configuration."""

    data: DataConfig = field(metadata=about("which frames are learnt from, watched and tested on"))
    model: ModelConfig = field(default_factory=ModelConfig, metadata=about("what is trained"))
    training: TrainingConfig = field(  # type: ignore[valid-type]
        default_factory=TrainingConfig, metadata=about("how")
    )
    machine: MachineConfig = field(default_factory=MachineConfig, metadata=about("where"))
    output: OutputConfig = field(default_factory=OutputConfig, metadata=about("what is left"))

    def __post_init__(self) -> None:
        wanted = {
            "dipole": ("dipole_weight", "dipole_norm_weight"),
            "polarizability": tuple(
                name for name in TRAINING if name.startswith("polarizability")
            ),
        }
        for name, weights in wanted.items():
            learnt = any(getattr(self.training, w, 0) > 0 for w in weights)
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
        """What the loop is asked to do."""
        return TrainingSettings(**dataclasses.asdict(self.training))


@dataclass(frozen=True)
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
    for each, kind in fields_of(section):
        if section_type(kind) is not None:
            continue
        if each.default is not dataclasses.MISSING:
            default = yaml_text(each.default)
        elif each.default_factory is not dataclasses.MISSING:
            default = yaml_text(each.default_factory())
        else:
            default = REQUIRED
        unit = each.metadata.get("unit", "")
        found.append(Key(each.name, type_text(kind), default, unit, each.metadata["text"]))
    return found


SECTIONS: dict[str, type] = {
    "data": DataConfig,
    "model": ModelConfig,
    **{f"model.{name}": section for name, section in NETWORK_SECTIONS.items()},
    "training": TrainingConfig,
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
    lines = ["| key | type | default | unit | |", "|---|---|---|---|---|"]
    for each in keys_of(SECTIONS[section]):
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
