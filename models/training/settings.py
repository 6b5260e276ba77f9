"""What a training is asked to do."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..data.frames import QUANTITIES
from ..potential import DTYPES

LOSSES = ("norm", "l1", "mse", "huber")
SCHEDULES = ("cosine", "plateau", "constant")
KEPT = ("last", "best")
COMPILE = ("auto", True, False)


@dataclass(frozen=True)
class TrainingSettings:
    """Options of `train`, all checked when they are set.

    Raises
    ------
    ValueError
        Naming the field, its value and what was expected.
    """

    epochs: int = 900
    batch: int = 8
    """Frames in one step."""
    keep_last_batch: bool = False
    """Whether the frames that are left of an epoch make a last, smaller batch; otherwise they
    are dropped, and are others in the next epoch. Smaller batches have noisier gradients at the
    same learning rate."""
    learning_rate: float = 1e-3
    """Highest; reached after the warm-up."""
    warm_up_steps: int = 500
    """Over which the learning rate rises linearly."""
    schedule: str = "cosine"
    """``cosine``: half a cosine down to a hundredth at the last step; ``plateau``: times
    ``plateau_factor`` whenever the validation loss has not fallen for longer than
    ``plateau_patience`` validations; ``constant``."""
    plateau_factor: float = 0.8
    plateau_patience: int = 10
    """Validations."""
    plateau_minimum: float = 1e-7
    """Learning rate below which a plateau does not lower it."""
    early_stopping: int = 0
    """Validations without a lower validation loss after which the run ends; 0: never."""
    loss: str = "norm"
    """Of an error: ``norm``: mean length (absolute value, Euclidean length of a vector, Frobenius
    norm of a matrix); or by component, as in torchmd-net: ``l1``: mean absolute value; ``mse``:
    mean square; ``huber``: half the square up to ``huber_delta``, linear beyond."""
    huber_delta: float = 1.0
    """In the unit of the error."""
    energy_weight: float = 0.5
    """Of the loss of the energy of a frame, 1/eV (its square for ``mse``; so below)."""
    energy_per_atom: bool = False
    """Whether energy errors are divided by the number of atoms in the loss."""
    force_weight: float = 1.0
    """Of the loss of forces, A/eV."""
    stress_weight: float = 0.0
    """Of the loss of the stress, A^3/eV."""
    dipole_weight: float = 0.0
    """Of the loss of the dipole, 1/(e A)."""
    dipole_norm_weight: float = 0.0
    """Of the loss of the length of the dipole, 1/(e A)."""
    polarizability_weight: float = 0.0
    """Of the loss of the polarizability, eV/(e^2 A^2)."""
    polarizability_isotropic_weight: float = 0.0
    """Of the loss of a third of its trace, eV/(e^2 A^2)."""
    polarizability_anisotropy_weight: float = 0.0
    """Of the loss of its anisotropy (see `Labels`), eV/(e^2 A^2)."""
    energy_loss_ema: float = 1.0
    """Share of the newest value in the running loss of energies, which is what is reported and,
    with its gradient so reduced, minimised: torchmd-net's ``ema_alpha_y``. 1: no averaging."""
    force_loss_ema: float = 1.0
    """The same of forces: torchmd-net's ``ema_alpha_neg_dy``."""
    ema_decay: float = 0.999
    """Of the exponential moving average of the weights, which is what is kept."""
    keep: str = "last"
    """Which averaged weights `train` returns: the ``last``, or those of the ``best`` (lowest)
    validation loss."""
    weight_decay: float = 1e-6
    largest_gradient: float = 10.0
    """Norm at which the gradient of a step is clipped; infinity: never."""
    dtype: str = "float32"
    """Of the weights in training: ``float32`` or ``float64``."""
    seed: int = 0
    """Of the order of the frames and of dropout."""
    validate_every: int = 20
    """Epochs between validations, at which the state of the run is saved."""
    compile: str | bool = "auto"
    """Whether to compile the step (see `TrainingStep`), which takes one to four minutes, less than
    one the second time. ``auto``: where there is a compiler and the run has 3,000 steps."""

    def __post_init__(self) -> None:
        for field in fields(self):
            self._check_type(field.name)
        for name in ("epochs", "batch", "validate_every"):
            self._check(name, getattr(self, name) >= 1, "1 or more")
        for name in ("learning_rate", "largest_gradient", "huber_delta"):
            self._check(name, getattr(self, name) > 0, "a positive number")
        for name in (
            "warm_up_steps", "plateau_patience", "plateau_minimum", "early_stopping",
            "weight_decay", "seed", *(f"{stem}_weight" for stem in _WEIGHTED.values()),
        ):  # fmt: skip
            self._check(name, getattr(self, name) >= 0, "0 or more")
        self._check("ema_decay", 0 <= self.ema_decay < 1, "0 or more, less than 1")
        self._check("plateau_factor", 0 < self.plateau_factor < 1, "between 0 and 1")
        for name in ("energy_loss_ema", "force_loss_ema"):
            self._check(name, 0 < getattr(self, name) <= 1, "more than 0, at most 1")
        for name, choices in (
            ("schedule", SCHEDULES),
            ("loss", LOSSES),
            ("keep", KEPT),
            ("dtype", tuple(DTYPES)),
            ("compile", COMPILE),
        ):
            expected = f"one of {', '.join(map(repr, choices))}"
            self._check(name, getattr(self, name) in choices, expected)
        if not self.weights:
            raise ValueError("all weights of the loss are 0: expected at least one that is not")

    def _check(self, name: str, holds: bool, expected: str) -> None:
        if not holds:
            raise ValueError(f"{name} is {getattr(self, name)!r}: expected {expected}")

    def _check_type(self, name: str) -> None:
        value, default = getattr(self, name), getattr(type(self), name)
        if name == "compile":
            expected = f"one of {', '.join(map(repr, COMPILE))}"
            self._check(name, isinstance(value, str | bool), expected)
            return
        whole = isinstance(value, int) and not isinstance(value, bool)
        if isinstance(default, bool):
            self._check(name, isinstance(value, bool), "true or false")
        elif isinstance(default, int):
            self._check(name, whole, "a whole number")
        elif isinstance(default, float):
            self._check(
                name,
                whole or (isinstance(value, float) and not math.isnan(value)),
                "a number",
            )
        else:
            self._check(name, isinstance(value, str), "a word")

    @property
    def weights(self) -> dict[str, float]:
        """Weights of the loss that are not zero, by quantity (see `Labels`)."""
        found = {name: float(getattr(self, f"{_WEIGHTED[name]}_weight")) for name in QUANTITIES}
        return {name: weight for name, weight in found.items() if weight > 0}

    @property
    def loss_emas(self) -> dict[str, float]:
        """Share of the newest value in the running loss of each quantity."""
        given = {"energy": self.energy_loss_ema, "forces": self.force_loss_ema}
        return {name: float(given.get(name, 1.0)) for name in self.weights}


_WEIGHTED = {name: "force" if name == "forces" else name for name in QUANTITIES}
