"""How many measures decisions take, told before the first."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from nllb_prune.masks import MaskSet
from nllb_prune.planning.measured import language_ratio, layers, ratio

if TYPE_CHECKING:
    from nllb_prune.planning.measured.measured_plan import Decisions

Span = tuple[int, int]
"""The fewest, and the most."""


def estimate(decisions: Decisions, masks: MaskSet, *, reserve: int, step: int) -> Span:
    """Return how many measures of all directions are to come, if the guard adds to all masks at once.

    Args:
        decisions: What is left to the measure.
        masks: As planned.
        reserve: Experts that a direction may get.
        step: Experts that a mask grows by at once, at least.
    """
    spans = [_of_ratio(decisions), _of_layers(decisions, masks)]
    if decisions.guard:
        stages = (len(masks.stacks) if len(masks.stacks) > 1 else 0) + 2
        spans.append((stages, 2 * stages + math.ceil(reserve / max(1, step))))
    return sum(low for low, _ in spans), sum(high for _, high in spans)


def _of_ratio(decisions: Decisions) -> Span:
    if decisions.ratio == "auto":
        return len(ratio.FIRST), ratio.MEASURES
    return (language_ratio.MEASURES,) * 2 if decisions.ratio else (0, 0)


def _of_layers(decisions: Decisions, masks: MaskSet) -> Span:
    if decisions.layers is None:
        return 0, 0
    count = sum(len(stack.layers) for stack in masks.stacks)
    return layers.most_measures(count, rounds=1), layers.most_measures(count)
