"""Other masks for a translator that is at work: checked beside it, then put in place between batches."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import replace

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.paged import expert_ids
from nllb_prune.model.routing import routing_of
from nllb_prune.serving.engine import Change
from nllb_prune.serving.memory import Counts, counts_of
from nllb_prune.serving.opening import Opened, sides_of
from nllb_prune.serving.residency import Residency, Side
from nllb_prune.serving.served import Served
from nllb_prune.serving.service import Service
from nllb_prune.serving.sides import LanguageSides


class Reloader:
    """Puts other masks in place of those that are served.

    Args:
        opened: What serves.
        service: Runs it.
    """

    def __init__(self, opened: Opened, service: Service) -> None:
        self._opened, self._service = opened, service
        self.alone = threading.Lock()
        """Is held while masks are changed."""

    def reload(self, masks: MaskSet) -> None:
        """Check masks, then wait until they are in place; when that fails or is broken off, nothing has changed.

        Raises:
            UsageError: if they are not of this model, lack a language that must be served, or need experts that there
                is no room for, that the checkpoint lacks or that cannot be read.
            Unavailable: if the service is closed, or an error has ended it.
        """
        with self.alone:
            self._service.check_open()
            served = self._checked(masks)
            self._hold(served)
            change = Change(residency=served.residency, ahead=served.ahead, begin=lambda: self._begin(served))
            try:
                self._service.change(change)
                change.done.result()
            except BaseException:
                if change.done.cancel():
                    self._keep_only(self._opened.serving.now)
                raise

    def _checked(self, masks: MaskSet) -> Served:
        """Return what masks make, if all of it can be served."""
        opened, before = self._opened, self._opened.serving.now
        sides = sides_of(opened.weighed, masks, opened.known, opened.settings)
        if opened.settings.languages is not None:
            _check_covers(sides, before.sides)
        pinned = _pinned(sides, opened.settings.pinned)
        if opened.weighed.pruning is not None:
            opened.weighed.pruning.check_holds(sides.kept, opened.weighed.spec.stacks)
        _check_room(counts_of(sides.masks, pinned)[0], before.plan.slots)
        residency = Residency(sides.masks, before.plan.slots, pinned=pinned)
        plan = replace(before.plan, paged=not residency.fits(sides.masks))
        return Served(masks=masks, sides=sides, plan=plan, pinned=pinned, residency=residency)

    def _hold(self, served: Served) -> None:
        if self._opened.pager is not None:
            self._opened.pager.store.hold(expert_ids(served.kept))

    def _keep_only(self, served: Served) -> None:
        if self._opened.pager is not None:
            self._opened.pager.store.keep_only(expert_ids(served.kept))

    def _begin(self, served: Served) -> None:
        """Serve within other masks from now on; in the engine's thread, when nobody is in flight."""
        self._opened.serving.now = served
        routing_of(self._opened.model).resident = served.kept
        self._keep_only(served)


def _check_covers(sides: LanguageSides, before: LanguageSides) -> None:
    served = set(sides.directions)
    lost = next((each for each in before.directions if each not in served), None)
    if lost is not None:
        raise UsageError(
            f"`masks` must cover all that is served of `languages`, but do not cover {lost[0]} into {lost[1]}."
        )


def _pinned(sides: LanguageSides, names: Sequence[str]) -> tuple[Side, ...]:
    try:
        return sides.pinned(names)
    except UsageError:
        raise UsageError(f"`masks` must cover all that is pinned, {', '.join(names)}, but do not.") from None


def _check_room(least: Counts, slots: Counts) -> None:
    """Refuse masks that need more experts at once than there are slots."""
    for stack, layers in least.items():
        for layer, (needed, room) in enumerate(zip(layers, slots[stack], strict=True)):
            if needed > room:
                raise UsageError(
                    f"`masks` must keep at most {room} experts in sparse layer {layer} of the {stack} for a language, "
                    f"with those of pinned ones, as memory was divided for, but keep {needed}; open the translator "
                    "anew with them, or plan smaller ones."
                )
