"""The files that experts are read from: which of an expert's tensors follow each other, and reading them at once."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from nllb_prune.errors import UsageError
from nllb_prune.weights.stored import StoredTensor


@dataclass(frozen=True, slots=True)
class Run:
    """Tensors of an expert that follow each other in a file, of one dtype."""

    name: str
    """Of the first, as its family calls it."""
    path: Path
    offset: int
    dtype: torch.dtype
    parameters: tuple[str, ...]
    counts: tuple[int, ...]
    """Elements of each."""

    @property
    def nbytes(self) -> int:
        """Bytes of all of them."""
        return sum(self.counts) * self.dtype.itemsize


def runs_of(tensors: Mapping[str, StoredTensor]) -> tuple[Run, ...]:
    """Return the tensors of an expert by parameter as few runs: each is read at once."""
    runs: list[Run] = []
    for parameter, stored in sorted(tensors.items(), key=lambda each: (each[1].path, each[1].offset)):
        last, count = runs[-1] if runs else None, stored.nbytes // stored.dtype.itemsize
        if (
            last is not None
            and (last.path, last.dtype) == (stored.path, stored.dtype)
            and last.offset + last.nbytes == stored.offset
        ):
            runs[-1] = replace(last, parameters=(*last.parameters, parameter), counts=(*last.counts, count))
        else:
            runs.append(Run(stored.name, stored.path, stored.offset, stored.dtype, (parameter,), (count,)))
    return tuple(runs)


@dataclass(frozen=True, slots=True)
class _State:
    """What tells that a file was written to."""

    size: int
    modified: int

    @classmethod
    def of(cls, descriptor: int) -> _State:
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns)


class ExpertFile:
    """An open weight file, which must stay as it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise UsageError(f"`{path}` must hold experts, but cannot be opened ({error.strerror}).") from None
        self._opened = _State.of(self._descriptor)

    def read(self, run: Run, memories: Sequence[memoryview]) -> None:
        """Fill memories one after the other from where a run begins."""
        left, done = list(memories), 0
        try:
            while left and (count := os.preadv(self._descriptor, left, run.offset + done)):
                done += count
                left = _unfilled(left, count)
        except OSError as error:
            raise UsageError(
                f"`{run.name}` must be read from `{self._path}`, but cannot be ({error.strerror})."
            ) from None
        if left:
            end = run.offset + done
            raise UsageError(
                f"`{self._path}` must hold `{run.name}` up to byte {end + sum(map(len, left)):,}, but ends at byte "
                f"{end:,}; fetch it again."
            )
        if _State.of(self._descriptor) != self._opened:  # afterwards: it may be written to meanwhile
            raise UsageError(
                f"`{self._path}` must stay as it was when the model was loaded, but was written to; load it again."
            )

    def close(self) -> None:
        """Close it."""
        os.close(self._descriptor)


def _unfilled(memories: list[memoryview], count: int) -> list[memoryview]:
    """Return what is left of memories after so many bytes."""
    while memories and count >= len(memories[0]):
        count -= len(memories[0])
        memories = memories[1:]
    return [memories[0][count:], *memories[1:]] if count else memories
