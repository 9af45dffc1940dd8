"""Model families: one small file each says where the sparse layers are and what their tensors are called."""

from __future__ import annotations

from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.model.families.family import Family
from nllb_prune.model.families.m2m_100 import M2M_100
from nllb_prune.model.families.nllb_moe import NLLB_MOE

__all__ = ["FAMILIES", "PRUNED_PREFIX", "Family", "family_of"]

FAMILIES: dict[str, Family] = {family.model_type: family for family in (NLLB_MOE, M2M_100)}
PRUNED_PREFIX = "nllb-prune-"
"""Before the `model_type` of a pruned checkpoint: transformers alone would fill the missing experts with random
numbers, so it must not know the type, and its message names who does."""


def family_of(config: Any) -> Family:
    """Return the family of a transformers configuration.

    Raises:
        UsageError: if no family knows its `model_type`.
    """
    family = FAMILIES.get(config.model_type.removeprefix(PRUNED_PREFIX))
    if family is None:
        raise UsageError(
            f"`model_type` must be one of {', '.join(FAMILIES)}, but is {config.model_type} instead; "
            "a further family is one file in `nllb_prune/model/families/`."
        )
    return family
