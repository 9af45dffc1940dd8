"""`Measure`: what planning asks of a model, injected so that planning needs none."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.planning.sharing import Place

Figures = Mapping[str, float]
"""Figures of a masked model against the full one, by name; above 0 is a change for the worse, but of a length."""
Readings = Mapping[Direction, Figures]


class Measure(Protocol):
    """Compares a masked model with the full one on held-out text."""

    @property
    def directions(self) -> Sequence[Direction]:
        """Those that it has text of."""

    @property
    def signature(self) -> Mapping[str, Any]:
        """What it measures on, as JSON values."""

    def losses(self, masks: MaskSet, directions: Sequence[Direction]) -> Readings:
        """Return `loss_change`, `end_loss_change`, `early_change` and `late_change`, teacher-forced."""

    def translations(self, masks: MaskSet, directions: Sequence[Direction]) -> Readings:
        """Return `length_change`, `runaway_change` and `detached_change`, of translations."""


Told = Callable[[str, int], None]
"""Is told of every measure before it is made: what for, and of how many directions."""


@dataclass(slots=True)
class Meter:
    """A measure that counts what it was asked, and tells."""

    measure: Measure
    told: Told | None = None
    stage: str = ""
    """What is measured now."""
    calls: int = 0
    passes: int = 0
    """Directions measured, over all calls."""

    @property
    def directions(self) -> Sequence[Direction]:
        """Those of the measure."""
        return self.measure.directions

    @property
    def signature(self) -> Mapping[str, Any]:
        """That of the measure."""
        return self.measure.signature

    def losses(self, masks: MaskSet, directions: Sequence[Direction]) -> Readings:
        """Ask for losses.

        Raises:
            UsageError: if one is no number, as of a model that overflows.
        """
        self._count(directions)
        readings = self.measure.losses(masks, directions)
        for direction, figures in readings.items():
            if not math.isfinite(figures["loss_change"]):
                raise UsageError(
                    f"`measure` must give finite losses, but that of {'-'.join(direction)} is "
                    f"{figures['loss_change']} instead. Try float32, or look for lines without text."
                )
        return readings

    def translations(self, masks: MaskSet, directions: Sequence[Direction]) -> Readings:
        """Ask for translations."""
        self._count(directions)
        return self.measure.translations(masks, directions)

    def _count(self, directions: Sequence[Direction]) -> None:
        self.calls, self.passes = self.calls + 1, self.passes + len(directions)
        if self.told is not None:
            self.told(self.stage, len(directions))


def covered(masks: MaskSet, measure: Measure) -> tuple[Direction, ...]:
    """Return the directions that are measured and have masks.

    Raises:
        UsageError: if there are none.
    """
    found = tuple(direction for direction in measure.directions if masks.covers(*direction))
    if not found:
        measured = ", ".join("-".join(each) for each in measure.directions) or "none"
        raise UsageError(f"`measure` must have a direction that the masks have, but has only {measured}.")
    return found


def only(masks: MaskSet, stack: str) -> MaskSet:
    """Return masks of one stack alone: in the others every expert is kept."""
    full = {each.name: (tuple(range(each.experts)),) * len(each.layers) for each in masks.stacks if each.name != stack}
    others = {name: dict.fromkeys(masks.masks[name], mask) for name, mask in full.items()}
    return replace(masks, masks={**masks.masks, **others})


def places_of(masks: MaskSet, direction: Direction) -> tuple[Place, ...]:
    """Return the masks that a direction uses, in the order of the stacks."""
    return tuple((stack.name, masks.key(stack.name, *direction)) for stack in masks.stacks)


def mean_figures(readings: Iterable[Figures]) -> dict[str, float]:
    """Return the mean of each figure over the readings, there must be one, that can tell it."""
    every = list(readings)
    return {name: _mean([each[name] for each in every if not math.isnan(each[name])]) for name in every[0]}


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def rounded(value: float) -> float:
    """Return a figure as it is recorded, with six significant digits."""
    return float(f"{value:.6g}")


def told_figures(figures: Figures) -> dict[str, float]:
    """Return figures as they are recorded, without those that cannot be told."""
    return {name: rounded(value) for name, value in figures.items() if not math.isnan(value)}
