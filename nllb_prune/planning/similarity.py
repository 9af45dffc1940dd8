"""How much masks have in common: two of them, or all those of a stack."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.masks import ExpertMask, MaskSet, mask_array, size, union

MOST = 5000
"""Masks of a stack that are compared each with each: their similarities take 200 MB and seconds."""

Pair = tuple[str, str, float]
"""Two keys and their similarity."""


def jaccard(a: ExpertMask, b: ExpertMask) -> float:
    """Return the mean over layers of the shared experts divided by the experts of either; two empty layers count 1."""
    return float(jaccard_matrix([a, b])[0, 1])


def jaccard_matrix(masks: Sequence[ExpertMask]) -> NDArray[np.float64]:
    """Return `jaccard` of every two masks of one stack, (masks, masks)."""
    if len({len(mask) for mask in masks}) != 1:
        raise UsageError("`masks` must be one or more masks of the same number of layers, but are not.")
    layers = len(masks[0])
    experts = 1 + max((expert for mask in masks for layer in mask for expert in layer), default=0)
    kept = np.stack([mask_array(mask, experts) for mask in masks]).astype(np.float32)  # exact: these are counts
    total = np.zeros((len(masks), len(masks)))
    for layer in range(layers):
        shared = kept[:, layer] @ kept[:, layer].T  # (masks, experts) @ (experts, masks)
        sizes = shared.diagonal()
        either = (sizes[:, None] + sizes[None, :] - shared).astype(np.float64)
        total += np.divide(shared, either, out=np.ones_like(either), where=either > 0)
    return total / layers


def mean_jaccard(masks: Sequence[ExpertMask]) -> float:
    """Return the mean `jaccard` over all pairs of different masks; 1 if there is a single one."""
    matrix = jaccard_matrix(masks)
    return float(matrix[np.triu_indices(len(masks), 1)].mean()) if len(masks) > 1 else 1.0


@dataclass(frozen=True, eq=False)
class Overlap:
    """What the masks of one stack have in common."""

    keys: tuple[str, ...]
    """Languages or directions, sorted."""
    matrix: NDArray[np.float64]
    """`jaccard` of every two, (keys, keys)."""
    union: int
    """Experts that any of the masks keeps."""

    @cached_property
    def _pairs(self) -> NDArray[np.float64]:
        return self.matrix[np.triu_indices(len(self.keys), 1)]

    @property
    def mean(self) -> float:
        """Mean over all pairs of different keys; 1 if there is a single one."""
        return float(self._pairs.mean()) if len(self.keys) > 1 else 1.0

    @property
    def most_similar(self) -> Pair | None:
        """The two masks that share most; none if there is a single one."""
        return self._pair(int(self._pairs.argmax())) if len(self.keys) > 1 else None

    @property
    def least_similar(self) -> Pair | None:
        """The two masks that share least; none if there is a single one."""
        return self._pair(int(self._pairs.argmin())) if len(self.keys) > 1 else None

    def _pair(self, n: int) -> Pair:
        a, b = (int(side[n]) for side in np.triu_indices(len(self.keys), 1))
        return self.keys[a], self.keys[b], float(self._pairs[n])


def overlap(masks: MaskSet, stack: str) -> Overlap:
    """Return what the masks of a stack have in common.

    Raises:
        UsageError: if the stack has no mask, or too many to compare each with each.
    """
    by_key = masks.masks[stack]
    if not 1 <= len(by_key) <= MOST:
        raise UsageError(f"`{stack}` must have 1 to {MOST:,} masks to compare, but has {len(by_key):,} instead.")
    every = list(by_key.values())
    return Overlap(tuple(by_key), jaccard_matrix(every), size(union(every)))


@dataclass(frozen=True, slots=True)
class KeyComparison:
    """Two masks of the same language or direction, counted over the layers of a stack."""

    key: str
    jaccard: float
    shared: int
    """Experts that both keep."""
    only_ours: int
    only_theirs: int


def compare(ours: MaskSet, theirs: MaskSet, stack: str) -> tuple[KeyComparison, ...]:
    """Return how the masks of a stack differ between two sets, for each key that both have."""
    a, b = ours.masks[stack], theirs.masks[stack]
    return tuple(_compared(key, a[key], b[key]) for key in a if key in b)


def _compared(key: str, ours: ExpertMask, theirs: ExpertMask) -> KeyComparison:
    either = size(union([ours, theirs]))
    only_ours, only_theirs = either - size(theirs), either - size(ours)
    shared = either - only_ours - only_theirs
    return KeyComparison(key, jaccard(ours, theirs), shared, only_ours, only_theirs)
