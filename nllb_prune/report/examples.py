"""The worst sentences of the page: source, reference and the two outputs, each marked as the language it is in."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Example, Summary
from nllb_prune.report.names import language_name, language_tag, number

_OPEN = 6  # of a configuration that are shown at once
_LONGEST = 700  # characters of an output that goes on and on


@dataclass(frozen=True, slots=True)
class Line:
    """One text of an example."""

    label: str
    text: str
    tag: str
    """BCP 47."""
    score: str = ""
    """chrF++ of the sentence."""
    more: int = 0
    """Characters left out."""


@dataclass(frozen=True, slots=True)
class Shown:
    """An example as the page lays it out."""

    title: str
    flags: tuple[str, ...]
    lines: tuple[Line, ...]


@dataclass(frozen=True, slots=True)
class Examples:
    """Of one configuration."""

    name: str
    first: Sequence[Shown]
    rest: Sequence[Shown]


def examples(summary: Summary, *, first: str | None) -> list[Examples]:
    """Return the examples of every configuration that has any, those of `first` at the top."""
    having = sorted((c for c in summary.configurations if c.examples), key=lambda c: c.name != first)
    return [_examples(c) for c in having]


def _examples(configuration: ConfigurationSummary) -> Examples:
    shown = [_shown(each, configuration) for each in configuration.examples]
    return Examples(configuration.name, shown[:_OPEN], shown[_OPEN:])


def _shown(example: Example, configuration: ConfigurationSummary) -> Shown:
    source, target = language_tag(example.source), language_tag(example.target)
    title = f"{language_name(example.source)} → {language_name(example.target)}, line {example.line}"
    return Shown(
        title,
        example.flagged,
        (
            _line("source", example.text, source),
            _line("reference", example.reference, target),
            _line(configuration.baseline or "baseline", example.baseline, target, example.baseline_chrf),
            _line(configuration.name, example.output, target, example.chrf),
        ),
    )


def _line(label: str, text: str, tag: str, score: float | None = None) -> Line:
    cut = text[:_LONGEST]
    return Line(label, cut, tag, "" if score is None else number(score, 1), len(text) - len(cut))
