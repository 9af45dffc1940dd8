"""Planning: statistics and a budget give the experts that each language keeps. No torch in here."""

from nllb_prune.masks import ExpertMask, MaskSet, mask_array, union
from nllb_prune.planning.budget import Allocation, Budget, allocate, parse_kept, parse_ratio
from nllb_prune.planning.criteria import CRITERIA, CriterionInfo, Shares, criterion
from nllb_prune.planning.index_format import masks_from_index, masks_to_index
from nllb_prune.planning.plan import plan
from nllb_prune.planning.selection import top_per_layer
from nllb_prune.planning.similarity import jaccard, jaccard_matrix, mean_jaccard

__all__ = [
    "CRITERIA",
    "Allocation",
    "Budget",
    "CriterionInfo",
    "ExpertMask",
    "MaskSet",
    "Shares",
    "allocate",
    "criterion",
    "jaccard",
    "jaccard_matrix",
    "mask_array",
    "masks_from_index",
    "masks_to_index",
    "mean_jaccard",
    "parse_kept",
    "parse_ratio",
    "plan",
    "top_per_layer",
    "union",
]
