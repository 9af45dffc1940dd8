"""Outputs that are no translation at all: a copy of the source, or nothing."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nllb_prune.evaluation.detectors.base import COPY, EMPTY, Outputs
from nllb_prune.evaluation.scores.metrics import FloatArray


@dataclass(frozen=True, slots=True)
class Copy:
    """1 where the output equals the source, unless the reference does too: names and numbers rightly stay."""

    name: ClassVar[str] = COPY
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def settings(self) -> Mapping[str, str]:
        """What is not looked at when texts are compared, and the exception."""
        return {"ignores": "case,space,normal-form", "unless": "reference-copies"}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return 0 or 1 ``(sentences,)``; NaN where the source has no letters."""
        sources, found = [_plain(text) for text in outputs.sources], [_plain(text) for text in outputs.outputs]
        references = [_plain(text) for text in outputs.references or [""] * len(sources)]
        copies = [s == o and s != r for s, o, r in zip(sources, found, references, strict=True)]
        lettered = [any(character.isalpha() for character in text) for text in sources]
        return np.where(lettered, np.array(copies, np.float64), np.nan)


@dataclass(frozen=True, slots=True)
class Empty:
    """1 where the output has no letter or digit."""

    name: ClassVar[str] = EMPTY
    needs: ClassVar[frozenset[str]] = frozenset()

    @property
    def settings(self) -> Mapping[str, str]:
        """What counts as text."""
        return {"text": "letters,digits"}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return 0 or 1 ``(sentences,)``; NaN where the source has none either."""
        empty = np.array([not _has_text(text) for text in outputs.outputs], np.float64)
        return np.where([_has_text(text) for text in outputs.sources], empty, np.nan)


def _plain(text: str) -> str:
    return " ".join(unicodedata.normalize("NFC", text).casefold().split())


def _has_text(text: str) -> bool:
    return any(character.isalnum() for character in text)
