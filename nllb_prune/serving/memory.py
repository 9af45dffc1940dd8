"""How much of the memory goes to what: dense weights, slots for experts, and what sentences in flight need.

The rule: the dense weights and the routers are always there; what sentences in flight need is reserved; slots take the
rest, up to one for every expert that any language uses. The stacks whose experts a sentence needs until it is finished
come first, until they hold four languages: sentences of others wait for that room the longest. What is left brings each
layer the same part of the way to a slot for each expert.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask, size, union
from nllb_prune.planning.memory import show_bytes
from nllb_prune.serving.residency import Side, side_name

_LANGUAGES = 4
"""Of the largest size, that stacks of `Needs.staying` hold before others get more than one."""

Counts = dict[str, tuple[int, ...]]
"""Experts or slots of each sparse layer, by stack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryPlan:
    """What the memory is divided into, in bytes."""

    fixed: int
    """Dense weights, routers and tables."""
    experts: int
    """Of all slots."""
    working: int | None
    """For caches and workspace of the sentences in flight; `None` if there is no bound."""
    slots: Counts
    paged: bool
    """Whether some languages' experts must leave for others'."""

    @property
    def total(self) -> int | None:
        """All of it; `None` if there is no bound."""
        return None if self.working is None else self.fixed + self.experts + self.working


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a model and its languages need, in bytes where nothing else is said."""

    fixed: int
    expert: Mapping[str, int]
    """One expert, by stack."""
    least: Counts
    """Experts of the largest single side, and of all that is pinned, by layer."""
    most: Counts
    """Experts of all sides together."""
    least_working: int
    """For one sentence of the greatest length alone."""
    usual_working: int
    """For a batch of usual sentences."""
    staying: frozenset[str]
    """Stacks whose experts a sentence needs until it is finished."""
    largest: tuple[Side, ...]
    """The side of each stack that has the most experts."""

    @property
    def minimum(self) -> int:
        """What there must be at least."""
        return self.fixed + self.experts(self.least) + self.least_working

    def experts(self, counts: Counts) -> int:
        """Return the bytes of so many experts."""
        return sum(self.expert[stack] * sum(layers) for stack, layers in counts.items())


def counts_of(masks: Mapping[Side, ExpertMask], pinned: Collection[Side] = ()) -> tuple[Counts, Counts]:
    """Return how many experts each layer must be able to hold, and how many all sides have together."""
    least: Counts = {}
    most: Counts = {}
    for stack in dict.fromkeys(side[0] for side in masks):
        sides = {side: mask for side, mask in masks.items() if side[0] == stack}
        fixed = [sides[side] for side in sides if side in pinned]
        each = [list(map(len, union([mask, *fixed]))) for mask in sides.values()]
        least[stack] = tuple(map(max, zip(*each, strict=True)))
        most[stack] = tuple(map(len, union(sides.values())))
    return least, most


def largest_sides(masks: Mapping[Side, ExpertMask]) -> tuple[Side, ...]:
    """Return the side of each stack that has the most experts."""
    stacks = dict.fromkeys(side[0] for side in masks)
    return tuple(
        max((side for side in masks if side[0] == stack), key=lambda side: size(masks[side])) for stack in stacks
    )


def plan_memory(needs: Needs, memory: int | None) -> MemoryPlan:
    """Divide the memory.

    Args:
        needs: Of the model and its languages.
        memory: Bytes for all of it; `None` for as much as it takes to hold every expert, and no bound on the rest.

    Raises:
        UsageError: if it is too little for some language, with what that needs.
    """
    if memory is None:
        return MemoryPlan(
            fixed=needs.fixed, experts=needs.experts(needs.most), working=None, slots=needs.most, paged=False
        )
    spare = memory - needs.minimum
    if spare < 0:
        raise _too_little(needs, memory)
    reserve = needs.least_working + min(spare // 2, max(0, needs.usual_working - needs.least_working))
    slots = _slots(needs, memory - needs.fixed - reserve)
    experts = needs.experts(slots)
    working = memory - needs.fixed - experts
    return MemoryPlan(fixed=needs.fixed, experts=experts, working=working, slots=slots, paged=slots != needs.most)


def _slots(needs: Needs, memory: int) -> Counts:
    """Return the slots that fit."""
    several = {
        stack: tuple(min(_LANGUAGES * low, high) for low, high in zip(least, needs.most[stack], strict=True))
        for stack, least in needs.least.items()
        if stack in needs.staying
    }
    first = _between(needs, needs.least, {**needs.least, **several}, memory)
    return _between(needs, first, needs.most, memory)


def _between(needs: Needs, low: Counts, high: Counts, memory: int) -> Counts:
    """Return what fits between two counts: each layer goes the same part of the way from one to the other."""
    least, most = needs.experts(low), needs.experts(high)
    done, whole = max(0, min(memory, most) - least), max(1, most - least)
    return {
        stack: tuple(a + (b - a) * done // whole for a, b in zip(low[stack], high[stack], strict=True)) for stack in low
    }


def _too_little(needs: Needs, memory: int) -> UsageError:
    names = " and ".join(side_name(side) for side in needs.largest)
    return UsageError(
        f"`memory` must be {show_bytes(needs.minimum)} or more: {show_bytes(needs.fixed)} of dense weights, "
        f"{show_bytes(needs.experts(needs.least))} for {names or 'no experts'}, and {show_bytes(needs.least_working)} "
        f"for the longest sentence; but is {show_bytes(memory)} instead. Leave languages out, plan smaller masks, or "
        "give a smaller dtype, fewer beams or shorter sentences."
    )
