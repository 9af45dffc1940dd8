"""Reads the folder of a model for fairseq2, tensor by tensor: Hugging Face's layout, our exports, fairseq's files."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
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


class NllbMoeCheckpointLoader(ModelCheckpointLoader):
    """Loads a folder with a `config.json` through our reader, and leaves all else to fairseq2's own loaders.

    fairseq2's read whole files before the first tensor; ours maps them and makes one tensor at a time. Of pickles, it
    reads tensors alone.
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
        loaded = self._load(path, options) if _is_model(path) else self._others.lazy_load(path, shard_dims, options)
        try:
            yield from loaded
        except UsageError as error:
            raise CorruptModelCheckpointError(path, str(error)) from error

    def _load(self, path: Path, options: ModelCheckpointLoadOptions | None) -> Iterator[tuple[str, Tensor]]:
        if options is not None and options.gangs is not None and options.gangs.tp.size > 1:
            raise UsageError(
                f"{path} must be loaded without tensor parallelism, but the gang has {options.gangs.tp.size}."
            )
        family = family_of(read_config(path))
        with Checkpoint(path, prefix=family.base_prefix, original=family.original) as checkpoint:
            tensors: Mapping[str, object] = _Tensors(checkpoint)
            if options is not None and options.state_dict_converter is not None:
                tensors = options.state_dict_converter(cast("dict[str, object]", tensors))
            for name in tensors:
                yield name, cast(Tensor, tensors[name])

    def supports_path(self, path: Path) -> bool:
        """Return whether the path is a checkpoint that can be loaded."""
        return _is_model(path) or self._others.supports_path(path)


class _Tensors(Mapping[str, Tensor]):
    """The tensors of a checkpoint as a mapping; each is mapped when it is asked for."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._checkpoint = checkpoint

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._checkpoint:
            raise KeyError(name)
        return self._checkpoint.tensor(name)

    def __contains__(self, name: object) -> bool:
        return name in self._checkpoint

    def __iter__(self) -> Iterator[str]:
        return iter(self._checkpoint)

    def __len__(self) -> int:
        return sum(1 for _ in self._checkpoint)


def _is_model(path: Path) -> bool:
    return path.is_dir() and (path / "config.json").exists()
