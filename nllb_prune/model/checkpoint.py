"""A lazy reader over the weight files of a checkpoint: safetensors or zip-format `.bin`, whole or in shards.

Nothing is read before a tensor is asked for; both formats are memory-mapped, so a tensor that is never asked for
costs nothing.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nllb_prune._files import read_json
from nllb_prune.errors import UsageError

_WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)


class _Shard(Protocol):
    def names(self) -> list[str]: ...

    def tensor(self, name: str) -> Tensor: ...


class _SafetensorsShard:
    def __init__(self, path: Path) -> None:
        self._file: Any = safe_open(path, framework="pt")

    def names(self) -> list[str]:
        return list(self._file.keys())

    def tensor(self, name: str) -> Tensor:
        tensor: Tensor = self._file.get_tensor(name)
        return tensor


class _BinShard:
    def __init__(self, path: Path) -> None:
        with path.open("rb") as file:
            if file.read(1) == b"\x80":  # a bare pickle, as torch wrote before 1.6
                raise UsageError(
                    f"`{path}` must be in torch's zip format, which can be memory-mapped, but is in the older one "
                    "instead; load it with torch and save it again."
                )
        content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(content, dict) or not all(isinstance(tensor, Tensor) for tensor in content.values()):
            raise ValueError("it holds something else than tensors by name")
        self._tensors: dict[str, Tensor] = content

    def names(self) -> list[str]:
        return list(self._tensors)

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


class Checkpoint:
    """The tensors of a folder by name; names are given the prefix that some files leave out.

    Args:
        folder: Holds `model.safetensors` or `pytorch_model.bin`, or an index and its shards.
        prefix: What the names of a model with a head begin with.
    """

    def __init__(self, folder: Path, *, prefix: str = "model.") -> None:
        self._folder = folder
        self._shards: dict[str, _Shard] = {}
        files = self._files()
        bare = not any(name.startswith(prefix) for name in files)
        self._names = {prefix + name if bare and not name.startswith("lm_head.") else name: name for name in files}
        self._file_of = files

    def _files(self) -> dict[str, str]:
        for candidate in _WEIGHT_FILES:
            path = self._folder / candidate
            if not path.exists():
                continue
            if candidate.endswith(".index.json"):
                index = read_json(path, what="the index of a sharded checkpoint")
                return _weight_map(index, path)
            return dict.fromkeys(self._shard(candidate).names(), candidate)
        raise UsageError(
            f"`{self._folder}` must hold the weights of a model ({', '.join(_WEIGHT_FILES)}), but holds none of them."
        )

    def _shard(self, file: str) -> _Shard:
        if file not in self._shards:
            path = self._folder / file
            if not path.exists():
                raise UsageError(
                    f"`{path}` must be a shard of the checkpoint, but there is no such file; fetch it again."
                )
            try:
                self._shards[file] = (_SafetensorsShard if file.endswith(".safetensors") else _BinShard)(path)
            except (SafetensorError, RuntimeError, pickle.UnpicklingError, EOFError, ValueError) as error:
                reason = str(error).splitlines()[0][:120]
                raise UsageError(
                    f"`{path}` must be a whole weight file, but is truncated or damaged ({reason}); fetch it again."
                ) from None
        return self._shards[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def tensor(self, name: str) -> Tensor:
        """Read one tensor, in the dtype it is stored in."""
        stored = self._names[name]
        try:
            return self._shard(self._file_of[stored]).tensor(stored)
        except (SafetensorError, KeyError):
            raise UsageError(
                f"`{self._folder / self._file_of[stored]}` must hold `{stored}`, as the index says, but does not; "
                "fetch it again."
            ) from None

    def close(self) -> None:
        """Let go of the files."""
        self._shards.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _weight_map(index: Any, path: Path) -> dict[str, str]:
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UsageError(f"`{path}` must name the file of each tensor in `weight_map`, but does not; fetch it again.")
    return files
