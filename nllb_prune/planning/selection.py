"""Selection: scores and counts give the experts to keep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.masks import ExpertMask

BoolArray = NDArray[np.bool_]


def top_per_layer(scores: NDArray[np.float64], counts: Sequence[int]) -> ExpertMask:
    """Return the ids of the best experts of each layer, sorted; ties go to the lower id.

    Args:
        scores: (layers, experts), higher is kept; not modified.
        counts: how many to keep in each layer.
    """
    if scores.ndim != 2 or len(counts) != len(scores):
        raise UsageError(f"`scores` must have shape ({len(counts)}, experts), but has {scores.shape} instead.")
    if not all(0 <= count <= scores.shape[1] for count in counts):
        raise UsageError(f"`counts` must be 0 to {scores.shape[1]} in every layer, but is {tuple(counts)} instead.")
    return take(best_first(scores), counts)


def best_first(scores: NDArray[np.float64]) -> NDArray[np.intp]:
    """Return the expert ids of each layer (layers, experts), best first; ties go to the lower id."""
    if not np.isfinite(scores).all():
        raise UsageError("`scores` must be finite, but some are not.")
    return np.argsort(-scores, axis=1, kind="stable")


def move_first(order: NDArray[np.intp], chosen: BoolArray) -> NDArray[np.intp]:
    """Return the ids of each layer with the chosen ones first; both parts keep their order.

    Args:
        order: expert ids (layers, experts).
        chosen: by id (layers, experts).
    """
    others = ~np.take_along_axis(chosen, order, axis=1)
    return np.take_along_axis(order, np.argsort(others, axis=1, kind="stable"), axis=1)


def take(order: NDArray[np.intp], counts: Sequence[int]) -> ExpertMask:
    """Return the first so many ids of each layer, sorted."""
    return tuple(tuple(sorted(row[:count].tolist())) for row, count in zip(order, counts, strict=True))
