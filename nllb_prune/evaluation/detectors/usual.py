"""The detectors that need no model but an identifier of languages."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.base import Detector, Measure
from nllb_prune.evaluation.detectors.detached import Detached
from nllb_prune.evaluation.detectors.identification import LanguageIdentifier
from nllb_prune.evaluation.detectors.length import Long, Short
from nllb_prune.evaluation.detectors.off_target import OffTarget
from nllb_prune.evaluation.detectors.plain import Copy, Empty
from nllb_prune.evaluation.detectors.repetition import Oscillation, Repetition
from nllb_prune.evaluation.detectors.script import Script
from nllb_prune.evaluation.detectors.search import Unfinished, Unlikely
from nllb_prune.evaluation.detectors.thresholds import THRESHOLDS

_NO_THRESHOLDS: Mapping[str, float] = {}


def usual_detectors(
    *,
    identifier: LanguageIdentifier | None,
    languages: Iterable[str],
    thresholds: Mapping[str, float] = _NO_THRESHOLDS,
) -> tuple[Detector, ...]:
    """Return every detector that runs on any machine.

    Args:
        identifier: Tells which language an output is in; without one nothing is off-target.
        languages: FLORES-200 codes that the model can give: outputs are identified as one of them.
        thresholds: Other than the usual ones, by the name of a detector.

    Raises:
        UsageError: if a threshold is of no detector.
    """
    measures: list[Measure] = [Oscillation(), Repetition(), Long(), Short()]
    if identifier is not None:
        measures.append(OffTarget(identifier=identifier, languages=tuple(dict.fromkeys(languages))))
    measures += [Script(), Copy(), Empty(), Detached(), Unlikely(), Unfinished()]
    if unknown := [name for name in thresholds if name not in THRESHOLDS]:
        raise UsageError(f"`thresholds` must be of {', '.join(THRESHOLDS)}, but one is of `{unknown[0]}` instead.")
    chosen = {**THRESHOLDS, **thresholds}
    return tuple(Detector(measure, float(chosen[measure.name])) for measure in measures)
