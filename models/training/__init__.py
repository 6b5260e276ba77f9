"""Training: labelled frames, the loss, and a loop that resumes."""

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
from .readers import FORMATS, DataUnits, format_of, read_extxyz, read_frames, read_rmd17
from .splits import Split, split_frames

__all__ = [
    "FORMATS",
    "QUANTITIES",
    "Batch",
    "Calibration",
    "DataUnits",
    "ErrorStatistics",
    "Errors",
    "Frames",
    "Labels",
    "Progress",
    "Split",
    "TrainingSettings",
    "calibration",
    "error_statistics",
    "evaluate_errors",
    "format_of",
    "read_extxyz",
    "read_frames",
    "read_rmd17",
    "split_frames",
    "train",
]
