"""Training: labelled frames, the loss, and a loop that resumes."""

from .data import read_extxyz, read_rmd17
from .errors import (
    Calibration,
    Errors,
    ErrorStatistics,
    calibration,
    error_statistics,
    evaluate_errors,
)
from .frames import QUANTITIES, Batch, Frames, Labels
from .loop import Progress, TrainingSettings, train

__all__ = [
    "QUANTITIES",
    "Batch",
    "Calibration",
    "ErrorStatistics",
    "Errors",
    "Frames",
    "Labels",
    "Progress",
    "TrainingSettings",
    "calibration",
    "error_statistics",
    "evaluate_errors",
    "read_extxyz",
    "read_rmd17",
    "train",
]
