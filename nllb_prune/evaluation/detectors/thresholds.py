"""From which value on a sentence is flagged: the usual thresholds, and thresholds from good outputs."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.base import (
    COPY,
    DETACHED,
    EMPTY,
    LONG,
    OFF_TARGET,
    OSCILLATION,
    REPETITION,
    SCRIPT,
    SHORT,
    UNFINISHED,
    UNLIKELY,
)
from nllb_prune.evaluation.scores.metrics import FloatArray

# Those without a source were chosen on text of `mini`; what each flags is measured in eval/detectors/RESULTS.md.
THRESHOLDS: Mapping[str, float] = {
    OSCILLATION: 2.0,  # Guerreiro et al. 2023
    REPETITION: 0.3,  # just under 1/3, which two words said twice have
    LONG: 2.0,
    SHORT: 2.3,  # 1 % of the full `mini`'s outputs; 2 flags 2.5 %
    OFF_TARGET: 0.5,
    SCRIPT: 0.5,
    COPY: 1.0,
    EMPTY: 1.0,
    DETACHED: 90.0,  # chrF2 of 10 or less
    UNLIKELY: 1.9,  # 1 % of the full `mini`'s outputs; another model needs its own, from `threshold_at`
    UNFINISHED: 1.0,
}


def threshold_at(good: FloatArray, *, rate: float) -> float:
    """Return the lowest threshold that flags at most a share `rate` of good sentences, by their values.

    Args:
        good: ``(sentences,)`` of sentences without fault; NaN is left out.
        rate: Share of false alarms allowed, 0 to 1.

    Raises:
        UsageError: if no value is a number, or the rate is no share.
    """
    values = np.sort(np.asarray(good, np.float64)[~np.isnan(good)])
    if not 0.0 <= rate <= 1.0 or not len(values):
        raise UsageError(
            f"`rate` must be a share from 0 to 1 of one value or more, but is {rate} of {len(values)} instead."
        )
    allowed = int(np.floor(rate * len(values) + 1e-9))
    if allowed == len(values):
        return float(values[0])
    return float(np.nextafter(values[len(values) - allowed - 1], np.inf))
