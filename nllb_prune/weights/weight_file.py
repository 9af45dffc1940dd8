"""`WeightFile`: one weight file, safetensors or zip-format `.bin` or `.pt`, and where its tensors are."""

from __future__ import annotations

import mmap
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.weights.safetensors_file import index_safetensors
from nllb_prune.weights.stored import StoredTensor
from nllb_prune.weights.zip_file import index_zip, load_zip


class WeightFile:
    """The tensors of one file by name, and their places in it; opening it reads no tensor.

    Args:
        path: The file.
        part: As for `index_zip`.

    Raises:
        UsageError: if the file cannot be opened, is truncated or damaged, or holds code.
    """

    def __init__(self, path: Path, *, part: str = "") -> None:
        self._path, self._part = path, part
        self._index = _index(path, part)

    def __iter__(self) -> Iterator[str]:
        return iter(self._index)

    def __contains__(self, name: object) -> bool:
        return name in self._index

    def stored(self, name: str) -> StoredTensor:
        """Return the place of a tensor.

        Raises:
            KeyError: if the file has none of that name.
            UsageError: if its values do not follow each other in the file.
        """
        stored = self._index[name]
        if stored is None:
            raise UsageError(
                f"`{name}` of `{self._path}` must be stored in one piece, but is a transposed or sliced view of "
                "another tensor; load the file with torch, call `.contiguous()` on its tensors and save it again."
            )
        return stored

    def tensor(self, name: str) -> Tensor:
        """Return a tensor over mapped pages, which are read when they are looked at.

        Raises:
            KeyError: if the file has none of that name.
        """
        stored = self._index[name]
        if stored is None:
            return load_zip(self._path, part=self._part)[name]
        if self._mapping is None or not stored.nbytes:
            return stored.read()
        flat = torch.frombuffer(
            self._mapping, dtype=stored.dtype, count=stored.nbytes // stored.dtype.itemsize, offset=stored.offset
        )
        return flat.view(stored.shape)

    @cached_property
    def _mapping(self) -> mmap.mmap | None:
        """The file as memory; None if the system refuses it, as it does where the file is larger than the memory."""
        with self._path.open("rb") as file:
            try:
                return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except (OSError, ValueError):
                return None


def _index(path: Path, part: str) -> Mapping[str, StoredTensor | None]:
    try:
        return index_safetensors(path) if path.suffix == ".safetensors" else index_zip(path, part=part)
    except UsageError:
        raise
    except OSError as error:
        raise UsageError(f"`{path}` must be a file to read, but is not ({error.strerror or error}).") from None
    except Exception as error:  # a damaged pickle, archive or header fails in any way there is
        reason = (str(error) or type(error).__name__).splitlines()[0][:120]
        raise UsageError(
            f"`{path}` must be a whole weight file, but is truncated or damaged ({reason}); fetch it again."
        ) from None
