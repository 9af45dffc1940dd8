"""What readers call languages, directions and groups of directions."""

from __future__ import annotations

from nllb_prune.evaluation.summary import ENGLISH, ConfigurationSummary, DirectionSummary, Summary
from nllb_prune.languages import find_language

Directions = list[DirectionSummary]


def language_name(code: str) -> str:
    """Return the English name of a language, or its code if it has none."""
    found = find_language(code)
    return code if found is None else found.name


def key_name(key: str) -> str:
    """Return the name of a language or of a direction `source-target`."""
    return " → ".join(map(language_name, key.split("-")))


def number(value: float, digits: int = 2, *, sign: bool = False) -> str:
    """Format with a true minus, which is as wide as a plus."""
    text = f"{value:+z.{digits}f}" if sign else f"{value:z.{digits}f}"
    return text.replace("-", "−")


def groups(summary: Summary) -> list[str]:
    """Return the groups of directions that the scores have."""
    directions = summary.configurations[0]
    found = [name for name in ("out of English", "into English", "other") if members(directions, name)]
    return found if found != ["other"] else ["all"]


def members(configuration: ConfigurationSummary, group: str) -> Directions:
    """Return the directions of a configuration in a group."""
    if group == "all":
        return list(configuration.directions)
    if group == "other":
        return [d for d in configuration.directions if ENGLISH not in (d.source, d.target)]
    return configuration.out_of_english() if group == "out of English" else configuration.into_english()


def group_title(group: str, count: int) -> str:
    """Return the name of a group with its size."""
    words = {"other": "without English", "all": "in all directions"}.get(group, group)
    return f"{words} ({count} direction{'s' if count != 1 else ''})"
