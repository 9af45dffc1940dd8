"""The table people look at first: one line for each configuration."""

from __future__ import annotations

from collections.abc import Iterator

from nllb_prune.evaluation.summary.groups import ALL, INTO_ENGLISH, OUT_OF_ENGLISH
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Figure, Summary

HEADER = (
    "configuration",
    "kept",
    "memory",
    "chrF++",
    "out of eng",
    "into eng",
    "lowest",
    "BLEU",
    "spBLEU",
    "length",
    "flagged",
    "worst loss",
    "q",
    "verdict",
)
NONE = "—"
"""What stands where there is no such number."""
ANY, UNLIKELY = "any", "unlikely"
"""Names of figures, here so that reading a summary needs no detector."""
METRICS = ("chrf", "bleu", "spbleu")
"""Signatures of other names are those of detectors."""


def table_rows(summary: Summary) -> list[tuple[str, ...]]:
    """Return the lines under `HEADER`; losses and q are of chrF++ against the baseline."""
    return [_row(each, summary) for each in summary.configurations]


def _row(configuration: ConfigurationSummary, summary: Summary) -> tuple[str, ...]:
    worst, change = configuration.worst(), configuration.figure("chrf").change
    return (
        configuration.name,
        f"{configuration.kept:.1%}",
        size(configuration.weight_bytes),
        _mean(configuration, "chrf", ALL),
        _mean(configuration, "chrf", OUT_OF_ENGLISH),
        _mean(configuration, "chrf", INTO_ENGLISH),
        f"{min(d.figures['chrf'] for d in configuration.directions):.2f}",
        _mean(configuration, "bleu", ALL),
        _mean(configuration, "spbleu", ALL),
        _mean(configuration, "length_ratio", ALL, digits=3),
        _flagged(configuration),
        NONE if worst is None else f"{worst.direction} {worst.changes['chrf'].value:+.1f}",
        NONE if change is None else probability(change.q),
        "baseline" if configuration.verdict is None else configuration.verdict.outcome,
    )


def _mean(configuration: ConfigurationSummary, name: str, group: str, *, digits: int = 2) -> str:
    figure = figure_of(configuration, name, group)
    return NONE if figure is None else f"{figure.value:.{digits}f}"


def figure_of(configuration: ConfigurationSummary, name: str, group: str = ALL) -> Figure | None:
    """Return a figure of a group, if there are both."""
    return next((each.figures.get(name) for each in configuration.groups if each.name == group), None)


def detectors(summary: Summary) -> tuple[str, ...]:
    """Return the detectors whose rates are among the figures of any configuration, by name as in the file."""
    known = {name for each in summary.configurations for name in each.group().figures}
    return tuple(name for name in sorted(summary.signatures) if name in known and name not in METRICS)


def worst_detector(configuration: ConfigurationSummary, summary: Summary) -> tuple[str, Figure] | None:
    """Return the detector whose rate rises most against the baseline; where none rises, the one of the highest rate.

    Unlikely outputs are no fault by themselves, and left out as they are from `any`.
    """
    found = [each for each in _rates(configuration, summary) if each[0] != UNLIKELY]
    return max(found, key=lambda each: (_rise(each[1]), each[1].value), default=None)  # ties: the first detector


def _rates(configuration: ConfigurationSummary, summary: Summary) -> Iterator[tuple[str, Figure]]:
    for name in detectors(summary):
        figure = figure_of(configuration, name)
        if figure is not None:
            yield name, figure


def _rise(figure: Figure) -> float:
    return 0.0 if figure.change is None else max(figure.change.value, 0.0)


def _flagged(configuration: ConfigurationSummary) -> str:
    figure = figure_of(configuration, ANY)
    return NONE if figure is None else f"{100 * figure.value:.1f} %"


def probability(value: float) -> str:
    """Format a p or q with three digits, none of which may be all there is."""
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def size(count: int) -> str:
    """Format bytes in the largest unit that leaves a number of 1 or more."""
    value, units = float(count), ["B", "KiB", "MiB", "GiB", "TiB"]
    while value >= 1024 and len(units) > 1:
        value, units = value / 1024, units[1:]
    return f"{value:.0f} {units[0]}" if units[0] == "B" else f"{value:.1f} {units[0]}"
