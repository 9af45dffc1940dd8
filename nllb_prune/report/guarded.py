"""What the guard found of masks and of directions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nllb_prune.planning.measured.tolerances import Tolerances
from nllb_prune.report.tolerated import Reading, worst


@dataclass(frozen=True, slots=True)
class GuardedDirection:
    """A direction in the end, with both its masks."""

    direction: str
    passed: bool
    readings: Mapping[str, Reading]
    """Those that it is judged by."""

    @property
    def worst(self) -> Reading | None:
        """The figure that is largest against its tolerance."""
        return worst(self.readings.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardedMask:
    """A mask in the end."""

    stack: str
    key: str
    planned: int
    kept: int
    passed: bool
    readings: Mapping[str, Reading]
    """Means over the directions that use it."""
    most: float
    """How many times its tolerance the worst figure was in any round; 0 if none was ever over."""
    direction: GuardedDirection | None
    """The worst direction that it failed for, if it failed for one."""

    @property
    def grown(self) -> bool:
        """Whether it got experts."""
        return self.kept > self.planned

    @property
    def own(self) -> Reading | None:
        """The mean that is largest against its tolerance."""
        return worst(self.readings.values())

    @property
    def worst(self) -> tuple[Reading | None, str]:
        """What is largest against its tolerance, and of which direction; of none if it is a mean."""
        own, single = self.own, None if self.direction is None else self.direction.worst
        if self.direction is not None and single is not None and (own is None or single.excess > own.excess):
            return single, self.direction.direction
        return own, ""

    @property
    def excess(self) -> float:
        """How many times its tolerance the worst is."""
        found, _ = self.worst
        return 0.0 if found is None else found.excess


@dataclass(frozen=True, slots=True, kw_only=True)
class GuardRecord:
    """What the guard did."""

    masks: tuple[GuardedMask, ...]
    """Those that failed, those that grew, the others; each the worst first."""
    directions: tuple[GuardedDirection, ...]
    """The worst first."""
    stacks: tuple[str, ...]
    tolerances: Tolerances
    reserve: tuple[int, str]
    """What a direction may get, and in what unit."""
    added: tuple[int, ...]
    """Experts that each direction got."""
    measures: int
    passes: int
    """Directions measured, over all measures."""
    text: Mapping[str, Any]
    """What was measured on."""
    failed: tuple[str, ...]
    """`stack/key` of masks."""
    unmeasured: tuple[str, ...]
    """Those of masks that no direction uses which was measured: they may be anything."""

    @property
    def touched(self) -> list[GuardedMask]:
        """Masks that failed or grew."""
        return [each for each in self.masks if each.grown or not each.passed]

    @property
    def grown(self) -> int:
        """How many masks grew."""
        return sum(each.grown for each in self.masks)

    def of_stack(self, stack: str) -> list[GuardedMask]:
        """Return the masks of a stack."""
        return [each for each in self.masks if each.stack == stack]
