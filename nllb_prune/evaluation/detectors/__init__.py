"""Detectors of hallucination and over-generation: a value for each sentence, flagged from a threshold on."""

from nllb_prune.evaluation.detectors.base import (
    COPY,
    DETACHED,
    EMPTY,
    LONG,
    OFF_TARGET,
    OSCILLATION,
    REPETITION,
    SCRIPT,
    SHORT,
    UNFINISHED,
    UNLIKELY,
    Detector,
    Measure,
    Outputs,
    can_run,
    flags,
    missing,
)
from nllb_prune.evaluation.detectors.thresholds import THRESHOLDS, threshold_at
from nllb_prune.evaluation.detectors.usual import usual_detectors

__all__ = [
    "COPY",
    "DETACHED",
    "EMPTY",
    "LONG",
    "OFF_TARGET",
    "OSCILLATION",
    "REPETITION",
    "SCRIPT",
    "SHORT",
    "THRESHOLDS",
    "UNFINISHED",
    "UNLIKELY",
    "Detector",
    "Measure",
    "Outputs",
    "can_run",
    "flags",
    "missing",
    "threshold_at",
    "usual_detectors",
]
