"""How close a masked model is to the full one, teacher-forced on the same text: sums by sentence, and what they mean.

Each reference goes through the decoder as if it had been generated so far. The first label is the language code: it is
forced in decoding, so it counts nowhere here. The others, the words and `</s>`, are the tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import FloatArray
from nllb_prune.evaluation.scores.packing import pack, unpack
from nllb_prune.evaluation.significance.resampling import Measure, divide
from nllb_prune.masks import MaskSet

COLUMNS = (
    "tokens",
    "ends",
    "loss_full",
    "loss",
    "end_loss_full",
    "end_loss",
    "early_full",
    "early",
    "late_full",
    "late",
    "kl",
    "agreed",
)
"""What is summed for each sentence; `_full` is the full model, the same without it the masked one.

`tokens` counts words and `</s>`, `ends` the latter, one a sentence. Losses are negative log-probabilities in nats;
`end_loss` is that of `</s>` where it is due. `early` sums p(`</s>`) where a word is due, `late` 1 - p(`</s>`) where
`</s>` is. `kl` sums KL(full || masked) of the next token in nats. `agreed` counts positions where both models think
the same token most probable, the lowest id of equals.
"""

# Value = (sum of the first column - sum of the second) / (sum of the third - sum of the fourth).
_MEASURES: dict[str, tuple[str, str | None, str, str | None]] = {
    "loss_change": ("loss", "loss_full", "tokens", None),
    "end_loss_change": ("end_loss", "end_loss_full", "ends", None),
    "early_change": ("early", "early_full", "tokens", "ends"),
    "late_change": ("late", "late_full", "ends", None),
    "kl": ("kl", None, "tokens", None),
    "agreement": ("agreed", None, "tokens", None),
}


def _value(summed: FloatArray, *, name: str) -> FloatArray:
    above, less, below, fewer = (0.0 if column is None else _column(summed, column) for column in _MEASURES[name])
    return divide(above - less, below - fewer)


MEASURES: dict[str, Measure] = {name: partial(_value, name=name) for name in _MEASURES}
"""The properties of `Fidelity` as measures of summed statistics ``(..., columns)``, to be resampled."""


@dataclass(frozen=True, slots=True, eq=False)
class Fidelity:
    """A masked model against the full one on the same sentences; changes are masked minus full, NaN of nothing."""

    statistics: FloatArray
    """``(sentences, columns)``, as in `COLUMNS`."""

    def __post_init__(self) -> None:
        if self.statistics.ndim != 2 or self.statistics.shape[1] != len(COLUMNS):
            raise UsageError(
                f"`statistics` must have the shape (sentences, {len(COLUMNS)}), "
                f"but have {self.statistics.shape} instead."
            )

    @property
    def loss_change(self) -> float:
        """Change of the mean loss, nats a token."""
        return self.value("loss_change")

    @property
    def end_loss_change(self) -> float:
        """Change of the mean loss of `</s>` where it is due, nats."""
        return self.value("end_loss_change")

    @property
    def early_change(self) -> float:
        """Change of the mean probability of `</s>` where a word is due: above 0, outputs end too early."""
        return self.value("early_change")

    @property
    def late_change(self) -> float:
        """Change of the mean probability of another token where `</s>` is due: above 0, outputs end too late."""
        return self.value("late_change")

    @property
    def kl(self) -> float:
        """Mean KL(full || masked) of the distributions of the next token, nats a token."""
        return self.value("kl")

    @property
    def agreement(self) -> float:
        """Share of tokens for which both models think the same one most probable."""
        return self.value("agreement")

    def value(self, name: str) -> float:
        """Return one of `MEASURES`."""
        return float(MEASURES[name](self.statistics.sum(axis=0)))

    def values(self) -> dict[str, float]:
        """Return all of `MEASURES`."""
        return {name: self.value(name) for name in MEASURES}

    def to_json(self) -> dict[str, Any]:
        """Return the values (null for NaN) and the packed statistics as JSON values."""
        values = {name: None if np.isnan(value) else value for name, value in self.values().items()}
        return {**values, "columns": list(COLUMNS), "statistics": pack(self.statistics)}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Fidelity:
        """Rebuild from the statistics in `to_json`.

        Raises:
            UsageError: if they are missing or of other columns.
        """
        if content.get("columns") != list(COLUMNS):
            raise UsageError(f"`columns` must be {', '.join(COLUMNS)}, but is {content.get('columns')!r} instead.")
        try:
            return cls(unpack(content["statistics"]).astype(np.float64, copy=False))
        except (KeyError, ValueError) as error:
            raise UsageError(f"`statistics` must be those of a fidelity, but cannot be read: {error}.") from None


def merged(each: Iterable[Fidelity]) -> Fidelity:
    """Return the fidelity over the sentences of all, as of several directions."""
    tables = [one.statistics for one in each]
    return Fidelity(np.concatenate(tables) if tables else np.zeros((0, len(COLUMNS))))


def fidelity(
    model: Any,
    tokenizer: Any,
    sources: Sequence[str],
    references: Sequence[str],
    *,
    source: str,
    target: str,
    masks: MaskSet,
) -> Fidelity:
    """Compare a model within masks with the same model without, on the texts of one direction.

    For several masks on the same text `full_model.FullDirection` runs the full model once.

    Args:
        model: From `load_model`, with all its experts and no masks set.
        tokenizer: Its tokenizer.
        sources: Texts in the source language.
        references: Their translations, as many.
        source: Code of the source language.
        target: Code of the target language.
        masks: Must have the direction.

    Raises:
        UsageError: if the texts are not aligned, or the model or the masks cannot be used.
    """
    from nllb_prune.evaluation.fidelity.full_model import FullDirection  # so that reading results needs no torch

    full = FullDirection.of(model, tokenizer, sources, references, source=source, target=target)
    return full.measure(masks)


def _column(summed: FloatArray, name: str) -> FloatArray:
    return np.asarray(summed[..., COLUMNS.index(name)])
