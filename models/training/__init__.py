"""Training: labelled frames, the loss, and a loop that resumes."""

from .data import Frames, read_extxyz, read_rmd17
from .errors import (
    Calibration,
    Errors,
    ErrorStatistics,
    calibration,
    error_statistics,
    evaluate_errors,
)
from .loop import Progress, TrainingSettings, train

__all__ = [
    "Calibration",
    "ErrorStatistics",
    "Errors",
    "Frames",
    "Progress",
    "TrainingSettings",
    "calibration",
    "error_statistics",
    "evaluate_errors",
    "read_extxyz",
    "read_rmd17",
    "train",
]
