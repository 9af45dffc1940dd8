"""Sharing: a budget gives the counts of every mask, and bytes give the budget."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from nllb_prune.model.spec import ParameterCounts, Stack
from nllb_prune.planning.budget import Counts, stack_totals
from nllb_prune.planning.candidates import Candidates
from nllb_prune.planning.evidence import FloatArray
from nllb_prune.planning.memory import weight_bytes
from nllb_prune.planning.scopes import fill

Place = tuple[str, str]
"""A mask: the name of its stack and its key."""


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """Shares budgets among the layers of every mask."""

    stacks: Sequence[Stack]
    drafts: Mapping[Place, Candidates]
    weights: Mapping[str, float]
    """Of each stack, where each has its own budget or a language has only one of them."""
    minimum: int
    whole_model: bool
    """Whether the masks of all stacks with the same key share one budget."""
    by_side: bool
    """Whether a direction takes the masks of two keys, one a stack, instead of one key."""
    fixed: Mapping[Place, Counts]
    """Counts that no budget changes."""

    def counts(self, total: int) -> dict[Place, Counts]:
        """Return how many experts each layer of each mask keeps when a direction is to keep so many.

        Masks of one stack each have the total of their stack. Over the whole model, masks of one key have the total
        together: an encoder's belong to a source and a decoder's to a target, so it is exact for a language's own two;
        a language that only one stack has statistics of gets that stack's part, by weight.
        """
        totals = self.totals(total)
        found: dict[Place, Counts] = {}
        for unit in self._units:
            filled = fill([self._slots[place] for place in unit], sum(totals[stack] for stack, _ in unit))
            found |= zip(unit, filled, strict=True)
        return {**found, **self.fixed}

    def counts_of(self, place: Place, total: int) -> Counts:
        """Return how many experts each layer of one mask keeps when it has so many in all, unless its are fixed."""
        return self.fixed[place] if place in self.fixed else fill([self._slots[place]], total)[0]

    def bytes_of(self, total: int, *, parameters: ParameterCounts, dtype: str) -> int:
        """Return the bytes of the largest direction when each is to keep so many."""
        return largest_direction(self._sizes(total), parameters, dtype, by_side=self.by_side)

    def _sizes(self, total: int) -> dict[Place, int]:
        if self.whole_model:
            return {place: sum(counts) for place, counts in self.counts(total).items()}
        totals = self.totals(total)
        return {place: totals[place[0]] for place in self.drafts} | {p: sum(c) for p, c in self.fixed.items()}

    def totals(self, total: int) -> dict[str, int]:
        """Return how many experts the masks of each stack keep, but those with fixed counts."""
        return stack_totals(self.stacks, total, weights=self.weights, minimum=self.minimum)

    @cached_property
    def _units(self) -> list[list[Place]]:
        """Masks that share a budget; a mask with fixed counts still takes part, so the others do not change."""
        if not self.whole_model:
            return [[place] for place in self.drafts]
        units: dict[str, list[Place]] = {}
        for place in self.drafts:
            units.setdefault(place[1], []).append(place)
        return list(units.values())

    @cached_property
    def _slots(self) -> dict[Place, FloatArray]:
        return {place: each.slots(self.minimum) for place, each in self.drafts.items()}


def largest_direction(sizes: Mapping[Place, int], parameters: ParameterCounts, dtype: str, *, by_side: bool) -> int:
    """Return the bytes of the largest direction, from the experts of each mask."""
    largest: dict[str, dict[str, int]] = {}  # by stacks that are chosen together
    for (stack, key), size in sizes.items():
        group = largest.setdefault("" if by_side else key, {})
        group[stack] = max(size, group.get(stack, 0))
    return max((weight_bytes(parameters, group, dtype) for group in largest.values()), default=0)
