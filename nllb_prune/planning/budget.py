"""Budgets: how many experts to keep in all, and how they are shared among stacks and layers."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack

# Best of the published encoder:decoder ratios, 36 + 12 experts a layer (arXiv 2212.09811).
DEFAULT_RATIO: Mapping[str, float] = {"encoder": 3.0, "decoder": 1.0}


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

    counts: dict[str, tuple[int, ...]]
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


def allocate(stacks: Sequence[Stack], budget: Budget) -> Allocation:
    """Share a budget: exactly the total, the ratio over stacks, as even as possible within one (first layers get more).

    A stack that the ratio pushes below its minimum or above its experts is held there, the others pay or get the rest,
    and a note says so.

    Raises:
        UsageError: if the budget cannot be kept.
    """
    if not stacks:
        raise UsageError("`model` must have sparse layers to prune, but is dense instead.")
    total = _total(budget, stacks)
    low = {stack.name: budget.minimum * len(stack.layers) for stack in stacks}
    high = {stack.name: stack.total for stack in stacks}
    weights = {name: Fraction(weight) for name, weight in resolve_ratio(budget.ratio, stacks).items()}
    totals = _rounded(_within(total, weights, low=low, high=high), total)
    counts = {stack.name: _even(totals[stack.name], len(stack.layers)) for stack in stacks}
    return Allocation(counts, _notes(total, weights, low=low, high=high))


def _total(budget: Budget, stacks: Sequence[Stack]) -> int:
    most, layers = sum(stack.total for stack in stacks), sum(len(stack.layers) for stack in stacks)
    smallest = min(stack.experts for stack in stacks)
    if not 1 <= budget.minimum <= smallest:
        raise UsageError(f"`minimum` must be 1 to {smallest} experts a layer, but is {budget.minimum} instead.")
    if isinstance(budget.kept, bool) or not math.isfinite(budget.kept):
        raise UsageError(f"`kept` must be a fraction or a number of experts, but is {budget.kept} instead.")
    if isinstance(budget.kept, float) and not 0 < budget.kept <= 1:
        raise UsageError(f"`kept` must be above 0 and at most 1.0 as a fraction, but is {budget.kept} instead.")
    total = math.floor(budget.kept * most + 0.5) if isinstance(budget.kept, float) else budget.kept
    least = budget.minimum * layers
    if not least <= total <= most:
        raise UsageError(
            f"`kept` must be {least} to {most} experts ({budget.minimum} or more in each of {layers} sparse layers), "
            f"but is {total} instead."
        )
    return total


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


def _in_proportion(total: int | Fraction, weights: Mapping[str, Fraction]) -> dict[str, Fraction]:
    whole = sum(weights.values(), Fraction(0))
    return {name: total * weight / whole for name, weight in weights.items()}


def _within(
    total: int, weights: Mapping[str, Fraction], *, low: Mapping[str, int], high: Mapping[str, int]
) -> dict[str, Fraction]:
    """Share a total in proportion within bounds: hold the stacks that leave them, then share the rest again."""
    held: dict[str, Fraction] = {}
    while free := {name: weight for name, weight in weights.items() if name not in held}:
        left = total - sum(held.values(), Fraction(0))
        wanted = _in_proportion(left, free)
        bounded = {name: min(max(wanted[name], Fraction(low[name])), Fraction(high[name])) for name in free}
        excess = sum(bounded.values(), Fraction(0)) - left
        held |= {name: share for name, share in bounded.items() if excess == 0 or (share - wanted[name]) * excess > 0}
    return held


def _rounded(shares: Mapping[str, Fraction], total: int) -> dict[str, int]:
    """Round to integers of that sum by largest remainder; ties go to the first stack."""
    counts = {name: math.floor(share) for name, share in shares.items()}
    by_remainder = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_remainder[: total - sum(counts.values())]:
        counts[name] += 1
    return counts


def _even(total: int, layers: int) -> tuple[int, ...]:
    each, rest = divmod(total, layers)
    return tuple(each + (layer < rest) for layer in range(layers))


def _notes(
    total: int, weights: Mapping[str, Fraction], *, low: Mapping[str, int], high: Mapping[str, int]
) -> tuple[str, ...]:
    notes = []
    ratio = ":".join(f"{float(weight):g}" for weight in weights.values())
    for name, share in _in_proportion(total, weights).items():
        asked = f"{ratio} would give the {name} {float(share):.4g} experts"
        if share < low[name]:
            notes.append(f"{asked}, below its minimum: it keeps {low[name]} and the rest of the model pays.")
        elif share > high[name] and len(weights) > 1:
            notes.append(
                f"{asked}, more than it has: it keeps all {high[name]} and the rest of the model gets the others."
            )
    return tuple(notes)
