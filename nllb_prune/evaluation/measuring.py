"""What is measured of the translations of one direction, beside making them: scores, surface, detectors, fidelity."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import sacrebleu
from numpy.typing import NDArray

from nllb_prune.evaluation.detectors import OFF_TARGET, Detector, Outputs, can_run, usual_detectors
from nllb_prune.evaluation.detectors.identification import identifier_of
from nllb_prune.evaluation.scores.metrics import Scores, score
from nllb_prune.evaluation.scores.spbleu import SpBleu, find_spbleu
from nllb_prune.evaluation.scores.surface import Surface, measure
from nllb_prune.evaluation.scores.writing import bleu_tokenizer
from nllb_prune.languages import Direction
from nllb_prune.tokenization import known_languages

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Measured:
    """What one direction's outputs gave."""

    scores: Scores
    surface: Surface
    detections: Mapping[str, FloatArray]
    on_references: Mapping[str, FloatArray]


@dataclass(frozen=True, slots=True, kw_only=True)
class Measuring:
    """Which measures are taken; their settings are part of what a result depends on."""

    detectors: tuple[Detector, ...]
    spbleu: SpBleu | None = None
    fidelity: bool = True
    """Whether a masked model is compared with the full one on the references, token by token."""
    _references: dict[tuple[str, ...], FloatArray] = field(default_factory=dict, repr=False, compare=False)
    _signatures: dict[str, str] = field(default_factory=dict, init=False, repr=False, compare=False)
    """Of the detectors' values: those over many languages are hashes, and every item asks for them."""

    def settings(self, direction: Direction) -> dict[str, Any]:
        """Return what the measures of a direction depend on beside its outputs."""
        if not self._signatures:
            self._signatures.update({f"detector {each.name}": each.values_signature for each in self.detectors})
        return {
            "bleu": bleu_tokenizer(direction[1]),
            "spbleu": None if self.spbleu is None else self.spbleu.signature,
            "sacrebleu": sacrebleu.__version__,
            "fidelity": self.fidelity,
            **self._signatures,
        }

    def measure(self, outputs: Outputs) -> Measured:
        """Measure the outputs of one direction, which must have references."""
        assert outputs.references is not None
        found = score(outputs.outputs, outputs.references, target=outputs.target, spbleu=self.spbleu)
        usable = [detector for detector in self.detectors if can_run(detector, outputs)]
        return Measured(
            found,
            measure(outputs.outputs, outputs.references, target=outputs.target),
            {detector.name: detector.values(outputs) for detector in usable},
            {d.name: self._on_references(d, outputs) for d in usable if d.name == OFF_TARGET},
        )

    def _on_references(self, detector: Detector, outputs: Outputs) -> FloatArray:
        """Return the values on the references: they are the same for all sources and configurations."""
        references: Sequence[str] = outputs.references or ()
        key = (detector.name, outputs.target, *references)
        if key not in self._references:
            self._references.clear()  # directions with one target follow each other
            as_outputs = Outputs(
                source=outputs.source, target=outputs.target, sources=outputs.sources, outputs=references
            )
            self._references[key] = detector.values(as_outputs)
        return self._references[key]


def usual_measuring(tokenizer: Any, *, fidelity: bool = True) -> Measuring:
    """Measure all that needs no further file, and spBLEU if sacrebleu has its model."""
    detectors = usual_detectors(identifier=identifier_of(), languages=known_languages(tokenizer))
    return Measuring(detectors=detectors, spbleu=find_spbleu(), fidelity=fidelity)


SCORES_ONLY = Measuring(detectors=(), fidelity=False)
"""chrF++, BLEU, lengths and repetition."""
