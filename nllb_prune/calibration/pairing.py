"""Which lines of which directions calibrate a model: all of them, or so many a target spread over the sources."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction

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
