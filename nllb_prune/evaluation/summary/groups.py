"""Groups of directions whose means are worth a look of their own: with English, and by resource class."""

from __future__ import annotations

from collections.abc import Iterable

from nllb_prune.languages import Direction, find_language

ENGLISH = "eng_Latn"
ALL = "all"
OUT_OF_ENGLISH = "out of English"
INTO_ENGLISH = "into English"
WITHOUT_ENGLISH = "without English"

_RESOURCES = {"high": "high", "low": "low", "very_low": "very low"}


def groups_of(direction: Direction) -> tuple[str, ...]:
    """Return the names of the groups that a direction belongs to."""
    source, target = direction
    english = OUT_OF_ENGLISH if source == ENGLISH else INTO_ENGLISH if target == ENGLISH else WITHOUT_ENGLISH
    classes = resource_group(direction)
    return (ALL, english) if classes is None else (ALL, english, classes)


def resource_group(direction: Direction) -> str | None:
    """Return the published resource classes of source and target, as in `low → high`, if both have one."""
    found = [find_language(code) for code in direction]
    names = [_RESOURCES[each.resource] for each in found if each is not None and each.resource is not None]
    return " → ".join(names) if len(names) == 2 else None


def group_names(directions: Iterable[Direction]) -> tuple[str, ...]:
    """Return the groups that directions have, in the order to show them in."""
    found = {name for direction in directions for name in groups_of(direction)}
    fixed = [ALL, OUT_OF_ENGLISH, INTO_ENGLISH, WITHOUT_ENGLISH]
    pairs = [f"{source} → {target}" for source in _RESOURCES.values() for target in _RESOURCES.values()]
    return tuple(name for name in [*fixed, *pairs] if name in found)
