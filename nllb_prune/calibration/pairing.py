"""Which lines of which directions calibrate a model: all of them, or so many a target spread over the sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.result_files import settings_digest

LEAST = 48
"""Lines of a direction, at least, when a target's are spread: fewer would make small batches and many files."""


@dataclass(frozen=True, slots=True)
class Lines:
    """Lines of one direction: every `step`-th from `first`, before `end`."""

    direction: Direction
    first: int
    step: int
    end: int

    @property
    def id(self) -> str:
        """Name of the item of work."""
        return "-".join(self.direction)

    def of(self, lines: Sequence[str]) -> list[str]:
        """Choose from the lines of a language."""
        return list(lines[self.first : self.end : self.step])


def every_line(directions: Sequence[Direction], *, lines: int) -> list[Lines]:
    """Return all lines of every direction."""
    return [Lines(direction, 0, 1, lines) for direction in directions]


def spread(directions: Sequence[Direction], *, lines: int, per_target: int | None = None) -> list[Lines]:
    """Spread the first lines of each target over its sources, each line once, neighbours to different sources.

    Sources are taken round a ring that starts elsewhere for each target, so that every source is used about as often;
    each gets `LEAST` lines or more, where a target has that many. The directions that come of it, spread again, come of
    it with the same lines.

    Args:
        directions: Those that may be used.
        lines: Lines of the text.
        per_target: Lines of each target; all by default.

    Raises:
        UsageError: if there are fewer lines than asked for.
    """
    count = lines if per_target is None else per_target
    if not 1 <= count <= lines:
        raise UsageError(f"`pairs_per_target` must be 1 to {lines}, the lines of the text, but is {count} instead.")
    chosen: list[Lines] = []
    for target, sources in ring(directions, max(1, count // LEAST)).items():
        chosen += [Lines((source, target), first, len(sources), count) for first, source in enumerate(sources)]
    return chosen


def ring(directions: Sequence[Direction], most: int) -> dict[str, list[str]]:
    """Return so many sources of each target, at most, taken round a ring so that all are used about as often."""
    chosen = {}
    for turn, target in enumerate(sorted({target for _, target in directions})):
        sources = sorted({source for source, into in directions if into == target})
        used = min(len(sources), most)
        chosen[target] = sorted(sources[(turn + place * len(sources) // used) % len(sources)] for place in range(used))
    return chosen


def chosen_lines(
    directions: Sequence[Direction], lines: int, pairs_per_target: int | Literal["all"] | None
) -> Sequence[Lines]:
    """Return all lines of every direction, or so many a target spread over its sources."""
    if pairs_per_target is None:
        return every_line(directions, lines=lines)
    return spread(directions, lines=lines, per_target=None if pairs_per_target == "all" else pairs_per_target)


def spread_digest(items: Sequence[Lines]) -> str:
    """Return what tells one spread from another: a short hash of the lines of all its directions."""
    return settings_digest({item.id: [item.first, item.step, item.end] for item in items})


def sharded(items: Sequence[Lines], shard: tuple[int, int]) -> Sequence[Lines]:
    """Return the share of a shard.

    Raises:
        UsageError: if there is no such shard, or none for each.
    """
    number, count = shard
    if not 0 <= number < count:
        raise UsageError(f"`shard` must be 0 to {count - 1} of {count}, but is {number} instead.")
    if count > len(items):
        raise UsageError(f"`shard` must be of {len(items)} at most, one direction each, but is of {count} instead.")
    return items[number::count]
