"""What is served now: masks, the sides that they make, and the slots for their experts. It changes as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from nllb_prune.expert_mask import ExpertMask
from nllb_prune.masks import MaskSet
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.memory import MemoryPlan
from nllb_prune.serving.residency import Residency, Side
from nllb_prune.serving.runner import Request
from nllb_prune.serving.sides import LanguageSides, joining, staying


@dataclass(frozen=True, slots=True, kw_only=True)
class Served:
    """Masks, and all that follows from them."""

    masks: MaskSet | None
    sides: LanguageSides
    plan: MemoryPlan
    pinned: tuple[Side, ...]
    residency: Residency
    """Belongs to the engine's thread once the engine has it."""

    @property
    def ahead(self) -> tuple[Side, ...]:
        """Sides that are brought in before anybody waits for them: all if they fit, else those that are pinned."""
        return self.pinned if self.plan.paged else tuple(self.sides.masks)

    @property
    def kept(self) -> dict[str, ExpertMask]:
        """Experts that any side needs, by stack."""
        return self.sides.kept


class Serving:
    """Gives sentences what they need of what is served now.

    Args:
        now: To begin with. The engine's thread alone replaces it, while no sentence is in flight; any may read it.
        device: Of the model.
    """

    def __init__(self, now: Served, *, device: torch.device) -> None:
        self.now, self._device = now, device

    def place(self, job: Job) -> Job:
        """Return a sentence with the sides that it needs.

        Raises:
            UsageError: if its direction is not served, or not any more.
        """
        request, sides = job.payload, self.now.sides
        assert isinstance(request, Request), "of a model"
        sides.check(*request.direction, full=request.full)
        needed = sides.of(*request.direction, full=request.full)
        return replace(job, joining=joining(needed), staying=staying(needed))

    def keep(self, sides: Sequence[Side]) -> Mapping[str, Tensor]:
        """Return the experts that sides allow, as in `Sentence`."""
        return self.now.sides.keep(sides, self._device)
