"""Budgets: how many experts to keep in all, and how they are shared among stacks and layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack
from nllb_prune.planning.scopes import fill

# Best of the published encoder:decoder ratios, 36 + 12 experts a layer (arXiv 2212.09811).
DEFAULT_RATIO: Mapping[str, float] = {"encoder": 3.0, "decoder": 1.0}

Counts = tuple[int, ...]
"""Experts kept in each sparse layer of a stack."""


@dataclass(frozen=True, slots=True)
class Budget:
    """What may be kept."""

    kept: float | int
    """A float is a fraction of all experts, an integer their number."""
    ratio: Mapping[str, float] | None = None
    """Weight of each stack in the total; by default 3:1 for an encoder and a decoder, equal otherwise."""
    minimum: int = 2
    """Fewest experts of a layer; never below the model's top-k."""


@dataclass(frozen=True, slots=True)
class Allocation:
    """How many experts each sparse layer keeps."""

    counts: dict[str, Counts]
    """By stack, layers in order."""
    notes: tuple[str, ...]
    """What differs from what was asked, one sentence each."""

    @property
    def total(self) -> int:
        """Experts kept in the whole model."""
        return sum(map(sum, self.counts.values()))


def parse_ratio(text: str) -> dict[str, float]:
    """Read an encoder:decoder ratio such as `3:1`."""
    parts = text.split(":")
    try:
        weights = [float(part) for part in parts]
    except ValueError:
        weights = []
    if len(weights) != 2 or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UsageError(f"`ratio` must be encoder:decoder, two positive numbers such as 3:1, but is {text} instead.")
    return dict(zip(DEFAULT_RATIO, weights, strict=True))


def parse_kept(text: str) -> float | int:
    """Read a budget: a number of experts (`96`), a fraction (`0.25`) or a percentage (`25%`)."""
    try:
        if text.endswith("%"):
            return float(text[:-1]) / 100
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise UsageError(
            f"`kept` must be a number of experts (96), a fraction (0.25) or a percentage (25%), but is {text} instead."
        ) from None


def parse_pruned(text: str) -> float:
    """Read the share of the experts to prune: a fraction (`0.8`) or a percentage (`80%`)."""
    try:
        return float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        raise UsageError(f"`pruned` must be a fraction (0.8) or a percentage (80%), but is {text} instead.") from None


def kept_of_pruned(pruned: float, stacks: Sequence[Stack]) -> int:
    """Return how many experts stay when that share of them is pruned; a half stays."""
    if isinstance(pruned, bool) or not 0 <= pruned < 1:
        raise UsageError(f"`pruned` must be 0 or more and below 1 as a fraction, but is {pruned} instead.")
    most = sum(stack.total for stack in stacks)
    return most - math.ceil(pruned * most - 0.5)


def allocate(stacks: Sequence[Stack], budget: Budget) -> Allocation:
    """Share a budget: exactly the total, the ratio over stacks, as even as possible within one (first layers get more).

    A stack that the ratio pushes below its minimum or above its experts is held there, the others pay or get the rest,
    and a note says so.

    Raises:
        UsageError: if the budget cannot be kept.
    """
    weights = resolve_ratio(budget.ratio, stacks)
    total = total_kept(budget.kept, stacks, minimum=budget.minimum)
    totals = stack_totals(stacks, total, weights=weights, minimum=budget.minimum)
    counts = {stack.name: even(totals[stack.name], len(stack.layers)) for stack in stacks}
    return Allocation(counts, ratio_notes(stacks, total, weights=weights, minimum=budget.minimum))


def total_kept(kept: float | int, stacks: Sequence[Stack], *, minimum: int) -> int:
    """Return the number of experts that a budget keeps.

    Raises:
        UsageError: if no choice of experts can keep it.
    """
    possible = possible_totals(stacks, minimum=minimum)
    if isinstance(kept, bool) or not math.isfinite(kept):
        raise UsageError(f"`kept` must be a fraction or a number of experts, but is {kept} instead.")
    if isinstance(kept, float) and not 0 < kept <= 1:
        raise UsageError(f"`kept` must be above 0 and at most 1.0 as a fraction, but is {kept} instead.")
    total = math.floor(kept * possible[-1] + 0.5) if isinstance(kept, float) else kept
    if total not in possible:
        layers = sum(len(stack.layers) for stack in stacks)
        raise UsageError(
            f"`kept` must be {possible[0]} to {possible[-1]} experts ({minimum} or more in each of {layers} sparse "
            f"layers), but is {total} instead."
        )
    return total


def possible_totals(stacks: Sequence[Stack], *, minimum: int) -> range:
    """Return the numbers of experts that can be kept.

    Raises:
        UsageError: if there are no sparse layers, or they cannot keep the minimum.
    """
    if not stacks:
        raise UsageError("`model` must have sparse layers to prune, but is dense instead.")
    smallest = min(stack.experts for stack in stacks)
    if not 1 <= minimum <= smallest:
        raise UsageError(f"`minimum` must be 1 to {smallest} experts a layer, but is {minimum} instead.")
    return range(minimum * sum(len(stack.layers) for stack in stacks), sum(stack.total for stack in stacks) + 1)


def resolve_ratio(ratio: Mapping[str, float] | None, stacks: Sequence[Stack]) -> dict[str, float]:
    """Return the weight of every stack: what was asked, or the default; a single stack has weight 1."""
    names = [stack.name for stack in stacks]
    if len(names) == 1 or (ratio is None and set(names) != set(DEFAULT_RATIO)):
        return dict.fromkeys(names, 1.0)
    chosen = DEFAULT_RATIO if ratio is None else ratio
    if set(chosen) != set(names) or not all(math.isfinite(weight) and weight > 0 for weight in chosen.values()):
        raise UsageError(
            f"`ratio` must have a positive weight for {' and '.join(names)}, but is {dict(chosen)} instead."
        )
    return {name: float(chosen[name]) for name in names}


def stack_totals(stacks: Sequence[Stack], total: int, *, weights: Mapping[str, float], minimum: int) -> dict[str, int]:
    """Share a total among stacks by weight, in the order of Webster: monotone, and for two stacks simply rounded."""
    keys = [np.asarray((np.arange(stack.total) + 0.5) / weights[stack.name]) for stack in stacks]
    for stack, each in zip(stacks, keys, strict=True):
        each[: minimum * len(stack.layers)] = -np.inf
    filled = fill([each[None] for each in keys], total)
    return {stack.name: got for stack, (got,) in zip(stacks, filled, strict=True)}


def even(total: int, layers: int) -> Counts:
    """Share among layers as evenly as possible; what does not divide goes to the first."""
    each, rest = divmod(total, layers)
    return tuple(each + (layer < rest) for layer in range(layers))


def ratio_notes(stacks: Sequence[Stack], total: int, *, weights: Mapping[str, float], minimum: int) -> tuple[str, ...]:
    """Say where a stack cannot have what the ratio would give it."""
    notes = []
    ratio = ":".join(f"{weight:g}" for weight in weights.values())
    whole = sum(map(Fraction, weights.values()))
    for stack in stacks:
        share, least = total * Fraction(weights[stack.name]) / whole, minimum * len(stack.layers)
        asked = f"{ratio} would give the {stack.name} {float(share):.4g} experts"
        if share < least:
            notes.append(f"{asked}, below its minimum: it keeps {least} and the rest of the model pays.")
        elif share > stack.total and len(stacks) > 1:
            notes.append(
                f"{asked}, more than it has: it keeps all {stack.total} and the rest of the model gets the others."
            )
    return tuple(notes)
