"""The sentences that a configuration translates worst against the baseline, kept as directions pass by."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from nllb_prune.corpus import ParallelText
from nllb_prune.evaluation.detectors.flagging import Flags
from nllb_prune.evaluation.results import DirectionResult
from nllb_prune.evaluation.scores.metrics import corpus_scores
from nllb_prune.evaluation.summary.summary import Example

FloatArray = NDArray[np.float64]

_EACH = 3  # of each detector
_LOSSES = 8  # by chrF++ alone
_ANY_LOSS = ""


@dataclass(slots=True)
class Examples:
    """The worst few for each detector that newly flags them, and by loss of chrF++ alone."""

    _heaps: dict[str, list[tuple[float, int, Example]]] = field(default_factory=dict)
    _seen: int = 0

    def add(
        self,
        result: DirectionResult,
        baseline: DirectionResult,
        *,
        flags: Flags,
        baseline_flags: Flags,
        text: ParallelText,
    ) -> None:
        """Look at a direction."""
        chrf, before = _sentence_chrf(result), _sentence_chrf(baseline)
        loss = before - chrf
        new = {name: flags.flagged[name] & ~baseline_flags.flagged[name] for name in flags.flagged}
        for name, chosen in {**new, _ANY_LOSS: loss > 0}.items():
            limit = _EACH if name else _LOSSES
            candidates = np.flatnonzero(chosen)
            for line in candidates[np.argsort(-loss[candidates], kind="stable")][:limit]:
                flagged = tuple(each for each in new if new[each][line])
                example = _example(result, baseline, int(line), flagged, (chrf[line], before[line]), text)
                self._push(name, float(loss[line]), example, limit)

    def _push(self, name: str, loss: float, example: Example, limit: int) -> None:
        heap = self._heaps.setdefault(name, [])
        self._seen += 1
        heapq.heappush(heap, (loss, -self._seen, example))  # of equal losses the first stays
        if len(heap) > limit:
            heapq.heappop(heap)

    def found(self) -> tuple[Example, ...]:
        """Return the examples, each once: those of detectors first, the largest loss of each first."""
        ordered = [name for name in self._heaps if name] + [name for name in self._heaps if not name]
        found: dict[tuple[str, str, int], Example] = {}
        for name in ordered:
            for each in _descending(self._heaps[name]):
                found.setdefault((each.source, each.target, each.line), each)
        return tuple(found.values())


def _descending(heap: Sequence[tuple[float, int, Example]]) -> list[Example]:
    return [example for _, _, example in sorted(heap, key=lambda entry: (-entry[0], -entry[1]))]


def _sentence_chrf(result: DirectionResult) -> FloatArray:
    return corpus_scores(result.scores["chrf"].statistics, "chrf")


def _example(
    result: DirectionResult,
    baseline: DirectionResult,
    line: int,
    flagged: tuple[str, ...],
    chrf: tuple[float, float],
    text: ParallelText,
) -> Example:
    return Example(
        source=result.source,
        target=result.target,
        line=line + 1,
        text=text.lines(result.source)[line],
        reference=text.lines(result.target)[line],
        baseline=baseline.hypotheses[line],
        output=result.hypotheses[line],
        chrf=round(float(chrf[0]), 2),
        baseline_chrf=round(float(chrf[1]), 2),
        flagged=flagged,
    )
