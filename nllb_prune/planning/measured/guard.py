"""The guard: a mask is measured on held-out text before it is accepted, and grows until it passes."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from nllb_prune.expert_mask import ExpertMask, size
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Stack
from nllb_prune.planning.measured.growth import Order, grown
from nllb_prune.planning.measured.measure import (
    Figures,
    Measure,
    Meter,
    Readings,
    Told,
    covered,
    mean_figures,
    only,
    places_of,
    rounded,
    told_figures,
)
from nllb_prune.planning.measured.reserve import Reserve
from nllb_prune.planning.measured.tolerances import Tolerances
from nllb_prune.planning.sharing import Place

PAIR, TRANSLATIONS = "pair", "translations"
"""Stages after those named after a stack."""

_STEP = 1 / 8  # of what a mask keeps: what it grows by when just over a tolerance
_FASTER = ((1.5, 1), (3.0, 2), (math.inf, 4))  # so many steps at once, up to so many times the tolerance


@dataclass(frozen=True, slots=True, kw_only=True)
class Guarded:
    """Masks that were measured, and what was found."""

    masks: MaskSet
    failed: tuple[Place, ...]
    """Masks that are over tolerance, or to blame for a direction that is, and cannot grow any more."""


def guard(
    masks: MaskSet,
    measure: Measure,
    orders: Mapping[Place, Order],
    *,
    reserve: Reserve,
    tolerances: Tolerances | None = None,
    told: Told | None = None,
) -> Guarded:
    """Measure masks and let those over tolerance grow, each in the order of the criterion.

    First the masks of each stack with all experts in the others: a language by the mean over its directions. No mask
    grows before all stacks are measured. Then every direction as it will be used; there the mask grows whose own change
    is the larger part. Last translations, by language again, as few sentences of a direction tell little; where they
    are over tolerance, those of each stack's masks alone tell whose fault it is. What is furthest over tolerance comes
    first to the reserve. What grows is measured again in every stage, until nothing grows any more.

    Args:
        masks: As planned.
        measure: Of held-out text.
        orders: In which each mask takes its experts.
        reserve: What may be spent.
        tolerances: The most that figures may change.
        told: Is told of every measure before it is made.

    Returns:
        Masks with the record `guard` in their plan: what was tolerated, measured and done.
    """
    run = _Run(masks, Meter(measure, told), orders, reserve, tolerances or Tolerances())
    return run.finished()


@dataclass(slots=True)
class _Run:
    masks: MaskSet
    meter: Meter
    orders: Mapping[Place, Order]
    reserve: Reserve
    tolerances: Tolerances
    planned: MaskSet = field(init=False)
    using: dict[Place, list[Direction]] = field(init=False)
    """The directions that use each mask."""
    readings: dict[str, dict[Direction, Figures]] = field(default_factory=dict)
    """Of each stage, the last of each direction."""
    stale: dict[str, set[Direction]] = field(default_factory=dict)
    """Directions of each stage whose masks have grown since."""
    alone: dict[str, dict[Direction, Figures]] = field(default_factory=dict)
    """Of translations with the masks of one stack, where they were needed."""
    rounds: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.planned = self.masks
        self.using = {}
        for direction in covered(self.masks, self.meter):
            for place in places_of(self.masks, direction):
                self.using.setdefault(place, []).append(direction)

    def finished(self) -> Guarded:
        """Go through the stages and record them."""
        stacks = [stack.name for stack in self.masks.stacks]
        together = (stacks if len(stacks) > 1 else [], [PAIR], [TRANSLATIONS])
        stages = [stage for each in together for stage in each]
        everything = {direction for each in self.using.values() for direction in each}
        self.readings, self.stale = {stage: {} for stage in stages}, {stage: set(everything) for stage in stages}
        while any(self.stale.values()):  # what grows in one stage is measured again in the others
            for each in together:
                self._settle(each)
        failed = self._failed()
        return Guarded(masks=self._recorded(failed), failed=failed)

    def _settle(self, stages: Sequence[str]) -> None:
        """Measure stages, then grow what is over tolerance in any, until nothing is over or nothing can grow."""
        while any(self.stale[stage] for stage in stages):
            measured = {stage: self._read(stage) for stage in stages if self.stale[stage]}
            over = {stage: self._over(stage) for stage in stages}
            got = self._grow({place: excess for each in over.values() for place, excess in each.items()})
            self.rounds += [_round(stage, number, over[stage], got) for stage, number in measured.items()]

    def _read(self, stage: str) -> int:
        """Measure what is not known of a stage, and return in how many directions."""
        waiting = sorted(self.stale[stage])
        self.meter.stage = stage
        self.readings[stage] |= self._measured(stage, waiting)
        self.stale[stage].clear()
        return len(waiting)

    def _measured(self, stage: str, directions: Sequence[Direction]) -> Readings:
        if stage == TRANSLATIONS:
            return self.meter.translations(self.masks, directions)
        return self.meter.losses(self.masks if stage == PAIR else only(self.masks, stage), directions)

    def _over(self, stage: str) -> dict[Place, float]:
        """Return the masks to grow, and how many times over tolerance they are."""
        if stage == PAIR:
            return self._over_by_direction()
        worst = {place: self.tolerances.worst(self._figures(stage, place)) for place in self._places(stage)}
        over = {place: found for place, found in worst.items() if found[0] > 1}
        if stage == TRANSLATIONS and len(self.masks.stacks) > 1:
            return self._to_blame(over)
        return {place: excess for place, (excess, _) in over.items()}

    def _places(self, stage: str) -> list[Place]:
        """Return the masks that a stage judges."""
        return [place for place in self.using if stage in (place[0], TRANSLATIONS)]

    def _to_blame(self, over: Mapping[Place, tuple[float, str]]) -> dict[Place, float]:
        """Return the masks to blame for languages whose translations are over tolerance.

        The directions of such a language are translated with each stack's masks alone. Where its own mask is not over
        tolerance by itself, the masks of the other stacks in its worst direction are to blame, those that are worst by
        themselves.
        """
        directions = sorted({direction for place in over for direction in self.using[place]})
        for stack in self.masks.stacks if over else ():
            self._alone(stack.name, directions)
        blamed: dict[Place, float] = {}
        for place, (excess, name) in over.items():
            alone = self._alone(place[0], self.using[place])
            own = mean_figures(alone[direction] for direction in self.using[place])
            guilty = place if self.tolerances.excess(name, own[name]) > 1 else self._other(place, name)
            blamed[guilty] = max(excess, blamed.get(guilty, 0.0))
        return blamed

    def _other(self, place: Place, name: str) -> Place:
        """Return the mask, of all in the directions of a mask, that is worst by itself; its own where all are equal."""
        worst, guilty = self.tolerances.excess(name, self._own(place, place, name)), place
        for other in sorted({each for direction in self.using[place] for each in places_of(self.masks, direction)}):
            excess = self.tolerances.excess(name, self._own(other, place, name))
            if excess > worst:
                worst, guilty = excess, other
        return guilty

    def _own(self, place: Place, within: Place, name: str) -> float:
        """Return what a mask does to a figure by itself, on average over the directions it shares with another."""
        shared = [direction for direction in self.using[within] if direction in self.using[place]]
        alone = self._alone(place[0], shared)
        return mean_figures(alone[direction] for direction in shared)[name]

    def _alone(self, stack: str, directions: Sequence[Direction]) -> Readings:
        """Return the figures of translations with the masks of one stack alone, measured where they are not known."""
        known = self.alone.setdefault(stack, {})
        if missing := [direction for direction in directions if direction not in known]:
            self.meter.stage = f"{TRANSLATIONS}, {stack}"
            known |= self.meter.translations(only(self.masks, stack), missing)
        return known

    def _figures(self, stage: str, place: Place) -> Figures:
        return mean_figures(self.readings[stage][direction] for direction in self.using[place])

    def _over_by_direction(self) -> dict[Place, float]:
        found: dict[Place, float] = {}
        for direction, figures in self.readings[PAIR].items():
            excess, name = self.tolerances.worst(figures)
            if excess > 1:
                place = self._blamed(direction, name)
                found[place] = max(excess, found.get(place, 0.0))
        return found

    def _blamed(self, direction: Direction, name: str) -> Place:
        """Return the mask of a direction that changes a figure most by itself, of those that can grow."""
        places = places_of(self.masks, direction)
        able = [place for place in places if self._room(place)] or places
        return able[0] if len(places) == 1 else max(able, key=lambda each: self.readings[each[0]][direction][name])

    def _grow(self, over: Mapping[Place, float]) -> dict[Place, int]:
        """Let masks grow, those first that need it most, and return by how many experts each did."""
        got = {}
        for place in sorted(over, key=lambda place: -over[place]):
            number = min(self._step(place, over[place]), self._room(place))
            if number:
                self._set(place, grown(self._mask(place), self.orders[place], number, base=self._base(place)))
                self.reserve.spend(place, number)
                for stage in {place[0], PAIR, TRANSLATIONS} & set(self.stale):
                    self.stale[stage].update(self.using[place])
                for direction in self.using[place]:
                    self.alone.get(place[0], {}).pop(direction, None)
                got[place] = number
        return got

    def _step(self, place: Place, excess: float) -> int:
        return next(steps for most, steps in _FASTER if excess <= most) * step(self._base(place))

    def _room(self, place: Place) -> int:
        """Return how many experts a mask can get: as far as there are any, and the reserve lasts."""
        left = sum(map(len, self.orders[place])) - size(self._mask(place))
        return min(left, self.reserve.affordable(place, self._others(place)))

    def _others(self, place: Place) -> list[list[Place]]:
        """Return, for every other stack, the masks that a mask can be used together with, measured or not."""
        found = []
        for stack in self.masks.stacks:
            if stack.name != place[0]:
                keys = [key for key in self.masks.masks[stack.name] if self._meet(place, stack, key)]
                found.append([(stack.name, key) for key in keys])
        return found

    def _meet(self, place: Place, stack: Stack, key: str) -> bool:
        if self.masks.granularity != "language" or stack.keyed_by == self.masks.stack(place[0]).keyed_by:
            return key == place[1]
        return key != place[1]  # a source and a target

    def _mask(self, place: Place) -> ExpertMask:
        return self.masks.masks[place[0]][place[1]]

    def _base(self, place: Place) -> ExpertMask:
        return self.planned.masks[place[0]][place[1]]

    def _set(self, place: Place, mask: ExpertMask) -> None:
        stack, key = place
        self.masks = replace(self.masks, masks={**self.masks.masks, stack: {**self.masks.masks[stack], key: mask}})

    def _failed(self) -> tuple[Place, ...]:
        over = {place for stage in self.readings for place in self._over(stage)}
        return tuple(place for place in self.using if place in over)

    def _recorded(self, failed: Sequence[Place]) -> MaskSet:
        """Return the masks with what was done in their plan."""
        found = {
            "tolerances": asdict(self.tolerances),
            "reserve": {self.reserve.unit: self.reserve.limit},
            "measures": {"calls": self.meter.calls, "directions": self.meter.passes},
            "rounds": self.rounds,
            "masks": {stack.name: self._told_masks(stack.name, failed) for stack in self.masks.stacks},
            "directions": self._told_directions(),
            "failed": ["/".join(place) for place in failed],
        }
        return replace(self.masks, plan={**self.masks.plan, "guard": found})

    def _told_masks(self, stack: str, failed: Sequence[Place]) -> dict[str, Any]:
        told = {}
        for place in sorted(place for place in self.using if place[0] == stack):
            stages = [stage for stage in self.readings if stage in (stack, TRANSLATIONS)]
            figures = [self._figures(stage, place) for stage in stages]
            told[place[1]] = {
                "planned": size(self._base(place)),
                "kept": size(self._mask(place)),
                "figures": {name: value for each in figures for name, value in told_figures(each).items()},
                "passed": place not in failed,
            }
        return told

    def _told_directions(self) -> dict[str, Any]:
        told = {}
        for direction, figures in sorted(self.readings[PAIR].items()):
            every = {**figures, **self.readings[TRANSLATIONS][direction]}
            told["-".join(direction)] = {
                "figures": told_figures(every),
                "passed": self.tolerances.worst(figures)[0] <= 1,
            }
        return told


def step(mask: ExpertMask) -> int:
    """Return how many experts a mask gets at once when it is just over a tolerance."""
    return math.ceil(_STEP * size(mask))


def _round(stage: str, measured: int, over: Mapping[Place, float], got: Mapping[Place, int]) -> dict[str, Any]:
    return {
        "stage": stage,
        "directions": measured,
        "over": {"/".join(place): rounded(excess) for place, excess in sorted(over.items())},
        "added": {"/".join(place): number for place, number in sorted(got.items()) if place in over},
    }
