"""chrF++ and BLEU of one direction, with the counts of each sentence, so that resampling costs no new scoring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from sacrebleu.metrics import BLEU, CHRF

from nllb_prune.errors import UsageError
from nllb_prune.evaluation._writing import bleu_tokenizer

Metric = Literal["chrf", "bleu"]
IntArray = NDArray[np.int64]
FloatArray = NDArray[np.float64]

_CHRF_ORDERS = 8  # character n-grams of 1 to 6, word n-grams of 1 and 2
_BLEU_ORDERS = 4
_BETA_SQUARED = 4  # chrF2: recall counts twice as much as precision
COLUMNS: dict[Metric, int] = {"chrf": 3 * _CHRF_ORDERS, "bleu": 2 + 2 * _BLEU_ORDERS}
"""Numbers a sentence has in the statistics of each metric."""


@dataclass(frozen=True, slots=True)
class Score:
    """A corpus score from 0 to 100 and sacrebleu's signature of how it was computed."""

    value: float
    signature: str

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {"value": self.value, "signature": self.signature}

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> Score:
        """Rebuild from `to_json`."""
        return cls(float(content["value"]), str(content["signature"]))


@dataclass(frozen=True, slots=True, eq=False)
class DirectionScores:
    """The scores of one direction and what they were computed from."""

    chrf: Score
    """chrF++."""
    bleu: Score
    """BLEU with the tokenizer that suits the target language; the signature names it."""
    chrf_statistics: IntArray
    """`(sentences, 24)`: for each order the n-grams of the hypothesis, of the reference, and the matching ones."""
    bleu_statistics: IntArray
    """`(sentences, 10)`: length of the hypothesis, of the reference, matching n-grams by order, n-grams by order."""

    @property
    def sentences(self) -> int:
        """Number of sentences scored."""
        return len(self.chrf_statistics)

    def statistics(self, metric: Metric) -> IntArray:
        """Return the statistics of one metric."""
        return self.chrf_statistics if metric == "chrf" else self.bleu_statistics

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "chrf": self.chrf.to_json(),
            "bleu": self.bleu.to_json(),
            "chrf_statistics": self.chrf_statistics.tolist(),
            "bleu_statistics": self.bleu_statistics.tolist(),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> DirectionScores:
        """Rebuild from `to_json`.

        Raises:
            UsageError: if a field is missing or of another shape.
        """
        try:
            return cls(
                Score.from_json(content["chrf"]),
                Score.from_json(content["bleu"]),
                _as_statistics(content["chrf_statistics"], "chrf"),
                _as_statistics(content["bleu_statistics"], "bleu"),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise UsageError(f"`scores` must be the scores of a direction, but cannot be read ({error!r}).") from None


def score(hypotheses: Sequence[str], references: Sequence[str], *, target: str) -> DirectionScores:
    """Score translations into `target` against one reference each."""
    check_aligned(hypotheses=hypotheses, references=references)
    chrf, chrf_signature = _extract(CHRF(word_order=2), hypotheses, references)
    bleu, bleu_signature = _extract(BLEU(tokenize=bleu_tokenizer(target)), hypotheses, references)
    return DirectionScores(
        Score(chrf_from_statistics(chrf.sum(axis=0)), chrf_signature),
        Score(bleu_from_statistics(bleu.sum(axis=0)), bleu_signature),
        _as_statistics(chrf, "chrf"),
        _as_statistics(bleu, "bleu"),
    )


def chrf_from_statistics(summed: IntArray) -> float:
    """Return chrF++ of statistics `(24,)` summed over sentences."""
    return float(corpus_scores(summed, "chrf"))


def bleu_from_statistics(summed: IntArray) -> float:
    """Return BLEU of statistics `(10,)` summed over sentences."""
    return float(corpus_scores(summed, "bleu"))


def corpus_scores(summed: IntArray | FloatArray, metric: Metric) -> FloatArray:
    """Return the corpus score `(...)` of each row of summed statistics `(..., columns)`."""
    if metric not in COLUMNS:
        raise UsageError(f"`metric` must be one of {', '.join(COLUMNS)}, but is {metric!r} instead.")
    return _chrf(np.asarray(summed, np.float64)) if metric == "chrf" else _bleu(np.asarray(summed, np.float64))


def check_aligned(**texts: Sequence[str]) -> None:
    """Refuse no lines, or texts of different numbers of lines, named by the keywords."""
    counts = {name: len(lines) for name, lines in texts.items()}
    if len(set(counts.values())) > 1 or 0 in counts.values():
        names = " and ".join(f"`{name}`" for name in counts)
        found = " and ".join(str(count) for count in counts.values())
        raise UsageError(f"{names} must have the same number of lines, one or more, but have {found} instead.")


def _extract(metric: Any, hypotheses: Sequence[str], references: Sequence[str]) -> tuple[IntArray, str]:
    """Return the statistics `(sentences, columns)` and the signature; the only use of a private name of sacrebleu."""
    rows = metric._extract_corpus_statistics(list(hypotheses), [list(references)])
    return np.asarray(rows, np.int64), str(metric.get_signature())


def _as_statistics(rows: Any, metric: Metric) -> IntArray:
    statistics = np.array(rows, np.int64)
    if statistics.ndim != 2 or statistics.shape[1] != COLUMNS[metric]:
        raise ValueError(f"{metric} statistics have shape {statistics.shape} and not (sentences, {COLUMNS[metric]})")
    statistics.setflags(write=False)
    return statistics


def _chrf(summed: FloatArray) -> FloatArray:
    """Return the F-score of precision and recall averaged over the orders both sides have (Popović 2017)."""
    # (..., 24) -> three of (..., 8)
    hypothesis, reference, matching = np.moveaxis(summed.reshape(*summed.shape[:-1], _CHRF_ORDERS, 3), -1, 0)
    present = (hypothesis > 0) & (reference > 0)
    orders = np.maximum(present.sum(axis=-1), 1)
    precision = _ratio(matching, hypothesis, where=present).sum(axis=-1) / orders
    recall = _ratio(matching, reference, where=present).sum(axis=-1) / orders
    f_score = _ratio(
        (1 + _BETA_SQUARED) * precision * recall,
        _BETA_SQUARED * precision + recall,
        where=precision + recall > 0,
    )
    return 100 * f_score


def _bleu(summed: FloatArray) -> FloatArray:
    """Return BLEU, smoothed: the k-th order without a match counts 2^-k of one (Chen and Cherry 2014, method 3)."""
    length, reference_length = summed[..., 0], summed[..., 1]
    # (..., 10) -> (..., 4) each
    matching, total = summed[..., 2 : 2 + _BLEU_ORDERS], summed[..., 2 + _BLEU_ORDERS :]
    missing = matching == 0
    smoothed = np.where(missing, 0.5 ** np.cumsum(missing, axis=-1), matching)
    defined = (matching.sum(axis=-1) > 0) & (total.min(axis=-1) > 0)
    precision = _ratio(smoothed, total, where=total > 0)
    log_precision = np.log(np.where(defined[..., None], precision, 1.0)).mean(axis=-1)
    shortfall = np.maximum(_ratio(reference_length, length, where=length > 0), 1.0) - 1.0
    return np.where(defined, 100 * np.exp(log_precision - shortfall), 0.0)


def _ratio(numerator: FloatArray, denominator: FloatArray, *, where: Any) -> FloatArray:
    """Divide where asked, and give zero elsewhere."""
    return np.divide(numerator, denominator, out=np.zeros_like(numerator), where=where)
