"""Weights that are read when they are asked for, and let go by whoever asked; some are kept as far as memory allows."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Mapping

import torch
from torch import Tensor

from nllb_prune.weights.checkpoint import Checkpoint

_ADMITTED = 0.25
"""Of the tensors that come when memory is full."""

_Place = tuple[str, int, int]
"""Name of a tensor, its first value that was read, and how many."""


class StreamedWeights:
    """The tensors of a checkpoint in a model's dtype and on its device.

    Args:
        checkpoint: Is kept open.
        dtype: Of what is returned.
        device: Where to.
        memory: Bytes of weights to keep for the next time.
    """

    def __init__(
        self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: torch.device | str, memory: int = 0
    ) -> None:
        self.checkpoint, self.dtype, self.device = checkpoint, dtype, torch.device(device)
        self.bytes_read = 0
        """From the files, so far."""
        self._kept = _Kept(memory)

    def shape(self, name: str) -> tuple[int, ...]:
        """Return the shape of a tensor without reading it."""
        return self.checkpoint.stored(name).shape

    def stored_bytes(self, names: Mapping[str, str]) -> int:
        """Return what some tensors take in their files."""
        return sum(self.checkpoint.stored(name).nbytes for name in names.values())

    def bytes(self, names: Mapping[str, str]) -> int:
        """Return what some tensors take in memory."""
        return sum(math.prod(self.shape(name)) for name in names.values()) * self.dtype.itemsize

    def tensors(self, names: Mapping[str, str]) -> dict[str, Tensor]:
        """Read tensors, given names by what they are called here."""
        return {parameter: self.tensor(name) for parameter, name in names.items()}

    def tensor(self, name: str) -> Tensor:
        """Read a whole tensor."""
        return self._part(name, 0, self.shape(name))

    def rows(self, name: str, first: int, last: int) -> Tensor:
        """Read the rows of a matrix ``(rows, width)`` from `first` to before `last`."""
        width = self.shape(name)[1]
        return self._part(name, first * width, (last - first, width))

    def some_rows(self, name: str, rows: Tensor) -> Tensor:
        """Read rows of a matrix, ascending ``(rows,)``; they are not kept."""
        wanted, width = rows.tolist(), self.shape(name)[1]
        starts = [n for n, row in enumerate(wanted) if not n or row != wanted[n - 1] + 1]
        runs = zip(starts, [*starts[1:], len(wanted)], strict=True)
        parts = [self._read(name, wanted[first] * width, (end - first, width)) for first, end in runs]
        return torch.cat(parts).to(device=self.device, dtype=self.dtype)

    def values(self, name: str, first: int, last: int) -> Tensor:
        """Read flattened values of a tensor, from `first` to before `last`, as they are stored; they are not kept."""
        return self._read(name, first, (last - first,))

    def _part(self, name: str, first: int, shape: tuple[int, ...]) -> Tensor:
        place = (name, first, math.prod(shape))
        found = self._kept.get(place)
        if found is None:
            found = self._read(name, first, shape).to(device=self.device, dtype=self.dtype)
            self._kept.add(place, found)
        return found

    def _read(self, name: str, first: int, shape: tuple[int, ...]) -> Tensor:
        """Read values from the `first` on; all that is ever read comes through here."""
        stored = self.checkpoint.stored(name)
        part = dataclasses.replace(stored, offset=stored.offset + first * stored.dtype.itemsize, shape=shape)
        self.bytes_read += part.nbytes
        return part.read()


class _Kept:
    """Tensors that are kept, within so many bytes.

    A decoding step goes through the same layers as the one before, so what was used longest ago is just what comes
    next: to drop that would keep nothing at all of a round that is too large. Here chance says what comes in and what
    makes room: of rounds of which .4 or .7 fits, .31 and .66 are found again after twenty.
    """

    def __init__(self, memory: int) -> None:
        self._memory, self._used = memory, 0
        self._tensors: dict[_Place, Tensor] = {}
        self._places: list[_Place] = []
        self._random = random.Random(0)

    def get(self, place: _Place) -> Tensor | None:
        return self._tensors.get(place)

    def add(self, place: _Place, tensor: Tensor) -> None:
        full = self._used + tensor.nbytes > self._memory
        if tensor.nbytes > self._memory or (full and self._random.random() >= _ADMITTED):
            return
        while self._used + tensor.nbytes > self._memory:
            self._drop(self._random.randrange(len(self._places)))
        self._tensors[place] = tensor
        self._places.append(place)
        self._used += tensor.nbytes

    def _drop(self, number: int) -> None:
        self._places[number], self._places[-1] = self._places[-1], self._places[number]
        self._used -= self._tensors.pop(self._places.pop()).nbytes
