"""The values of a tensor: drawn from a seed and its name, so that any format and order of files holds the same."""

from __future__ import annotations

import hashlib

import torch
from torch import Tensor

from .shapes import EMBEDDED_TOKENS, Shape

_ROUTER_SHARPNESS = 3.0
"""Standard deviation of router logits: the first expert then gets about half of a token."""
_GAIN = 8.0
"""Of the second matrix of an FFN; with 1, a decoder would repeat what it is given."""
_SMALL = 0.02


def drawn_rows(name: str, rows: int, shape: Shape, *, random_layers: int | None = None) -> int:
    """Return how many rows of a tensor, of all its `rows`, have values; the others are holes.

    Args:
        name: With or without the prefix `model.`.
        rows: Of the tensor.
        shape: Of the model.
        random_layers: The matrices of dense parts beyond so many layers of each stack are holes; `None` fills all.
    """
    if _is_embedding(name):
        return min(rows, EMBEDDED_TOKENS)
    if ".experts." in name:
        return rows if shape.random_experts else 0
    if random_layers is None or not _is_dense_matrix(name):
        return rows
    return rows if int(name.split(".layers.")[1].split(".")[0]) < random_layers else 0


def values(name: str, size: tuple[int, ...], *, seed: int) -> Tensor:
    """Draw a tensor in float32: norms around one, matrices as wide as their inputs, sharp routers."""
    words = name.removeprefix("model.")
    words = "shared.weight" if _is_embedding(words) else words  # the three are one
    digest = hashlib.sha256(f"{seed} {words}".encode()).digest()
    random = torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)
    drawn = torch.randn(size, generator=random)
    if len(size) == 1:
        return drawn.mul_(_SMALL).add_(float("layer_norm.weight" in name))
    return drawn.mul_(_gain(name) * size[1] ** -0.5)


def _gain(name: str) -> float:
    if ".router." in name:
        return _ROUTER_SHARPNESS
    return _GAIN if name.endswith(".fc2.weight") else 1.0


def _is_embedding(name: str) -> bool:
    return name.endswith(("shared.weight", "embed_tokens.weight"))


def _is_dense_matrix(name: str) -> bool:
    return name.endswith(".weight") and ".layers." in name and "layer_norm" not in name and ".router." not in name
