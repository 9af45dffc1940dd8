"""Configurations that differ in one thing: in their budget, or in how encoder and decoder share it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nllb_prune.evaluation.summary.groups import ALL
from nllb_prune.evaluation.summary.summary import Change, ConfigurationSummary, Summary
from nllb_prune.evaluation.summary.table import figure_of
from nllb_prune.masks import MaskSet
from nllb_prune.report.plans import Planned, per_layer, planned

_NO_CHANGE = Change(value=0.0, low=0.0, high=0.0, p=1.0, q=1.0)


@dataclass(frozen=True, slots=True)
class RatioPoint:
    """A configuration with the encoder's share of what it keeps."""

    name: str
    kept: int
    """Experts of the whole model that a direction keeps."""
    share: float
    """Of these in the encoder."""
    ratio: str
    """Encoder : decoder as it was asked for."""
    encoder: str
    """Experts kept in each sparse layer of the encoder."""
    decoder: str
    """Experts kept in each sparse layer of the decoder."""
    change: Change
    """Of mean chrF++ against the baseline."""


@dataclass(frozen=True, slots=True)
class BudgetSeries:
    """Configurations planned alike with different budgets, the smallest first."""

    title: str
    configurations: tuple[ConfigurationSummary, ...]

    def points(self, name: str, group: str = ALL) -> list[tuple[float, Change]]:
        """Return the share of experts kept and the change of a figure, where it was compared."""
        found = [(c.kept, figure_of(c, name, group)) for c in self.configurations]
        return [(kept, f.change) for kept, f in found if f is not None and f.change is not None]


def ratio_series(summary: Summary, masks: Mapping[str, MaskSet]) -> list[list[RatioPoint]]:
    """Return the groups of two or more ratios that were planned alike, each in the order of the encoder's share."""
    alike: dict[tuple[str, str, str, int], list[RatioPoint]] = {}
    for configuration, plan in _planned(summary, masks):
        if plan.counts:
            point = _ratio_point(configuration, plan)
            key = (plan.granularity, plan.criterion, plan.aggregation, point.kept)
            alike.setdefault(key, []).append(point)
    ordered = [sorted(group, key=lambda point: (point.share, point.name)) for group in alike.values()]
    return [group for group in ordered if len({point.share for point in group}) > 1]


def budget_series(summary: Summary, masks: Mapping[str, MaskSet]) -> list[BudgetSeries]:
    """Return the groups of two or more budgets that were planned alike."""
    alike: dict[tuple[str, str, str, str], list[tuple[ConfigurationSummary, Planned]]] = {}
    for configuration, plan in _planned(summary, masks):
        if configuration.figure("chrf").change is not None:
            key = (plan.granularity, plan.criterion, plan.ratio, plan.aggregation)
            alike.setdefault(key, []).append((configuration, plan))
    return [_budgets(group) for group in alike.values() if len({c.kept for c, _ in group}) > 1]


def _planned(summary: Summary, masks: Mapping[str, MaskSet]) -> list[tuple[ConfigurationSummary, Planned]]:
    found = [(c, planned(c, masks.get(c.name))) for c in summary.configurations]
    return [(c, plan) for c, plan in found if plan is not None]


def _budgets(group: Sequence[tuple[ConfigurationSummary, Planned]]) -> BudgetSeries:
    ordered = sorted((c for c, _ in group), key=lambda c: (c.kept, c.name))
    return BudgetSeries(group[0][1].title, tuple(ordered))


def _ratio_point(configuration: ConfigurationSummary, plan: Planned) -> RatioPoint:
    encoder, decoder = plan.counts["encoder"], plan.counts["decoder"]
    kept = sum(encoder) + sum(decoder)
    return RatioPoint(
        configuration.name,
        kept,
        sum(encoder) / kept,
        plan.ratio,
        per_layer(encoder),
        per_layer(decoder),
        configuration.figure("chrf").change or _NO_CHANGE,
    )
