"""Paired approximate randomisation (Riezler and Maxwell 2005; the p-value is sacrebleu's).

If two systems were alike, it would not matter which of them made a line. So lines are swapped at random: how often is
the difference then as large as the one observed?
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import FloatArray, IntArray, Metric
from nllb_prune.evaluation.significance.bootstrap import TIE, check_directions, measure_name
from nllb_prune.evaluation.significance.resampling import SEED, Measure, Samples, keep_few, mean

TRIALS = 10_000  # default of sacrebleu 2.6.0 (`--paired-ar`)
_ROWS = 1000


@dataclass(frozen=True, slots=True)
class Swaps:
    """Which lines change sides in each trial; for any number of lines what sacrebleu draws with this seed."""

    trials: int = TRIALS
    seed: int = SEED
    _kept: dict[int, NDArray[np.bool_]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.trials < 1:
            raise UsageError(f"`trials` must be 1 or more, but is {self.trials} instead.")

    def chosen(self, lines: int) -> NDArray[np.bool_]:
        """Return which lines are swapped ``(trials, lines)``; the last few lengths are kept."""
        if lines not in self._kept:
            drawn = np.random.default_rng(self.seed).integers(2, size=(self.trials, lines), dtype=np.bool_)
            keep_few(self._kept, lines, drawn)
        return self._kept[lines]

    def moved(self, table: FloatArray) -> FloatArray:
        """Return the sum over the swapped lines ``(trials, columns)`` of a table ``(lines, columns)``."""
        return np.concatenate([rows @ table for rows in self._rows(len(table))])

    def _rows(self, lines: int) -> Iterator[FloatArray]:
        chosen = self.chosen(lines)
        for first in range(0, self.trials, _ROWS):
            yield chosen[first : first + _ROWS].astype(np.float64)


@dataclass(frozen=True, slots=True)
class Randomisation:
    """The difference of two systems and how often chance gives as much; NaN where nothing was counted."""

    metric: str
    difference: float
    """System minus baseline on all sentences."""
    p_value: float
    """Two-sided."""
    directions: int
    sentences: int
    """Over all directions."""
    trials: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, NaN as null."""
        return {name: None if value != value else value for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Randomisation:
        """Rebuild from `to_json`."""
        filled: dict[str, Any] = {name: float("nan") if value is None else value for name, value in content.items()}
        return cls(**filled)


@dataclass(frozen=True, slots=True, eq=False)
class SwappedSums:
    """Sums over sentences of two systems' columns: as they are, then after the swaps of each trial."""

    system: FloatArray
    """``(1 + trials, columns)``"""
    baseline: FloatArray
    sentences: int

    def differences(self, measure: Measure, columns: slice = slice(None)) -> Samples:
        """Return the difference system - baseline of a number, and the difference in each trial."""
        found = measure(self.system[:, columns]) - measure(self.baseline[:, columns])
        return Samples(float(found[0]), found[1:], 1, self.sentences)


def swapped_sums(system: IntArray | FloatArray, baseline: IntArray | FloatArray, *, swaps: Swaps) -> SwappedSums:
    """Swap the sentences of two tables ``(sentences, columns)`` and sum, for as many numbers as their columns give."""
    ours, theirs = system.astype(np.float64), baseline.astype(np.float64)
    moved = np.vstack([np.zeros(ours.shape[1]), swaps.moved(theirs - ours)])  # the first row swaps nothing
    return SwappedSums(ours.sum(axis=0) + moved, theirs.sum(axis=0) - moved, len(ours))


def swapped(
    system: IntArray | FloatArray, baseline: IntArray | FloatArray, *, measure: Measure, swaps: Swaps
) -> Samples:
    """Return the difference system - baseline of a direction, and the difference in each trial.

    `resampling.mean` of several is the test of the mean over directions: directions with equally many lines swap the
    same lines, as in a multi-way parallel test set line i is the same sentence in each.
    """
    return swapped_sums(system, baseline, swaps=swaps).differences(measure)


def randomisation(differences: Samples, *, metric: str, seed: int = SEED) -> Randomisation:
    """Return the test of what `swapped` found, or of its mean over directions; `metric` and `seed` are kept."""
    sizes = np.abs(differences.resampled[~np.isnan(differences.resampled)])
    undefined = np.isnan(differences.value) or not len(sizes)
    exceeding = int(np.sum(sizes > abs(differences.value) + TIE))
    return Randomisation(
        metric=metric,
        difference=differences.value,
        p_value=float("nan") if undefined else (exceeding + 1) / (len(sizes) + 1),
        directions=differences.directions,
        sentences=differences.sentences,
        trials=len(differences.resampled),
        seed=seed,
    )


def paired_randomisation(
    system: IntArray, baseline: IntArray, *, metric: Metric | Measure, trials: int = TRIALS, seed: int = SEED
) -> Randomisation:
    """Compare two systems by their statistics ``(sentences, columns)`` of the same sentences in the same order."""
    return paired_randomisation_over_directions({"": system}, {"": baseline}, metric=metric, trials=trials, seed=seed)


def paired_randomisation_over_directions(
    system: Mapping[str, IntArray],
    baseline: Mapping[str, IntArray],
    *,
    metric: Metric | Measure,
    trials: int = TRIALS,
    seed: int = SEED,
) -> Randomisation:
    """Compare the unweighted mean over directions, given each direction's statistics ``(sentences, columns)``."""
    measure = check_directions(system, baseline, metric=metric)
    swaps = Swaps(trials, seed)
    found = (swapped(system[key], baseline[key], measure=measure, swaps=swaps) for key in sorted(system))
    return randomisation(mean(found), metric=measure_name(metric), seed=seed)
