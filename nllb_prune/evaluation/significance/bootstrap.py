"""Is a difference more than chance: paired bootstrap on stored statistics (Koehn 2004; the p-value is sacrebleu's)."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import FloatArray, IntArray, Metric
from nllb_prune.evaluation.significance.resampling import (
    RESAMPLES,
    SEED,
    Draws,
    Mean,
    Measure,
    PairedMean,
    Samples,
    flag_statistics,
    mean,
    measure_of,
    rate,
    samples,
)

__all__ = [
    "RESAMPLES",
    "SEED",
    "TIE",
    "Comparison",
    "Draws",
    "Estimate",
    "Mean",
    "Measure",
    "PairedMean",
    "Samples",
    "check_directions",
    "compare",
    "flag_statistics",
    "interval",
    "mean",
    "measure_name",
    "measure_of",
    "paired_bootstrap",
    "paired_bootstrap_over_directions",
    "rate",
    "samples",
]

TIE = 1e-10
"""Differences this close are equal: below what one sentence changes, above rounding. Rates tie often, scores hardly."""

# The columns that describe the reference alone, so are equal for two systems scored on the same references.
_REFERENCE_COLUMNS: dict[Metric, slice] = {
    "chrf": slice(1, None, 3),
    "bleu": slice(1, 2),
    "spbleu": slice(1, 2),
}


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value on all sentences, and the mean and half the width of the 95 % interval over the resamples."""

    value: float
    mean: float
    interval: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """A system against a baseline on the same sentences; NaN where nothing was counted."""

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
        """Return the fields as JSON values, NaN as null."""
        return {name: _without_nan(value) for name, value in asdict(self).items()}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Comparison:
        """Rebuild from `to_json`."""
        filled = {name: _with_nan(value) for name, value in content.items()}
        return cls(**{**filled, **{name: Estimate(**filled[name]) for name in ("system", "baseline")}})


def interval(samples: Samples | FloatArray) -> tuple[float, float]:
    """Cut a fortieth of the resamples off each end, which leaves 95 %; those without a value do not count."""
    values = samples.resampled if isinstance(samples, Samples) else samples
    ordered = np.sort(values[~np.isnan(values)])
    if not len(ordered):
        return float("nan"), float("nan")
    cut = len(ordered) // 40
    return float(ordered[cut]), float(ordered[-1 - cut])


def compare(system: Samples, baseline: Samples, *, metric: str, seed: int = SEED) -> Comparison:
    """Compare two systems by their samples on equal resamples of the same sentences.

    Args:
        system: From `samples`, or a mean of such.
        baseline: Of the same directions, from the same draws.
        metric: Name of what was measured, to be kept.
        seed: Of the draws, to be kept.

    Raises:
        UsageError: if they are of other directions or resamples.
    """
    sizes = [(len(each.resampled), each.directions, each.sentences) for each in (system, baseline)]
    if sizes[0] != sizes[1]:
        raise UsageError(
            f"`baseline` must be of as many resamples, directions and sentences as `system`, {sizes[0]}, "
            f"but is of {sizes[1]} instead; `PairedMean` leaves a direction out of both."
        )
    differences, difference = system.resampled - baseline.resampled, system.value - baseline.value
    low, high = interval(differences)
    return Comparison(
        metric=metric,
        system=_estimate(system),
        baseline=_estimate(baseline),
        difference=difference,
        low=low,
        high=high,
        p_value=_p_value(differences, difference),
        directions=system.directions,
        sentences=system.sentences,
        resamples=len(differences),
        seed=seed,
    )


def paired_bootstrap(
    system: IntArray,
    baseline: IntArray,
    *,
    metric: Metric | Measure,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Comparison:
    """Compare two systems by their statistics ``(sentences, columns)`` of the same sentences in the same order.

    `metric` is `chrf`, `bleu`, `spbleu`, or a function of summed statistics.
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
    """Compare the unweighted mean over directions, given each direction's statistics ``(sentences, columns)``.

    Sentences are resampled within a direction. Directions with equally many lines get the same resample: in a multi-way
    parallel test set line i is the same sentence in each of them, so their errors are not independent.
    """
    measure = check_directions(system, baseline, metric=metric)
    draws, means = Draws(resamples, seed), PairedMean()
    for direction in sorted(system):
        means.add(samples(system[direction], measure, draws), samples(baseline[direction], measure, draws))
    return compare(*means.samples(), metric=measure_name(metric), seed=seed)


def check_directions(
    system: Mapping[str, IntArray], baseline: Mapping[str, IntArray], *, metric: Metric | Measure
) -> Measure:
    """Refuse statistics that cannot be paired, and return the measure."""
    measure = metric if callable(metric) else measure_of(metric)
    if not system or system.keys() != baseline.keys():
        raise UsageError(
            f"`baseline` must have the directions of `system` ({_listed(system)}), but has {_listed(baseline)} instead."
        )
    for direction in sorted(system):
        where = f" for {direction}" if direction else ""
        _check_pair(system[direction], baseline[direction], metric=metric, where=where)
    return measure


def measure_name(metric: Metric | Measure) -> str:
    """Return what a comparison calls its metric."""
    return metric if isinstance(metric, str) else str(getattr(metric, "__name__", "measure"))


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


def _estimate(samples: Samples) -> Estimate:
    low, high = interval(samples)
    there = samples.resampled[~np.isnan(samples.resampled)]
    return Estimate(samples.value, float(there.mean()) if len(there) else float("nan"), (high - low) / 2)


def _p_value(differences: FloatArray, difference: float) -> float:
    """Count, as sacrebleu does, the absolute differences that exceed their own mean by more than the observed one."""
    sizes = np.abs(differences[~np.isnan(differences)])
    if not len(sizes) or math.isnan(difference):
        return float("nan")
    exceeding = int(np.sum(sizes - sizes.mean() > abs(difference) + TIE))
    return (exceeding + 1) / (len(sizes) + 1)


def _listed(directions: Mapping[str, IntArray]) -> str:
    return ", ".join(sorted(directions)) or "none"


def _without_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _without_nan(each) for name, each in value.items()}
    return None if isinstance(value, float) and math.isnan(value) else value


def _with_nan(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _with_nan(each) for name, each in value.items()}
    return float("nan") if value is None else value
