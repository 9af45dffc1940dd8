"""Attention in single steps, as models of transformers compute it here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from fairseq2.models.transformer import (
    SDPA,
    AttentionBias,
    AttentionBiasCache,
    get_default_sdpa_factory,
    maybe_get_attention_bias_tensor,
    set_default_sdpa_factory,
)
from fairseq2.nn import BatchLayout
from torch import Tensor
from torch.nn import functional


class EagerSDPA(SDPA):
    """Represents scaled dot-product attention whose outputs are transformers' to the bit, on the same torch.

    fairseq2's `NaiveSDPA` takes the same steps, but for a softmax in float32 whatever the dtype. And where a target is
    padded and its source is not, padding sees nothing there: its weights are not numbers, and in the next layer nothing
    of its sentence is.
    """

    def __init__(self, bias: AttentionBias, *, dropout_p: float = 0.0, scale: float | None = None) -> None:
        """Compute with a bias; the other arguments are those of fairseq2's own."""
        super().__init__()
        self.bias, self.dropout_p, self.scale = bias, dropout_p, scale

    def forward(
        self,
        q: Tensor,
        q_layout: BatchLayout,
        k: Tensor,
        k_layout: BatchLayout,
        v: Tensor,
        bias_cache: AttentionBiasCache,
        *,
        needs_weights: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Return mixed values ``(N, S, H, V)``, or packed ``(S, H, V)``, and weights if they are needed."""
        q, k, v = (each.transpose(-2, -3) for each in (q, k, v))  # heads before positions
        weights = torch.matmul(q, k.transpose(-1, -2)) * (q.shape[-1] ** -0.5 if self.scale is None else self.scale)
        bias = maybe_get_attention_bias_tensor(self.bias, q, q_layout, k_layout, bias_cache)
        if bias is not None:
            weights = weights + bias.clamp(min=torch.finfo(bias.dtype).min)
        weights = functional.softmax(weights, dim=-1)
        weights = functional.dropout(weights, self.dropout_p, training=self.training)
        return torch.matmul(weights, v).transpose(-2, -3), weights if needs_weights else None


@contextmanager
def eager_attention() -> Iterator[None]:
    """Give the models that are made meanwhile this attention, and not the one that fairseq2 is set to."""
    before = get_default_sdpa_factory()
    set_default_sdpa_factory(EagerSDPA)
    try:
        yield
    finally:
        set_default_sdpa_factory(before)
