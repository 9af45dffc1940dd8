"""What the search itself knew: how sure the model was, and whether it came to an end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.base import UNFINISHED, UNLIKELY, Outputs
from nllb_prune.evaluation.scores.metrics import FloatArray


@dataclass(frozen=True, slots=True)
class Unlikely:
    """Minus the mean log-probability of the output's tokens (Guerreiro et al. 2023), in nats a token."""

    name: ClassVar[str] = UNLIKELY
    needs: ClassVar[frozenset[str]] = frozenset({"mean_log_probabilities"})

    @property
    def settings(self) -> Mapping[str, str]:
        """The unit."""
        return {"units": "nats-a-token"}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return ``(sentences,)``, 0 or more."""
        if outputs.mean_log_probabilities is None:
            raise UsageError("`mean_log_probabilities` must be given to tell what is unlikely, but are missing.")
        return -np.asarray(outputs.mean_log_probabilities, np.float64)


@dataclass(frozen=True, slots=True)
class Unfinished:
    """1 where the search was cut at its limit."""

    name: ClassVar[str] = UNFINISHED
    needs: ClassVar[frozenset[str]] = frozenset({"ended"})

    @property
    def settings(self) -> Mapping[str, str]:
        """Nothing: the limit is part of the search."""
        return {}

    def values(self, outputs: Outputs) -> FloatArray:
        """Return 0 or 1 ``(sentences,)``."""
        if outputs.ended is None:
            raise UsageError("`ended` must be given to tell what is unfinished, but is missing.")
        return 1.0 - np.asarray(outputs.ended, np.float64)
