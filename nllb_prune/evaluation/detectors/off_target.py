"""Outputs in another language than the target, by identification."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nllb_prune.evaluation.detectors.base import OFF_TARGET, Outputs
from nllb_prune.evaluation.detectors.identification import LanguageIdentifier
from nllb_prune.evaluation.scores.metrics import FloatArray
from nllb_prune.languages import confusable_group


@dataclass(frozen=True, slots=True, kw_only=True)
class OffTarget:
    """Probability that the output is in none of the languages that cannot be told from the target.

    Identifiers are wrong about good text too: compare with `text_values` of the references.
    """

    name: ClassVar[str] = OFF_TARGET
    needs: ClassVar[frozenset[str]] = frozenset()
    identifier: LanguageIdentifier
    languages: tuple[str, ...]
    """FLORES-200 codes of the languages that the model can give."""

    @property
    def settings(self) -> Mapping[str, str]:
        """The identifier, and the languages with their groups: their number and a digest."""
        groups = [confusable_group(code) for code in sorted(self.languages)]
        digest = hashlib.sha256(repr((sorted(self.languages), groups)).encode()).hexdigest()[:8]
        return {"lid": self.identifier.signature, "languages": f"{len(self.languages)}-{digest}"}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return probabilities ``(sentences,)``; NaN where there are no letters or the target is unknown."""
        return self.text_values(outputs.outputs, outputs.target)

    def text_values(self, texts: Sequence[str], target: str) -> FloatArray:
        """Return the values ``(texts,)`` of any texts that should be in `target`, such as references."""
        languages = tuple(dict.fromkeys((*self.languages, target)))
        known, group = set(self.identifier.known(languages)), set(confusable_group(target))
        if target not in known or known <= group:
            return np.full(len(texts), np.nan)
        found = self.identifier.identify(texts, languages)
        inside = [n for n, code in enumerate(found.languages) if code in group]
        return np.asarray(1.0 - found.probabilities[:, inside].sum(axis=1), np.float64)
