"""Pruning in rounds: a part of the experts goes, the rest is observed again without them (arXiv 2504.05586)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.planning.plan import plan
from nllb_prune.planning.settings import BUDGETS

Observe = Callable[[MaskSet], ExpertStatistics]
"""Masks -> statistics of the model within them, collected as those of the full model were."""


def plan_in_rounds(statistics: ExpertStatistics, observe: Observe, *, rounds: int, **options: Any) -> MaskSet:
    """Choose the experts of each language in equal steps from all of them to the budget.

    What a round drops stays dropped. The paper drops one expert a layer each round; here their number is free.

    Args:
        statistics: Of the full model, for the first round.
        observe: Gives those of the later rounds.
        rounds: How many; 1 is `plan`.
        options: Of `plan`.

    Raises:
        UsageError: if there is no round, or on what `plan` refuses.
    """
    if rounds < 1:
        raise UsageError(f"`rounds` must be 1 or more, but is {rounds} instead.")
    everything = statistics.spec.experts
    goal = int(plan(statistics, **options).plan["kept_experts"])
    others = {name: value for name, value in options.items() if name not in BUDGETS}
    masks: MaskSet | None = options.get("within")
    for number in range(1, rounds):
        step = everything - (everything - goal) * number // rounds
        masks = plan(statistics, **others | {"kept": step, "within": masks})
        statistics = observe(masks)
    return plan(statistics, **options | {"within": masks})
