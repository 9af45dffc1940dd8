"""`Shape`: the widths and numbers of layers of a model; that of NLLB-MoE 54B, and smaller ones."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from nllb_prune.model.source import model_folder

EMBEDDED_TOKENS = 6012
"""Rows of the embedding that the tokenizer of `mini` reaches."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What decides the tensors of an NLLB-MoE."""

    d_model: int
    ffn: int
    layers: int
    """Of the encoder, and as many of the decoder."""
    sparse_step: int
    """Every so-manieth layer is sparse."""
    experts: int
    """Of each sparse layer."""
    heads: int
    vocabulary: int
    positions: int = 1024
    counts: tuple[int, int]
    """Experts of each layer that a plan of this shape keeps, encoder and decoder; the published 36 and 12 of 128."""
    random_experts: bool
    """Whether experts have values; otherwise they are holes in the files, and zeros to a reader."""

    def config(self, *, bare: bool, dtype: str) -> dict[str, Any]:
        """Return the content of `config.json`: the fields that `mini` has too, with this shape's values.

        Args:
            bare: Of the class without a head, whose tensors lack the prefix `model.`.
            dtype: Of the weights, as in `float32`.
        """
        content: dict[str, Any] = json.loads((model_folder("mini") / "config.json").read_text(encoding="utf-8"))
        for stack in ("encoder", "decoder"):
            content |= {
                f"{stack}_attention_heads": self.heads,
                f"{stack}_ffn_dim": self.ffn,
                f"{stack}_layers": self.layers,
                f"{stack}_sparse_step": self.sparse_step,
            }
        return content | {
            "architectures": ["NllbMoeModel" if bare else "NllbMoeForConditionalGeneration"],
            "d_model": self.d_model,
            "max_length": 200,
            "max_position_embeddings": self.positions,
            "moe_token_dropout": 0.2,
            "num_experts": self.experts,
            "num_hidden_layers": self.layers,
            "torch_dtype": dtype,
            "vocab_size": self.vocabulary,
        }


SHAPES = {
    "nllb-54b": Shape(
        d_model=2048,
        ffn=8192,
        layers=24,
        sparse_step=4,
        experts=128,
        heads=16,
        vocabulary=256_206,
        counts=(36, 12),
        random_experts=False,
    ),
    "middle": Shape(
        d_model=512,
        ffn=2048,
        layers=4,
        sparse_step=2,
        experts=128,
        heads=16,
        vocabulary=EMBEDDED_TOKENS,
        counts=(36, 12),
        random_experts=True,
    ),
    "tiny": Shape(
        d_model=16,
        ffn=24,
        layers=4,
        sparse_step=2,
        experts=16,
        heads=4,
        vocabulary=EMBEDDED_TOKENS,
        counts=(6, 2),
        random_experts=True,
    ),
}
