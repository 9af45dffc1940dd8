"""`Selection`: the experts that a checkpoint for some directions keeps."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """The union of the masks of some directions."""

    masks: MaskSet
    """Those of the directions, and no others."""
    directions: tuple[Direction, ...]
    """In the order of their codes; none where global masks are for all."""
    kept: Mapping[str, ExpertMask]
    """Ids by stack and sparse layer."""

    @classmethod
    def of(cls, masks: MaskSet, directions: Sequence[Direction]) -> Selection:
        """Select the experts of directions; of none means of all, which only global masks allow.

        Raises:
            UsageError: if a direction has no masks.
        """
        chosen = tuple(sorted(set(directions)))
        if not chosen and masks.languages():
            raise UsageError("`directions` must be one or more that the masks have, but are none.")
        anything = ("", "")  # global masks have one key, whatever the direction
        kept = masks.union(chosen or [anything])
        return cls(masks=_restricted(masks, chosen or (anything,)), directions=chosen, kept=kept)

    @property
    def sources(self) -> tuple[str, ...]:
        """Languages to translate from."""
        return tuple(sorted({source for source, _ in self.directions}))

    @property
    def targets(self) -> tuple[str, ...]:
        """Languages to translate into."""
        return tuple(sorted({target for _, target in self.directions}))

    @property
    def listed(self) -> tuple[Direction, ...] | None:
        """The directions, where they are not every source into every other target."""
        every = {(source, target) for source in self.sources for target in self.targets if source != target}
        return None if every <= set(self.directions) else self.directions

    def sides(self) -> dict[tuple[str, str], ExpertMask]:
        """Return the mask of each language side: of each stack and key."""
        return {(stack, key): mask for stack, each in self.masks.masks.items() for key, mask in each.items()}


def _restricted(masks: MaskSet, directions: Sequence[Direction]) -> MaskSet:
    keys = {stack.name: {masks.key(stack.name, *each) for each in directions} for stack in masks.stacks}
    return replace(
        masks,
        masks={
            name: {key: mask for key, mask in each.items() if key in keys[name]} for name, each in masks.masks.items()
        },
    )
