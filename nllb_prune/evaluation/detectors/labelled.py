"""How well values and flags agree with labels: area under the ROC curve, precision and recall."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import FloatArray

BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Flags against labels, in sentences."""

    flagged: int
    faulty: int
    both: int

    @property
    def precision(self) -> float:
        """Share of the flagged that are faulty; NaN if none is flagged."""
        return _share(self.both, self.flagged)

    @property
    def recall(self) -> float:
        """Share of the faulty that are flagged; NaN if none is faulty."""
        return _share(self.both, self.faulty)

    @property
    def f1(self) -> float:
        """Harmonic mean of precision and recall; NaN if nothing is flagged or faulty."""
        return _share(2 * self.both, self.flagged + self.faulty)


def agreement(flagged: BoolArray, faulty: BoolArray) -> Agreement:
    """Compare flags with labels ``(sentences,)``."""
    _check(flagged, faulty)
    return Agreement(int(np.sum(flagged)), int(np.sum(faulty)), int(np.sum(np.logical_and(flagged, faulty))))


def roc_auc(values: FloatArray, faulty: BoolArray) -> float:
    """Return how often a faulty sentence has a higher value than another one; ties count half (Mann and Whitney 1947).

    Args:
        values: ``(sentences,)``; sentences with NaN are left out.
        faulty: ``(sentences,)``.

    Returns:
        From 0 to 1; NaN unless there are sentences of both kinds.
    """
    _check(values, faulty)
    told = ~np.isnan(values)
    numbers, labels = np.asarray(values, np.float64)[told], np.asarray(faulty, np.bool_)[told]
    positive, negative = int(labels.sum()), int((~labels).sum())
    if not positive or not negative:
        return float("nan")
    wins = _ranks(numbers)[labels].sum() - positive * (positive + 1) / 2
    return float(wins / (positive * negative))


def _ranks(values: FloatArray) -> FloatArray:
    """Return ranks from 1; equal values have the mean of theirs."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2.0)[inverse], np.float64)


def _share(part: int, whole: int) -> float:
    return part / whole if whole else float("nan")


def _check(values: Sequence[float] | NDArray[np.generic], faulty: BoolArray) -> None:
    if len(values) != len(faulty):
        raise UsageError(f"`faulty` must have {len(values)} labels, but has {len(faulty)} instead.")
