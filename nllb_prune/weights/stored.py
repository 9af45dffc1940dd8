"""`StoredTensor`: where the bytes of a tensor are in a file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from nllb_prune.errors import UsageError


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredTensor:
    """The place of a tensor in a weight file; its values are contiguous and little-endian there."""

    name: str
    """As its family calls it."""
    path: Path
    offset: int
    """Of its first byte in the file."""
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """Bytes it takes in the file."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """Read it into memory of its own: pages of a mapped file would count as used for as long as it is open.

        Raises:
            UsageError: if the file ends before the tensor does.
        """
        content = bytearray(self.nbytes)
        with self.path.open("rb", buffering=0) as file:
            file.seek(self.offset)
            view, done = memoryview(content), 0
            while done < len(content) and (count := file.readinto(view[done:])):
                done += count
        if done < len(content):
            raise UsageError(
                f"`{self.path}` must hold `{self.name}` up to byte {self.offset + self.nbytes:,}, but ends at byte "
                f"{self.offset + done:,}; fetch it again."
            )
        if not content:
            return torch.empty(self.shape, dtype=self.dtype)
        return torch.frombuffer(content, dtype=self.dtype).view(self.shape)
