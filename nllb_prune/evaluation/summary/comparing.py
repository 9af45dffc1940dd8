"""Running means of a configuration's numbers over groups of directions, alone and against the baseline."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import METRICS
from nllb_prune.evaluation.significance.bootstrap import TIE, compare, interval
from nllb_prune.evaluation.significance.multiple_tests import q_values
from nllb_prune.evaluation.significance.randomisation import TRIALS, Swaps, randomisation, swapped_sums
from nllb_prune.evaluation.significance.resampling import RESAMPLES, SEED, Draws, Mean, PairedMean, Samples
from nllb_prune.evaluation.summary.quantities import TESTED, Counts, family_of
from nllb_prune.evaluation.summary.summary import Change, Figure, GroupSummary

TestName = Literal["bootstrap", "randomisation"]


@dataclass(frozen=True, slots=True)
class Testing:
    """How chance is judged: intervals by bootstrap, p by randomisation, or by bootstrap if asked.

    sacrebleu's rule for the bootstrap's p is one-tailed: of two equal systems one in ten or more has p < .05 by it, by
    randomisation one in twenty. With 1,000 resamples it leaves nothing of 90 directions at q < .05. Of rates it is too
    sure altogether: five of 200 sentences that one system alone gets flagged have p .03 by it, but .06 by randomisation
    and by the exact sign test.
    """

    test: TestName = "randomisation"
    resamples: int = RESAMPLES
    """Of the bootstrap."""
    trials: int = TRIALS
    """Of randomisation."""
    seed: int = SEED

    def __post_init__(self) -> None:
        if self.test not in ("bootstrap", "randomisation"):
            raise UsageError(f"`test` must be bootstrap or randomisation, but is {self.test} instead.")
        if self.seed < 0:
            raise UsageError(f"`seed` must be 0 or more, but is {self.seed} instead.")

    def swaps(self) -> Swaps:
        """Return the swaps of randomisation."""
        return Swaps(self.trials, self.seed)

    def randomised(self, name: str) -> bool:
        """Return whether the p of a number is of randomisation."""
        return self.test == "randomisation" or family_of(name) in ("rates", "raw")

    def to_json(self) -> dict[str, str | int]:
        """Return what a reader must know of it."""
        return {
            "name": f"paired {self.test}",
            "rates": "paired randomisation",
            "resamples": self.resamples,
            "trials": self.trials,
            "seed": self.seed,
        }


@dataclass(slots=True)
class Comparing:
    """Takes in one direction after another of one configuration."""

    testing: Testing
    draws: Draws
    swaps: Swaps
    _means: dict[tuple[str, str], Mean] = field(default_factory=lambda: defaultdict(Mean))
    _pairs: dict[tuple[str, str], PairedMean] = field(default_factory=lambda: defaultdict(PairedMean))
    _swapped: dict[tuple[str, str], Mean] = field(default_factory=lambda: defaultdict(Mean))
    _sizes: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def add(
        self,
        counts: Sequence[Counts],
        samples: Mapping[str, Samples],
        baseline: tuple[Sequence[Counts], Mapping[str, Samples]] | None,
        *,
        groups: Iterable[str],
    ) -> dict[str, Change]:
        """Take in a direction's counts and their samples, and return what changed, of `TESTED`, with q = p."""
        groups = tuple(groups)
        for group in groups:
            self._sizes[group] += 1
            for name, each in samples.items():
                self._means[group, name].add(each)
        if baseline is None:
            return {}
        theirs, their_samples = baseline
        differences = self._differences(counts, theirs)
        shared = [name for name in samples if name in their_samples]
        for group in groups:
            for name in shared:
                self._pairs[group, name].add(samples[name], their_samples[name])
            for name, each in differences.items():
                self._swapped[group, name].add(each)
        return {
            name: _change(name, samples[name], their_samples[name], differences.get(name))
            for name in shared
            if name in TESTED
        }

    def groups(self, names: Sequence[str]) -> tuple[GroupSummary, ...]:
        """Return the figures of the groups so far; q is over all groups, for rates over all of them together."""
        changes = {
            key: _change(key[1], *pair.samples(), self._swapped[key].samples() if key in self._swapped else None)
            for key, pair in self._pairs.items()
            if pair.system.directions  # those in which both have a value
        }
        families = [
            [key for key in changes if family_of(key[1]) == family] for family in {family_of(n) for _, n in changes}
        ]
        adjusted = {key: each for family in families for key, each in _adjusted(changes, family).items()}
        return tuple(self._group(name, adjusted) for name in names if name in self._sizes)

    def _group(self, group: str, changes: Mapping[tuple[str, str], Change]) -> GroupSummary:
        figures = {}
        for (of, name), total in self._means.items():
            if of == group and total.directions:
                samples = total.samples()
                figures[name] = Figure(samples.value, *interval(samples), changes.get((group, name)))
        return GroupSummary(group, self._sizes[group], figures)

    def _differences(self, counts: Sequence[Counts], theirs: Sequence[Counts]) -> dict[str, Samples]:
        """Return the difference of every number that is tested by randomisation, and those after swaps."""
        pairs = [(a, b) for a, b in _paired(counts, theirs) if any(map(self.testing.randomised, a.measures))]
        if not pairs:
            return {}
        ours, baseline = (np.hstack([pair[n].columns for pair in pairs]) for n in (0, 1))
        found = swapped_sums(ours, baseline, swaps=self.swaps)  # one product for all columns
        differences: dict[str, Samples] = {}
        start = 0
        for each, _ in pairs:
            end = start + each.columns.shape[1]
            for name, measure in each.measures.items():
                if self.testing.randomised(name):
                    differences[name] = found.differences(measure, slice(start, end))
            start = end
        return differences


def _paired(counts: Sequence[Counts], theirs: Sequence[Counts]) -> list[tuple[Counts, Counts]]:
    """Return the counts that both have, by the names of their numbers."""
    baseline = {tuple(each.measures): each for each in theirs}
    return [(each, baseline[tuple(each.measures)]) for each in counts if tuple(each.measures) in baseline]


def _change(name: str, system: Samples, baseline: Samples, differences: Samples | None) -> Change:
    found = compare(system, baseline, metric=name)
    p = found.p_value if differences is None else _p_of_swaps(name, differences)
    if not np.isnan(p) and not np.nan_to_num(system.resampled - baseline.resampled).any():
        p = 1.0  # the rule of the bootstrap's p has no answer for two systems that never differ
    return Change(found.difference, found.low, found.high, p, p)


def _p_of_swaps(name: str, differences: Samples) -> float:
    """Return sacrebleu's p of a metric; of other numbers, whose differences often tie, those as large count too.

    If one sentence of many is flagged by one system alone, every trial's difference is as large as the observed one:
    its p is 1 (Riezler and Maxwell 2005), where a rule that counts larger ones alone has the smallest p there is.
    """
    if name in METRICS:
        return randomisation(differences, metric=name).p_value
    sizes = np.abs(differences.resampled[~np.isnan(differences.resampled)])
    if np.isnan(differences.value) or not len(sizes):
        return float("nan")
    return (int(np.sum(sizes >= abs(differences.value) - TIE)) + 1) / (len(sizes) + 1)


def _adjusted(
    changes: Mapping[tuple[str, str], Change], family: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Change]:
    q = q_values([changes[key].p for key in family]).tolist()
    return {key: replace(changes[key], q=value) for key, value in zip(family, q, strict=True)}


def sample(counts: Sequence[Counts], draws: Draws) -> dict[str, Samples]:
    """Return every number of a direction with its resamples."""
    found: dict[str, Samples] = {}
    for each in counts:
        lines = len(each.columns)
        values = each.values(each.columns.sum(axis=0))
        resampled = each.values(draws.weights(lines) @ each.columns)  # (resamples, lines) @ (lines, columns)
        found |= {name: Samples(float(values[name]), resampled[name], 1, lines) for name in values}
    return found
