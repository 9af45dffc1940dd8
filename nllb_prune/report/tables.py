"""Tables of the page: lines ready to be laid out, numbers already formatted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.evaluation.summary import HEADER, ConfigurationSummary, Summary, table_rows
from nllb_prune.masks import MaskSet
from nllb_prune.report.names import key_name, number
from nllb_prune.report.ratios import per_layer, ratio_of

SIGNIFICANT = 0.01
_WORST = 10


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One configuration in the table people look at first."""

    name: str
    cells: tuple[str, ...]
    """Under `HEADER`, without the name."""
    baseline: bool
    significant: bool


@dataclass(frozen=True, slots=True)
class WorstDirections:
    """The directions in which a configuration loses most."""

    name: str
    rows: tuple[tuple[str, ...], ...]
    """Codes, names, chrF++ of the baseline, of the configuration, their difference, length ratio, repetition."""


def summary_rows(summary: Summary) -> list[SummaryRow]:
    """Return the lines of the summary with what is to be marked in them."""
    assert HEADER[0] == "configuration"
    return [
        SummaryRow(
            c.name,
            tuple(cell.replace(" -", " −") for cell in row[1:]),
            baseline=c.name == summary.baseline,
            significant=c.comparison is not None and c.comparison.p_value < SIGNIFICANT,
        )
        for c, row in zip(summary.configurations, table_rows(summary), strict=True)
    ]


def worst_directions(summary: Summary, *, first: str | None) -> list[WorstDirections]:
    """Return the worst directions of every configuration but the baseline, those of `first` at the top."""
    baseline = summary[summary.baseline]
    others = [c for c in summary.configurations if c.name != baseline.name]
    others.sort(key=lambda c: c.name != first)
    return [WorstDirections(c.name, _worst(c, baseline)) for c in others]


def _worst(configuration: ConfigurationSummary, baseline: ConfigurationSummary) -> tuple[tuple[str, ...], ...]:
    before = {d.direction: d.chrf for d in baseline.directions}
    losses = sorted((d.chrf - before[d.direction], d.direction, d) for d in configuration.directions)
    return tuple(
        (
            direction,
            key_name(direction),
            f"{before[direction]:.1f}",
            f"{d.chrf:.1f}",
            number(change, 1, sign=True),
            f"{d.length_ratio:.2f}",
            f"{100 * d.repeat_rate:.1f}",
        )
        for change, direction, d in losses[:_WORST]
        if change < 0
    )


def mask_rows(masks: Mapping[str, MaskSet]) -> list[tuple[str, ...]]:
    """Return how each mask set was planned: name, one mask per, criterion, ratio, experts in a layer, signature."""
    return [
        (
            name,
            "all languages" if each.granularity == "global" else each.granularity,
            str(each.plan.get("criterion", "—")),
            ratio_of(each.plan) or "—",
            " + ".join(_kept_per_layer(each, stack.name) for stack in each.stacks),
            each.signature,
        )
        for name, each in masks.items()
    ]


def _kept_per_layer(masks: MaskSet, stack: str) -> str:
    return per_layer([len(layer) for mask in masks.masks[stack].values() for layer in mask])


def signature_rows(summary: Summary, statistics: ExpertStatistics | None) -> list[tuple[str, str]]:
    """Return what every number was computed with."""
    rows = [(metric, signature) for metric, found in summary.signatures.items() for signature in found]
    tests = {(c.comparison.resamples, c.comparison.seed) for c in summary.configurations if c.comparison is not None}
    rows += [("p", f"paired bootstrap, {resamples} resamples, seed {seed}") for resamples, seed in sorted(tests)]
    if statistics is not None:
        made = "; ".join(f"{name} {value}" for name, value in statistics.signature.items())
        rows.append(("statistics", f"{len(statistics.items)} directions or languages of text; {made}"))
    return rows
