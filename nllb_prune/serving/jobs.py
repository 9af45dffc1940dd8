"""`Job`: a sentence that waits for its turn, as scheduling sees it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nllb_prune.serving.residency import Side


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A sentence to translate: which experts it needs, and since when it waits."""

    key: int
    """Numbers follow the order of arrival."""
    joining: tuple[Side, ...] = ()
    """Sides it needs only when it joins: the encoder's."""
    staying: tuple[Side, ...] = ()
    """Sides it needs until it is finished: the decoder's."""
    arrived: float
    """Seconds of the engine's clock."""
    payload: Any = None
    """What the runner needs; nothing to scheduling."""

    @property
    def sides(self) -> tuple[Side, ...]:
        """All sides that must be in when it joins."""
        return self.joining + self.staying
