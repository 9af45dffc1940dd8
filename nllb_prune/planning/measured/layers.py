"""Automatic layers: a stack's experts go to the layers where one more saves most token loss on held-out text."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nllb_prune.masks import MaskSet
from nllb_prune.planning.budget import Counts
from nllb_prune.planning.evidence import FloatArray
from nllb_prune.planning.measured.language_ratio import losses_by_key
from nllb_prune.planning.measured.measure import Measure, Meter, Readings, covered, mean_figures, rounded
from nllb_prune.planning.scopes import fill
from nllb_prune.planning.sharing import Place

_CHANGE = 1 / 2  # of what a layer keeps: what it is given and loses to see what that changes
_LEAST = 1e-7  # nats an expert: slopes below are alike

ROUNDS = 3
"""At most."""
ALL = "*"

Select = Callable[[Mapping[Place, Counts]], MaskSet]
"""Counts of every mask -> masks."""


def most_measures(layers: int, *, rounds: int = ROUNDS) -> int:
    """Return how many measures so many rounds take in a model with so many sparse layers."""
    return 1 + rounds * (2 * layers + 1)


@dataclass(frozen=True, slots=True)
class Limits:
    """Between which counts the layers of a mask may be."""

    least: int
    most: Counts


def share_layers(
    counts: Mapping[Place, Counts],
    select: Select,
    measure: Measure,
    *,
    limits: Mapping[Place, Limits],
    by_language: bool = False,
) -> tuple[MaskSet, dict[str, Any]]:
    """Return masks with as many experts in each stack, shared otherwise among its layers, and the record of the search.

    Each layer in turn is given half as many experts more and half as many fewer, in all masks at once: two measures a
    layer. The loss that an expert saves is taken to fall exponentially between the two, and experts go where they save
    most, no layer beyond what was measured. The result is measured. If it is better it is kept, and, where a layer came
    to the end of its range, the start of another round.

    Args:
        counts: To start from.
        select: Makes masks of counts.
        measure: Of held-out text.
        limits: Of each mask to share anew; the others keep their counts.
        by_language: Whether every mask shares its experts its own way, by its own directions.
    """
    masks = select(counts)
    directions = covered(masks, measure)
    meter = Meter(measure)
    state = _State(counts, masks, meter.losses(masks, directions))
    rounds = []
    for _ in range(ROUNDS):
        slopes, told = _slopes(state, select, meter, limits, by_language=by_language)
        shared = {**counts, **{place: _shared(sum(state.counts[place]), each) for place, each in slopes.items()}}
        masks = select(shared)
        found = _State(shared, masks, meter.losses(masks, directions))
        losses = {"before": rounded(state.loss), "after": rounded(found.loss)}
        rounds.append({"counts": _mean_counts(state), **losses, "marginal": told})
        if found.loss >= state.loss:
            break
        at_end = any(
            count in (slope.low, slope.high) and slope.low < slope.high
            for place, each in slopes.items()
            for count, slope in zip(shared[place], each, strict=True)
        )
        state = found
        if not at_end:
            break
    chosen = {"counts": _mean_counts(state), "loss_change": rounded(state.loss)}
    return state.masks, {"measures": meter.calls, "rounds": rounds, "chosen": chosen}


@dataclass(frozen=True, slots=True)
class _State:
    counts: Mapping[Place, Counts]
    masks: MaskSet
    readings: Readings

    @property
    def loss(self) -> float:
        """The mean change of token loss."""
        return mean_figures(self.readings.values())["loss_change"]


def _mean_counts(state: _State) -> dict[str, list[float]]:
    """Return the experts of each layer by stack, on average over masks."""
    found = {}
    for stack in state.masks.stacks:
        every = [counts for place, counts in state.counts.items() if place[0] == stack.name]
        found[stack.name] = [rounded(sum(layer) / len(layer)) for layer in zip(*every, strict=True)]
    return found


def _slopes(
    state: _State, select: Select, measure: Measure, limits: Mapping[Place, Limits], *, by_language: bool
) -> tuple[dict[Place, list[_Slope]], dict[str, list[dict[str, float]]]]:
    """Return what an expert saves in each layer of each mask, and the record of what was measured."""
    slopes: dict[Place, list[_Slope]] = {place: [] for place in limits}
    told: dict[str, list[dict[str, float]]] = {}
    for stack in state.masks.stacks:
        places = [place for place in limits if place[0] == stack.name]
        for layer in range(len(stack.layers)):
            ends, changes = {}, {}
            for sign in (-1, 1):
                ends[sign] = {place: _moved(state.counts[place], layer, sign, limits[place]) for place in places}
                readings = measure.losses(select({**state.counts, **ends[sign]}), tuple(state.readings))
                changes[sign] = _differences(state, stack.name, readings, by_language=by_language)
            for place in places:
                at = [ends[sign][place][layer] for sign in (-1, 1)]
                lower, higher = (changes[sign].get(place[1], changes[sign][ALL]) for sign in (-1, 1))
                slopes[place].append(_Slope.of(state.counts[place][layer], at, lower, higher))
            told.setdefault(stack.name, []).append(
                {"fewer": rounded(changes[-1][ALL]), "more": rounded(changes[1][ALL])}
            )
    return slopes, told


def _moved(counts: Counts, layer: int, sign: int, limits: Limits) -> Counts:
    """Return counts with a layer that has more or fewer experts."""
    step = sign * max(1, math.floor(counts[layer] * _CHANGE))
    wanted = min(max(counts[layer] + step, limits.least), limits.most[layer])
    return (*counts[:layer], wanted, *counts[layer + 1 :])


def _differences(state: _State, stack: str, readings: Readings, *, by_language: bool) -> dict[str, float]:
    """Return by how much the loss of each mask changed, and under `ALL` the mean over all directions."""
    found = {ALL: mean_figures(readings.values())["loss_change"] - state.loss}
    if by_language:
        now, then = (losses_by_key(state.masks, stack, each) for each in (readings, state.readings))
        found |= {key: now[key] - then[key] for key in now}
    return found


@dataclass(frozen=True, slots=True)
class _Slope:
    """What an expert of a layer saves, falling exponentially with how many there are."""

    low: int
    high: int
    """Counts that were measured."""
    at_low: float
    at_high: float
    """Nats an expert, halfway between the count to start from and each end."""

    @classmethod
    def of(cls, count: int, ends: Sequence[int], lower: float, higher: float) -> _Slope:
        """Fit the changes of loss at both ends; where a layer can move one way only, what it saves is flat."""
        low, high = ends
        fewer = max(lower / (count - low), _LEAST) if low < count else None
        more = max(-higher / (high - count), _LEAST) if high > count else None
        at_low, at_high = fewer or more or _LEAST, more or fewer or _LEAST
        if at_high > at_low:  # noise: no rise can be told
            at_low = at_high = (at_low + at_high) / 2
        return cls(low, high, at_low, at_high)

    def keys(self) -> FloatArray:
        """Return the key of each slot above the lowest count, rising."""
        places = (np.arange(self.high - self.low) + 0.5) / max(1, self.high - self.low)  # 0 to 1
        start, end = math.log(self.at_low), math.log(self.at_high)
        return np.asarray(-np.exp(start + (end - start) * (places - 0.25) / 0.5))


def _shared(total: int, slopes: Sequence[_Slope]) -> Counts:
    """Share experts among layers: each its lowest count, then those that save most."""
    widest = max(slope.high for slope in slopes)
    keys = np.full((len(slopes), widest), np.inf)
    for row, slope in zip(keys, slopes, strict=True):
        row[: slope.low] = -np.inf
        row[slope.low : slope.high] = slope.keys()
    return fill([keys], total)[0]
