"""What cures over-generation per expert spent: a bad plan gets experts in several ways, and is measured after each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from nllb_prune import ExpertStatistics, MaskSet, plan
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.planning.measured.measure import mean_figures, only
from nllb_prune.planning.planner import Planner
from nllb_prune.planning.settings import Settings

from .plans import Remembering

KEPT, RATIO = 0.125, "3:1"
"""The plan to cure."""
ADDED = (6, 12, 24, 36)
"""Experts added to each mask that is treated."""

Add = Callable[[str, int], ExpertMask]
"""Key of a mask and a number -> the mask with so many more."""


def cures(statistics: ExpertStatistics, measure: Remembering) -> dict[str, Any]:
    """Return the figures of the plan, of each of its stacks alone, and of every cure at every dose."""
    start = plan(statistics, kept=KEPT, ratio=RATIO)
    found: dict[str, Any] = {
        "start": _figures(start, measure),
        "alone": {stack.name: _figures(only(start, stack.name), measure) for stack in start.stacks},
        "cures": {},
    }
    for name, stack, add in _ways(statistics, start):
        masks = {number: _with(start, stack, add, number) for number in ADDED}
        found["cures"][name] = [{"added": number, **_figures(each, measure)} for number, each in masks.items()]
    return found


def _ways(statistics: ExpertStatistics, start: MaskSet) -> Iterator[tuple[str, str, Add]]:
    settings = Settings(kept=KEPT, ratio=RATIO)
    orders = Planner(statistics, settings).orders()
    ends = Planner(statistics, replace(settings, protect_end=start.stacks[0].experts)).orders()

    def in_order(stack: str, by: Mapping[Any, list[list[int]]], layers: tuple[int, ...]) -> Add:
        def add(key: str, number: int) -> ExpertMask:
            mask = start.masks[stack][key]
            each = {layer: number // len(layers) for layer in layers}
            return tuple(_more(ids, by[stack, key][layer], each.get(layer, 0)) for layer, ids in enumerate(mask))

        return add

    for stack in start.stacks:
        every = tuple(range(len(stack.layers)))
        yield f"{stack.name}, next by importance", stack.name, in_order(stack.name, orders, every)
        if stack.name == "decoder":
            yield "decoder, most used at the end", stack.name, in_order(stack.name, ends, every)
            for layer in every:
                where = f"decoder, layer {stack.layers[layer]} alone"
                yield where, stack.name, in_order(stack.name, orders, (layer,))


def _more(ids: tuple[int, ...], order: list[int], number: int) -> tuple[int, ...]:
    return tuple(sorted([*ids, *[each for each in order if each not in ids][:number]]))


def _with(masks: MaskSet, stack: str, add: Add, number: int) -> MaskSet:
    return replace(masks, masks={**masks.masks, stack: {key: add(key, number) for key in masks.masks[stack]}})


def _figures(masks: MaskSet, measure: Remembering) -> dict[str, Any]:
    """Return mean figures over all directions, and over those into English."""
    losses, translated = (ask(masks, measure.directions) for ask in (measure.losses, measure.translations))
    both = {direction: {**losses[direction], **translated[direction]} for direction in measure.directions}
    english = [figures for (_, target), figures in both.items() if target == "eng_Latn"]
    return {"all": _rounded(mean_figures(both.values())), "into English": _rounded(mean_figures(english))}


def _rounded(figures: Mapping[str, float]) -> dict[str, float]:
    return {name: float(np.round(value, 5)) for name, value in figures.items()}
