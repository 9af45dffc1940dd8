"""Outputs that are far too long or too short."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nllb_prune.evaluation.detectors.base import LONG, SHORT, Outputs
from nllb_prune.evaluation.scores.metrics import FloatArray
from nllb_prune.evaluation.scores.writing import visible

# Characters without white space that a sentence has in each script, English taking 1: geometric means over the
# languages of a script of the train lines of MASSIVE 1.0 that are marked as literal (51 languages;
# `python -m eval.detectors.length_norms DIR`). Scripts that are missing here have no length without a reference.
NORMS: Mapping[str, float] = {
    "Arab": 0.91,
    "Armn": 1.12,
    "Beng": 1.03,
    "Cyrl": 1.13,
    "Deva": 1.01,
    "Ethi": 0.68,
    "Geor": 0.98,
    "Grek": 1.21,
    "Hang": 0.40,
    "Hans": 0.36,
    "Hant": 0.33,
    "Hebr": 0.82,
    "Jpan": 0.52,
    "Khmr": 1.08,
    "Knda": 1.19,
    "Latn": 1.11,
    "Mlym": 1.35,
    "Mymr": 1.32,
    "Taml": 1.34,
    "Telu": 1.16,
    "Thai": 0.99,
}
# Added to both lengths, so that short requests, whose lengths vary most, do not count: of 100,000 pairs of MASSIVE's
# test lines 2.0 % differ by a factor of 2 or more in one way without it, and .8 % with it (same command).
ADDED = 5


@dataclass(frozen=True, slots=True)
class Long:
    """Length of the output / length expected."""

    name: ClassVar[str] = LONG
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def settings(self) -> Mapping[str, str]:
        """What is expected, and the smoothing."""
        return _SETTINGS

    def values(self, outputs: Outputs) -> FloatArray:
        """Return the ratios ``(sentences,)``; NaN where nothing is expected or no norm is known."""
        return _lengths(outputs.outputs) / _expected(outputs)


@dataclass(frozen=True, slots=True)
class Short:
    """Length expected / length of the output."""

    name: ClassVar[str] = SHORT
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def settings(self) -> Mapping[str, str]:
        """What is expected, and the smoothing."""
        return _SETTINGS

    def values(self, outputs: Outputs) -> FloatArray:
        """Return the ratios ``(sentences,)``; NaN where nothing is expected or no norm is known."""
        return _expected(outputs) / _lengths(outputs.outputs)


_SETTINGS = {"by": "reference,else-source-normed-by-script", "units": "characters", "add": str(ADDED)}


def _expected(outputs: Outputs) -> FloatArray:
    """Return the length of the reference, or without one that of the source by the norms of both scripts."""
    if outputs.references is not None:
        return _lengths(outputs.references, where_text=True)
    norms = [NORMS.get(code.partition("_")[2], np.nan) for code in (outputs.source, outputs.target)]
    return (_lengths(outputs.sources, where_text=True) - ADDED) * norms[1] / norms[0] + ADDED


def _lengths(texts: Sequence[str], *, where_text: bool = False) -> FloatArray:
    """Return smoothed lengths ``(texts,)``; of texts that must have some, NaN where there is none."""
    counts = np.array([len(visible(text)) for text in texts], np.float64)
    return np.where((counts == 0) & where_text, np.nan, counts + ADDED)
