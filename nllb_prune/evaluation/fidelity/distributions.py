"""Next-token distributions of two models at the same positions, compared a few positions at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nllb_prune.evaluation.fidelity.fidelity import COLUMNS

TABLE_VALUES = 2**20
"""Log-probabilities of one table, 4 MiB in float32: on mini 554 sentences a second; 384 at 64 MiB, beyond caches."""
LEAST_POSITIONS = 64
"""A table has as many at least, so that the head's weights are not read for every few.

Up to six tables are alive at once: of NLLB's 256,206 tokens 6 x 63 MiB, whatever the length of the text.
"""


@dataclass(frozen=True, slots=True)
class Predictions:
    """The tokens a batch is to predict."""

    labels: Tensor
    """``(tokens,)``"""
    rows: Tensor
    """The row of the batch each belongs to ``(tokens,)``."""


def compare_distributions(model: Any, predictions: Predictions, *, full: Tensor, masked: Tensor, rows: int) -> Tensor:
    """Sum up the comparison by row.

    Args:
        model: Its head makes logits of states.
        predictions: What is to be predicted.
        full: Last states of the decoder with all experts ``(tokens, d_model)``, on any device.
        masked: The same with some, on the model's device.
        rows: Of the batch.

    Returns:
        ``(rows, len(COLUMNS))``, float64, in main memory.
    """
    head, end = model.get_output_embeddings(), model.config.eos_token_id
    step = max(LEAST_POSITIONS, TABLE_VALUES // head.weight.shape[0])
    sums = torch.zeros(rows, len(COLUMNS), dtype=torch.float64)
    for first in range(0, len(predictions.labels), step):
        chunk = slice(first, first + step)
        with torch.inference_mode():
            reference = _log_probabilities(head, full[chunk].to(masked.device))
            columns = _columns(reference, _log_probabilities(head, masked[chunk]), predictions.labels[chunk], end)
        sums.index_add_(0, predictions.rows[chunk].cpu(), columns.double().cpu())
    return sums


def _log_probabilities(head: Any, states: Tensor) -> Tensor:
    """Return the log-probabilities ``(tokens, vocabulary)`` in float32."""
    logits: Tensor = head(states).float()
    return logits.log_softmax(-1)


def _columns(full: Tensor, masked: Tensor, labels: Tensor, end: int) -> Tensor:
    """Return what each token adds to `COLUMNS` ``(tokens, columns)``."""
    ends = labels.eq(end)
    words = ~ends
    values: dict[str, Tensor] = {"tokens": torch.ones_like(labels), "ends": ends}
    for suffix, table in (("_full", full), ("", masked)):
        loss = -table.gather(1, labels[:, None])[:, 0]
        values["loss" + suffix] = loss
        values["end_loss" + suffix] = loss * ends
        values["early" + suffix] = table[:, end].exp() * words
        values["late" + suffix] = -torch.expm1(table[:, end]) * ends
    values["kl"] = (full.exp() * (full - masked)).sum(-1)
    values["agreed"] = full.max(-1).indices == masked.max(-1).indices
    return torch.stack([values[name].double() for name in COLUMNS], dim=-1)
