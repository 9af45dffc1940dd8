"""What a detector of hallucination is: a measure of each sentence, and the threshold from which it is flagged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from nllb_prune._version import __version__
from nllb_prune.evaluation.scores.metrics import FloatArray, check_aligned

BoolArray = NDArray[np.bool_]

OSCILLATION, REPETITION, LONG, SHORT = "oscillation", "repetition", "long", "short"
OFF_TARGET, SCRIPT, COPY, EMPTY = "off-target", "script", "copy", "empty"
DETACHED, UNLIKELY, UNFINISHED = "detached", "unlikely", "unfinished"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outputs:
    """Translations of one direction and what they are judged by; line n is the same sentence in each."""

    source: str
    """FLORES-200 code."""
    target: str
    """FLORES-200 code."""
    sources: Sequence[str]
    outputs: Sequence[str]
    references: Sequence[str] | None = None
    full_outputs: Sequence[str] | None = None
    """Of the full model."""
    mean_log_probabilities: FloatArray | None = None
    """``(sentences,)``: mean over the tokens of the output, natural logarithm."""
    ended: BoolArray | None = None
    """``(sentences,)``: False where the search was cut at its limit."""

    def __post_init__(self) -> None:
        """Refuse no lines, or fields of different numbers of lines."""
        optional = {name: getattr(self, name) for name in _OPTIONAL}
        given = {name: lines for name, lines in optional.items() if lines is not None}
        check_aligned(sources=self.sources, outputs=self.outputs, **given)


_OPTIONAL = ("references", "full_outputs", "mean_log_probabilities", "ended")


class Measure(Protocol):
    """How bad each sentence is in one way, without a judgement from where on it is too bad."""

    @property
    def name(self) -> str:
        """Of the detector too, such as `oscillation`."""

    @property
    def needs(self) -> frozenset[str]:
        """Optional fields of `Outputs` without which there are no values."""

    @property
    def settings(self) -> Mapping[str, str]:
        """Everything that the values depend on beside the outputs, in the order of the signature."""

    def values(self, outputs: Outputs) -> FloatArray:
        """Return ``(sentences,)``, higher is worse; NaN where it cannot tell."""


@dataclass(frozen=True, slots=True)
class Detector:
    """A measure and the threshold from which on a sentence is flagged."""

    measure: Measure
    threshold: float
    """A sentence is flagged where its value is at least this; NaN never is."""

    @property
    def name(self) -> str:
        """Of the kind of fault, such as `oscillation`."""
        return self.measure.name

    @property
    def needs(self) -> frozenset[str]:
        """Optional fields of `Outputs` without which it cannot run."""
        return self.measure.needs

    @property
    def values_signature(self) -> str:
        """How values are computed: stored values hold as long as this is the same, whatever the threshold."""
        return _joined(self.name, self.measure.settings)

    @property
    def signature(self) -> str:
        """How flags are computed; rates of one signature are comparable."""
        return _joined(self.name, {**self.measure.settings, "t": f"{self.threshold:.12g}"})

    def values(self, outputs: Outputs) -> FloatArray:
        """Return ``(sentences,)``, higher is worse; NaN where it cannot tell.

        NaN is never flagged and does not count in the denominator of a rate.

        Raises:
            UsageError: if the outputs lack a field that it needs.
        """
        return self.measure.values(outputs)


def flags(detector: Detector, values: FloatArray) -> BoolArray:
    """Return which sentences ``(sentences,)`` are flagged: those whose value is at least the threshold."""
    return np.asarray(np.asarray(values) >= detector.threshold, np.bool_)


def can_run(detector: Detector, outputs: Outputs) -> bool:
    """Return whether the outputs have every field that a detector needs."""
    return not missing(detector, outputs)


def missing(detector: Detector, outputs: Outputs) -> tuple[str, ...]:
    """Return the fields that a detector needs and the outputs lack."""
    return tuple(name for name in _OPTIONAL if name in detector.needs and getattr(outputs, name) is None)


def _joined(name: str, settings: Mapping[str, str]) -> str:
    return "|".join([name, *(f"{key}:{value}" for key, value in settings.items()), f"version:{__version__}"])
