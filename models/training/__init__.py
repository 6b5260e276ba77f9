"""Training: labelled frames, the loss, and a training loop that can resume."""

from ..data.batch import Batch, Labels
from ..data.frames import Frames
from ..data.packing import pack_frames
from ..data.readers import FORMATS, DataUnits, format_of, read_extxyz, read_frames, read_rmd17
from ..data.splits import Split, split_frames
from ..data.standardise import Standardisation, standardise
from ..evaluation.errors import (
    Calibration,
    Errors,
    ErrorStatistics,
    QuantityErrors,
    calibration,
    error_statistics,
    evaluate_errors,
    quantity_errors,
)
from ..quantities import QUANTITIES
from .batches import BatchPlan
from .distributed import Processes, start_processes, threads_of_process
from .loop import Progress, TrainingStopped, train
from .settings import TrainingSettings
from .state import BadLossError, read_state
from .step import StepLosses, TrainingStep

__all__ = [
    "FORMATS",
    "QUANTITIES",
    "BadLossError",
    "Batch",
    "BatchPlan",
    "Calibration",
    "DataUnits",
    "ErrorStatistics",
    "Errors",
    "Frames",
    "Labels",
    "Processes",
    "Progress",
    "QuantityErrors",
    "Split",
    "Standardisation",
    "StepLosses",
    "TrainingSettings",
    "TrainingStep",
    "TrainingStopped",
    "calibration",
    "error_statistics",
    "evaluate_errors",
    "format_of",
    "pack_frames",
    "quantity_errors",
    "read_extxyz",
    "read_frames",
    "read_rmd17",
    "read_state",
    "split_frames",
    "standardise",
    "start_processes",
    "threads_of_process",
    "train",
]
