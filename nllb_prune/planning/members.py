"""Which statistics make each mask."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from typing import Literal

from nllb_prune.calibration.statistics import ExpertStatistics, Table, position_classes
from nllb_prune.errors import UsageError
from nllb_prune.languages import split_direction
from nllb_prune.masks import GLOBAL_KEY, ExpertMask, MaskGranularity, MaskSet
from nllb_prune.model.spec import Stack

Aggregation = Literal["pooled", "mean-of-directions"]


def language_of(stack: Stack, key: str) -> str:
    """Return the language that a key is planned for: of a direction the side of the stack, or else the target."""
    if "-" not in key:
        return key
    source, target = split_direction(key)
    return source if stack.keyed_by == "source" else target


def mask_within(within: MaskSet, stack: Stack, key: str) -> ExpertMask:
    """Return the mask that a key is to be kept within: its own, that of its language, or the one for all.

    Raises:
        UsageError: if there is none of them.
    """
    by_key = within.masks[stack.name]
    for name in (key, language_of(stack, key), GLOBAL_KEY):
        if name in by_key:
            return by_key[name]
    raise UsageError(f"`within` must have a mask for {stack.name}/{key}, but has those of {', '.join(by_key)} instead.")


def languages_of(statistics: ExpertStatistics) -> set[str]:
    """Return the languages that have statistics in any stack."""
    return {language for _, key in statistics.tables for language in key.split("-")}


def check_languages(languages: Collection[str], statistics: ExpertStatistics) -> None:
    """Refuse languages without statistics, and an empty choice.

    Raises:
        UsageError: naming them.
    """
    known = languages_of(statistics)
    if unknown := [name for name in languages if name not in known]:
        raise UsageError(
            f"`languages` must have statistics ({', '.join(sorted(known))}), but {', '.join(unknown)} "
            f"{'has' if len(unknown) == 1 else 'have'} none. Calibrate and merge."
        )
    if not languages:
        raise UsageError("`languages` must be one or more languages, but is empty instead.")


def members(
    statistics: ExpertStatistics, stack: Stack, granularity: MaskGranularity, languages: Collection[str] | None = None
) -> dict[str, tuple[str, ...]]:
    """Return the keys of the statistics that make each mask of a stack.

    Args:
        statistics: of the model.
        stack: one of its stacks.
        granularity: what a mask is for.
        languages: only these: keys of other languages make no mask, and no part of a global one.
    """
    keys = statistics.keys(stack.name)
    if granularity == "global":
        wanted = [key for key in keys if languages is None or language_of(stack, key) in languages]
        return {GLOBAL_KEY: tuple(wanted)}
    if granularity == "language" and statistics.granularity == "pair":
        groups = statistics.directions(stack.name)
    else:
        groups = {key: (key,) for key in keys}
    return {key: each for key, each in groups.items() if languages is None or set(key.split("-")) <= set(languages)}


def by_language(statistics: ExpertStatistics, stack: Stack) -> dict[str, tuple[str, ...]]:
    """Return the keys of the statistics of each language on the side that the stack is keyed by."""
    groups: dict[str, list[str]] = {}
    for key in statistics.keys(stack.name):
        groups.setdefault(language_of(stack, key), []).append(key)
    return {language: tuple(groups[language]) for language in sorted(groups)}


def tables_of(
    statistics: ExpertStatistics,
    stack: Stack,
    keys: Iterable[str],
    *,
    aggregation: Aggregation,
    name: str,
    position: str = "all",
) -> Sequence[Table]:
    """Return the tables of a mask: one that adds up its keys, or one a key to average over.

    Args:
        statistics: of the model.
        stack: one of its stacks.
        keys: of the statistics.
        aggregation: how keys make a mask.
        name: what to call the mask in messages.
        position: class in which each table must have tokens.

    Raises:
        UsageError: if a table has none.
    """
    tables = [statistics.table(stack.name, key) for key in keys]
    if len(tables) > 1 and aggregation == "pooled":
        tables = [statistics.pooled(stack.name, keys)]
    index = position_classes(stack).index(position)
    if not tables or not all(table["tokens"][index] for table in tables):
        where = "" if position == "all" else f" at positions of the class {position}"
        raise UsageError(f"`statistics` must have tokens for {stack.name}/{name}{where}, but have none.")
    return tables
