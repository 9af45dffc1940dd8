"""A lazy reader over the weight files of a checkpoint: safetensors, zip-format `.bin`, or the original `.pt` files.

Nothing is read before a tensor is asked for, and then only its own bytes: a tensor that is never asked for costs
nothing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType

from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.weights.layout import WEIGHT_FILES, HubLayout, Layout, hub_layout
from nllb_prune.weights.original_layout import OriginalLayout, find_original
from nllb_prune.weights.stored import StoredTensor
from nllb_prune.weights.weight_file import WeightFile


class Checkpoint:
    """The tensors of a folder by name; names are given the prefix that some files leave out.

    Args:
        folder: Holds `model.safetensors` or `pytorch_model.bin`, or an index and its shards, or original files.
        prefix: What the names of a model with a head begin with.
        original: How the original files of the family are read; without it they are not.
        files: Reads these files of the folder alone, whatever an index says.
    """

    def __init__(
        self,
        folder: Path,
        *,
        prefix: str = "model.",
        original: OriginalLayout | None = None,
        files: Sequence[str] | None = None,
    ) -> None:
        self._folder = folder
        self._layout: Layout = (
            find_layout(folder, prefix=prefix, original=original)
            if files is None
            else HubLayout(files=tuple(files), prefix=prefix)
        )
        self._open: dict[str, WeightFile] = {}
        self._where: dict[str, tuple[str, str]] = {}  # name -> file, name as stored
        for file, stored in self._stored_names().items():
            self._place(file, self._layout.names(file, stored))

    def _stored_names(self) -> Mapping[str, Collection[str]]:
        if self._layout.weight_map is None:
            return {file: list(self._file(file)) for file in self._layout.files}
        return names_by_file(self._layout)

    def _place(self, file: str, names: Mapping[str, str]) -> None:
        for name, as_stored in names.items():
            if name in self._where:
                raise UsageError(
                    f"`{name}` must be in one file, but is in `{self._folder / self._where[name][0]}` and in "
                    f"`{self._folder / file}`; they are of different checkpoints."
                )
            self._where[name] = file, as_stored

    def _file(self, file: str) -> WeightFile:
        if file not in self._open:
            self._open[file] = open_weights(self._folder / file, self._layout)
        return self._open[file]

    def __iter__(self) -> Iterator[str]:
        return iter(self._where)

    def __contains__(self, name: object) -> bool:
        return name in self._where

    def tensor(self, name: str) -> Tensor:
        """Map one tensor, in the dtype it is stored in."""
        file, as_stored = self._where[name]
        return self._holding(file, as_stored).tensor(as_stored)

    def stored(self, name: str) -> StoredTensor:
        """Return where one tensor is.

        Raises:
            UsageError: if its values do not follow each other in the file.
        """
        file, as_stored = self._where[name]
        return replace(self._holding(file, as_stored).stored(as_stored), name=name)

    def _holding(self, file: str, as_stored: str) -> WeightFile:
        weights = self._file(file)
        if as_stored not in weights:
            raise lacking(self._folder / file, as_stored)
        return weights

    def close(self) -> None:
        """Let go of the files."""
        self._open.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def find_layout(folder: Path, *, prefix: str, original: OriginalLayout | None = None) -> Layout:
    """Return the layout of the weight files of a folder; the arguments are those of `Checkpoint`.

    Raises:
        UsageError: if there are none, or their index is damaged.
    """
    for file in WEIGHT_FILES:
        if (folder / file).exists():
            return hub_layout(folder, file, prefix)
    found = find_original(folder, original) if original is not None else None
    if found is None:
        raise UsageError(
            f"`{folder}` must hold the weights of a model ({', '.join(WEIGHT_FILES)}), but holds none of them."
        )
    return found


def names_by_file(layout: Layout) -> dict[str, list[str]]:
    """Return the names as stored by file, as the index tells."""
    names: dict[str, list[str]] = {file: [] for file in layout.files}
    for name, file in (layout.weight_map or {}).items():
        names[file].append(name)
    return names


def family_names(layout: Layout) -> dict[str, str] | None:
    """Return the family's name of each tensor -> its file, as the index tells; None where none does."""
    if layout.weight_map is None:
        return None
    return {name: file for file, stored in names_by_file(layout).items() for name in layout.names(file, stored)}


def open_weights(path: Path, layout: Layout) -> WeightFile:
    """Open a file of a checkpoint.

    Raises:
        UsageError: if it is not there, is truncated or damaged, or holds code.
    """
    if not path.exists():
        raise UsageError(f"`{path}` must be a shard of the checkpoint, but there is no such file; fetch it again.")
    return WeightFile(path, part=layout.part)


def stored_tensors(path: Path, layout: Layout) -> Sequence[StoredTensor]:
    """Return where the tensors of one file of a checkpoint are, in the order they have in it.

    Raises:
        UsageError: as `open_weights` does, and if a tensor is missing or not in one piece.
    """
    weights = open_weights(path, layout)
    named = names_by_file(layout)[path.name]
    for as_stored in named:
        if as_stored not in weights:
            raise lacking(path, as_stored)
    indexed = layout.weight_map is not None  # which may name another file for a tensor that two files hold
    names = layout.names(path.name, named if indexed else list(weights))
    stored = [replace(weights.stored(as_stored), name=name) for name, as_stored in names.items()]
    return sorted(stored, key=lambda tensor: (tensor.offset, tensor.name))


def lacking(path: Path, as_stored: str) -> UsageError:
    """Return the error of a file without a tensor that the index names."""
    return UsageError(f"`{path}` must hold `{as_stored}`, as the index says, but does not; fetch it again.")
