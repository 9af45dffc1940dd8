"""Where the experts are that are not in a slot, and how one is copied into it: from weight files, or from memory."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.model.expert_files import ExpertFile, Run, runs_of
from nllb_prune.weights.stored import StoredTensor

ExpertId = tuple[str, int, int]
"""Stack, number of the sparse layer in it, and expert."""

_STAGED = 2 << 20  # bytes that are read before they are converted: few calls, and they stay in the processor's cache
_LINE = 64  # bytes of a line of that cache


class Place:
    """The part of a parameter of a bank that belongs to a slot, contiguous."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.dtype = tensor, tensor.dtype
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

    def hold(self, experts: Collection[ExpertId]) -> None:
        """Make ready to copy some experts, beside those that are held.

        Raises:
            UsageError: if that cannot be; nothing has changed then.
        """

    def keep_only(self, experts: Collection[ExpertId]) -> None:
        """Let go of all but some experts."""

    def close(self) -> None:
        """Let go of files and memory."""


class FileStore:
    """Experts in the files of a checkpoint.

    The system keeps in its page cache what was read, as far as memory allows, and reading from there takes as long as
    copying from memory (1 GB: .09 to .12 s against .11 to .13). What cannot be read is an error here; a page of a
    mapped file that cannot be read would end the process.

    Args:
        tensors: The place of each tensor in a file, by expert and parameter of the bank; of all experts that may ever
            be held, since files are opened here alone.
    """

    def __init__(self, tensors: Mapping[ExpertId, Mapping[str, StoredTensor]]) -> None:
        paths = dict.fromkeys(stored.path for each in tensors.values() for stored in each.values())
        self._files = {path: ExpertFile(path) for path in paths}  # now, so that no later write goes unnoticed
        self._runs = {expert: runs_of(each) for expert, each in tensors.items()}

    def copy(self, expert: ExpertId, slot: Mapping[str, Place]) -> int:
        """Copy an expert into a slot, straight from its file where neither dtype nor device changes."""
        size = 0
        for run in self._runs[expert]:
            places = [slot[parameter] for parameter in run.parameters]
            memories = [place.memory for place in places if place.memory is not None and place.dtype == run.dtype]
            if len(memories) == len(places):
                self._files[run.path].read(run, memories)
            else:
                self._convert(run, [place.tensor for place in places])
            size += run.nbytes
        return size

    def _convert(self, run: Run, targets: Sequence[Tensor]) -> None:
        """Read the tensors of a run into memory that is always the same, piece by piece, and copy them from there."""
        if run.nbytes <= _STAGED:
            staged = self._read(run, run.offset, run.nbytes)
            for target, part in zip(targets, staged.split_with_sizes(run.counts), strict=True):
                target.view(-1).copy_(part)
            return
        offset = run.offset
        for target in targets:
            for part in torch.split(target.view(-1), _STAGED // run.dtype.itemsize):
                part.copy_(self._read(run, offset, len(part) * run.dtype.itemsize))
                offset += len(part) * run.dtype.itemsize

    def _read(self, run: Run, offset: int, size: int) -> Tensor:
        """Return some of the values of a run, in memory that the next call writes to again."""
        first = offset % _LINE // run.dtype.itemsize * run.dtype.itemsize  # placed as in the file: read faster so
        staged, memory = self._staged
        self._files[run.path].read(replace(run, offset=offset), [memory[first : first + size]])
        return staged[first : first + size].view(run.dtype)

    def hold(self, experts: Collection[ExpertId]) -> None:
        """Require that experts are in the files."""
        lacking = next((expert for expert in experts if expert not in self._runs), None)
        if lacking is not None:
            raise UsageError(
                f"The checkpoint must hold expert {lacking[2]} of sparse layer {lacking[1]} of the {lacking[0]}, but "
                "does not, or not as the others; it is incomplete."
            )

    def keep_only(self, experts: Collection[ExpertId]) -> None:
        """Do nothing: an expert in a file takes no memory."""

    @cached_property
    def _staged(self) -> tuple[Tensor, memoryview]:
        staged = torch.empty(_STAGED + _LINE, dtype=torch.uint8)
        return staged, _bytes(staged)

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()


class MemoryStore:
    """Experts in the memory of the host, page-locked where the slots are on a CUDA device, so that copies need no wait.

    Args:
        source: Each is read from here when it is held; belongs to this store from now on.
        shapes: The places of a slot by sparse layer, which experts are stored like.
        pinned: Whether to lock the pages.
    """

    def __init__(
        self, source: ExpertStore, shapes: Mapping[tuple[str, int], Mapping[str, Place]], *, pinned: bool
    ) -> None:
        self._source, self._shapes, self._pinned = source, shapes, pinned
        self._tensors: dict[ExpertId, dict[str, Tensor]] = {}

    def hold(self, experts: Collection[ExpertId]) -> None:
        """Read experts that are not here yet; others may be copied meanwhile."""
        self._source.hold(experts)
        new = {expert: self._read(expert) for expert in experts if expert not in self._tensors}
        self._tensors = self._tensors | new

    def _read(self, expert: ExpertId) -> dict[str, Tensor]:
        tensors = {  # each apart: torch rounds page-locked memory up to a power of two
            name: torch.empty(place.tensor.shape, dtype=place.tensor.dtype, pin_memory=self._pinned)
            for name, place in self._shapes[expert[:2]].items()
        }
        self._source.copy(expert, {name: Place(tensor) for name, tensor in tensors.items()})
        return tensors

    def keep_only(self, experts: Collection[ExpertId]) -> None:
        """Free the memory of all but some experts."""
        wanted = set(experts)
        self._tensors = {expert: tensors for expert, tensors in self._tensors.items() if expert in wanted}

    def copy(self, expert: ExpertId, slot: Mapping[str, Place]) -> int:
        """Copy an expert into a slot; on a CUDA device the copy is only begun, in the current stream."""
        size = 0
        for parameter, tensor in self._tensors[expert].items():
            slot[parameter].tensor.copy_(tensor, non_blocking=True)
            size += tensor.nbytes
        return size

    def close(self) -> None:
        """Free the memory, and let go of the source."""
        self._tensors = {}
        self._source.close()
