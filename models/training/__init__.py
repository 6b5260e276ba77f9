"""Training: labelled frames, the loss, and a loop that resumes."""

from .data import Frames, read_extxyz, read_rmd17
from .errors import Errors, evaluate_errors
from .loop import Progress, TrainingSettings, train

__all__ = [
    "Errors",
    "Frames",
    "Progress",
    "TrainingSettings",
    "evaluate_errors",
    "read_extxyz",
    "read_rmd17",
    "train",
]
