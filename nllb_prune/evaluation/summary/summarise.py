"""From the results of directions to a `Summary`; the sentences of one direction are in memory at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from typing import Any

import numpy as np

from nllb_prune._version import __version__
from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import Detector
from nllb_prune.evaluation.detectors.flagging import Flags, flag
from nllb_prune.evaluation.evaluation import Evaluation
from nllb_prune.evaluation.fidelity.fidelity import Fidelity
from nllb_prune.evaluation.results import DirectionResult
from nllb_prune.evaluation.significance.multiple_tests import q_values
from nllb_prune.evaluation.significance.resampling import Draws, Samples
from nllb_prune.evaluation.summary.comparing import Comparing, Testing, sample
from nllb_prune.evaluation.summary.examples import Examples
from nllb_prune.evaluation.summary.groups import group_names, groups_of
from nllb_prune.evaluation.summary.quantities import Counts, counts_of
from nllb_prune.evaluation.summary.summary import Change, ConfigurationSummary, DirectionSummary, Summary
from nllb_prune.evaluation.summary.verdict import LIMITS, judge
from nllb_prune.languages import Direction

_PACKAGES = ("torch", "transformers", "sacrebleu")


def summarise(
    evaluation: Evaluation,
    text: ParallelText,
    *,
    detectors: Sequence[Detector],
    baseline: str = "full",
    limits: Mapping[str, tuple[float, float]] = LIMITS,
    testing: Testing = Testing(),  # noqa: B008 - frozen
    progress: Callable[[Iterable[Direction]], Iterable[Direction]] | None = None,
) -> Summary:
    """Sum up an evaluation: every configuration against a baseline among them.

    Args:
        evaluation: What `evaluate` returned.
        text: What it was made on; only as many lines as there are results are used.
        detectors: Whose values the results have; their thresholds are applied here.
        baseline: Name of a configuration.
        limits: Of the verdicts, by name.
        testing: How chance is judged.
        progress: Wraps the loop over directions.

    Raises:
        UsageError: if the baseline is no configuration, or results are missing or were made anew since.
    """
    if baseline not in evaluation.configurations:
        known = ", ".join(evaluation.configurations) or "no configuration"
        raise UsageError(f"`baseline` must be one of {known}, but is {baseline} instead.")
    draws, swaps = Draws(testing.resamples, testing.seed), testing.swaps()
    running = {name: _Running(name, Comparing(testing, draws, swaps)) for name in evaluation.configurations}
    signatures: dict[str, dict[str, str]] = {}
    sentences = 0
    for direction in progress(evaluation.directions) if progress else evaluation.directions:
        results = evaluation.results(direction)
        reference = _seen(results[baseline], results[baseline], detectors, text, draws)
        for name, result in results.items():
            seen = reference if name == baseline else _seen(result, results[baseline], detectors, text, draws)
            running[name].add(seen, None if name == baseline else reference, text)
            for metric, score in result.scores.items():
                signatures.setdefault(metric, {})[direction[1]] = score.signature
        sentences = results[baseline].sentences
    names = group_names(evaluation.directions)
    return Summary(
        model=evaluation.model,
        configurations=tuple(
            each.summary(
                baseline=None if each.name == baseline else baseline,
                plan=evaluation.plans[each.name],
                groups=names,
                detectors=detectors,
                limits=limits,
                sentences=sentences,
            )
            for each in running.values()
        ),
        baseline=baseline,
        sentences=sentences,
        beams=evaluation.beams,
        test=testing.to_json(),
        signatures={
            **{metric: tuple(sorted(set(found.values()))) for metric, found in signatures.items()},
            **{detector.name: (detector.signature,) for detector in detectors},
        },
        signatures_by_target=signatures,
        limits=dict(limits),
        versions=_versions(evaluation.backend),
    )


def _versions(backend: str | None) -> dict[str, str]:
    found = {"nllb-prune": __version__, **{name: version(name) for name in _PACKAGES}}
    if backend is not None:
        name, _, found_version = backend.partition(" ")
        found[name] = found_version
    return found


@dataclass(frozen=True, slots=True)
class _Seen:
    """One configuration in one direction, with what follows from its result."""

    result: DirectionResult
    flags: Flags
    counts: list[Counts]
    samples: Mapping[str, Samples]


def _seen(
    result: DirectionResult,
    baseline: DirectionResult,
    detectors: Sequence[Detector],
    text: ParallelText,
    draws: Draws,
) -> _Seen:
    flags = flag(result, detectors, baseline=baseline, text=text)
    counts = counts_of(result, flags)
    return _Seen(result, flags, counts, sample(counts, draws))


@dataclass(slots=True)
class _Running:
    """What is kept of a configuration while directions pass by."""

    name: str
    comparing: Comparing
    directions: list[DirectionSummary] = field(default_factory=list)
    examples: Examples = field(default_factory=Examples)
    fidelity: list[np.ndarray] = field(default_factory=list)
    weight_bytes: int = 0

    def add(self, seen: _Seen, baseline: _Seen | None, text: ParallelText) -> None:
        result = seen.result
        against = None if baseline is None else (baseline.counts, baseline.samples)
        groups = groups_of((result.source, result.target))
        changes = self.comparing.add(seen.counts, seen.samples, against, groups=groups)
        if baseline is not None:
            self.examples.add(result, baseline.result, flags=seen.flags, baseline_flags=baseline.flags, text=text)
        if result.fidelity is not None:
            self.fidelity.append(result.fidelity.statistics.sum(axis=0))
        self.weight_bytes = max(self.weight_bytes, result.weight_bytes)
        self.directions.append(_direction(seen, changes))

    def summary(
        self,
        *,
        baseline: str | None,
        plan: Mapping[str, Any],
        groups: Sequence[str],
        detectors: Sequence[Detector],
        limits: Mapping[str, tuple[float, float]],
        sentences: int,
    ) -> ConfigurationSummary:
        directions = _with_q(self.directions)
        found = self.comparing.groups(groups)
        names = [detector.name for detector in detectors]
        return ConfigurationSummary(
            name=self.name,
            baseline=baseline,
            kept=float(np.mean([direction.kept for direction in directions])),
            weight_bytes=self.weight_bytes,
            plan=plan,
            groups=found,
            directions=tuple(directions),
            fidelity=_defined(Fidelity(np.stack(self.fidelity))) if self.fidelity else None,
            examples=self.examples.found(),
            verdict=None
            if baseline is None
            else judge(found, directions, detectors=names, limits=limits, sentences=sentences),
        )


def _direction(seen: _Seen, changes: Mapping[str, Change]) -> DirectionSummary:
    result = seen.result
    found = {name: each.value for name, each in seen.samples.items() if not np.isnan(each.value)}
    found["high_length_ratio"] = result.surface.high_length_ratio
    fidelity = None if result.fidelity is None else _defined(result.fidelity)
    return DirectionSummary(result.source, result.target, result.kept, found, changes, fidelity)


def _defined(fidelity: Fidelity) -> dict[str, float]:
    return {name: value for name, value in fidelity.values().items() if not np.isnan(value)}


def _with_q(directions: Sequence[DirectionSummary]) -> list[DirectionSummary]:
    """Adjust the p of each quantity for the number of directions."""
    changes: list[dict[str, Change]] = [dict(direction.changes) for direction in directions]
    for name in {name for each in changes for name in each}:
        there = [each for each in changes if name in each]
        for each, q in zip(there, q_values([each[name].p for each in there]).tolist(), strict=True):
            each[name] = replace(each[name], q=q)
    return [replace(direction, changes=each) for direction, each in zip(directions, changes, strict=True)]
