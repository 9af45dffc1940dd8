"""Attention in single steps, as models of transformers compute it here."""

from __future__ import annotations

from typing import Any

import torch
from fairseq2.models.transformer import (
    SDPA,
    AttentionBias,
    AttentionBiasCache,
    StandardMultiheadAttention,
    maybe_get_attention_bias_tensor,
)
from fairseq2.nn import BatchLayout
from torch import Tensor, nn
from torch.nn import functional


class EagerSDPA(SDPA):
    """Represents scaled dot-product attention whose outputs are transformers' to the bit, on the same torch.

    That is for whole sequences: with a cache, transformers lays out keys otherwise, and kernels may round otherwise.

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
            weights = (weights + bias).clamp(min=torch.finfo(weights.dtype).min)
        weights = functional.softmax(weights, dim=-1)
        weights = functional.dropout(weights, self.dropout_p, training=self.training)
        return torch.matmul(weights, v).transpose(-2, -3), weights if needs_weights else None

    def extra_repr(self) -> str:
        """Say how it was made."""
        return f"bias={self.bias}, dropout_p={self.dropout_p:G}, scale={self.scale}"


def use_eager_attention(model: nn.Module) -> None:
    """Give the attentions of a model, in place, `EagerSDPA` for whichever of fairseq2's they were made with."""
    for module in model.modules():
        if isinstance(module, StandardMultiheadAttention):
            made: Any = module.sdpa
            module.sdpa = EagerSDPA(made.bias, dropout_p=made.dropout_p, scale=made.scale)
