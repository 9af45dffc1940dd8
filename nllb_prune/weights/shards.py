"""What is written of a checkpoint, and how it is split into safetensors files."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.weights.safetensors_file import DTYPES
from nllb_prune.weights.stored import StoredTensor

_DTYPES = {dtype: name for name, dtype in DTYPES.items()}
_METADATA = "__metadata__"
_LENGTH = struct.Struct("<Q")  # of the header, which follows
_ALIGNMENT = 8  # of the first tensor in the file, as the safetensors library leaves it
_EMPTY_HEADER = 64  # bytes at most, without tensors


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputTensor:
    """A tensor to write."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]
    content: StoredTensor | Callable[[], Tensor]
    """Bytes to copy as they are, or what makes the tensor when its turn comes."""

    def __post_init__(self) -> None:
        if self.dtype not in _DTYPES:
            known = ", ".join(_short(dtype) for dtype in _DTYPES)
            raise UsageError(f"`{self.name}` must be of one of {known}, but is of {_short(self.dtype)} instead.")
        if self.name == _METADATA:
            raise UsageError(f"`name` must not be {_METADATA}, which safetensors files keep for themselves, but is.")
        if isinstance(self.content, StoredTensor):
            self.require(self.content)

    def require(self, found: StoredTensor | Tensor) -> None:
        """Refuse a tensor of another dtype or shape."""
        if (found.dtype, tuple(found.shape)) != (self.dtype, self.shape):
            raise UsageError(
                f"`{self.name}` must be of {_short(self.dtype)} and shape {self.shape}, but is of "
                f"{_short(found.dtype)} and shape {tuple(found.shape)} instead."
            )

    @property
    def nbytes(self) -> int:
        """Bytes it takes in a file."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True, slots=True, kw_only=True)
class Shard:
    """One safetensors file to write."""

    tensors: tuple[OutputTensor, ...]
    """In the order of their bytes."""
    header: bytes
    """All that stands before them."""

    @property
    def nbytes(self) -> int:
        """Bytes of the whole file."""
        return len(self.header) + sum(tensor.nbytes for tensor in self.tensors)

    def sizes(self) -> dict[str, int]:
        """Return the bytes of each tensor by name."""
        return {tensor.name: tensor.nbytes for tensor in self.tensors}


def split_shards(tensors: Sequence[OutputTensor], shard_bytes: int) -> list[Shard]:
    """Return the files of some tensors, in order, each of at most `shard_bytes` unless it holds a single tensor."""
    groups: list[list[OutputTensor]] = []
    size = shard_bytes
    for tensor in tensors:
        room = tensor.nbytes + _entry_bytes(tensor)
        if size + room > shard_bytes:
            groups.append([])
            size = _EMPTY_HEADER
        groups[-1].append(tensor)
        size += room
    return [_shard(group) for group in groups]


def _entry_bytes(tensor: OutputTensor) -> int:
    """Return what a tensor takes in the header at most: its name, sizes and offsets of up to 20 digits, the keys."""
    return len(json.dumps(tensor.name)) + 20 * (len(tensor.shape) + 2) + 60


def _shard(tensors: Sequence[OutputTensor]) -> Shard:
    ordered = _aligned(tensors)
    return Shard(tensors=ordered, header=_header(ordered))


def _aligned(tensors: Sequence[OutputTensor]) -> tuple[OutputTensor, ...]:
    """Return the tensors in their order, or the widest first if one would begin between two multiples of its width.

    Readers look at values where they are in the file; a file must not have holes.
    """
    offset = 0
    for tensor in tensors:
        if offset % tensor.dtype.itemsize:
            return tuple(sorted(tensors, key=lambda each: -each.dtype.itemsize))
        offset += tensor.nbytes
    return tuple(tensors)


def _header(tensors: Sequence[OutputTensor]) -> bytes:
    content: dict[str, Any] = {_METADATA: {"format": "pt"}}
    offset = 0
    for tensor in tensors:
        end = offset + tensor.nbytes
        content[tensor.name] = {
            "dtype": _DTYPES[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": [offset, end],
        }
        offset = end
    text = json.dumps(content, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-(_LENGTH.size + len(text)) % _ALIGNMENT)
    return _LENGTH.pack(len(text)) + text


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
