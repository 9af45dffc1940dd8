"""What calibration refuses before it begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

from nllb_prune.calibration.fields import GROUPS
from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import require_sparse
from nllb_prune.model.routing import ModelRouting

Mode = Literal["references", "outputs"]


def check_usable(state: ModelRouting, directions: Sequence[Direction], *, masks: MaskSet | None) -> None:
    """Refuse a model that is not whole, and masks that do not cover the directions."""
    spec = require_sparse(state.spec, state.name)
    if state.resident is not None:
        raise UsageError("`model` must hold all its experts to be calibrated, but is pruned; load it without a mask.")
    if any(stack.keep is not None for stack in state.stacks.values()):
        raise UsageError("`model` must route over all its experts to be calibrated, but has masks set; clear them.")
    if not directions:
        raise UsageError("`directions` must be one or more, but are none.")
    if masks is not None:
        masks.check_model(spec)
        for direction in directions:  # one without masks is refused now, not when its turn comes
            masks.direction(*direction)


def check_mode(mode: str, beams: int) -> None:
    """Refuse a mode that there is not, and beams where nothing is searched for."""
    if mode not in get_args(Mode):
        raise UsageError(f"`mode` must be one of {', '.join(get_args(Mode))}, but is {mode} instead.")
    if mode == "references" and beams != 1:
        raise UsageError(
            f"`beams` must be left out with the mode references, which searches for nothing, but is {beams} instead. "
            "The mode outputs searches."
        )


def check_streamed(groups: Sequence[str], mode: str) -> None:
    """Refuse what cannot be found out of a streamed model."""
    if mode != "references":
        raise UsageError(
            f"`mode` must be references with a streamed model, but is {mode} instead: to find its own outputs, the "
            "model would be read for each of their tokens."
        )
    if "gradients" in groups:
        raise UsageError(
            f"`collect` must be of {', '.join(name for name in GROUPS if name != 'gradients')} with a streamed model, "
            "but names gradients instead, which go back through layers that are not there any more."
        )
