"""The head of a streamed model, which is read in slices of the vocabulary."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from nllb_prune.model.streamed_weights import StreamedWeights

_SLICE_BYTES = 1 << 26


class StreamedHead(nn.Module):
    """Makes logits of states without having the matrix in memory.

    Args:
        name: Of its tensor ``(vocabulary, d_model)``.
        weights: Where it is read from.
    """

    def __init__(self, name: str, weights: StreamedWeights) -> None:
        super().__init__()
        self._name, self._weights = name, weights
        self.weight = shape_only(weights, name)

    def forward(self, states: Tensor) -> Tensor:
        """Return logits ``(..., vocabulary)``; beside them a slice of 64 MB is in memory."""
        rows, width = self.weight.shape
        step = max(1, _SLICE_BYTES // (width * self._weights.dtype.itemsize))
        firsts = range(0, rows, step)
        slices = (self._weights.rows(self._name, first, min(rows, first + step)) for first in firsts)
        logits = states.new_empty(*states.shape[:-1], rows)
        for first, part in zip(firsts, slices, strict=True):
            logits[..., first : first + step] = functional.linear(states, part)
        return logits


def shape_only(weights: StreamedWeights, name: str) -> nn.Parameter:
    """Return what tells shape, dtype and device of a tensor that is not in memory; each of its values is NaN."""
    nothing = torch.full((), float("nan"), dtype=weights.dtype, device=weights.device)
    return nn.Parameter(nothing.expand(weights.shape(name)), requires_grad=False)
