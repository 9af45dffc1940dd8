"""Selection: scores and counts give the experts to keep."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.masks import ExpertMask


def top_per_layer(scores: NDArray[np.float64], counts: Sequence[int]) -> ExpertMask:
    """Return the ids of the best experts of each layer, sorted; ties go to the lower id.

    Args:
        scores: (layers, experts), higher is kept; not modified.
        counts: how many to keep in each layer.
    """
    if scores.ndim != 2 or len(counts) != len(scores):
        raise UsageError(f"`scores` must have shape ({len(counts)}, experts), but has {scores.shape} instead.")
    if not np.isfinite(scores).all():
        raise UsageError("`scores` must be finite, but some are not.")
    if not all(0 <= count <= scores.shape[1] for count in counts):
        raise UsageError(f"`counts` must be 0 to {scores.shape[1]} in every layer, but is {tuple(counts)} instead.")
    best_first = np.argsort(-scores, axis=1, kind="stable")  # (layers, experts), equal scores in the order of their ids
    return tuple(tuple(sorted(row[:count].tolist())) for row, count in zip(best_first, counts, strict=True))
