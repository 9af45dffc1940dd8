"""Protection: experts that are kept whatever their score."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.planning.selection import BoolArray, best_first, move_first

# REAP's (arXiv 2510.13999): far above most experts, not far below the largest, and not among the last layers
_QUANTILE, _OF_LARGEST, _LAYERS = 0.995, 0.1, 0.75


def best_protected(scores: NDArray[np.float64], used: BoolArray, count: int) -> BoolArray:
    """Return which experts are among the best so many of their layer, (layers, experts), of those that are used."""
    chosen = np.zeros(scores.shape, dtype=np.bool_)
    np.put_along_axis(chosen, move_first(best_first(scores), used)[:, :count], True, axis=1)
    return chosen & used


def largest_activations(statistics: ExpertStatistics) -> dict[str, NDArray[np.float64]]:
    """Return the largest activation of each expert over all languages, (layers, experts) by stack.

    Raises:
        UsageError: if the statistics do not have it.
    """
    if "norms" not in statistics.collect:
        raise UsageError(
            f"`statistics` must have the group norms for super experts, but have {', '.join(statistics.collect)} "
            "instead. Calibrate with `--collect norms`."
        )
    largest = {stack.name: np.zeros((len(stack.layers), stack.experts)) for stack in statistics.spec.stacks}
    for (stack, _), table in statistics.tables.items():
        np.maximum(largest[stack], table["activation_max"][0], out=largest[stack])
    return largest


def super_experts(largest: Mapping[str, NDArray[np.float64]]) -> dict[str, BoolArray]:
    """Return the super experts of REAP: a property of the model, so all languages protect the same.

    Args:
        largest: largest activation of each expert (layers, experts), stacks in the model's order.

    Returns:
        Whether an expert's is above the 99.5th percentile of all and a tenth of the largest, in the first 75 % of the
        sparse layers; (layers, experts) by stack.
    """
    every = np.concatenate([each.ravel() for each in largest.values()])
    threshold = max(float(np.quantile(every, _QUANTILE)), float(every.max()) * _OF_LARGEST)
    left, chosen = int(sum(map(len, largest.values())) * _LAYERS), {}
    for stack, each in largest.items():
        chosen[stack] = each > threshold
        chosen[stack][max(left, 0) :] = False
        left -= len(each)
    return chosen
