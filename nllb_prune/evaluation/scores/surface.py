"""What shows on the surface of outputs: how long they are and how often they repeat themselves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.packing import pack, unpack
from nllb_prune.evaluation.scores.writing import units, visible

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
Measure = Callable[[FloatArray], FloatArray]

ORDERS = (2, 3, 4, 5, 6)
COLUMNS = (
    "sentences",
    "characters",
    "reference_characters",
    "compared",
    "long",
    "short",
    *(f"ngrams_{n}" for n in ORDERS),
    *(f"distinct_ngrams_{n}" for n in ORDERS),
)
"""What is counted for each sentence, all of it to be summed; `compared` is 1 where the reference has text."""

_LONG, _SHORT = 2.0, 0.5
_PERCENTILE = 99


@dataclass(frozen=True, slots=True, eq=False)
class Surface:
    """The counts of each sentence of one direction, and what follows from them; lengths leave white space out."""

    statistics: IntArray
    """`(sentences, len(COLUMNS))`."""

    def __post_init__(self) -> None:
        if self.statistics.ndim != 2 or self.statistics.shape[1] != len(COLUMNS):
            raise UsageError(
                f"`statistics` must have {len(COLUMNS)} columns, but has shape {self.statistics.shape} instead."
            )

    def value(self, name: str) -> float:
        """Return one of `MEASURES` over all sentences."""
        return float(MEASURES[name](self.statistics.sum(axis=0).astype(np.float64)))

    @property
    def length_ratios(self) -> tuple[FloatArray, NDArray[np.bool_]]:
        """Output / reference of each sentence, and whether the reference has text; where not, the ratio is 0."""
        lengths = _column(self.statistics, "characters"), _column(self.statistics, "reference_characters")
        return ratio(*lengths), self.statistics[:, COLUMNS.index("compared")] > 0

    @property
    def high_length_ratio(self) -> float:
        """99th percentile over sentences of output / reference."""
        ratios, compared = self.length_ratios
        return float(np.percentile(ratios[compared], _PERCENTILE)) if compared.any() else 0.0

    def to_json(self) -> dict[str, Any]:
        """Return the counts as JSON values."""
        return {"columns": list(COLUMNS), "statistics": pack(self.statistics)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Surface:
        """Rebuild from `to_json`.

        Raises:
            UsageError: if the counts are missing or are of other things.
        """
        columns = content.get("columns")
        if columns != list(COLUMNS) or "statistics" not in content:
            raise UsageError(f"`columns` must be {', '.join(COLUMNS)}, but is {columns!r} instead.")
        return cls(unpack(content["statistics"]))


def measure(hypotheses: Sequence[str], references: Sequence[str], *, target: str) -> Surface:
    """Count in translations into `target`; n-grams are of words, or of characters in scripts without spaces."""
    rows = [_sentence(*pair, target=target) for pair in zip(hypotheses, references, strict=True)]
    return Surface(np.array(rows, np.int64).reshape(-1, len(COLUMNS)))


def _sentence(hypothesis: str, reference: str, *, target: str) -> list[int]:
    """Return the counts of one sentence in the order of `COLUMNS`."""
    length, reference_length = len(visible(hypothesis)), len(visible(reference))
    output = units(hypothesis, target)
    ngrams = [[tuple(output[start : start + n]) for start in range(len(output) - n + 1)] for n in ORDERS]
    return [
        1,
        length,
        reference_length,
        int(reference_length > 0),
        int(0 < reference_length * _LONG < length),
        int(length < reference_length * _SHORT),
        *map(len, ngrams),
        *(len(set(found)) for found in ngrams),
    ]


def _column(counts: NDArray[Any], name: str) -> FloatArray:
    return np.asarray(counts[..., COLUMNS.index(name)], np.float64)


def ratio(above: FloatArray, below: FloatArray) -> FloatArray:
    """Divide, and give 0 where nothing was counted."""
    return np.divide(above, below, out=np.zeros(np.shape(above)), where=below > 0)


def _rate(numerator: str, denominator: str) -> Measure:
    return lambda summed: ratio(_column(summed, numerator), _column(summed, denominator))


def _diversity(order: int) -> Measure:
    return _rate(f"distinct_ngrams_{order}", f"ngrams_{order}")


def _repetition(order: int) -> Measure:
    diversity = _diversity(order)
    return lambda summed: np.where(_column(summed, f"ngrams_{order}") > 0, 1.0 - diversity(summed), 0.0)


MEASURES: Mapping[str, Measure] = {
    "length_ratio": _rate("characters", "reference_characters"),
    "over_2": _rate("long", "compared"),
    "under_half": _rate("short", "compared"),
    **{f"repeat_rate_{n}": _repetition(n) for n in ORDERS},
    **{f"diversity_{n}": _diversity(n) for n in (2, 3, 4)},
}
"""What follows from counts summed over sentences `(..., columns)`, so that it can be resampled.

`length_ratio` is characters of all outputs / of all references; `over_2` and `under_half` are shares of sentences;
`repeat_rate_n` is 1 - distinct n-grams / n-grams, counted within each output, and `diversity_n` the rest of it
(Lasby et al. 2025, arXiv 2510.13999, over words instead of token ids).
"""
