"""`Reserve`: what directions may take beyond the budget."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from nllb_prune.errors import UsageError
from nllb_prune.planning.memory import parse_memory
from nllb_prune.planning.sharing import Place

DEFAULT_RESERVE = 0.25
"""Of the experts that a direction keeps."""


@dataclass(slots=True, kw_only=True)
class Reserve:
    """The most that the masks of any one direction may grow by, together."""

    limit: int
    cost: Mapping[str, int]
    """Of an expert of each stack, in the unit of the limit."""
    unit: str = "experts"
    spent: dict[Place, int] = field(default_factory=dict)
    """Experts that each mask got."""

    def affordable(self, place: Place, others: Iterable[Iterable[Place]]) -> int:
        """Return by how many experts a mask may grow.

        Args:
            place: the mask.
            others: for every other stack, the masks that it is used together with.
        """
        spent = self._spent(place) + sum(max(map(self._spent, masks), default=0) for masks in others)
        return max(0, self.limit - spent) // self.cost[place[0]]

    def spend(self, place: Place, experts: int) -> None:
        """Count what a mask got."""
        self.spent[place] = self.spent.get(place, 0) + experts

    def _spent(self, place: Place) -> int:
        return self.spent.get(place, 0) * self.cost[place[0]]


@dataclass(frozen=True, slots=True)
class AskedReserve:
    """A reserve as it was asked for."""

    amount: float | int
    """A float is a share of the experts that a direction keeps on average, an integer their number, or bytes."""
    in_bytes: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.amount, bool) or not 0 <= self.amount < math.inf:
            raise UsageError(f"`reserve` must be 0 or more, but is {self.amount} instead.")


def parse_reserve(text: str) -> AskedReserve:
    """Read a reserve: a number of experts (`24`), a share of those kept (`25%`, `0.25`) or bytes (`2GB`).

    Raises:
        UsageError: if it is none of them.
    """
    text = text.strip()
    if re.fullmatch(r"\d+", text):
        return AskedReserve(int(text))
    if re.fullmatch(r"\d+(\.\d+)?%", text):
        return AskedReserve(float(text[:-1]) / 100)
    if re.fullmatch(r"0?\.\d+", text):
        return AskedReserve(float(text))
    if re.search(r"[a-zA-Z]$", text):
        with suppress(UsageError):
            return AskedReserve(parse_memory(text), in_bytes=True)
    raise UsageError(
        f"`reserve` must be a number of experts (24), a share of those kept (25% or 0.25) or a size (2GB), "
        f"but is {text} instead."
    )
