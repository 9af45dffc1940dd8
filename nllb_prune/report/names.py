"""What readers call languages, directions, groups of directions, metrics and measures."""

from __future__ import annotations

from nllb_prune.evaluation.summary.groups import (
    ALL,
    INTO_ENGLISH,
    OUT_OF_ENGLISH,
    WITHOUT_ENGLISH,
    groups_of,
)
from nllb_prune.evaluation.summary.summary import Change, ConfigurationSummary, DirectionSummary, Summary
from nllb_prune.languages import find_language

SIGNIFICANT = 0.05
"""Below it, q says that a difference is more than chance."""

ANY = "any"
"""The rate of sentences that one detector or more flags, among the figures."""

_METRICS = {"chrf": "chrF++", "bleu": "BLEU", "spbleu": "spBLEU"}


def language_name(code: str) -> str:
    """Return the English name of a language, or its code if it has none."""
    found = find_language(code)
    return code if found is None else found.name


def language_tag(code: str) -> str:
    """Return the BCP 47 tag of a language, for the `lang` attribute of text in it."""
    found = find_language(code)
    return code.replace("_", "-") if found is None or not found.iso639_1 else f"{found.iso639_1}-{found.script}"


def key_name(key: str) -> str:
    """Return the name of a language or of a direction `source-target`."""
    return " → ".join(map(language_name, key.split("-")))


def metric_name(metric: str) -> str:
    """Return what a metric is called in print."""
    return _METRICS.get(metric, metric)


def second_metric(summary: Summary) -> str | None:
    """Return the metric to hold against chrF++: spBLEU, or else BLEU."""
    return next((name for name in ("spbleu", "bleu") if name in summary.metrics), None)


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Format with a true minus, which is as wide as a plus."""
    text = f"{value:+z.{digits}f}" if sign else f"{value:z.{digits}f}"
    return text.replace("-", "−")


def interval(low: float, high: float, digits: int = 2, *, sign: bool = True) -> str:
    """Format the two ends of an interval."""
    return f"{number(low, digits, sign=sign)} to {number(high, digits, sign=sign)}"


def significant(change: Change | None) -> bool:
    """Return whether a change is more than chance."""
    return change is not None and change.q < SIGNIFICANT


def groups(summary: Summary) -> list[str]:
    """Return the groups with and without English that the evaluation has; only `all` if it has no English."""
    names = {each.name for each in summary.configurations[0].groups}
    found = [name for name in (OUT_OF_ENGLISH, INTO_ENGLISH, WITHOUT_ENGLISH) if name in names]
    return found if found not in ([], [WITHOUT_ENGLISH]) else [ALL]


def members(configuration: ConfigurationSummary, group: str) -> list[DirectionSummary]:
    """Return the directions of a configuration in a group."""
    return [d for d in configuration.directions if group == ALL or group in groups_of((d.source, d.target))]


def group_title(group: str, count: int) -> str:
    """Return the name of a group with its size."""
    words = "in all directions" if group == ALL else group
    return f"{words} ({count:,} direction{'s' if count != 1 else ''})"
