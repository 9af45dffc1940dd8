"""Where the experts are that are not in a slot, and how one is copied into it: from weight files, or from memory."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.weights.stored import StoredTensor

ExpertId = tuple[str, int, int]
"""Stack, number of the sparse layer in it, and expert."""


class Place:
    """The part of a parameter of a bank that belongs to a slot, contiguous."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.memory = _bytes(tensor) if tensor.is_cpu else None
        """Its bytes, where the processor can write them."""


def _bytes(tensor: Tensor) -> memoryview:
    """Return the memory of a contiguous tensor on the CPU."""
    return tensor.detach().view(-1).view(torch.uint8).numpy().data


class ExpertStore(Protocol):
    """Holds experts that may be brought into slots."""

    def copy(self, expert: ExpertId, slot: Mapping[str, Place]) -> int:
        """Copy an expert into the places of a slot, by parameter, and return how many bytes that were.

        Raises:
            UsageError: if it cannot be read whole; what is in the slot then is of no use.
        """

    def close(self) -> None:
        """Let go of files and memory."""


class FileStore:
    """Experts in the files of a checkpoint.

    The system keeps in its page cache what was read, as far as memory allows, and reading from there takes as long as
    copying from memory (1 GB: .09 to .12 s against .11 to .13). What cannot be read is an error here; a page of a
    mapped file that cannot be read would end the process.

    Args:
        tensors: The place of each tensor in a file, by expert and parameter of the bank.
    """

    def __init__(self, tensors: Mapping[ExpertId, Mapping[str, StoredTensor]]) -> None:
        self._tensors = tensors
        self._files: dict[Path, _File] = {}

    def copy(self, expert: ExpertId, slot: Mapping[str, Place]) -> int:
        """Copy an expert into a slot, straight from its file where neither dtype nor device changes."""
        size = 0
        for parameter, stored in self._tensors[expert].items():
            place = slot[parameter]
            file = self._file(stored)
            if place.memory is not None and place.tensor.dtype == stored.dtype:
                file.read(stored, place.memory)
            else:
                content = torch.empty(stored.shape, dtype=stored.dtype)
                file.read(stored, _bytes(content))
                place.tensor.copy_(content)
            size += stored.nbytes
        return size

    def _file(self, stored: StoredTensor) -> _File:
        if stored.path not in self._files:
            self._files[stored.path] = _File(stored.path)
        return self._files[stored.path]

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class MemoryStore:
    """Experts in the memory of the host, page-locked where the slots are on a CUDA device, so that copies need no wait.

    Args:
        source: Each is read from here once.
        shapes: The places of a slot by sparse layer, which experts are stored like.
        experts: Which to hold.
        pinned: Whether to lock the pages.
    """

    def __init__(
        self,
        source: ExpertStore,
        shapes: Mapping[tuple[str, int], Mapping[str, Place]],
        experts: Mapping[tuple[str, int], tuple[int, ...]],
        *,
        pinned: bool,
        told: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._tensors: dict[ExpertId, dict[str, Tensor]] = {}
        for (stack, layer), ids in experts.items():
            places = shapes[stack, layer]
            held = {
                name: torch.empty(len(ids), *place.tensor.shape, dtype=place.tensor.dtype, pin_memory=pinned)
                for name, place in places.items()
            }
            for number, expert in enumerate(ids):
                mine = {name: tensor[number] for name, tensor in held.items()}
                told(source.copy((stack, layer, expert), {name: Place(tensor) for name, tensor in mine.items()}))
                self._tensors[stack, layer, expert] = mine

    def copy(self, expert: ExpertId, slot: Mapping[str, Place]) -> int:
        """Copy an expert into a slot; on a CUDA device the copy is only begun, in the current stream."""
        size = 0
        for parameter, tensor in self._tensors[expert].items():
            slot[parameter].tensor.copy_(tensor, non_blocking=True)
            size += tensor.nbytes
        return size

    def close(self) -> None:
        """Free the memory."""
        self._tensors.clear()


@dataclass(frozen=True, slots=True)
class _State:
    """What tells that a file was written to."""

    size: int
    modified: int

    @classmethod
    def of(cls, descriptor: int) -> _State:
        found = os.fstat(descriptor)
        return cls(found.st_size, found.st_mtime_ns)


class _File:
    """An open weight file, which must stay as it was."""

    def __init__(self, path: Path) -> None:
        self._path = path
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise UsageError(f"`{path}` must hold experts, but cannot be opened ({error.strerror}).") from None
        self._opened = _State.of(self._descriptor)

    def read(self, stored: StoredTensor, memory: memoryview) -> None:
        if _State.of(self._descriptor) != self._opened:
            raise UsageError(
                f"`{self._path}` must stay as it was when the model was loaded, but was written to; load it again."
            )
        done = 0
        try:
            while done < len(memory) and (count := os.preadv(self._descriptor, [memory[done:]], stored.offset + done)):
                done += count
        except OSError as error:
            raise UsageError(
                f"`{stored.name}` must be read from `{self._path}`, but cannot be ({error.strerror})."
            ) from None
        if done < len(memory):
            raise UsageError(
                f"`{self._path}` must hold `{stored.name}` up to byte {stored.offset + len(memory):,}, but ends at "
                f"byte {stored.offset + done:,}; fetch it again."
            )

    def close(self) -> None:
        os.close(self._descriptor)
