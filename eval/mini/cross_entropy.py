"""Cross-entropy of a tied output layer, in chunks that stay in the cache.

The plain way writes (tokens, vocabulary) several times over to memory and takes half of a training step; here each
chunk's logits become its gradients at once, so nothing of that size is ever kept.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_CHUNK = 128  # rows; 256 x 6,000 floats are 6 MB


class _TiedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, labels: Tensor, smoothing: float) -> Tensor:  # type: ignore[override]
        dtype = torch.bfloat16
        count, vocabulary = len(labels), weight.shape[0]
        output, inputs = weight.to(dtype), states.to(dtype)
        state_gradient = torch.empty_like(inputs)
        weight_gradient = torch.zeros(weight.shape, dtype=torch.float32)
        loss = torch.zeros((), dtype=torch.float64)
        for start in range(0, count, _CHUNK):
            rows, wanted = inputs[start : start + _CHUNK], labels[start : start + _CHUNK].unsqueeze(1)
            logits = (rows @ output.T).float()
            log_z = logits.logsumexp(-1, keepdim=True)
            loss += (log_z - (1 - smoothing) * logits.gather(1, wanted)).sum().double()
            loss -= smoothing * logits.mean(-1).sum().double()
            gradient = logits.sub_(log_z).exp_().sub_(smoothing / vocabulary)
            gradient.scatter_add_(1, wanted, torch.full_like(wanted, -(1 - smoothing), dtype=torch.float32))
            scaled = gradient.div_(count).to(dtype)
            state_gradient[start : start + _CHUNK] = scaled @ output
            weight_gradient += (scaled.T @ rows).float()
        ctx.save_for_backward(state_gradient.to(states.dtype), weight_gradient)
        return (loss / count).float()

    @staticmethod
    def backward(ctx: Any, *outer: Tensor) -> tuple[Tensor, Tensor, None, None]:
        state_gradient, weight_gradient = ctx.saved_tensors
        return outer[0] * state_gradient, outer[0] * weight_gradient, None, None


def tied_cross_entropy(states: Tensor, weight: Tensor, labels: Tensor, *, smoothing: float) -> Tensor:
    """Return the mean label-smoothed cross-entropy, products in bfloat16.

    Args:
        states: Decoder states ``(tokens, d_model)``.
        weight: Embedding that is also the output layer ``(vocabulary, d_model)``.
        labels: Wanted ids ``(tokens,)``.
        smoothing: Probability mass spread evenly over the vocabulary.
    """
    loss: Tensor = _TiedCrossEntropy.apply(states, weight, labels, smoothing)  # type: ignore[no-untyped-call]
    return loss
