"""The numbers of a direction, each a function of columns summed over its sentences: so all are resampled alike."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nllb_prune.evaluation.detectors import DETACHED, OFF_TARGET, UNLIKELY
from nllb_prune.evaluation.detectors.flagging import ANY, FROM_REFERENCE, OF_REFERENCES, RAW, Flags
from nllb_prune.evaluation.results import DirectionResult
from nllb_prune.evaluation.scores.metrics import METRICS, corpus_scores
from nllb_prune.evaluation.scores.surface import MEASURES
from nllb_prune.evaluation.significance.resampling import divide

FloatArray = NDArray[np.float64]
Measure = Callable[[FloatArray], FloatArray]

TESTED = (*METRICS, "length_ratio")
"""Whose change is tested in each direction."""


_MEANS = ("mean_length_ratio", "mean_log_probability")
_RAW = (RAW, OF_REFERENCES, FROM_REFERENCE)


def family_of(name: str) -> str:
    """Return with which other numbers the tests of one are counted when p is adjusted: rates with all other rates."""
    if name in TESTED:
        return name
    return "surface" if name in MEASURES or name in _MEANS else "raw" if name in _RAW else "rates"


@dataclass(frozen=True, slots=True)
class Counts:
    """Columns of the sentences of a direction, and the numbers that follow from their sums."""

    columns: FloatArray
    """`(sentences, columns)`."""
    measures: Mapping[str, Measure]
    """By name: from sums `(..., columns)` to values `(...)`; NaN where nothing was counted."""

    def values(self, sums: FloatArray) -> dict[str, FloatArray]:
        """Return every number `(...)` of sums `(..., columns)`."""
        return {name: np.asarray(measure(sums), np.float64) for name, measure in self.measures.items()}


def counts_of(result: DirectionResult, flags: Flags) -> list[Counts]:
    """Return the counts of one configuration in one direction."""
    scores = [
        Counts(result.scores[metric].statistics.astype(np.float64), {metric: partial(corpus_scores, metric=metric)})
        for metric in METRICS
        if metric in result.scores
    ]
    surface = Counts(result.surface.statistics.astype(np.float64), MEASURES)
    ratios, compared = result.surface.length_ratios
    return [
        *scores,
        surface,
        Counts(_pair(ratios, compared), {"mean_length_ratio": _mean}),
        Counts(_pair(result.mean_log_probabilities), {"mean_log_probability": _mean}),
        *_rates(flags),
    ]


def _rates(flags: Flags) -> list[Counts]:
    """Return the counts behind the rates of detectors, and of any of them."""
    rates = [
        Counts(_pair(flagged, flags.counted[name]), {name: _mean})
        for name, flagged in flags.flagged.items()
        if name != OFF_TARGET
    ]
    if OFF_TARGET in flags.flagged:
        rates.append(_off_target(flags))
    if flags.from_reference is not None:
        rates.append(Counts(_pair(flags.from_reference, flags.counted[DETACHED]), {FROM_REFERENCE: _mean}))
    found = [_surely(name, flagged, flags) for name, flagged in flags.flagged.items() if name != UNLIKELY]
    if found:
        rates.append(Counts(_pair(np.logical_or.reduce(found)), {ANY: _mean}))
    return rates


def _surely(name: str, flagged: NDArray[np.bool_], flags: Flags) -> NDArray[np.bool_]:
    """Return what counts for `any`: off-target is no sign where the identifier is wrong about the reference too."""
    return flagged & ~flags.references[0] if name == OFF_TARGET and flags.references is not None else flagged


def _off_target(flags: Flags) -> Counts:
    """Return the rate of off-target outputs with and without the rate that the identifier gives on the references."""
    outputs = _pair(flags.flagged[OFF_TARGET], flags.counted[OFF_TARGET])
    if flags.references is None:
        return Counts(outputs, {RAW: _mean})
    columns = np.hstack([outputs, _pair(*flags.references)])
    return Counts(columns, {OFF_TARGET: _excess, RAW: _mean, OF_REFERENCES: lambda sums: _mean(sums[..., 2:])})


def _pair(values: NDArray[Any], counted: NDArray[np.bool_] | None = None) -> FloatArray:
    """Return columns `(sentences, 2)` whose sums have the mean over what is counted, by default all."""
    ones = np.ones(len(values)) if counted is None else counted.astype(np.float64)
    return np.stack([np.where(ones > 0, values, 0.0), ones], axis=1)


def _mean(sums: FloatArray) -> FloatArray:
    return divide(sums[..., 0], sums[..., 1])


def _excess(sums: FloatArray) -> FloatArray:
    return _mean(sums[..., :2]) - _mean(sums[..., 2:])
