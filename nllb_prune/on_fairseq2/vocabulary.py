"""Control symbols: `<s> <pad> </s> <unk>` in transformers, `<pad> <unk> <s> </s>` in fairseq2; all else is equal.

fairseq2 inserts `<pad>` before the first piece of the sentencepiece model, transformers (as fairseq) has a table of its
own; both add one to the number of every other piece.
"""

from __future__ import annotations

from typing import Final

import torch
from torch import Tensor

IN_FAIRSEQ2: Final = (2, 0, 3, 1)
"""The number in fairseq2 of each of the first ids of transformers."""
IN_TRANSFORMERS: Final = (1, 3, 0, 2)
"""The number in transformers of each of the first ids of fairseq2."""

_COUNT = len(IN_FAIRSEQ2)


def rows_for_fairseq2(embedding: Tensor) -> Tensor:
    """Return a copy of an embedding ``(vocabulary, d_model)`` in the order of fairseq2."""
    return _reordered(embedding, IN_TRANSFORMERS)


def rows_for_transformers(embedding: Tensor) -> Tensor:
    """Return a copy of an embedding ``(vocabulary, d_model)`` in the order of transformers."""
    return _reordered(embedding, IN_FAIRSEQ2)


def sampled_for_transformers(embedding: Tensor, *, step: int) -> Tensor:
    """Return every so-manieth value ``(values,)`` of an embedding as it were in the order of transformers."""
    first = rows_for_transformers(embedding[:_COUNT]).flatten()
    places = torch.arange(0, embedding.numel(), step, device=embedding.device)
    sample = embedding.flatten()[places]
    inside = places < first.numel()
    sample[inside] = first[places[inside]]
    return sample


def ids_for_fairseq2(ids: Tensor) -> Tensor:
    """Return the numbers in fairseq2 of ids of transformers, of any shape."""
    return _renumbered(ids, IN_FAIRSEQ2)


def ids_for_transformers(ids: Tensor) -> Tensor:
    """Return the numbers in transformers of ids of fairseq2, of any shape."""
    return _renumbered(ids, IN_TRANSFORMERS)


def listed_for_transformers(ids: Tensor) -> list[int]:
    """Return the numbers in transformers of a row of ids of fairseq2, in half the time of what is of any shape."""
    return [IN_TRANSFORMERS[number] if number < _COUNT else number for number in ids.tolist()]


def columns_for_transformers(logits: Tensor) -> Tensor:
    """Put the logits ``(..., vocabulary)`` of fairseq2 into the order of transformers, in place."""
    logits[..., :_COUNT] = logits[..., list(IN_FAIRSEQ2)]
    return logits


def _reordered(embedding: Tensor, order: tuple[int, ...]) -> Tensor:
    rows = embedding.clone()
    rows[:_COUNT] = embedding[list(order)]
    return rows


def _renumbered(ids: Tensor, numbers: tuple[int, ...]) -> Tensor:
    table = torch.tensor(numbers, device=ids.device, dtype=ids.dtype)
    return torch.where(ids < _COUNT, table[ids.clamp(max=_COUNT - 1)], ids)
