"""Orders of rows and columns in which the structure of a matrix shows."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

FloatArray = NDArray[np.float64]


def leaf_order(distance: FloatArray) -> list[int]:
    """Return the leaves of a tree by average linkage, from left to right; distance is (items, items), symmetric.

    Two clusters are joined in the orientation that puts their closest ends side by side.
    """
    clusters = [[n] for n in range(len(distance))]
    between = distance.astype(np.float64).copy()
    np.fill_diagonal(between, np.inf)
    while len(clusters) > 1:
        a, b = sorted(divmod(int(between.argmin()), len(between)))
        sizes = len(clusters[a]), len(clusters[b])
        between[a] = between[:, a] = np.average(between[[a, b]], axis=0, weights=sizes)
        between[a, a] = np.inf
        between = np.delete(np.delete(between, b, axis=0), b, axis=1)
        clusters[a] = _joined(clusters[a], clusters.pop(b), distance)
    return clusters[0] if clusters else []


def _joined(left: list[int], right: list[int], distance: FloatArray) -> list[int]:
    choices = [(a, b) for a in (left, left[::-1]) for b in (right, right[::-1])]
    first, second = min(choices, key=lambda pair: distance[pair[0][-1], pair[1][0]])
    return first + second


def overlap_distance(rows: FloatArray) -> FloatArray:
    """Return 1 - the mass that two rows share once each sums to 1, (rows, rows)."""
    shares = rows / np.maximum(rows.sum(axis=1, keepdims=True), 1e-300)
    return np.array([1 - np.minimum(row, shares).sum(axis=1) for row in shares])


def by_strongest_row(values: FloatArray) -> NDArray[np.int64]:
    """Return the columns grouped by the row where they are strongest, the strongest of each row first."""
    return np.lexsort((-values.max(axis=0), values.argmax(axis=0)))
