"""A ratio for each language: the masks that it has as a source and as a target share one budget."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np

from nllb_prune.expert_mask import size
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Stack
from nllb_prune.planning.measured.measure import Measure, Readings, covered, mean_figures, only, rounded
from nllb_prune.planning.measured.ratio import PlanWith, check_any, check_two, mean_size
from nllb_prune.planning.sharing import Place

SHARES = (1 / 32, 1 / 8, 5 / 16, 1 / 2, 11 / 16, 7 / 8)
"""Of the first stack."""
MEASURES = 2 * len(SHARES) + 2
"""That a search takes: each share with all experts in one stack and in the other, and the two ways to share at last."""

_LEAST = 1e-5  # nats: losses below are alike

Totals = Mapping[Place, int]
"""Experts of each mask."""
PlanTotals = Callable[[Totals], MaskSet]
"""Experts of each mask -> masks."""


def search_language_ratios(
    plan_with: PlanWith,
    plan_totals: PlanTotals,
    measure: Measure,
    stacks: tuple[Stack, ...],
    *,
    fixed: Collection[Place] = (),
) -> tuple[MaskSet, dict[str, Any]]:
    """Return masks in which each language shares its budget its own way, and the record of the search.

    What pruning one stack costs is measured with all experts in the other, for all languages at once; a language's own
    best share has the lowest sum of the two. The result is compared with the best share for all, and the better kept.
    Languages with a mask in `fixed` keep the share for all.

    Raises:
        UsageError: if there are not two stacks to share.
    """
    check_two(stacks)
    names = tuple(stack.name for stack in stacks)
    planned = (plan_with(dict(zip(names, (share, 1 - share), strict=True))) for share in SHARES)
    grid = [masks for masks in planned if masks is not None]
    check_any(grid)
    curves = [_curves(masks, measure, names) for masks in grid]
    shared = min(range(len(grid)), key=lambda n: (sum(loss for _, loss in curves[n].values()), n))
    totals, told = _own_totals(curves, names, grid[shared], fixed)
    own = plan_totals(totals)
    losses = {name: _loss(masks, measure) for name, masks in (("shared", grid[shared]), ("per_language", own))}
    better = own if losses["per_language"] < losses["shared"] else grid[shared]
    found = {
        "measures": 2 * len(grid) + 2,
        "curve": [_told(masks, curve, names) for masks, curve in zip(grid, curves, strict=True)],
        "shared": {name: mean_size(grid[shared], name) for name in names},
        "loss_change": {name: rounded(loss) for name, loss in losses.items()},
        "chosen": "per_language" if better is own else "shared",
        "languages": told,
    }
    return better, found


Curve = Mapping[Place, tuple[int, float]]
"""How many experts each mask keeps and what that costs, at one share."""


def _told(masks: MaskSet, curve: Curve, names: Sequence[str]) -> dict[str, Any]:
    """Return the record of one share: what pruning each stack alone costs on average over its masks."""
    costs = {name: [loss for (stack, _), (_, loss) in curve.items() if stack == name] for name in names}
    return {
        "experts": {name: mean_size(masks, name) for name in names},
        "alone": {name: rounded(sum(each) / len(each)) for name, each in costs.items()},
    }


def _curves(masks: MaskSet, measure: Measure, names: Sequence[str]) -> Curve:
    found = {}
    for stack in names:
        readings = measure.losses(only(masks, stack), covered(masks, measure))
        for key, loss in losses_by_key(masks, stack, readings).items():
            found[stack, key] = (size(masks.masks[stack][key]), loss)
    return found


def losses_by_key(masks: MaskSet, stack: str, readings: Readings) -> dict[str, float]:
    """Return the change of token loss of each mask of a stack: the mean over the directions that use it."""
    using: dict[str, list[Mapping[str, float]]] = {}
    for direction, figures in readings.items():
        using.setdefault(masks.key(stack, *direction), []).append(figures)
    return {key: mean_figures(each)["loss_change"] for key, each in using.items()}


def _own_totals(
    curves: Sequence[Curve], names: tuple[str, ...], shared: MaskSet, fixed: Collection[Place]
) -> tuple[dict[Place, int], dict[str, Any]]:
    """Return the experts of every mask, and what was found for each language that has both."""
    first, second = names
    totals = {(stack, key): size(mask) for stack, each in shared.masks.items() for key, mask in each.items()}
    told = {}
    free = {place for place in curves[0] if place not in fixed}
    for key in sorted(key for stack, key in free if stack == first and (second, key) in free):
        whole = totals[first, key] + totals[second, key]
        sides = [sorted({curve[stack, key] for curve in curves}) for stack in names]
        possible = range(max(sides[0][0][0], whole - sides[1][-1][0]), min(sides[0][-1][0], whole - sides[1][0][0]) + 1)
        losses = _interpolated(sides[0], possible) + _interpolated(sides[1], [whole - each for each in possible])
        best = int(losses.argmin())
        totals[first, key], totals[second, key] = possible[best], whole - possible[best]
        told[key] = {
            first: possible[best],
            second: whole - possible[best],
            "expected_loss_change": rounded(losses[best]),
        }
    return totals, told


def _interpolated(points: Sequence[tuple[int, float]], counts: Sequence[int]) -> np.ndarray:
    """Return losses between measured ones, whose logarithms are taken to run straight; they never rise with experts."""
    sizes = [experts for experts, _ in points]
    falling = np.minimum.accumulate([max(loss, _LEAST) for _, loss in points])
    return np.asarray(np.exp(np.interp(list(counts), sizes, np.log(falling))))


def _loss(masks: MaskSet, measure: Measure) -> float:
    return mean_figures(measure.losses(masks, covered(masks, measure)).values())["loss_change"]
