"""Planning: statistics and a budget give the experts that each language keeps. No torch in here."""

from nllb_prune.masks import ExpertMask, MaskSet, mask_array, union
from nllb_prune.planning.budget import Allocation, Budget, allocate, parse_kept, parse_ratio
from nllb_prune.planning.criteria import CRITERIA, Criterion, describe_criteria, distinct_criteria, score
from nllb_prune.planning.evidence import Evidence
from nllb_prune.planning.index_format import masks_from_index, masks_to_index
from nllb_prune.planning.plan import plan
from nllb_prune.planning.rounds import plan_in_rounds
from nllb_prune.planning.scopes import SCOPES
from nllb_prune.planning.selection import top_per_layer
from nllb_prune.planning.similarity import compare, jaccard, jaccard_matrix, mean_jaccard, overlap
from nllb_prune.planning.union import global_union

__all__ = [
    "CRITERIA",
    "SCOPES",
    "Allocation",
    "Budget",
    "Criterion",
    "Evidence",
    "ExpertMask",
    "MaskSet",
    "allocate",
    "compare",
    "describe_criteria",
    "distinct_criteria",
    "global_union",
    "jaccard",
    "jaccard_matrix",
    "mask_array",
    "masks_from_index",
    "masks_to_index",
    "mean_jaccard",
    "overlap",
    "parse_kept",
    "parse_ratio",
    "plan",
    "plan_in_rounds",
    "score",
    "top_per_layer",
    "union",
]
