"""The mask of one stack, and what can be done with two: union, and the difference that a swap must move."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError

ExpertMask = tuple[tuple[int, ...], ...]
"""Ids of the kept experts, sorted, by sparse layer of a stack."""


@dataclass(frozen=True, slots=True)
class LayerChange:
    """What turns the kept experts of one sparse layer into others; all ids are sorted."""

    incoming: tuple[int, ...]
    """Experts to bring in."""
    outgoing: tuple[int, ...]
    """Experts that may leave."""
    staying: tuple[int, ...]
    """Experts that are there before and after."""


Change = tuple[LayerChange, ...]
"""What turns one mask of a stack into another, by sparse layer."""


def mask_array(mask: ExpertMask, experts: int) -> NDArray[np.bool_]:
    """Return which experts a mask keeps, (layers, experts)."""
    kept = np.zeros((len(mask), experts), dtype=np.bool_)
    for layer, ids in enumerate(mask):
        kept[layer, list(ids)] = True
    return kept


def union(masks: Iterable[ExpertMask]) -> ExpertMask:
    """Return the experts that any of the masks of one stack keeps; there must be at least one mask."""
    layers = zip(*masks, strict=True)
    return tuple(tuple(sorted(set().union(*same_layer))) for same_layer in layers)


def size(mask: ExpertMask) -> int:
    """Return how many experts a mask keeps in all layers."""
    return sum(map(len, mask))


def difference(before: ExpertMask, after: ExpertMask) -> Change:
    """Return what a swap from one mask of a stack to another must move."""
    if len(before) != len(after):
        raise UsageError(f"`after` must have {len(before)} layers, as `before`, but has {len(after)} instead.")
    return tuple(_layer_change(set(old), set(new)) for old, new in zip(before, after, strict=True))


def _layer_change(old: set[int], new: set[int]) -> LayerChange:
    return LayerChange(*(tuple(sorted(ids)) for ids in (new - old, old - new, old & new)))


def applied(change: Change, mask: Sequence[Sequence[int]]) -> ExpertMask:
    """Return the mask after a change: `applied(difference(before, after), before) == after`.

    Raises:
        UsageError: if the change is of another mask: it brings in what is there, or takes out what is not.
    """
    if len(change) != len(mask):
        raise UsageError(f"`change` must have {len(mask)} layers, as the mask, but has {len(change)} instead.")
    return tuple(_applied(each, set(ids), layer) for layer, (each, ids) in enumerate(zip(change, mask, strict=True)))


def _applied(change: LayerChange, ids: set[int], layer: int) -> tuple[int, ...]:
    if ids != {*change.outgoing, *change.staying}:
        raise UsageError(f"`change` must be of this mask, but is of one with other experts in layer {layer} instead.")
    return tuple(sorted((*change.incoming, *change.staying)))
