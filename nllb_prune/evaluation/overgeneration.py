"""Signs of over-generation and hallucination that need no model: repetition, length, empty and copied outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.evaluation._writing import units, visible
from nllb_prune.evaluation.scores import FloatArray, IntArray, check_aligned

# Oscillation: the output's most frequent 4-gram occurs at least twice more often than the source's most frequent one
# (Raunak et al. 2021; Guerreiro et al. 2023).
_TOP_ORDER = 4
_TOP_EXCESS = 2
REPEAT_ORDERS = (2, 3, 4, 5, 6)
_LONG, _SHORT = 2.0, 0.5

COLUMNS = (
    "sentences",
    "oscillating",
    "top_ngram",
    "source_top_ngram",
    *(f"ngrams_{n}" for n in REPEAT_ORDERS),
    *(f"distinct_ngrams_{n}" for n in REPEAT_ORDERS),
    "characters",
    "reference_characters",
    "compared",
    "long",
    "short",
    "empty",
    "copied",
)
"""What is counted for each sentence, all of it to be summed; `compared` is 1 where the reference has text."""


@dataclass(frozen=True, slots=True, eq=False)
class Overgeneration:
    """The rates over a corpus and the counts of each sentence; lengths are characters without white space."""

    oscillating: float
    """Share of outputs whose most frequent 4-gram occurs at least 2 times more often than the source's."""
    repeat_rate: dict[int, float]
    """For n = 2 to 6, 1 - distinct n-grams / n-grams, counted within each output and added up."""
    length_ratio: float
    """Characters of all outputs / characters of all references."""
    mean_length_ratio: float
    """Mean over sentences of output / reference."""
    high_length_ratio: float
    """99th percentile over sentences of output / reference."""
    long: float
    """Share of outputs more than twice as long as the reference."""
    short: float
    """Share of outputs less than half as long as the reference."""
    empty: float
    """Share of outputs without text."""
    copied: float
    """Share of outputs equal to their source, which names and numbers rightly are."""
    statistics: IntArray
    """`(sentences, len(COLUMNS))`: the counts of each sentence."""

    def column(self, name: str) -> IntArray:
        """Return the counts `(sentences,)` of one of `COLUMNS`."""
        return self.statistics[:, COLUMNS.index(name)]

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        content = asdict(self)
        content["repeat_rate"] = {str(n): rate for n, rate in self.repeat_rate.items()}
        return content | {"columns": list(COLUMNS), "statistics": self.statistics.tolist()}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Overgeneration:
        """Rebuild from the counts in `to_json`.

        Raises:
            UsageError: if the counts are missing or are of other things.
        """
        columns = content.get("columns")
        if columns != list(COLUMNS) or "statistics" not in content:
            raise UsageError(f"`columns` must be {', '.join(COLUMNS)}, but is {columns!r} instead.")
        return summarise(np.array(content["statistics"], np.int64))


def measure(
    hypotheses: Sequence[str], references: Sequence[str], *, sources: Sequence[str], source: str, target: str
) -> Overgeneration:
    """Measure translations from `source` into `target`; n-grams are of words, or of characters in unspaced scripts."""
    check_aligned(hypotheses=hypotheses, references=references, sources=sources)
    rows = [
        _sentence(hypothesis, reference, sentence, source=source, target=target)
        for hypothesis, reference, sentence in zip(hypotheses, references, sources, strict=True)
    ]
    return summarise(np.array([[row[name] for name in COLUMNS] for row in rows], np.int64))


def summarise(statistics: IntArray) -> Overgeneration:
    """Compute the rates from the counts of each sentence `(sentences, columns)`."""
    if statistics.ndim != 2 or statistics.shape[1] != len(COLUMNS):
        raise UsageError(f"`statistics` must have {len(COLUMNS)} columns, but has shape {statistics.shape} instead.")
    statistics = statistics.copy()
    statistics.setflags(write=False)
    summed = statistics.sum(axis=0)
    ratios = _length_ratios(statistics)
    return Overgeneration(
        oscillating=float(rate(summed, "oscillating")),
        repeat_rate={n: float(rate(summed, f"repeat_rate_{n}")) for n in REPEAT_ORDERS},
        length_ratio=float(rate(summed, "length_ratio")),
        mean_length_ratio=float(ratios.mean()) if len(ratios) else 0.0,
        high_length_ratio=float(np.percentile(ratios, 99)) if len(ratios) else 0.0,
        long=float(rate(summed, "long")),
        short=float(rate(summed, "short")),
        empty=float(rate(summed, "empty")),
        copied=float(rate(summed, "copied")),
        statistics=statistics,
    )


_RATES: dict[str, tuple[str, str]] = {
    "oscillating": ("oscillating", "sentences"),
    "length_ratio": ("characters", "reference_characters"),
    "long": ("long", "compared"),
    "short": ("short", "compared"),
    "empty": ("empty", "sentences"),
    "copied": ("copied", "sentences"),
}
RATES = (*_RATES, *(f"repeat_rate_{n}" for n in REPEAT_ORDERS))
"""The rates that depend on summed counts only, so that they can be resampled."""


def rate(summed: NDArray[Any], name: str) -> FloatArray:
    """Return one of `RATES` `(...)` for each row of summed counts `(..., columns)`; 0 where nothing was counted."""
    if name not in RATES:
        raise UsageError(f"`rate` must be one of {', '.join(RATES)}, but is {name!r} instead.")
    if name in _RATES:
        return _divide(summed, *_RATES[name])
    order = name.removeprefix("repeat_rate_")
    distinct = _divide(summed, f"distinct_ngrams_{order}", f"ngrams_{order}")
    return np.where(_column(summed, f"ngrams_{order}") > 0, 1.0 - distinct, 0.0)


def resampled(name: str) -> Callable[[NDArray[Any]], FloatArray]:
    """Return `rate` for one name, as `significance.paired_bootstrap` takes it for its metric."""

    def measure(summed: NDArray[Any]) -> FloatArray:
        return rate(summed, name)

    measure.__name__ = name
    return measure


def _sentence(hypothesis: str, reference: str, sentence: str, *, source: str, target: str) -> dict[str, int]:
    """Return the counts of one sentence by column."""
    length, reference_length = len(visible(hypothesis)), len(visible(reference))
    output = units(hypothesis, target)
    top, source_top = _top_count(output), _top_count(units(sentence, source))
    return _repetition(output) | {
        "sentences": 1,
        "oscillating": int(top - source_top >= _TOP_EXCESS),
        "top_ngram": top,
        "source_top_ngram": source_top,
        "characters": length,
        "reference_characters": reference_length,
        "compared": int(reference_length > 0),
        "long": int(0 < reference_length * _LONG < length),
        "short": int(length < reference_length * _SHORT),
        "empty": int(length == 0),
        "copied": int(length > 0 and hypothesis.split() == sentence.split()),
    }


def _repetition(output: Sequence[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for n in REPEAT_ORDERS:
        ngrams = _ngrams(output, n)
        counts[f"ngrams_{n}"] = len(ngrams)
        counts[f"distinct_ngrams_{n}"] = len(set(ngrams))
    return counts


def _top_count(text: Sequence[str]) -> int:
    return max(Counter(_ngrams(text, _TOP_ORDER)).values(), default=0)


def _ngrams(text: Sequence[str], n: int) -> list[tuple[str, ...]]:
    return [tuple(text[start : start + n]) for start in range(len(text) - n + 1)]


def _length_ratios(statistics: IntArray) -> FloatArray:
    """Return output / reference for the sentences whose reference has text."""
    compared = statistics[_column(statistics, "compared") > 0]
    return _divide(compared, "characters", "reference_characters")


def _divide(counts: NDArray[Any], numerator: str, denominator: str) -> FloatArray:
    above, below = _column(counts, numerator), _column(counts, denominator)
    return np.divide(above, below, out=np.zeros(above.shape), where=below > 0)


def _column(counts: NDArray[Any], name: str) -> FloatArray:
    return np.asarray(counts[..., COLUMNS.index(name)], np.float64)
