"""Figures that the guard tolerates up to a point, and how they are told."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from nllb_prune.planning.measured.tolerances import Tolerances
from nllb_prune.report.names import number


@dataclass(frozen=True, slots=True)
class Figure:
    """How a figure is told."""

    words: str
    unit: str
    factor: int
    digits: int
    both_signs: bool = False
    """Whether a change is for the worse in both directions."""

    def text(self, value: float) -> str:
        """Return a value without its unit; nothing was measured where it is NaN."""
        return "—" if math.isnan(value) else number(self.factor * value, self.digits, sign=True)

    def tolerance(self, value: float) -> str:
        """Return a tolerance with its unit."""
        return f"{'±' if self.both_signs else 'up to '}{self.factor * value:.6g} {self.unit}"


FIGURES = {
    "loss_change": Figure("token loss", "nats", 1, 3),
    "end_loss_change": Figure("loss at the end", "nats", 1, 3),
    "early_change": Figure("ends too early", "%", 100, 2),
    "late_change": Figure("ends too late", "%", 100, 2),
    "length_change": Figure("length", "%", 100, 1, both_signs=True),
    "runaway_change": Figure("runaway translations", "%", 100, 1),
    "detached_change": Figure("detached translations", "%", 100, 1),
}
"""Those of `Tolerances`, in the order to read them."""
OF_DIRECTIONS = ("loss_change", "end_loss_change", "early_change", "late_change")
"""What a direction by itself is judged by; translations are judged by language."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A figure against its tolerance."""

    name: str
    value: float
    excess: float
    """How many times the tolerance."""

    @property
    def over(self) -> bool:
        """Whether it is more than tolerated."""
        return self.excess > 1

    @property
    def words(self) -> str:
        """What it is called."""
        return FIGURES[self.name].words

    @property
    def times(self) -> str:
        """How many times the tolerance, never rounded to one that it is above."""
        return times(self.excess)


def readings(figures: Mapping[str, float | None], tolerances: Tolerances) -> dict[str, Reading]:
    """Hold figures against their tolerances, in the order to read them."""
    known = {name: math.nan if (value := figures[name]) is None else value for name in FIGURES if name in figures}
    return {name: Reading(name, value, tolerances.excess(name, value)) for name, value in known.items()}


def worst(of: Iterable[Reading]) -> Reading | None:
    """Return the reading that is largest against its tolerance; none of none."""
    return max(of, key=lambda each: each.excess, default=None)


def times(excess: float) -> str:
    """Return how many times a tolerance; what is just above it is told with as many digits as show that."""
    digits = next((n for n in range(1, 6) if (round(excess, n) > 1) == (excess > 1)), 6)
    return f"{excess:.{digits}f}"
