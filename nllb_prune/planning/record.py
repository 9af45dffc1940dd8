"""What a plan says of itself, as JSON values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.masks import ExpertMask
from nllb_prune.model.spec import ParameterCounts
from nllb_prune.planning.selection import BoolArray
from nllb_prune.planning.sharing import largest_direction

Masks = Mapping[str, Mapping[str, ExpertMask]]
"""By stack and key."""


def counts(masks: Masks, total: int) -> dict[str, Any]:
    """Return the experts of each layer by stack, or by stack and key where they differ; and those of a direction."""
    by_key = {stack: {key: [len(ids) for ids in mask] for key, mask in each.items()} for stack, each in masks.items()}
    found: dict[str, Any] = {}
    for stack, each in by_key.items():
        different = {tuple(layers) for layers in each.values()}
        found[stack] = list(different.pop()) if len(different) == 1 else each
    alike = all(isinstance(each, list) for each in found.values())
    return {"counts": found, "kept_experts": sum(map(sum, found.values())) if alike else total}


def size(masks: Masks, parameters: ParameterCounts | None, dtype: str, *, by_side: bool) -> dict[str, Any]:
    """Return the bytes of the weights of the largest direction, if parameter counts are known."""
    if parameters is None:
        return {}
    sizes = {(stack, key): sum(map(len, mask)) for stack, each in masks.items() for key, mask in each.items()}
    return {"bytes": largest_direction(sizes, parameters, dtype, by_side=by_side), "dtype": dtype}


def spread(masks: Masks, total: int) -> list[str]:
    """Say what directions keep when the budget is of a language's own two masks."""
    sizes = [[sum(map(len, mask)) for mask in each.values()] for each in masks.values() if each]
    low, high = sum(map(min, sizes)), sum(map(max, sizes))
    if low == high:
        return []
    return [f"Both masks of a language keep {total} experts together; two of different languages {low} to {high}."]


def protection(at_end: int, super_experts: Mapping[str, BoolArray]) -> dict[str, Any]:
    """Return what was protected: how many experts at `end` positions, and the super experts of each layer."""
    protected: dict[str, Any] = {"end": at_end} if at_end else {}
    if super_experts:
        found = {stack: [np.flatnonzero(layer).tolist() for layer in each] for stack, each in super_experts.items()}
        protected["super"] = found
    return {"protected": protected} if protected else {}


def statistics(made_of: ExpertStatistics) -> dict[str, Any]:
    """Return what the plan was made of."""
    return {
        "digest": made_of.digest(),
        "granularity": made_of.granularity,
        "items": len(made_of.items),
        "signature": dict(made_of.signature),
    }
