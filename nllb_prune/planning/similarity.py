"""How much two masks have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.masks import ExpertMask, mask_array


def jaccard(a: ExpertMask, b: ExpertMask) -> float:
    """Return the mean over layers of the shared experts divided by the experts of either; two empty layers count 1."""
    return float(jaccard_matrix([a, b])[0, 1])


def jaccard_matrix(masks: Sequence[ExpertMask]) -> NDArray[np.float64]:
    """Return `jaccard` of every two masks of one stack, (masks, masks)."""
    if len({len(mask) for mask in masks}) != 1:
        raise UsageError("`masks` must be one or more masks of the same number of layers, but are not.")
    experts = 1 + max((expert for mask in masks for layer in mask for expert in layer), default=0)
    kept = np.stack([mask_array(mask, experts) for mask in masks]).astype(np.float64)  # (masks, layers, experts)
    shared = np.einsum("ale,ble->abl", kept, kept)
    sizes = kept.sum(axis=2)  # (masks, layers)
    either = sizes[:, None] + sizes[None, :] - shared  # (masks, masks, layers)
    return np.asarray(np.where(either > 0, shared / np.maximum(either, 1.0), 1.0).mean(axis=2))


def mean_jaccard(masks: Sequence[ExpertMask]) -> float:
    """Return the mean `jaccard` over all pairs of different masks; 1 if there is a single one."""
    matrix = jaccard_matrix(masks)
    return float(matrix[np.triu_indices(len(masks), 1)].mean()) if len(masks) > 1 else 1.0
