"""Sinusoidal positions with the table of fairseq and transformers, to the bit."""

from __future__ import annotations

import math

import torch
from fairseq2.nn import BatchLayout, IncrementalStateBag, PositionEncoder
from torch import Tensor

_FIRST = 2
"""fairseq numbers positions from here on: 0 is unused, 1 is padding's."""


class FairseqPositionEncoder(PositionEncoder):
    """Adds what fairseq adds to embeddings, to the bit.

    fairseq2's `SinusoidalPositionEncoder` divides in another order when it makes frequencies. Its angles differ by the
    rounding of that times the position, up to 2e-6 at the twentieth: enough for a router's near-ties to fall otherwise.
    In bfloat16 it rounds the sum alone, where fairseq and transformers round the table too.
    """

    def __init__(self, encoding_dim: int, max_seq_len: int) -> None:
        """Make the table.

        Args:
            encoding_dim: Width of the states, even and 4 or more.
            max_seq_len: Longest sequence there can be.

        Raises:
            ValueError: if `encoding_dim` is another.
        """
        if encoding_dim % 2 or encoding_dim < 4:
            raise ValueError(f"`encoding_dim` must be even and 4 or more, but is {encoding_dim} instead.")
        super().__init__(encoding_dim)
        self.max_seq_len = max_seq_len
        self.table: Tensor
        """``(1 + max_seq_len, encoding_dim)``, float32; padding's row first"""
        self.register_buffer("table", torch.empty(1 + max_seq_len, encoding_dim, dtype=torch.float32), persistent=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Fill the table: there is nothing else."""
        self.reset_non_persistent_buffers()

    def reset_non_persistent_buffers(self) -> None:
        """Fill the table, on the CPU wherever it is, so that its bits are the same on all devices of a machine."""
        half = self.encoding_dim // 2
        frequencies = torch.exp(_counted(half) * -(math.log(10_000) / (half - 1)))
        angles = (_counted(self.max_seq_len) + _FIRST).unsqueeze(1) * frequencies
        self.table[0] = 0
        self.table[1:] = torch.cat([angles.sin(), angles.cos()], dim=1)

    def forward(
        self, seqs: Tensor, seqs_layout: BatchLayout, *, state_bag: IncrementalStateBag | None = None
    ) -> Tensor:
        """Return ``seqs`` with positions added, ``([N], S, E)``.

        Raises:
            ValueError: if a sequence is longer than the table.
        """
        step = 0 if self.training or state_bag is None else state_bag.step_nr
        longest = step + seqs_layout.max_seq_len
        if longest > self.max_seq_len:
            raise ValueError(f"`seqs` must have {self.max_seq_len} positions at most, but have {longest} instead.")
        rows = seqs_layout.position_indices + 1  # -1 is padding
        return seqs + self.table[rows + step].type_as(seqs)

    def extra_repr(self) -> str:
        """Say how it was made."""
        return f"encoding_dim={self.encoding_dim}, max_seq_len={self.max_seq_len}"


def _counted(count: int) -> Tensor:
    return torch.arange(count, dtype=torch.float32, device="cpu")
