"""The bytes of tensors into a file: copied from where they are stored, or from memory."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.weights.shards import OutputTensor
from nllb_prune.weights.stored import StoredTensor

_PIECE = 8 << 20  # of a copy inside the kernel
_BUFFER = 1 << 18  # of a write: pieces of 4 MiB were written at a tenth of the speed of these
_NOT_INSIDE_THE_KERNEL = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM}

Grown = Callable[[int], None]
"""Told how many bytes more are in the file."""


def write_tensors(target: int, header: bytes, tensors: Iterable[OutputTensor], grown: Grown) -> None:
    """Write a header and tensors, each read or made in its turn, to an open file.

    Raises:
        UsageError: if a stored tensor cannot be read whole, or a made one is of another dtype or shape.
        OSError: if the file cannot be written.
    """
    _write(target, memoryview(header), grown)
    with _Sources() as sources:
        for tensor in tensors:
            if isinstance(tensor.content, StoredTensor):
                _copy(sources.open(tensor.content), target, tensor.content, grown)
            else:
                _write(target, _bytes_of(_made(tensor, tensor.content)), grown)


def _made(tensor: OutputTensor, make: Callable[[], Tensor]) -> Tensor:
    try:
        made = make()
    except OSError as error:
        raise UsageError(f"`{tensor.name}` must be read, but cannot be ({error}).") from error
    tensor.require(made)
    return made


def _bytes_of(tensor: Tensor) -> memoryview:
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def _write(target: int, content: memoryview, grown: Grown) -> None:
    done = 0
    while done < len(content):
        count = os.write(target, content[done : done + _BUFFER])
        done += count
        grown(count)


def _copy(source: int, target: int, stored: StoredTensor, grown: Grown) -> None:
    done = 0
    while done < stored.nbytes:
        count = _copy_piece(source, target, offset=stored.offset + done, count=stored.nbytes - done)
        if not count:
            raise UsageError(
                f"`{stored.path}` must hold `{stored.name}` up to byte {stored.offset + stored.nbytes:,}, but ends at "
                f"byte {stored.offset + done:,}; fetch it again."
            )
        done += count
        grown(count)


def _copy_piece(source: int, target: int, *, offset: int, count: int) -> int:
    """Copy some bytes to where the target is, and return how many; none at the end of the source."""
    if hasattr(os, "copy_file_range"):
        try:
            if copied := os.copy_file_range(source, target, min(count, _PIECE), offset):
                return copied
        except OSError as error:  # between file systems of different kinds, for one
            if error.errno not in _NOT_INSIDE_THE_KERNEL:
                raise
    content = memoryview(os.pread(source, min(count, _BUFFER), offset))
    done = 0
    while done < len(content):
        done += os.write(target, content[done:])
    return done


class _Sources(AbstractContextManager["_Sources"]):
    """The file that was last read from stays open: neighbours come one after the other."""

    def __init__(self) -> None:
        self._path: Path | None = None
        self._file = -1

    def open(self, stored: StoredTensor) -> int:
        if stored.path != self._path:
            self._close()
            try:
                self._file = os.open(stored.path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as error:
                raise UsageError(
                    f"`{stored.path}` must hold `{stored.name}`, but cannot be read ({error.strerror}); fetch it again."
                ) from None
            self._path = stored.path
            if hasattr(os, "posix_fadvise"):
                os.posix_fadvise(self._file, 0, 0, os.POSIX_FADV_SEQUENTIAL)  # reads further ahead
        return self._file

    def _close(self) -> None:
        if self._path is not None:
            os.close(self._file)
            self._path = None

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()
