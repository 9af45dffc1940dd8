"""Which language a text is in, among those that are served."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from nllb_prune.evaluation.detectors.identification import LanguageIdentifier
from nllb_prune.segmentation import has_words

_MOST = 5
"""Languages that are named for a text."""
_LEAST = 1.0
"""Percent of confidence, of all but the first."""
_READ = 4000
"""Characters of a text that are looked at."""


@dataclass(frozen=True, slots=True)
class Detected:
    """A language that a text may be in."""

    code: str
    """FLORES-200."""
    confidence: float
    """Percent, 0 where nothing can be told."""


class Detector:
    """Tells languages apart.

    Args:
        identifier: Of languages.
        languages: That text may be in.
        usual: What text is taken to be that tells nothing.
    """

    def __init__(self, identifier: LanguageIdentifier, languages: Sequence[str], *, usual: str) -> None:
        self._identifier, self._languages, self._usual = identifier, tuple(languages), usual

    def detect(self, texts: Sequence[str]) -> list[list[Detected]]:
        """Return the languages that each text may be in, the most probable first; at least one."""
        found = self._identifier.identify([text[:_READ] for text in texts], self._languages)
        return [
            self._ranked(found.languages, row) if has_words(text[:_READ]) else self._unknown()
            for text, row in zip(texts, found.probabilities, strict=True)
        ]

    def _ranked(self, languages: Sequence[str], row: np.ndarray) -> list[Detected]:
        if not languages or math.isnan(row[0]):
            return self._unknown()
        best = np.argsort(-row, kind="stable")[:_MOST]
        ranked = [Detected(languages[n], round(100 * float(row[n]), 1)) for n in best]
        return [ranked[0], *(each for each in ranked[1:] if each.confidence >= _LEAST)]

    def _unknown(self) -> list[Detected]:
        return [Detected(self._usual, 0.0)]
