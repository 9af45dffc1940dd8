"""Numbers with their values on resampled lines, from stored statistics, and unweighted means of them over directions.

Directions are taken in one at a time, so the statistics of thousands of them are never in memory together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import COLUMNS, FloatArray, IntArray, Metric, corpus_scores

# Defaults of sacrebleu 2.6.0 (`--paired-bs`).
RESAMPLES = 1000
SEED = 12345
_LENGTHS_KEPT = 4

Measure = Callable[[FloatArray], FloatArray]
"""Summed statistics ``(..., columns)`` to values ``(...)``; NaN where nothing was counted."""


@dataclass(frozen=True, slots=True)
class Draws:
    """Bootstrap resamples of lines; for any number of lines those that sacrebleu draws with this seed."""

    resamples: int = RESAMPLES
    seed: int = SEED
    _kept: dict[int, FloatArray] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.resamples < 1:
            raise UsageError(f"`resamples` must be 1 or more, but is {self.resamples} instead.")

    def weights(self, lines: int) -> FloatArray:
        """Return how often each resample holds each line ``(resamples, lines)``; the last few lengths are kept."""
        if lines not in self._kept:
            drawn = np.random.default_rng(self.seed).choice(lines, size=(self.resamples, lines), replace=True)
            offsets = drawn + lines * np.arange(self.resamples)[:, None]
            counts = np.bincount(offsets.ravel(), minlength=self.resamples * lines)
            keep_few(self._kept, lines, counts.reshape(self.resamples, lines).astype(np.float64))
        return self._kept[lines]


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """A number on all lines and on each resample of them; NaN where nothing was counted."""

    value: float
    resampled: FloatArray
    """``(resamples,)``"""
    directions: int = 1
    """Whose mean this is."""
    sentences: int = 0
    """Over all directions."""


@dataclass(slots=True, eq=False)
class Mean:
    """The unweighted mean of a number over directions, added up as they come.

    A direction without a value is left out; one without a value on a resample is left out of that resample.
    """

    directions: int = 0
    sentences: int = 0
    _value: float = 0.0
    _sums: FloatArray | None = None
    """``(2, resamples)``: sums, and how many values are in them."""

    def add(self, samples: Samples) -> None:
        """Take in a direction."""
        if self._sums is None:
            self._sums = np.zeros((2, len(samples.resampled)))
        if len(samples.resampled) != self._sums.shape[1]:
            raise UsageError(
                f"`samples` must have {self._sums.shape[1]} resamples as those before, "
                f"but have {len(samples.resampled)} instead."
            )
        if np.isnan(samples.value):
            return
        self._value += samples.value
        self._sums += np.stack([np.nan_to_num(samples.resampled, nan=0.0), ~np.isnan(samples.resampled)])
        self.directions += 1
        self.sentences += samples.sentences

    def samples(self) -> Samples:
        """Return the mean so far, NaN if no direction has a value.

        Raises:
            UsageError: if nothing was added.
        """
        if self._sums is None:
            raise UsageError("`samples` must be of one direction or more, but are of none.")
        means = divide(self._sums[0], self._sums[1])
        return Samples(float(divide(self._value, self.directions)), means, self.directions, self.sentences)


@dataclass(slots=True, eq=False)
class PairedMean:
    """The means of two systems over the directions in which both have a value."""

    system: Mean = field(default_factory=Mean)
    baseline: Mean = field(default_factory=Mean)

    def add(self, system: Samples, baseline: Samples) -> None:
        """Take in a direction."""
        missing = np.isnan(system.value + baseline.value)
        gaps = np.isnan(system.resampled + baseline.resampled)
        for total, samples in ((self.system, system), (self.baseline, baseline)):
            value = float("nan") if missing else samples.value
            resampled = np.where(gaps, np.nan, samples.resampled)
            total.add(Samples(value, resampled, samples.directions, samples.sentences))

    def samples(self) -> tuple[Samples, Samples]:
        """Return the mean of the system and that of the baseline."""
        return self.system.samples(), self.baseline.samples()


def samples(statistics: IntArray | FloatArray, measure: Measure, draws: Draws) -> Samples:
    """Measure the statistics ``(sentences, columns)`` of a direction, and each resample of its sentences."""
    if statistics.ndim != 2 or not len(statistics):
        raise UsageError(
            f"`statistics` must have the shape (sentences, columns), of one sentence or more, "
            f"but have {statistics.shape} instead."
        )
    table = statistics.astype(np.float64)
    # (resamples, lines) @ (lines, columns) -> (resamples, columns); sums of counts are exact in float64
    resampled = measure(draws.weights(len(table)) @ table)
    return Samples(float(measure(table.sum(axis=0))), resampled, 1, len(table))


def mean(each: Iterable[Samples]) -> Samples:
    """Return the unweighted mean over directions, which may come from a generator."""
    total = Mean()
    for one in each:
        total.add(one)
    return total.samples()


def measure_of(metric: Metric) -> Measure:
    """Return the corpus score of a metric as a measure."""
    if metric not in COLUMNS:
        raise UsageError(f"`metric` must be one of {', '.join(COLUMNS)} or a function, but is {metric!r} instead.")
    return partial(corpus_scores, metric=metric)


def flag_statistics(flags: NDArray[Any]) -> FloatArray:
    """Return what `rate` measures ``(sentences, 2)``, flagged and counted, of flags: 1, 0, or NaN for not counted."""
    values = np.asarray(flags, np.float64)
    counted = ~np.isnan(values)
    return np.stack([np.where(counted, values, 0.0), counted], axis=-1)


def rate(summed: FloatArray) -> FloatArray:
    """Return the share of flagged among counted ``(...)``, of summed ``(..., 2)``; NaN where nothing was counted."""
    return divide(summed[..., 0], summed[..., 1])


def divide(numerator: Any, denominator: Any) -> FloatArray:
    """Divide, and give NaN where the denominator is 0."""
    above, below = np.broadcast_arrays(np.asarray(numerator, np.float64), np.asarray(denominator, np.float64))
    return np.asarray(np.divide(above, below, out=np.full(above.shape, np.nan), where=below != 0))


def keep_few(kept: dict[int, Any], key: int, value: Any) -> None:
    """Put a value among the last few, in place of the oldest."""
    if len(kept) >= _LENGTHS_KEPT:
        del kept[next(iter(kept))]
    kept[key] = value
