"""The automatic ratio: how a budget is shared between encoder and decoder, found by token loss on held-out text."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sized
from dataclasses import dataclass
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Stack
from nllb_prune.planning.measured.measure import Measure, covered, mean_figures, rounded

FIRST = (1 / 8, 5 / 16, 1 / 2, 11 / 16, 7 / 8)
"""Shares of the first stack that are always measured."""
REFINED = (3 / 32, 3 / 64)
"""Steps to both sides of the best share so far."""
MEASURES = len(FIRST) + 2 * len(REFINED)
"""The most that a search takes."""

PlanWith = Callable[[Mapping[str, float]], MaskSet | None]
"""Weights of the stacks -> masks under the budget, if there are enough experts to choose from."""


@dataclass(frozen=True, slots=True)
class Point:
    """One share and what it costs."""

    share: float
    """Of the first stack."""
    masks: MaskSet
    loss: float
    """Mean change of token loss over directions, nats."""
    worst: tuple[float, str]
    """The largest of a direction, and which."""

    def to_json(self) -> dict[str, Any]:
        """Return the record."""
        counts = {stack: mean_size(self.masks, stack) for stack in self.masks.masks}
        return {
            "experts": counts,
            "loss_change": rounded(self.loss),
            "worst": {"direction": self.worst[1], "loss_change": rounded(self.worst[0])},
        }


def search_ratio(plan_with: PlanWith, measure: Measure, stacks: tuple[Stack, ...]) -> tuple[MaskSet, dict[str, Any]]:
    """Return the masks of the share with the lowest loss, and the record of the search; ties go to the lower share.

    Five shares spread over the range, then two steps to both sides of the best, each half of the one before: nine
    measures at most, and the share to within 3/64.

    Raises:
        UsageError: if there are not two stacks to share.
    """
    check_two(stacks)
    points: dict[float, Point] = {}

    def at(share: float) -> None:
        if share not in points and 0 < share < 1:
            masks = plan_with(dict(zip((stack.name for stack in stacks), (share, 1 - share), strict=True)))
            if masks is None:
                return
            same = next((each for each in points.values() if each.masks.masks == masks.masks), None)
            points[share] = _point(share, masks, measure) if same is None else same

    for share in FIRST:
        at(share)
    check_any(points)
    for step in REFINED:
        best = _best(points)
        at(best.share - step)
        at(best.share + step)
    curve = list({id(point): point for _, point in sorted(points.items())}.values())
    best = _best(points)
    found = {"measures": len(curve), "curve": [point.to_json() for point in curve], "chosen": best.to_json()["experts"]}
    return best.masks, found


def check_two(stacks: tuple[Stack, ...]) -> None:
    """Refuse a model without two stacks.

    Raises:
        UsageError: naming those it has.
    """
    if len(stacks) != 2:
        names = " and ".join(stack.name for stack in stacks)
        raise UsageError(f"`ratio` must be left out for a model with the sparse stack {names} alone, but is auto.")


def check_any(possible: Sized) -> None:
    """Refuse a search without a share that can be planned.

    Raises:
        UsageError: if there is none.
    """
    if not possible:
        raise UsageError("`within` must leave enough experts for a ratio to be found, but leaves too few for any.")


def _point(share: float, masks: MaskSet, measure: Measure) -> Point:
    readings = measure.losses(masks, covered(masks, measure))
    worst = max((figures["loss_change"], "-".join(direction)) for direction, figures in readings.items())
    return Point(share, masks, mean_figures(readings.values())["loss_change"], worst)


def _best(points: Mapping[float, Point]) -> Point:
    return min(points.values(), key=lambda point: (point.loss, point.share))


def mean_size(masks: MaskSet, stack: str) -> float:
    """Return how many experts a mask of the stack keeps on average."""
    sizes = [sum(map(len, mask)) for mask in masks.masks[stack].values()]
    return rounded(sum(sizes) / len(sizes))
