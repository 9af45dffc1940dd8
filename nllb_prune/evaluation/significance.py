"""Is a difference more than chance: paired bootstrap on stored statistics (Koehn 2004; the p-value is sacrebleu's)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores import COLUMNS, FloatArray, IntArray, Metric, corpus_scores

RESAMPLES = 1000
SEED = 12345

Measure = Callable[[FloatArray], FloatArray]
"""Summed statistics `(..., columns)` to values `(...)`."""

# The columns that describe the reference alone, so are equal for two systems scored on the same references.
_REFERENCE_COLUMNS: dict[Metric, slice] = {"chrf": slice(1, None, 3), "bleu": slice(1, 2)}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value on all sentences, and the mean and half the width of the 95 % interval over the resamples."""

    value: float
    mean: float
    interval: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A system against a baseline on the same sentences."""

    metric: str
    system: Estimate
    baseline: Estimate
    difference: float
    """System minus baseline on all sentences."""
    low: float
    """Lower end of the 95 % interval of the difference."""
    high: float
    """Upper end of the 95 % interval of the difference."""
    p_value: float
    """Two-sided: how often chance alone gives a difference larger than this one."""
    directions: int
    sentences: int
    """Over all directions."""
    resamples: int
    seed: int

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return asdict(self)

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Comparison:
        """Rebuild from `to_json`."""
        estimates = {name: Estimate(**content[name]) for name in ("system", "baseline")}
        return cls(**{**content, **estimates})


def paired_bootstrap(
    system: IntArray,
    baseline: IntArray,
    *,
    metric: Metric | Measure,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two systems by their statistics `(sentences, columns)` of the same sentences in the same order.

    `metric` is `chrf`, `bleu`, or a function of summed statistics.
    """
    return paired_bootstrap_over_directions({"": system}, {"": baseline}, metric=metric, resamples=resamples, seed=seed)


def paired_bootstrap_over_directions(
    system: Mapping[str, IntArray],
    baseline: Mapping[str, IntArray],
    *,
    metric: Metric | Measure,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare the unweighted mean over directions, given each direction's statistics `(sentences, columns)`.

    Sentences are resampled within a direction. Directions with equally many lines get the same resample: in a multi-way
    parallel test set line i is the same sentence in each of them, so their errors are not independent.
    """
    _check(system, baseline, metric=metric, resamples=resamples)
    measure = _measure(metric)
    weights = _resample_weights({len(statistics) for statistics in system.values()}, resamples=resamples, seed=seed)
    values, baseline_values = _mean_value(system, measure), _mean_value(baseline, measure)
    samples, baseline_samples = (_mean_samples(of, measure, weights) for of in (system, baseline))
    low, high = _interval(samples - baseline_samples)
    return Comparison(
        metric=metric if isinstance(metric, str) else _name(metric),
        system=_estimate(values, samples),
        baseline=_estimate(baseline_values, baseline_samples),
        difference=values - baseline_values,
        low=low,
        high=high,
        p_value=_p_value(samples - baseline_samples, values - baseline_values),
        directions=len(system),
        sentences=sum(len(statistics) for statistics in system.values()),
        resamples=resamples,
        seed=seed,
    )


def _resample_weights(lengths: set[int], *, resamples: int, seed: int) -> dict[int, FloatArray]:
    """Return, for each number of lines, how often each resample holds each line, `(resamples, lines)`."""
    generator = np.random.default_rng(seed)
    weights = {}
    for lines in sorted(lengths):
        drawn = generator.choice(lines, size=(resamples, lines), replace=True)
        offsets = drawn + lines * np.arange(resamples)[:, None]
        counts = np.bincount(offsets.ravel(), minlength=resamples * lines)
        weights[lines] = counts.reshape(resamples, lines).astype(np.float64)
    return weights


def _mean_value(statistics: Mapping[str, IntArray], measure: Measure) -> float:
    return float(np.mean([measure(statistics[key].sum(axis=0, dtype=np.float64)) for key in sorted(statistics)]))


def _mean_samples(
    statistics: Mapping[str, IntArray], measure: Measure, weights: Mapping[int, FloatArray]
) -> FloatArray:
    # (resamples, lines) @ (lines, columns) -> (resamples, columns); sums of counts are exact in float64
    summed = [weights[len(statistics[key])] @ statistics[key].astype(np.float64) for key in sorted(statistics)]
    return np.asarray(np.mean([measure(rows) for rows in summed], axis=0))


def _estimate(value: float, samples: FloatArray) -> Estimate:
    low, high = _interval(samples)
    return Estimate(value, float(samples.mean()), (high - low) / 2)


def _interval(samples: FloatArray) -> tuple[float, float]:
    """Cut a fortieth of the samples off each end, which leaves 95 %."""
    ordered = np.sort(samples)
    cut = len(ordered) // 40
    return float(ordered[cut]), float(ordered[-1 - cut])


def _p_value(differences: FloatArray, difference: float) -> float:
    """Count, as sacrebleu does, the absolute differences that exceed their own mean by more than the observed one."""
    sizes = np.abs(differences)
    exceeding = int(np.sum(sizes - sizes.mean() > abs(difference)))
    return (exceeding + 1) / (len(differences) + 1)


def _measure(metric: Metric | Measure) -> Measure:
    return metric if callable(metric) else partial(corpus_scores, metric=metric)


def _name(measure: Measure) -> str:
    return str(getattr(measure, "__name__", "measure"))


def _check(
    system: Mapping[str, IntArray],
    baseline: Mapping[str, IntArray],
    *,
    metric: Metric | Measure,
    resamples: int,
) -> None:
    if not callable(metric) and metric not in COLUMNS:
        raise UsageError(f"`metric` must be one of {', '.join(COLUMNS)} or a function, but is {metric!r} instead.")
    if resamples < 1:
        raise UsageError(f"`resamples` must be 1 or more, but is {resamples} instead.")
    if not system or system.keys() != baseline.keys():
        raise UsageError(
            f"`baseline` must have the directions of `system` ({_listed(system)}), but has {_listed(baseline)} instead."
        )
    for direction in sorted(system):
        _check_pair(system[direction], baseline[direction], metric=metric, where=_where(direction))


def _check_pair(system: IntArray, baseline: IntArray, *, metric: Metric | Measure, where: str) -> None:
    if system.shape != baseline.shape or not len(system):
        raise UsageError(
            f"`baseline` must have the statistics of the same sentences as `system`, one or more, "
            f"but has shape {baseline.shape} instead of {system.shape}{where}."
        )
    columns = slice(0, 0) if callable(metric) else _REFERENCE_COLUMNS[metric]
    different = np.flatnonzero((system[:, columns] != baseline[:, columns]).any(axis=1))
    if len(different):
        raise UsageError(
            f"`baseline` must be scored on the references of `system`, but {len(different)} of {len(system)} sentences "
            f"have another reference{where}, the first in line {different[0] + 1}."
        )


def _where(direction: str) -> str:
    return f" for {direction}" if direction else ""


def _listed(directions: Mapping[str, IntArray]) -> str:
    return ", ".join(sorted(directions)) or "none"
