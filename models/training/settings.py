"""Settings of a training."""

from __future__ import annotations

from typing import Literal

from pydantic.dataclasses import dataclass

from ..options import STRICT, one_line_errors, option
from ..quantities import QUANTITIES


def _with_weights(cls: type) -> type:
    """Add missing weight fields of quantities, after the weight of forces."""
    annotations = {}
    for name, annotation in cls.__annotations__.items():
        annotations[name] = annotation
        if name == "force_weight":
            for row in QUANTITIES.values():
                if not hasattr(cls, row.weight):
                    annotations[row.weight] = "float"
                    text = f"weight of {row.text}"
                    setattr(cls, row.weight, option(text, 0.0, row.weight_unit, ge=0))
    cls.__annotations__ = annotations
    return cls


@one_line_errors
@dataclass(frozen=True, config=STRICT)
@_with_weights
class TrainingSettings:
    """Options of `train`, validated when they are set.

    Every quantity has a weight in the loss, whose name and unit are in its row of `QUANTITIES`:
    ``dipole_weight``, ... Weights that are not listed below are 0 by default.

    Raises
    ------
    ValueError
        If a value is not valid; the message has the field, the value and what was expected.
    """

    epochs: int = option("passes over the training frames", 900, ge=1)
    batch: int = option("frames in one step", 8, "frames", ge=1)
    batch_atoms: int | None = option(
        "instead of batch: at most this many atoms in one step", None, "atoms", ge=1
    )
    batch_edges: int | None = option(
        "instead of batch: at most this many edges (ordered pairs within the cutoff) in one step",
        None, "edges", ge=1,
    )  # fmt: skip
    # Smaller batches have noisier gradients at the same learning rate.
    keep_last_batch: bool = option(
        "whether the frames left over in an epoch form a last, smaller batch", False
    )
    learning_rate: float = option("highest learning rate, reached after the warm-up", 1e-3, gt=0)
    warm_up_steps: int = option(
        "steps over which the learning rate rises linearly", 500, "steps", ge=0
    )
    schedule: Literal["cosine", "plateau", "constant"] = option(
        "cosine (down to a hundredth at the end), plateau or constant", "cosine"
    )
    plateau_factor: float = option(
        "factor of the learning rate at a plateau of the validation loss", 0.8, gt=0, lt=1
    )
    plateau_patience: int = option(
        "validations without improvement before the learning rate is lowered",
        10, "validations", ge=0,
    )  # fmt: skip
    plateau_minimum: float = option("lower limit of the learning rate at plateaus", 1e-7, ge=0)
    early_stopping: int = option(
        "validations without improvement before the run ends; 0: never", 0, "validations", ge=0
    )
    loss: Literal["norm", "l1", "mse", "huber"] = option(
        "norm, l1, mse or huber; see below", "norm"
    )
    huber_delta: float = option(
        "error at which huber becomes linear", 1.0, "that of the error", gt=0
    )
    energy_weight: float = option("weight of the energy of a frame", 0.5, "1/eV", ge=0)
    energy_per_atom: bool = option(
        "whether energy errors are divided by the number of atoms", False
    )
    force_weight: float = option("weight of the forces", 1.0, "Å/eV", ge=0)
    # torchmd-net's ema_alpha_y and ema_alpha_neg_dy: the gradient is scaled by the same factor.
    energy_loss_ema: float = option(
        "share of the newest value in the running loss of energies", 1.0, gt=0, le=1
    )
    force_loss_ema: float = option(
        "share of the newest value in the running loss of forces", 1.0, gt=0, le=1
    )
    ema_decay: float = option(
        "decay of the moving average of the weights, which is the result", 0.999, ge=0, lt=1
    )
    keep: Literal["last", "best"] = option(
        "which averaged weights are tested: last, or best (lowest validation loss)", "last"
    )
    weight_decay: float = option("weight decay of AdamW", 1e-6, ge=0)
    largest_gradient: float = option(
        "norm at which the gradient of a step is clipped; .inf: never", 10.0, gt=0
    )
    dtype: Literal["float32", "float64"] = option(
        "precision of the weights: float32 or float64", "float32"
    )
    seed: int = option(
        "seed of the initial weights, the order of the frames and dropout", 0, ge=0, le=2**63 - 1
    )
    validate_every: float = option(
        "epochs between validations, at which the state is saved; 0.25: four in each epoch",
        20, "epochs", gt=0,
    )  # fmt: skip
    backend: Literal["auto", "fused", "compiled", "plain"] = option(
        "how steps run: fused, compiled or plain; auto: the fastest that pays for its start",
        "auto",
    )
    radial_intervals: Literal["auto"] | int = option(
        "intervals of the splines that stand for the radial networks in a fused step; auto: four "
        "for each radial function; 0: no splines",
        "auto",
    )
    compile: Literal["auto"] | bool = option(
        "earlier name of backend: true is compiled, false plain", "auto"
    )

    def __post_init__(self) -> None:
        intervals = self.radial_intervals
        if not isinstance(intervals, str) and (intervals < 0 or 0 < intervals < 8):
            raise ValueError(f"radial_intervals is {intervals}: expected auto, 0, or at least 8")
        if self.compile != "auto" and self.backend not in ("auto", self.wanted_backend):
            raise ValueError(
                f"backend is {self.backend}, but compile is {self.compile}: set backend alone"
            )
        self._check_batches()
        if not self.weights:
            raise ValueError("all weights of the loss are 0: expected at least one that is not")

    def _check_batches(self) -> None:
        by_size = [n for n in ("batch_atoms", "batch_edges") if getattr(self, n) is not None]
        if not by_size:
            return
        if len(by_size) == 2:
            raise ValueError(f"batch_edges is {self.batch_edges} beside batch_atoms: give one")
        if self.batch != 8:
            raise ValueError(
                f"batch is {self.batch}, but {by_size[0]} sets the size of batches: give one"
            )
        if self.keep_last_batch:
            raise ValueError(
                f"keep_last_batch is true, but with {by_size[0]} no batch is the last, smaller "
                "one: leave it out"
            )

    @property
    def wanted_backend(self) -> str:
        """The backend that ``backend`` or ``compile`` names."""
        if self.compile == "auto":
            return self.backend
        return "compiled" if self.compile else "plain"

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the loss that are not zero, by quantity."""
        found = {name: float(getattr(self, row.weight)) for name, row in QUANTITIES.items()}
        return {name: weight for name, weight in found.items() if weight > 0}

    @property
    def loss_emas(self) -> dict[str, float]:
        """Share of the newest value in the running loss of each quantity."""
        given = {"energy": self.energy_loss_ema, "forces": self.force_loss_ema}
        return {name: float(given.get(name, 1.0)) for name in self.weights}
