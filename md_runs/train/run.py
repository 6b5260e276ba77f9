"""A training in a run folder that survives an interruption: see `docs/guide/training.md`."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import torch
import yaml
from ase import Atoms
from ase.data import chemical_symbols

from ...calculators.checks import parse_device
from ...models.checkpoint import (
    load_potential,
    save_potential,
    why_not_torchmdnet,
    write_torchmdnet_checkpoint,
)
from ...models.checkpoint.description import finite_cutoff
from ...models.files import write_atomically
from ...models.potential import Potential
from ...models.training import (
    BadLossError,
    BatchPlan,
    Frames,
    Progress,
    QuantityErrors,
    TrainingSettings,
    TrainingStopped,
    quantity_errors,
    read_state,
    start_processes,
    threads_of_process,
    train,
)
from ..reports.runs import write_report
from ..runs.errors import Interrupted, RunStopped
from ..runs.files import write_json
from ..runs.folder import LOG, RunFolder, refuse_existing
from ..runs.models import absolute, weights_digest
from ..runs.schema import of_key, parse_config
from ..runs.signals import StopRequest
from ..runs.structures import frame_text
from ..runs.versions import package_version, versions
from .config import ARCHITECTURES, TrainConfig, plain
from .data import Parts, absolute_files, check_parts, read_parts
from .log import TrainLog, steps_in, whole
from .loggers import check_logger, make_logger
from .model import Start, tell_isolated

CONFIG_YAML, STATE, BAD_BATCH, RESULTS = (
    "config.yaml",
    "state.pt",
    "bad_batch.extxyz",
    "results.json",
)
LENGTH = "training.epochs"
"""The key that a resumed run may change."""
RELOAD = 10
"""Seconds after which the page of a running training is loaded again."""
ALREADY = "resume it with --resume {}, or choose another folder with -o"


class Watcher(Protocol):
    """Observer of a training."""

    def stepped(self, epoch: int, step: int, steps: int, loss: float) -> None:
        """Called after every step with the epoch, steps done, all steps and the loss."""

    def validated(self, progress: Progress) -> None:
        """Called after every validation."""


@dataclass(frozen=True)
class Plan:
    """A training that could begin: everything is read and checked."""

    config: TrainConfig
    potential: Potential
    parts: Parts
    device: torch.device

    @property
    def steps(self) -> int:
        """Total number of steps of the optimizer."""
        settings = self.config.settings
        return settings.epochs * BatchPlan(self.parts.training, settings).steps

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        potential, scale = self.potential, self.potential.atomic_scale
        factor = potential.energy_in_ev
        return {
            "frames": self.parts.counts(),
            "labels": list(self.parts.training.quantities),
            "architecture": potential.architecture,
            "parameters": sum(p.numel() for p in potential.parameters() if p.requires_grad),
            "frozen_parameters": sum(
                p.numel() for p in potential.parameters() if not p.requires_grad
            ),
            "elements": [chemical_symbols[z] for z in potential.elements],
            "cutoff_angstrom": finite_cutoff(potential.cutoff),
            "properties": list(potential.heads),
            "scale_ev": float(scale.scale) * factor,
            "mean_ev": float(scale.mean) * factor,
            "references_ev": {
                chemical_symbols[z]: float(scale.references[z]) * factor
                for z in potential.elements
            },
            "steps": self.steps,
            "device": str(self.device),
        }


@dataclass(frozen=True)
class TrainSummary:
    """Results of a training."""

    folder: str
    checkpoint: str
    """The file with the weights that were tested."""
    epochs: float
    steps: int
    seconds: float
    validation: dict[str, dict[str, Any]]
    """Errors by quantity: mae, rmse, unit."""
    test: dict[str, dict[str, Any]] | None
    """Test errors, where there are test frames."""
    files: dict[str, str]

    def to_json(self) -> dict[str, Any]:
        """As plain data."""
        return asdict(self)


def plan_training(config: TrainConfig, device: str | torch.device | None = None) -> Plan:
    """Read the data, build the potential, and check that they belong together.

    Parameters
    ----------
    config
        The configuration.
    device
        Device to run on; None: that of the configuration.

    Raises
    ------
    ValueError, OSError
        For anything that would keep the training from beginning; nothing is written.
    """
    settings = config.settings
    check_logger(config.output.logger)
    device = _device_of(config) if device is None else parse_device(device)
    threads = config.machine.threads or threads_of_process()
    if threads is not None:
        torch.set_num_threads(threads)
    start = Start(config)
    parts = read_parts(config.data, start.cutoff)
    check_parts(parts, start.elements(parts.training), settings)
    if settings.batch_atoms or settings.batch_edges:
        with of_key(f"training.batch_{'atoms' if settings.batch_atoms else 'edges'}"):
            BatchPlan(parts.training, settings)
    elif len(parts.training) < settings.batch:
        raise ValueError(
            f"{len(parts.training)} training frames are fewer than training.batch, "
            f"{settings.batch}: expected at least one batch"
        )
    with of_key("model.elements"):
        potential = start.potential(parts.training)
    if config.output.torchmdnet_ckpt:
        reason = why_not_torchmdnet(potential)
        if reason is not None:
            raise ValueError(
                f"output.torchmdnet_ckpt is true, but torchmd-net cannot read it: {reason}"
            )
    tell_isolated(parts, config.model, potential)
    return Plan(config, potential, parts, device)


def _device_of(config: TrainConfig) -> torch.device:
    with of_key("machine.device"):
        return parse_device(config.machine.device)


def start_training(
    config: TrainConfig, path: Path, watcher: Watcher | None = None, *, live: bool = False
) -> TrainSummary | None:
    """Train into a new folder.

    Parameters
    ----------
    config
        The configuration.
    path
        The run folder to create.
    watcher
        Observer of steps and validations.
    live
        Whether to write the report at every validation, as a page that reloads itself.

    Returns
    -------
    None in all but the first of several processes, which alone writes.

    Raises
    ------
    ValueError, OSError
        For inputs that cannot be used, before anything is computed; or if a file cannot be
        written: what was saved before stays.
    RunStopped
        If the loss is not finite: the last state and checkpoints stay.
    Interrupted
        After SIGINT or SIGTERM, with the state saved.
    """
    config = _with_full_names(config)
    with start_processes(_device_of(config)) as processes:
        if processes.first:
            refuse_existing(path, ALREADY.format(path))
        plan = plan_training(config, processes.device)
        if not processes.first:
            _train(plan, path, first=False)
            return None
        with RunFolder.create(path, ALREADY.format(path)) as folder:
            content = {
                "kind": "train",
                "settings": {},
                "data": {"frames": plan.parts.counts(), "sha256": plan.parts.digest()},
                "model": {**plan.to_json(), "sha256": weights_digest(plan.potential)},
                "versions": versions(),
            }
            _write_configuration(folder, content, config)
            return _run(folder, plan, watcher, live)


def resume_training(
    path: Path,
    watcher: Watcher | None = None,
    changes: Sequence[str] = (),
    *,
    live: bool = False,
) -> TrainSummary | None:
    """Resume the training in a folder, to the last bit as if it had not been interrupted.

    Parameters
    ----------
    path
        The run folder.
    watcher
        Observer of steps and validations.
    changes
        ``training.epochs=N``: another length, at least the epochs that have begun. A constant
        learning rate and one by plateaus give the run of N epochs, to the last bit; a cosine goes
        on with the learning rates of a run of N epochs.
    live
        Whether to write the report at every validation, as a page that reloads itself.

    Returns
    -------
    As `start_training`.

    Raises
    ------
    ValueError
        If there is none, its data or the checkpoint it began with changed since, or ``changes``
        have another key than ``training.epochs``.
    """
    for change in changes:
        if change.partition("=")[0].strip() != LENGTH:
            raise ValueError(
                f"--set {change} cannot be given with --resume: the run keeps its configuration, "
                f"but for {LENGTH}; start a new run, from its weights with model.start_from"
            )
    folder = RunFolder.open(path)
    content = folder.config
    if content["kind"] != "train":
        raise ValueError(f"{path} holds no training, but a run of kind {content['kind']!r}")
    config = configuration_of(folder, changes)
    with start_processes(_device_of(config)) as processes:
        plan = plan_training(config, processes.device)
        _check_unchanged(plan, content, path)
        if changes and (path / STATE).exists():
            read_state(path / STATE, plan.config.settings)
        if not processes.first:
            _train(plan, path, first=False)
            return None
        folder.lock()
        with folder:
            if changes:
                model = {**content["model"], "steps": plan.steps}
                _write_configuration(folder, {**content, "model": model}, config)
                (path / RESULTS).unlink(missing_ok=True)
            return _run(folder, plan, watcher, live)


def configuration_of(folder: RunFolder, changes: Sequence[str] = ()) -> TrainConfig:
    """The configuration of the training in a folder, with changes."""
    settings = dict(folder.config["settings"])
    model = settings["model"] = dict(settings["model"])
    for name, kind in ARCHITECTURES.items():
        if model.get(name) is not None:
            model[name] = kind.complete(model[name])
    # JSON has no infinity: `finite` wrote the word, which YAML quotes.
    text = yaml.safe_dump(settings, sort_keys=False).replace("'.inf'", ".inf")
    return parse_config(TrainConfig, text, str(folder.path / CONFIG_YAML), changes)


def _write_configuration(
    folder: RunFolder, content: Mapping[str, Any], config: TrainConfig
) -> None:
    """Write ``config.json``, from which a run resumes, and ``config.yaml``, for people."""
    settings = plain(config)
    folder.write_config({**content, "settings": finite(settings)})
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_atomically(folder.path / CONFIG_YAML, text.encode())


def _with_full_names(config: TrainConfig) -> TrainConfig:
    """The configuration as it resumes from any folder."""
    model = config.model
    if model.start_from is not None:
        model = replace(model, start_from=absolute((model.start_from,))[0])
    return replace(config, data=absolute_files(config.data), model=model)


def _check_unchanged(plan: Plan, content: dict[str, Any], path: Path) -> None:
    if plan.parts.digest() != content["data"]["sha256"]:
        raise ValueError(
            f"the data of {path} are not those that the run began with: point to the old ones, or "
            "start a new run"
        )
    started_from = plan.config.model.start_from
    if started_from is not None and weights_digest(plan.potential) != content["model"]["sha256"]:
        raise ValueError(
            f"{started_from} is not the checkpoint that the run began with: put the old one back, "
            "or start a new run"
        )


def _train(plan: Plan, path: Path, *, first: bool, **hooks: Any) -> Potential:
    """The loop, which a signal ends after a step, or at once before the first one."""
    stop = StopRequest(at_once=True)
    try:
        with stop:
            return train(
                plan.potential,
                plan.parts.training,
                plan.parts.validation,
                plan.config.settings,
                path / STATE,
                device=plan.device,
                ready=stop.wait_for_steps,
                stop=stop.asked,
                **hooks,
            )
    except KeyboardInterrupt:
        if not stop.asked():
            raise
        raise stop.interrupted(
            f"stopped before a step was done; go on with: tensormd train --resume {path}"
        ) from None
    except TrainingStopped as stopped:
        raise stop.interrupted(f"{stopped}; resume with: tensormd train --resume {path}") from None
    except BadLossError as error:
        if first:
            _write_frames(path / BAD_BATCH, plan.parts.training, error.frames)
        raise RunStopped(
            f"{error} (written to {path / BAD_BATCH}); checkpoints and state of before are kept"
        ) from error


def _run(folder: RunFolder, plan: Plan, watcher: Watcher | None, live: bool) -> TrainSummary:
    path = folder.path
    log = TrainLog(path / LOG, path / STATE)
    settings = folder.config["settings"]
    logger = make_logger(plan.config.output.logger, path, settings, steps_in(path / STATE))

    def tell(progress: Progress) -> None:
        row = log.add(progress)
        if logger is not None:
            logger.add(row)
        if live:
            write_report(path, RELOAD)
        if watcher is not None:
            watcher.validated(progress)

    def keep(progress: Progress, potential: Potential) -> None:
        potential.metadata = _metadata(plan, progress)
        save_potential(potential, path / "last.safetensors")
        if progress.best:
            save_potential(potential, path / "best.safetensors")

    def step_done(epoch: int, step: int, steps: int, loss: float) -> None:
        if watcher is not None:
            watcher.stepped(epoch, step, steps, loss)

    try:
        trained = _train(plan, path, first=True, tell=tell, keep=keep, step_done=step_done)
    except (Interrupted, RunStopped):
        if live and log.rows:
            write_report(path)  # a page that reloads itself no more
        raise
    finally:
        log.close()
        if logger is not None:
            logger.close()
    return _finish(folder, plan, trained, log)


def _finish(folder: RunFolder, plan: Plan, trained: Potential, log: TrainLog) -> TrainSummary:
    """Test errors, into the metadata of the checkpoint that they are of, and the report."""
    kept = plan.config.settings.keep
    if kept == "best" and not (folder.path / "best.safetensors").exists():
        kept = "last"  # no validation loss was a number
    row, path = log.row(kept), folder.path / f"{kept}.safetensors"
    metadata = load_metadata(path)
    validation = metadata["training"]["validation_errors"]
    test = None
    if plan.parts.test is not None:
        test = _plain_errors(quantity_errors(trained, plan.parts.test))
        metadata["training"]["test_errors"] = test
    trained.metadata = metadata
    save_potential(trained, path)
    files = {"checkpoint": path}
    if plan.config.output.torchmdnet_ckpt:
        files["torchmdnet_checkpoint"] = path.with_suffix(".ckpt")
        write_torchmdnet_checkpoint(trained, files["torchmdnet_checkpoint"])
    write_json(folder.path / RESULTS, {"kept": kept, "validation": validation, "test": test})
    files["report"], _ = write_report(folder.path)
    return TrainSummary(
        folder=str(folder.path),
        checkpoint=str(path),
        epochs=whole(row["epoch"]),
        steps=int(row["step"]),
        seconds=log.seconds,
        validation=validation,
        test=test,
        files={name: str(file) for name, file in files.items()},
    )


def load_metadata(path: Path) -> dict[str, Any]:
    """Metadata of a native checkpoint."""
    metadata: dict[str, Any] = load_potential(path).metadata
    return metadata


def _metadata(plan: Plan, progress: Progress) -> dict[str, Any]:
    """Metadata of the checkpoints of a training."""
    config = plan.config
    started_from, before = None, dict[str, Any]()
    charged = bool(plan.parts.training.charges.any())
    if config.model.start_from is not None:
        before = plan.potential.metadata
        started_from = {"checkpoint": config.model.start_from, "metadata": before}
        charged = charged or bool(before.get("trained_with_charge"))
    return {
        "name": Path(config.output.folder or "model").name,
        **({"dispersion": before["dispersion"]} if "dispersion" in before else {}),
        **config.output.metadata,
        "trained_on": _learnt(config.settings),
        "trained_with_charge": charged,
        "training": {
            "program": f"tensormd {package_version('tensormd')}",
            "started_from": started_from,
            "data": finite({**asdict(config.data), "frames": plan.parts.counts()}),
            "settings": finite(asdict(config.settings)),
            "seed": config.settings.seed,
            "epoch": progress.epoch,
            "step": progress.step,
            "seconds": round(progress.seconds, 1),
            "device": str(plan.device),
            "compiled": progress.compiled,
            "validation_errors": _plain_errors(progress.errors),
        },
    }


def _learnt(settings: TrainingSettings) -> list[str]:
    """Labels that the potential was trained on; forces teach the energy up to a constant."""
    names = list(settings.weights)
    return names if "energy" in names or "forces" not in names else ["energy", *names]


def _plain_errors(errors: Mapping[str, QuantityErrors]) -> dict[str, dict[str, Any]]:
    return {
        name: {key: value for key, value in each._asdict().items() if value is not None}
        for name, each in errors.items()
    }


def finite(content: Any) -> Any:
    """Plain data that JSON can hold: infinity as YAML writes it."""
    if isinstance(content, dict):
        return {name: finite(value) for name, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [finite(value) for value in content]
    return ".inf" if isinstance(content, float) and math.isinf(content) else content


def _write_frames(path: Path, frames: Frames, index: Sequence[int]) -> None:
    """Structures of some frames, to look at; positions in Angstrom."""
    text = ""
    for k in index:
        graph = frames.structures[k]
        cell = graph.cell[0].numpy()
        atoms = Atoms(graph.numbers.numpy(), graph.positions.numpy(), cell=cell, pbc=cell.any(1))
        atoms.info["training_frame"] = k
        text += frame_text(atoms)
    write_atomically(path, text.encode())
