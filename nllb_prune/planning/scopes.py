"""Scopes: the order in which the layers get their next expert.

Every slot of a layer, from its best expert down, has a key. A budget takes the smallest keys, so counts add up exactly
and a larger budget never takes a slot away.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.planning.evidence import FloatArray

SlotKeys = Callable[[FloatArray, FloatArray], FloatArray]
"""Scores, best first (layers, experts), and weights of the layers (layers,) give the keys, rising in each layer."""

_GENERATION = (
    "One budget over the whole model made translations too long in arXiv 2212.09811: compare length ratios before use."
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scope:
    """How a budget is shared among layers."""

    description: str
    keys: SlotKeys
    whole_model: bool = False
    """Whether layers of all stacks share one budget; otherwise each stack has its own, from the ratio."""
    mass: bool = False
    """Whether scores of a layer must be parts of a whole."""
    minimum: int = 4
    """Fewest experts of a layer unless asked otherwise, but never below the model's top-k."""
    note: str = ""
    """What to tell everyone who uses it."""


def by_rank(scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Give each layer its r-th expert before any its next: counts that differ by one at most."""
    return np.broadcast_to(np.arange(scores.shape[1], dtype=np.float64), scores.shape)


def by_mass(scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Return the share of the layer's scores that ranks before each slot.

    The slots whose key is below theta are the smallest prefix whose mass reaches theta (arXiv 2212.09811); taking the
    smallest keys finds the theta that meets the budget. A layer without mass counts as even.
    """
    mass = np.cumsum(scores, axis=1)
    mass = np.where(mass[:, -1:] > 0, mass, np.arange(1.0, scores.shape[1] + 1))
    keys = np.zeros(scores.shape)
    keys[:, 1:] = mass[:, :-1] / mass[:, -1:]
    return keys


def by_score(scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Sort experts of all layers together by their scores as they are (SEER-MoE, arXiv 2404.05089)."""
    return -scores


def by_weight(scores: FloatArray, weights: FloatArray) -> FloatArray:
    """Share in proportion to the weights, in the order of Webster: slot r of a layer has the key (r + 1/2) / weight.

    Published with largest remainders (arXiv 2605.28042); those can take a slot away when the budget grows, divisors
    cannot, and the two differ by single experts.
    """
    halves = np.arange(scores.shape[1]) + 0.5
    return np.asarray(halves / weights[:, None])


SCOPES: dict[str, Scope] = {
    "layer": Scope(description="the same number in every layer of a stack", keys=by_rank, minimum=1),
    "threshold": Scope(
        description="one share of the scores' mass for every layer of the model",
        keys=by_mass,
        whole_model=True,
        mass=True,
        note=_GENERATION,
    ),
    "stack-threshold": Scope(
        description="one share of the scores' mass for every layer of a stack", keys=by_mass, mass=True
    ),
    "ranking": Scope(
        description="experts of all layers sorted together (SEER-MoE)",
        keys=by_score,
        whole_model=True,
        note=_GENERATION,
    ),
    "divergence": Scope(
        description="more for layers that route a language unlike the reference (Jensen-Shannon)", keys=by_weight
    ),
}


def scope_named(name: str) -> Scope:
    """Return a scope.

    Raises:
        UsageError: if there is none of that name.
    """
    if name not in SCOPES:
        raise UsageError(f"`scope` must be one of {', '.join(SCOPES)}, but is {name} instead.")
    return SCOPES[name]


def fill(keys: Sequence[FloatArray], total: int) -> list[tuple[int, ...]]:
    """Take the slots of the smallest keys; ties go to the first array, then to the first row.

    Args:
        keys: (layers, slots) of each stack, rising in each row; -inf for slots to take before all others.
        total: how many to take.

    Returns:
        How many each layer got, by stack.
    """
    slots = np.repeat([each.shape[1] for each in keys], [len(each) for each in keys])  # of each layer
    layer_of = np.repeat(np.arange(len(slots)), slots)
    taken = np.argsort(np.concatenate([each.ravel() for each in keys]), kind="stable")[:total]
    counts = np.bincount(layer_of[taken], minlength=len(slots)).tolist()
    return [tuple(counts[end - len(each) : end]) for each, end in zip(keys, accumulate(map(len, keys)), strict=True)]
