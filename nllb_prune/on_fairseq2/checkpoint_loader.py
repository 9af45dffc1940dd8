"""Reads a model for fairseq2, tensor by tensor: folders in Hugging Face's layout, our exports, fairseq's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import cast

from fairseq2.model_checkpoint import (
    CorruptModelCheckpointError,
    ModelCheckpointLoader,
    ModelCheckpointLoadOptions,
)
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.model.families import family_of
from nllb_prune.model.source import read_config
from nllb_prune.weights.checkpoint import Checkpoint
from nllb_prune.weights.weight_file import WeightFile

_OF_TORCH = (".pt", ".pth", ".bin")
_PART = "model"


class NllbMoeCheckpointLoader(ModelCheckpointLoader):
    """Loads a folder with a `config.json`, and a single `.pt` file, through our reader; leaves all else to fairseq2's.

    fairseq2's loaders read whole files before the first tensor; ours maps them and makes one tensor at a time. Of
    pickles tensors alone are read, whatever a card says.
    """

    def __init__(self, others: ModelCheckpointLoader) -> None:
        self._others = others

    def lazy_load(
        self, path: Path, shard_dims: Mapping[str, int], options: ModelCheckpointLoadOptions | None = None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yield parameters one by one.

        Raises:
            CorruptModelCheckpointError: if a tensor is missing, or too many, or a file is damaged.
        """
        options = replace(options or ModelCheckpointLoadOptions(), restrict=True)
        ours = _is_model(path) or _is_file(path)
        try:
            yield from self._load(path, options) if ours else self._others.lazy_load(path, shard_dims, options)
        except UsageError as error:
            raise CorruptModelCheckpointError(path, str(error)) from error

    def _load(self, path: Path, options: ModelCheckpointLoadOptions) -> Iterator[tuple[str, Tensor]]:
        if options.gangs is not None and options.gangs.tp.size > 1:
            raise UsageError(
                f"{path} must be loaded without tensor parallelism, but the gang has {options.gangs.tp.size}."
            )
        with _opened(path) as found:
            tensors: Mapping[str, object] = found
            if options.state_dict_converter is not None:
                tensors = options.state_dict_converter(cast("dict[str, object]", found))
            for name in tensors:
                yield name, cast(Tensor, tensors[name])

    def supports_path(self, path: Path) -> bool:
        """Return whether the path is a checkpoint that can be loaded."""
        return _is_model(path) or self._others.supports_path(path)


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint, or of one file, as a mapping; each is mapped when it is asked for."""

    def __init__(self, held: Checkpoint | WeightFile) -> None:
        self._held = held

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._held:
            raise KeyError(name)
        return self._held.tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._held

    def __iter__(self) -> Iterator[str]:
        return iter(self._held)

    def __len__(self) -> int:
        return sum(1 for _ in self._held)


@contextmanager
def _opened(path: Path) -> Iterator[_Tensors]:
    if not path.is_dir():
        yield _Tensors(_weight_file(path))
        return
    family = family_of(read_config(path))
    with Checkpoint(path, prefix=family.base_prefix, original=family.original) as checkpoint:
        yield _Tensors(checkpoint)


def _weight_file(path: Path) -> WeightFile:
    """Open a file of tensors by name, or one as fairseq writes it, of which they are a part."""
    try:
        return WeightFile(path, part=_PART)
    except UsageError:
        return WeightFile(path)


def _is_model(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").exists()


def _is_file(path: Path) -> bool:
    return path.is_file() and path.suffix in _OF_TORCH
