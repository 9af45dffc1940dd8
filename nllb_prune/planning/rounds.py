"""Pruning in rounds: a part of the experts goes, the rest is observed again without them (arXiv 2504.05586)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.masks import ExpertMask, MaskSet, union
from nllb_prune.model.spec import Stack
from nllb_prune.planning.budget import Counts
from nllb_prune.planning.members import language_of, mask_within
from nllb_prune.planning.plan import plan
from nllb_prune.planning.scopes import scope_named
from nllb_prune.planning.settings import BUDGETS
from nllb_prune.planning.sharing import Place

Observe = Callable[[MaskSet], ExpertStatistics]
"""Masks -> statistics of the model within them, collected as those of the full model were."""


def plan_in_rounds(statistics: ExpertStatistics, observe: Observe, *, rounds: int, **options: Any) -> MaskSet:
    """Choose the experts of each language in equal steps from all of them, or those of `within`, to the budget.

    What a round drops stays dropped. The paper drops one expert a layer each round; here their number is free. Each
    stack has equal steps of its own, each layer where `counts` are given, and each language of `overrides`. Scopes over
    the whole model have equal steps of the whole model, which they share as they do a budget; there the languages of
    `overrides` drop in the last round only. The steps of a union that has the budget of `each` language are theirs.

    Args:
        statistics: Of the full model, for the first round.
        observe: Gives those of the later rounds; directions without masks can be missing.
        rounds: How many; 1 is `plan`.
        options: Of `plan`.

    Raises:
        UsageError: if there is no round, if `divergence` compares with a language that has no mask to be observed
            within, or on what `plan` refuses.
    """
    if rounds < 1:
        raise UsageError(f"`rounds` must be 1 or more, but is {rounds} instead.")
    if rounds == 1:
        return plan(statistics, **options)
    options = _among_languages(options)
    steps = _Steps.of(statistics, options)
    asked: MaskSet | None = options.get("within")
    masks = asked
    for number in range(1, rounds):
        masks = plan(statistics, **steps.options(number, rounds) | {"within": masks})
        statistics = observe(masks)
    last = _last(statistics, options | {"within": masks}, steps.options(rounds - 1, rounds))
    record = {name: value for name, value in last.plan.items() if name != "within"}
    record |= {"budget": steps.budget} | ({} if asked is None else {"within": asked.signature})
    return replace(last, plan=record | {"rounds": rounds})


def _last(statistics: ExpertStatistics, options: Mapping[str, Any], step: Mapping[str, Any]) -> MaskSet:
    """Plan for the budget; where scores say how many experts fit its bytes, it can be all that the step before left."""
    if options.get("memory") is not None and scope_named(options.get("scope", "layer")).whole_model:
        left = {**step, "overrides": options.get("overrides"), "within": options["within"]}
        masks = plan(statistics, **left)
        if masks.plan["bytes"] <= options["memory"]:
            return masks
    return plan(statistics, **options)


def _among_languages(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that still hold when only directions between `languages` are observed."""
    if options.get("languages") is None or options.get("granularity") == "global":
        return dict(options)
    languages = tuple(options["languages"])
    reference = options.get("reference", "eng_Latn")
    if options.get("scope") == "divergence" and reference not in languages:
        raise UsageError(
            f"`reference` must be one of the languages of a plan in rounds ({', '.join(languages)}), but is "
            f"{reference} instead. Add it to them or compare with another."
        )
    overrides = {name: each for name, each in (options.get("overrides") or {}).items() if name in languages}
    return {**options, "languages": languages, "overrides": overrides}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Steps:
    """The way to a budget: what the layers of every mask start from, and what they shall keep."""

    asked: Mapping[str, Any]
    """The arguments of `plan`."""
    stacks: tuple[Stack, ...]
    start: Mapping[Place, Counts]
    goal: Mapping[Place, Counts]
    budget: Mapping[str, Any]
    """As it is recorded."""

    @classmethod
    def of(cls, statistics: ExpertStatistics, asked: Mapping[str, Any]) -> _Steps:
        """Plan for the budget at once: a budget that cannot be met is refused before anything is observed."""
        goal, together = plan(statistics, **asked), False
        if asked.get("granularity") == "union":
            together = asked.get("budget_for") == "union"
            goal = goal if together else plan(statistics, **{**asked, "granularity": "language"})
        start: dict[Place, Counts] = {}
        for stack in goal.stacks:
            left = {key: _left(asked.get("within"), stack, key) for key in goal.masks[stack.name]}
            left = dict.fromkeys(left, union(left.values())) if together and left else left
            start |= {(stack.name, key): _sizes(mask) for key, mask in left.items()}
        kept = {(stack, key): _sizes(mask) for stack, each in goal.masks.items() for key, mask in each.items()}
        return cls(asked=asked, stacks=goal.stacks, start=start, goal=kept, budget=goal.plan["budget"])

    def options(self, number: int, rounds: int) -> dict[str, Any]:
        """Return the arguments of `plan` for a round but the last."""

        def step(start: int, goal: int) -> int:
            return start - (start - goal) * number // rounds

        others = {name: value for name, value in self.asked.items() if name not in BUDGETS}
        if self.asked.get("counts") is not None:
            return others | {"counts": {stack.name: self._layers(stack, step) for stack in self.stacks}}
        return others | self._budget(step) | {"overrides": self._overrides(step)}

    def _layers(self, stack: Stack, step: Callable[[int, int], int]) -> Counts:
        steps = [tuple(map(step, self.start[place], self.goal[place])) for place in self._places(stack)]
        return tuple(map(min, zip(*steps, strict=True))) or (stack.experts,) * len(stack.layers)

    def _budget(self, step: Callable[[int, int], int]) -> dict[str, Any]:
        """Return the number of experts to keep; where stacks do not share it, their parts as the ratio."""
        if self._whole_model and (both := list(self._of_whole_model())):
            return {"kept": min(step(start, goal) for start, goal in both)}
        totals: dict[str, int] = {}
        for stack in self.stacks:
            free = [place for place in self._places(stack) if self._override(place) is None]
            steps = [step(sum(self.start[place]), sum(self.goal[place])) for place in free]
            totals[stack.name] = min(steps, default=stack.total)
        return {"kept": sum(totals.values()), "ratio": totals}

    def _of_whole_model(self) -> Iterator[tuple[int, int]]:
        """Yield start and goal of the keys that every stack has a mask for, none of them set by hand."""
        for key in dict.fromkeys(key for _, key in self.goal):
            places = [(stack.name, key) for stack in self.stacks]
            if all(place in self.goal and self._override(place) is None for place in places):
                yield (
                    sum(sum(self.start[place]) for place in places),
                    sum(sum(self.goal[place]) for place in places),
                )

    def _overrides(self, step: Callable[[int, int], int]) -> dict[str, dict[str, int]]:
        """Return counts on the way to those set by hand; over the whole model, where other masks would pay, none go."""
        found: dict[str, dict[str, int]] = {}
        for place, start in self.start.items():
            if (count := self._override(place)) is not None:
                by_stack = found.setdefault(self._language(place), {})
                left = min(start) if self._whole_model else step(min(start), count)
                by_stack[place[0]] = min(left, by_stack.get(place[0], left))
        return found

    @property
    def _whole_model(self) -> bool:
        return scope_named(self.asked.get("scope", "layer")).whole_model

    def _places(self, stack: Stack) -> list[Place]:
        return [place for place in self.goal if place[0] == stack.name]

    def _language(self, place: Place) -> str:
        return language_of(next(stack for stack in self.stacks if stack.name == place[0]), place[1])

    def _override(self, place: Place) -> int | None:
        overrides: Mapping[str, Mapping[str, int]] = self.asked.get("overrides") or {}
        return overrides.get(self._language(place), {}).get(place[0])


def _left(within: MaskSet | None, stack: Stack, key: str) -> ExpertMask:
    """Return the experts that a mask can keep."""
    if within is None:
        return (tuple(range(stack.experts)),) * len(stack.layers)
    return mask_within(within, stack, key)


def _sizes(mask: ExpertMask) -> Counts:
    return tuple(map(len, mask))
