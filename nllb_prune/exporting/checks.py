"""What cannot be exported is refused before the first weight is read."""

from __future__ import annotations

from collections.abc import Collection

from nllb_prune.errors import UsageError
from nllb_prune.exporting.selection import Selection
from nllb_prune.masks import MaskSet
from nllb_prune.model.expected import ExpectedTensors
from nllb_prune.model.pruned import ExpertPruning
from nllb_prune.model.spec import ModelSpec


def check_masks(masks: MaskSet, spec: ModelSpec, name: str) -> None:
    """Refuse masks for other sparse layers."""
    if masks.stacks != spec.stacks:
        raise UsageError(
            f"`masks` must be for the sparse layers of `{name}`, but are for those of {masks.model_name}. "
            "Plan masks from statistics of this model."
        )


def check_base(base: ExpertPruning, selection: Selection, spec: ModelSpec) -> None:
    """Refuse a pruned checkpoint that lacks what is asked for, or whose experts are no floats."""
    base.check_holds(selection.kept, spec.stacks)
    if base.scheme is not None:
        raise UsageError(
            f"The experts of the model must be floats to be exported, but are in {base.scheme.name}; export them from "
            f"{base.base_model}."
        )


def check_names(expected: ExpectedTensors, names: Collection[str], *, model: str, kind: str) -> None:
    """Refuse tensors that are missing, and others than those of the kind of model."""
    missing = expected.missing(names)
    unknown = sorted(name for name in names if not expected.known(name))
    if missing or unknown:
        problem = f"lacks `{missing[0]}`" if missing else f"holds `{unknown[0]}`, which it must not"
        raise UsageError(
            f"`{model}` must hold the tensors of a {kind} model, but {problem}; it is incomplete or of another model."
        )
