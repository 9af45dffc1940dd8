"""What the parts of a layer are called in the encoder-decoder families of this line (M2M-100 and its descendants)."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerNames:
    """What the parts of a layer are called, where the classes of transformers differ."""

    ffn: str
    """Holder of `fc1` and `fc2`; empty for the layer itself."""
    ffn_norm: str
    cross_attention: str
    cross_attention_norm: str
