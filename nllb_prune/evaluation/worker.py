"""Does the work of an evaluation, an item at a time, with a loaded model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from nllb_prune.evaluation.detectors import Outputs
from nllb_prune.evaluation.evaluation import result_path
from nllb_prune.evaluation.fidelity.fidelity import Fidelity
from nllb_prune.evaluation.fidelity.full_model import FullDirection
from nllb_prune.evaluation.results import RESULT_FILES, DirectionResult
from nllb_prune.evaluation.work import EvaluationItem, EvaluationWork
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import translations
from nllb_prune.languages import Direction


@dataclass(slots=True)
class Worker:
    """Translates and measures; keeps what the configurations of a direction share."""

    model: nn.Module
    tokenizer: Any
    work: EvaluationWork
    force: bool = False
    """Whether outputs of earlier runs are left alone."""
    _full: tuple[Direction, FullDirection] | None = field(default=None, init=False)

    def __call__(self, item: EvaluationItem) -> DirectionResult:
        """Translate, unless only measures changed since there is a file, and measure."""
        text = self.work.text
        sources, references = text.lines(item.source), text.lines(item.target)
        outputs = (None if self.force else self._kept_outputs(item)) or self._translated(sources, item)
        measured = self.work.measuring.measure(
            Outputs(
                source=item.source,
                target=item.target,
                sources=sources,
                outputs=outputs.texts,
                references=references,
                mean_log_probabilities=outputs.mean_log_probabilities,
                ended=outputs.ended,
            )
        )
        kept, weight = self.work.weights(item)
        return DirectionResult(
            configuration=item.configuration,
            source=item.source,
            target=item.target,
            kept=kept,
            weight_bytes=weight,
            hypotheses=outputs.texts,
            mean_log_probabilities=outputs.mean_log_probabilities,
            ended=outputs.ended,
            scores=measured.scores,
            surface=measured.surface,
            detections=measured.detections,
            on_references=measured.on_references,
            fidelity=self._fidelity(sources, references, item),
        )

    def _translated(self, sources: Sequence[str], item: EvaluationItem) -> _Outputs:
        search = self.work.search
        found = translations(
            self.model,
            self.tokenizer,
            sources,
            source=item.source,
            target=item.target,
            masks=self.work.configurations[item.configuration],
            search=SearchSettings(beams=search.beams),
            rows=search.rows,
            positions=search.positions,
        )
        best = [each[0] for each in found]
        return _Outputs(
            tuple(each.text for each in best),
            np.array([each.mean_log_probability for each in best], np.float64),
            np.array([each.ended for each in best], np.bool_),
        )

    def _kept_outputs(self, item: EvaluationItem) -> _Outputs | None:
        """Return the outputs of a file whose translations were made as ours would be."""
        path = result_path(self.work.folder, item.configuration, "-".join(item.direction))
        try:
            result, header = RESULT_FILES.unpack(path.read_bytes())
            found = dict(header["settings"])
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # there is no file, or one that is to be replaced
        if any(found.get(name) != value for name, value in self.work.translation_settings(item).items()):
            return None
        return _Outputs(result.hypotheses, result.mean_log_probabilities, result.ended)

    def _fidelity(self, sources: Sequence[str], references: Sequence[str], item: EvaluationItem) -> Fidelity | None:
        masks = self.work.configurations[item.configuration]
        if masks is None or not self.work.measuring.fidelity:
            return None
        if self._full is None or self._full[0] != item.direction:
            full = FullDirection.of(
                self.model, self.tokenizer, sources, references, source=item.source, target=item.target
            )
            self._full = (item.direction, full)
        return self._full[1].measure(masks)


@dataclass(frozen=True, slots=True)
class _Outputs:
    texts: tuple[str, ...]
    mean_log_probabilities: NDArray[np.float64]
    ended: NDArray[np.bool_]
