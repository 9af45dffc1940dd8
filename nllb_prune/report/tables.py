"""Tables of the page: lines ready to be laid out, numbers already formatted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, DirectionSummary, Summary
from nllb_prune.evaluation.summary.table import HEADER, METRICS, NONE, probability, table_rows
from nllb_prune.masks import MaskSet
from nllb_prune.report.names import key_name, metric_name, number, second_metric, significant
from nllb_prune.report.plans import per_layer, planned

WORST = 10


@dataclass(frozen=True, slots=True)
class SummaryRow:
    """One configuration in the table people look at first."""

    name: str
    cells: tuple[tuple[str, str], ...]
    """Under `summary_header`, without the name: the number, and what stands below it."""
    baseline: bool
    significant: bool


@dataclass(frozen=True, slots=True)
class WorstDirections:
    """The directions in which a configuration loses most."""

    name: str
    rows: tuple[tuple[str, ...], ...]
    """Codes, names, and numbers under `worst_header`."""


def summary_header(summary: Summary) -> list[str]:
    """Return the columns of the table that have any number."""
    return [HEADER[n] for n in _columns(summary)]


def summary_rows(summary: Summary) -> list[SummaryRow]:
    """Return the lines of the summary with what is to be marked in them."""
    columns = _columns(summary)[1:]
    return [
        SummaryRow(
            c.name,
            tuple(_cell(HEADER[n], row[n]) for n in columns),
            baseline=c.name == summary.baseline,
            significant=significant(c.figure("chrf").change),
        )
        for c, row in zip(summary.configurations, table_rows(summary), strict=True)
    ]


def _cell(column: str, text: str) -> tuple[str, str]:
    """Part a direction from its number, and a verdict from what it adds, as columns are narrow."""
    if column == "worst loss" and text != NONE:
        what, _, value = text.rpartition(" ")
        return value.replace("-", "−"), what
    first, _, rest = text.partition(" ") if column == "verdict" else (text, "", "")
    return first, rest


def _columns(summary: Summary) -> list[int]:
    rows = table_rows(summary)
    return [n for n in range(len(HEADER)) if any(row[n] != NONE for row in rows)]


def worst_header(summary: Summary) -> tuple[str, ...]:
    """Return the names of the numbers of the worst directions."""
    second = second_metric(summary)
    metric = () if second is None else (metric_name(second),)
    return ("chrF++", "change", "95 % interval", "q", *metric, "length", "repeat %")


def worst_directions(summary: Summary, *, first: str | None) -> list[WorstDirections]:
    """Return the worst directions of every configuration but the baseline, those of `first` at the top."""
    others = [c for c in summary.configurations if c.name != summary.baseline]
    others.sort(key=lambda c: c.name != first)
    return [WorstDirections(c.name, tuple(_numbers(d, summary) for d in worst(c))) for c in others]


def worst(configuration: ConfigurationSummary, count: int = WORST) -> list[DirectionSummary]:
    """Return the directions that lose most chrF++, the greatest loss first."""
    losses = [d for d in configuration.directions if "chrf" in d.changes and d.changes["chrf"].value < 0]
    return sorted(losses, key=lambda d: (d.changes["chrf"].value, d.direction))[:count]


def _numbers(d: DirectionSummary, summary: Summary) -> tuple[str, ...]:
    change, second = d.changes["chrf"], second_metric(summary)
    return (
        d.direction,
        key_name(d.direction),
        f"{d.figures['chrf']:.1f}",
        number(change.value, 1, sign=True),
        f"{number(change.low, 1, sign=True)} to {number(change.high, 1, sign=True)}",
        probability(change.q),
        *(() if second is None else (f"{d.figures[second]:.1f}",)),
        f"{d.figures['length_ratio']:.2f}",
        f"{100 * d.figures['repeat_rate_4']:.1f}",
    )


def mask_rows(summary: Summary, masks: Mapping[str, MaskSet]) -> list[tuple[str, ...]]:
    """Return how each configuration was planned: name, one mask per, criterion, ratio, experts a layer, signature."""
    rows: list[tuple[str, ...]] = []
    for c in summary.configurations:
        plan = planned(c, masks.get(c.name))
        if plan is not None:
            one = "all languages" if plan.granularity == "global" else plan.granularity
            given = masks.get(c.name)
            layers = _counts([*plan.counts.values()]) if given is None else _kept_per_layer(given)
            rows.append((c.name, one, plan.criterion or NONE, plan.ratio or NONE, layers, plan.signature))
    return rows


def _kept_per_layer(masks: MaskSet) -> str:
    found = [[len(layer) for mask in masks.masks[stack.name].values() for layer in mask] for stack in masks.stacks]
    return _counts(found)


def _counts(stacks: Sequence[Sequence[int]]) -> str:
    return " + ".join(per_layer(counts) for counts in stacks if counts) or NONE


def signature_rows(summary: Summary, statistics: ExpertStatistics | None) -> list[tuple[str, str]]:
    """Return what every number was computed with."""
    names = sorted(summary.signatures, key=lambda name: ([*METRICS, name].index(name), name))
    rows = [(metric_name(name), signature) for name in names for signature in summary.signatures[name]]
    rows.append(("p, q and intervals", test_words(summary)))
    rows.append(("translation", f"{summary.model}, {search_words(summary)}"))
    rows.append(("versions", ", ".join(f"{name} {version}" for name, version in sorted(summary.versions.items()))))
    if statistics is not None:
        made = "; ".join(f"{name} {value}" for name, value in sorted(statistics.signature.items()))
        rows.append(("statistics", f"{len(statistics.items)} directions or languages of text; {made}"))
    return rows


def test_words(summary: Summary) -> str:
    """Return the significance test in words."""
    test = summary.test
    rest = ", ".join(f"{name} {value}" for name, value in sorted(test.items()) if name != "name")
    return f"{test.get('name', 'test')}, {rest}; q: Benjamini and Hochberg (1995)"


def search_words(summary: Summary) -> str:
    """Return how outputs were searched for."""
    return "greedy" if summary.beams == 1 else f"beam search, {summary.beams} beams"
