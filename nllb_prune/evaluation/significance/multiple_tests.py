"""Many tests at once: Benjamini and Hochberg (1995) keep the share of false discoveries among the findings."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import FloatArray


def q_values(p_values: Sequence[float] | NDArray[Any]) -> FloatArray:
    """Return p-values adjusted for their number ``(tests,)``, in the same order.

    Those at most q are findings of which a share of q is false in expectation, if the tests are independent or
    positively dependent. A test without a result (NaN) stays NaN and does not count as a test.

    Raises:
        UsageError: if a p-value is not between 0 and 1.
    """
    p = np.asarray(p_values, np.float64)
    wrong = p[(p < 0) | (p > 1)]
    if p.ndim != 1 or len(wrong):
        found = f"{wrong[0]}" if len(wrong) else f"of shape {p.shape}"
        raise UsageError(f"`p_values` must be a list of numbers from 0 to 1 or NaN, but one is {found} instead.")
    there = np.flatnonzero(~np.isnan(p))
    order = there[np.argsort(-p[there], kind="stable")]  # largest first
    ranks = np.arange(len(order), 0, -1)
    adjusted = np.full(len(p), np.nan)
    adjusted[order] = np.minimum.accumulate(p[order] * len(order) / ranks)
    return adjusted
