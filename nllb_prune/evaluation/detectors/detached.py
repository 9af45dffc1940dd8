"""Fluent outputs that have nothing to do with the source."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import sacrebleu

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.base import DETACHED, Outputs
from nllb_prune.evaluation.scores.metrics import FloatArray, sentence_chrf


@dataclass(frozen=True, slots=True)
class Detached:
    """100 - sentence chrF2: against the reference or the full model's output, whichever the output is closer to.

    So an output is far from both before it counts; without the full model's output only the reference is left, which
    flags more.
    """

    name: ClassVar[str] = DETACHED
    needs: ClassVar[frozenset[str]] = frozenset({"references"})

    @property
    def settings(self) -> Mapping[str, str]:
        """The metric, and what it compares with."""
        against = "reference,and-full-output-where-given"
        return {"metric": "100-chrF2", "against": against, "sacrebleu": str(sacrebleu.__version__)}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return distances ``(sentences,)`` from 0 to 100; NaN where neither has text."""
        if outputs.references is None:
            raise UsageError("`references` must be given to tell what is detached, but are missing.")
        distances = [100.0 - sentence_chrf(outputs.outputs, outputs.references)]
        texts = [outputs.references]
        if outputs.full_outputs is not None:
            distances.append(100.0 - sentence_chrf(outputs.outputs, outputs.full_outputs))
            texts.append(outputs.full_outputs)
        told = np.array([[bool(line.strip()) for line in lines] for lines in texts])
        return np.where(told.any(axis=0), np.min(distances, axis=0), np.nan)
