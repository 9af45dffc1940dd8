"""chrF and BLEU from counts summed over sentences, for many rows of sums at once."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

BLEU_ORDERS = 4
_BETA_SQUARED = 4  # chrF2: recall counts twice as much as precision


def chrf_score(summed: FloatArray) -> FloatArray:
    """Return the F-score of precision and recall averaged over the orders both sides have (Popović 2017)."""
    # (..., 3 * orders) -> three of (..., orders)
    hypothesis, reference, matching = np.moveaxis(summed.reshape(*summed.shape[:-1], -1, 3), -1, 0)
    present = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(present.sum(axis=-1), 1)
    precision = _ratio(matching, hypothesis, where=present).sum(axis=-1) / orders
    recall = _ratio(matching, reference, where=present).sum(axis=-1) / orders
    f_score = _ratio(
        (1 + _BETA_SQUARED) * precision * recall,
        _BETA_SQUARED * precision + recall,
        where=precision + recall > 0,
    )
    return 100 * f_score


def bleu_score(summed: FloatArray) -> FloatArray:
    """Return BLEU, smoothed: the k-th order without a match counts 2^-k of one (Chen and Cherry 2014, method 3)."""
    length, reference_length = summed[..., 0], summed[..., 1]
    # (..., 10) -> (..., 4) each
    matching, total = summed[..., 2 : 2 + BLEU_ORDERS], summed[..., 2 + BLEU_ORDERS :]
    missing = matching == 0
    smoothed = np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), matching)
    defined = (matching.sum(axis=-1) > 0) & (total.min(axis=-1) > 0)
    precision = _ratio(smoothed, total, where=total > 0)
    log_precision = np.log(np.where(defined[..., None], precision, 1.0)).mean(axis=-1)
    shortfall = np.maximum(_ratio(reference_length, length, where=length > 0), 1.0) - 1.0
    return np.where(defined, 100 * np.exp(log_precision - shortfall), 0.0)


def _ratio(numerator: FloatArray, denominator: FloatArray, *, where: Any) -> FloatArray:
    """Divide where asked, and give zero elsewhere."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=where)
