"""`Tolerances`: how far masks may move a model before they are refused."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields

from nllb_prune.errors import UsageError
from nllb_prune.planning.measured.measure import Figures


@dataclass(frozen=True, slots=True, kw_only=True)
class Tolerances:
    """The most that each figure may change; the defaults were found on `mini` (eval/guard/README.md)."""

    loss_change: float = 0.15
    """Mean loss, nats a token."""
    end_loss_change: float = 0.20
    """Mean loss of `</s>` where it is due, nats."""
    early_change: float = 0.02
    """Mean probability of `</s>` where a word is due."""
    late_change: float = 0.05
    """Mean probability of another token where `</s>` is due."""
    length_change: float = 0.03
    """Length of translations, share of the full model's, longer or shorter."""
    runaway_change: float = 0.01
    """Share of translations that are more than twice as long as the full model's, less those where it is the other way
    round: a model that has lost the end of a sentence repeats itself up to the limit, in few sentences at first."""
    detached_change: float = 0.01
    """Share of translations that have to do neither with the reference nor with the full model's: what an encoder lost
    shows here, while references in the decoder hide it from the losses."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < math.inf:
                raise UsageError(f"`tolerances/{name}` must be a number above 0, but is {value} instead.")

    @classmethod
    def of(cls, recorded: Mapping[str, float]) -> Tolerances:
        """Return those of a record.

        Raises:
            UsageError: if it has a name or a value that is none.
        """
        if unknown := sorted(set(recorded) - {each.name for each in fields(cls)}):
            raise UsageError(f"`tolerances` must be of {', '.join(NAMES)}, but has {unknown[0]}.")
        return cls(**recorded)

    def worst(self, figures: Figures) -> tuple[float, str]:
        """Return the figure that is largest against its tolerance: how many times that, and its name."""
        return max((self.excess(name, value), name) for name, value in figures.items())

    def excess(self, name: str, value: float) -> float:
        """Return a figure in units of its tolerance; NaN, of no text, is no excess."""
        if math.isnan(value):
            return 0.0
        tolerance: float = getattr(self, name)
        return (abs(value) if name == "length_change" else max(value, 0.0)) / tolerance


NAMES = tuple(each.name for each in fields(Tolerances))


def parse_tolerances(text: str) -> Tolerances:
    """Read tolerances such as `loss_change=0.1,length_change=0.05`; those that are not named keep their defaults.

    Raises:
        UsageError: if a name or a value is none.
    """
    chosen: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = (side.strip() for side in part.partition("="))
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if name not in NAMES or not 0 < number < math.inf:
            raise UsageError(
                f"`tolerances` must be like loss_change=0.1,length_change=0.05, of {', '.join(NAMES)}, "
                f"but is {text} instead."
            )
        chosen[name] = number
    return Tolerances(**chosen)
