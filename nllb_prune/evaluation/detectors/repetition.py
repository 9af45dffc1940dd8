"""Outputs that say the same again and again, or twice."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nllb_prune.evaluation.detectors.base import OSCILLATION, REPETITION, Outputs
from nllb_prune.evaluation.scores.metrics import FloatArray
from nllb_prune.evaluation.scores.writing import units

_Ngrams = list[tuple[str, ...]]
_OfNgrams = Callable[[_Ngrams], float]
_UNITS = "words,characters-where-unspaced"


@dataclass(frozen=True, slots=True, kw_only=True)
class Oscillation:
    """Count of the output's most frequent n-gram minus that of the source's (Guerreiro et al. 2023)."""

    name: ClassVar[str] = OSCILLATION
    needs: ClassVar[frozenset[str]] = frozenset()
    order: int = 4

    @property
    def settings(self) -> Mapping[str, str]:
        """Order and units of the n-grams."""
        return {"n": str(self.order), "units": _UNITS}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return the excess ``(sentences,)``, a whole number."""
        return _excess(outputs, self.order, _top_count)


@dataclass(frozen=True, slots=True, kw_only=True)
class Repetition:
    """Repeat rate of the output minus that of the source; the rate is 1 - distinct n-grams / n-grams.

    A sentence said twice has about half of its n-grams twice, whatever its length, where `Oscillation` counts only
    one repetition. Of bigrams it is 1/3 for two words said twice and tends to 1/2.
    """

    name: ClassVar[str] = REPETITION
    needs: ClassVar[frozenset[str]] = frozenset()
    order: int = 2

    @property
    def settings(self) -> Mapping[str, str]:
        """Order and units of the n-grams."""
        return {"n": str(self.order), "units": _UNITS, "excess": "over-source"}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return the excess ``(sentences,)``, from -1 to 1."""
        return _excess(outputs, self.order, _repeat_rate)


def _excess(outputs: Outputs, order: int, measure: _OfNgrams) -> FloatArray:
    """Return the measure of the output minus that of the source, by sentence."""
    values = [
        measure(_ngrams(units(output, outputs.target), order)) - measure(_ngrams(units(source, outputs.source), order))
        for source, output in zip(outputs.sources, outputs.outputs, strict=True)
    ]
    return np.array(values, np.float64)


def _ngrams(text: Sequence[str], order: int) -> _Ngrams:
    return list(zip(*(text[start:] for start in range(order)), strict=False))


def _top_count(ngrams: _Ngrams) -> float:
    return max(Counter(ngrams).values(), default=0)


def _repeat_rate(ngrams: _Ngrams) -> float:
    return 1.0 - len(set(ngrams)) / len(ngrams) if ngrams else 0.0
