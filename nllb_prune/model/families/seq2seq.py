"""What the encoder-decoder families of this line (M2M-100 and its descendants) have in common."""

from __future__ import annotations

from typing import Any

EMBEDDINGS = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def tied_embeddings(config: Any) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names that share the embedding."""
    return ((*EMBEDDINGS, "lm_head.weight"),) if config.tie_word_embeddings else (EMBEDDINGS,)


IGNORED = ("embed_positions.weights", "_float_tensor", "final_logits_bias", ".version")
