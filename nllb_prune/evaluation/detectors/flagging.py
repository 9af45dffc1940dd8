"""From the values of detectors to flags: which sentences of a direction are bad, and in what way."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import DETACHED, OFF_TARGET, UNLIKELY, Detector, Outputs, flags, threshold_at
from nllb_prune.evaluation.results import DirectionResult

BoolArray = NDArray[np.bool_]
FloatArray = NDArray[np.float64]

ANY = "any"
"""Flagged by one detector or more."""
RAW = f"{OFF_TARGET} raw"
"""Off-target by identification, its errors included; `off-target` itself has the rate on the references taken off."""
OF_REFERENCES = f"{OFF_TARGET} of references"
FROM_REFERENCE = f"{DETACHED} raw"
"""Far from the reference alone; `detached` itself is far from the baseline's output too."""

UNLIKELY_SHARE = 0.01
"""Of the baseline's outputs, below whose log-probability an output is unlikely."""


@dataclass(frozen=True, slots=True)
class Flags:
    """Flags of the sentences of a direction, (sentences,) each, for every detector that could run."""

    flagged: dict[str, BoolArray]
    counted: dict[str, BoolArray]
    """False where a detector cannot tell."""
    references: tuple[BoolArray, BoolArray] | None
    """Off-target references and those that are identified, if languages are."""
    from_reference: BoolArray | None
    """Detached from the reference alone."""


def flag(
    result: DirectionResult, detectors: Sequence[Detector], *, baseline: DirectionResult, text: ParallelText
) -> Flags:
    """Flag a result; what is far from its reference is detached only if it is far from the baseline's output too.

    Raises:
        UsageError: if the values of a detector are of other sentences.
    """
    values = {d.name: _checked(result, d.name) for d in detectors if d.name in result.detections}
    flagged = {d.name: flags(d, values[d.name]) for d in detectors if d.name in values}
    counted = {name: ~np.isnan(each) for name, each in values.items()}
    by_name = {detector.name: detector for detector in detectors}
    from_reference = flagged.get(DETACHED)
    if from_reference is not None:
        flagged[DETACHED] = _from_both(result, from_reference, by_name[DETACHED], baseline, text)
    on_references = result.on_references.get(OFF_TARGET) if OFF_TARGET in flagged else None
    references = None
    if on_references is not None:
        references = flags(by_name[OFF_TARGET], on_references), ~np.isnan(on_references)
    return Flags(flagged, counted, references, from_reference)


def fitted(detectors: Sequence[Detector], good: Iterable[DirectionResult]) -> tuple[Detector, ...]:
    """Return the detectors with the threshold of unlikely outputs at a percentile of good ones.

    How probable a model finds its outputs depends on the model, so no threshold fits all.
    """
    found = [result.detections[UNLIKELY] for result in good if UNLIKELY in result.detections]
    if not found:
        return tuple(detectors)
    threshold = threshold_at(np.concatenate(found), rate=UNLIKELY_SHARE)
    return tuple(replace(each, threshold=threshold) if each.name == UNLIKELY else each for each in detectors)


def _checked(result: DirectionResult, name: str) -> FloatArray:
    values = result.detections[name]
    if len(values) != result.sentences:
        raise UsageError(f"`{name}` must have {result.sentences} values, but has {len(values)} instead.")
    return values


def _from_both(
    result: DirectionResult, far: BoolArray, detector: Detector, baseline: DirectionResult, text: ParallelText
) -> BoolArray:
    """Look again at what is far from its reference: close to the baseline's output, it is not detached."""
    lines = np.flatnonzero(far)
    detached = np.zeros_like(far)
    if not len(lines):
        return detached
    sources, references = text.lines(result.source), text.lines(result.target)
    outputs = Outputs(
        source=result.source,
        target=result.target,
        sources=[sources[n] for n in lines],
        outputs=[result.hypotheses[n] for n in lines],
        references=[references[n] for n in lines],
        full_outputs=[baseline.hypotheses[n] for n in lines],
    )
    detached[lines] = flags(detector, detector.values(outputs))
    return detached
