"""chrF++, BLEU and spBLEU of one direction, with the counts of each sentence: resampling costs no new scoring."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from sacrebleu.metrics import BLEU, CHRF

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.formulas import BLEU_ORDERS, FloatArray, IntArray, bleu_score, chrf_score
from nllb_prune.evaluation.scores.packing import pack, unpack
from nllb_prune.evaluation.scores.spbleu import SpBleu
from nllb_prune.evaluation.scores.writing import bleu_tokenizer, check_tokenizer

__all__ = [
    "COLUMNS",
    "METRICS",
    "FloatArray",
    "IntArray",
    "Metric",
    "MetricScore",
    "Scores",
    "check_aligned",
    "corpus_scores",
    "score",
    "scores_from_json",
    "scores_to_json",
    "sentence_chrf",
    "sentence_chrf_of",
]

Metric = Literal["chrf", "bleu", "spbleu"]
"""chrF++; BLEU over words (or what stands for them in the target language); BLEU over sentencepiece pieces."""
METRICS: tuple[Metric, ...] = get_args(Metric)

_CHARACTER_ORDERS, _WORD_ORDERS = 6, 2
COLUMNS: dict[Metric, int] = {
    "chrf": 3 * (_CHARACTER_ORDERS + _WORD_ORDERS),
    "bleu": 2 + 2 * BLEU_ORDERS,
    "spbleu": 2 + 2 * BLEU_ORDERS,
}
"""Numbers a sentence has in the statistics of each metric.

chrF++: for each order (characters 1 to 6, words 1 and 2) the n-grams of the hypothesis, of the reference, and matching.
BLEU: length of the hypothesis, of the reference, matching n-grams by order, n-grams by order.
"""


@dataclass(frozen=True, slots=True, eq=False)
class MetricScore:
    """One metric of one direction."""

    value: float
    """Of the whole corpus, 0 to 100."""
    signature: str
    """sacrebleu's, of how it was computed."""
    statistics: IntArray
    """``(sentences, columns)``, as in `COLUMNS`."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values, the statistics packed."""
        return {"value": self.value, "signature": self.signature, "statistics": pack(self.statistics)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> MetricScore:
        """Rebuild from `to_json`.

        Raises:
            UsageError: if a field is missing or of another shape.
        """
        try:
            statistics = unpack(content["statistics"])
            if statistics.dtype != np.int64 or statistics.shape[1] not in COLUMNS.values():
                raise ValueError(f"statistics of {statistics.dtype} {statistics.shape}")
            return cls(float(content["value"]), str(content["signature"]), statistics)
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(
                f"`score` must be a value, signature and statistics, but cannot be read: {error}."
            ) from None


Scores = Mapping[Metric, MetricScore]
"""The metrics of one direction; spBLEU is there only if its sentencepiece model was."""


def scores_to_json(scores: Scores) -> dict[str, Any]:
    """Return the scores of a direction as JSON values."""
    return {metric: found.to_json() for metric, found in scores.items()}


def scores_from_json(content: Mapping[str, Any]) -> dict[Metric, MetricScore]:
    """Rebuild from `scores_to_json`.

    Raises:
        UsageError: if there are metrics that are not known, or none, or one cannot be read.
    """
    if not isinstance(content, Mapping) or not content or not set(content) <= set(METRICS):
        named = ", ".join(content) if isinstance(content, Mapping) else repr(content)
        raise UsageError(f"`scores` must be of {', '.join(METRICS)}, but are of {named or 'nothing'} instead.")
    scores = {metric: MetricScore.from_json(content[metric]) for metric in METRICS if metric in content}
    for metric, found in scores.items():
        if found.statistics.shape[1] != COLUMNS[metric]:
            raise UsageError(
                f"`{metric}` must have {COLUMNS[metric]} columns, but has {found.statistics.shape[1]} instead."
            )
    return scores


def score(
    hypotheses: Sequence[str],
    references: Sequence[str],
    *,
    target: str,
    spbleu: SpBleu | None = None,
    tokenizer: str | None = None,
) -> dict[Metric, MetricScore]:
    """Score translations against one reference each.

    Args:
        hypotheses: The translations.
        references: As many lines.
        target: Their language, which says how BLEU splits them.
        spbleu: From `find_spbleu`; `None` leaves spBLEU out.
        tokenizer: Name of sacrebleu's tokenizer for BLEU instead of that of `bleu_tokenizer`.

    Raises:
        UsageError: on other numbers of lines, or a tokenizer that cannot be used.
    """
    check_aligned(hypotheses=hypotheses, references=references)
    name = bleu_tokenizer(target) if tokenizer is None else tokenizer
    check_tokenizer(name)
    scores: dict[Metric, MetricScore] = {
        "chrf": _scored("chrf", *_extract(CHRF(word_order=_WORD_ORDERS), hypotheses, references)),
        "bleu": _scored("bleu", *_extract(BLEU(tokenize=name), hypotheses, references)),
    }
    if spbleu is not None:
        pieces = BLEU(tokenize="none", force=True)  # without force it takes pieces for text split by mistake, and warns
        rows, signature = _extract(pieces, spbleu.pieces(hypotheses), spbleu.pieces(references))
        scores["spbleu"] = _scored("spbleu", rows, signature.replace("|tok:none|", f"|tok:{spbleu.name}|"))
    return scores


def corpus_scores(summed: IntArray | FloatArray, metric: Metric) -> FloatArray:
    """Return the corpus score ``(...)`` of each row of summed statistics ``(..., columns)``."""
    if metric not in COLUMNS:
        raise UsageError(f"`metric` must be one of {', '.join(COLUMNS)}, but is {metric!r} instead.")
    formula = chrf_score if metric == "chrf" else bleu_score
    return formula(np.asarray(summed, np.float64))


def sentence_chrf(hypotheses: Sequence[str], references: Sequence[str]) -> FloatArray:
    """Return chrF2, which counts character n-grams of 1 to 6 and no words, of each sentence ``(sentences,)``."""
    check_aligned(hypotheses=hypotheses, references=references)
    statistics, _ = _extract(CHRF(word_order=0), hypotheses, references)
    return chrf_score(statistics.astype(np.float64))


def sentence_chrf_of(scored: MetricScore) -> FloatArray:
    """Return what `sentence_chrf` does ``(sentences,)`` from the statistics of chrF++."""
    if scored.statistics.shape[1] != COLUMNS["chrf"]:
        raise UsageError(f"`scored` must be chrF++, but has {scored.statistics.shape[1]} columns instead.")
    return chrf_score(scored.statistics[:, : 3 * _CHARACTER_ORDERS].astype(np.float64))


def check_aligned(**texts: Sequence[str]) -> None:
    """Refuse no lines, or texts of different numbers of lines, named by the keywords."""
    counts = {name: len(lines) for name, lines in texts.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        names = " and ".join(f"`{name}`" for name in counts)
        found = " and ".join(str(count) for count in counts.values())
        raise UsageError(f"{names} must have the same number of lines, one or more, but have {found} instead.")


def _extract(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> tuple[IntArray, str]:
    """Return the statistics `(sentences, columns)` and the signature; the only use of a private name of sacrebleu."""
    rows = np.asarray(metric._extract_corpus_statistics(list(hypotheses), [list(references)]), np.int64)
    rows.setflags(write=False)
    return rows, str(metric.get_signature())


def _scored(metric: Metric, statistics: IntArray, signature: str) -> MetricScore:
    return MetricScore(float(corpus_scores(statistics.sum(axis=0), metric)), signature, statistics)
