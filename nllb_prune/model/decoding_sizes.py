"""`DecodingSizes`: the widths of a model that the memory of decoding depends on."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DecodingSizes:
    """What a row in flight takes memory for."""

    decoder_layers: int
    d_model: int
    ffn: int
    """The largest, of dense layers and of experts."""
    vocabulary: int
