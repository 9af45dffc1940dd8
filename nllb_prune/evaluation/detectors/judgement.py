"""What detectors flag, and how well that agrees with labels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nllb_prune.evaluation.detectors.base import BoolArray, Detector, flags
from nllb_prune.evaluation.detectors.labelled import Agreement, agreement, roc_auc
from nllb_prune.evaluation.scores.metrics import FloatArray

_NO_SCORES: Mapping[str, FloatArray] = {}
ANY = "any"
"""Flagged by one detector or more; its value, for the ROC curve, is by how many."""


@dataclass(frozen=True, slots=True)
class Rate:
    """How many sentences a detector flags."""

    name: str
    signature: str
    flagged: int
    counted: int
    """Sentences about which it can tell."""

    @property
    def rate(self) -> float:
        """Share of those about which it can tell; NaN if there are none."""
        return self.flagged / self.counted if self.counted else math.nan


@dataclass(frozen=True, slots=True)
class Judged:
    """One detector against one column of labels."""

    auc: float
    """Area under the ROC curve, over the sentences about which the detector can tell."""
    agreement: Agreement
    """Over all sentences: where it cannot tell, it has not flagged."""
    kinds: Mapping[str, float]
    """Share flagged of each kind of fault, by the name that the label gives."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values; null where there is nothing to measure on."""
        found = {"precision": self.agreement.precision, "recall": self.agreement.recall, "f1": self.agreement.f1}
        return {"roc_auc": _number(self.auc), **{k: _number(v) for k, v in found.items()}, "kinds": dict(self.kinds)}


@dataclass(frozen=True, slots=True)
class Judgement:
    """Rates of all detectors and of any of them, and their agreement with each column of labels."""

    rates: tuple[Rate, ...]
    """The last is of any detector."""
    labels: Mapping[str, Mapping[str, Judged]]
    """By column and detector."""
    faulty: Mapping[str, int]
    """Sentences of a fault, by column."""

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "detectors": {
                each.name: {
                    "signature": each.signature,
                    "flagged": each.flagged,
                    "counted": each.counted,
                    "rate": _number(each.rate),
                }
                for each in self.rates
            },
            "labels": {
                column: {name: each.to_json() for name, each in found.items()} for column, found in self.labels.items()
            },
            "faulty": dict(self.faulty),
        }


def judge(
    detectors: Sequence[Detector],
    values: Mapping[str, FloatArray],
    kinds: Mapping[str, Sequence[str]],
    *,
    scores: Mapping[str, FloatArray] = _NO_SCORES,
) -> Judgement:
    """Count what is flagged, and compare it with labels.

    Args:
        detectors: Any; those without values are left out.
        values: ``(sentences,)`` by detector.
        kinds: Kind of fault of each sentence by column of labels; the empty string is none.
        scores: ``(sentences,)`` by name, higher is worse: values without a threshold, so that nothing is flagged.
    """
    used = [each for each in detectors if each.name in values]
    flagged = {each.name: flags(each, values[each.name]) for each in used}
    counted = {name: int(np.sum(~np.isnan(each))) for name, each in values.items()}
    rates = [Rate(each.name, each.signature, int(flagged[each.name].sum()), counted[each.name]) for each in used]
    how_many: FloatArray = np.stack(list(flagged.values())).sum(axis=0, dtype=np.float64)
    every = {**{each.name: values[each.name] for each in used}, ANY: how_many}
    flagged[ANY] = np.asarray(how_many > 0)
    signature = "+".join(each.name for each in used)
    rates.append(Rate(ANY, f"any|of:{signature}", int(flagged[ANY].sum()), len(how_many)))
    labels = {column: _of_column(every, flagged, each, scores) for column, each in kinds.items()}
    return Judgement(tuple(rates), labels, {column: sum(map(bool, each)) for column, each in kinds.items()})


def _of_column(
    values: Mapping[str, FloatArray],
    flagged: Mapping[str, BoolArray],
    kinds: Sequence[str],
    scores: Mapping[str, FloatArray],
) -> dict[str, Judged]:
    judged = {name: _judged(values[name], flagged[name], kinds) for name in values}
    nothing = np.zeros(len(kinds), np.bool_)
    return {**judged, **{name: _judged(each, nothing, kinds) for name, each in scores.items()}}


def _judged(values: FloatArray, flagged: BoolArray, kinds: Sequence[str]) -> Judged:
    faulty = np.array([bool(kind) for kind in kinds])
    of_kind = {name: np.array([kind == name for kind in kinds]) for name in sorted({kind for kind in kinds if kind})}
    shares = {name: float(flagged[chosen].mean()) for name, chosen in of_kind.items()}
    return Judged(roc_auc(values, faulty), agreement(flagged, faulty), shares)


def _number(value: float) -> float | None:
    return None if math.isnan(value) else value
