"""The weight files of a model one at a time, wherever they are: in a folder, or fetched from the Hub one by one."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nllb_prune.errors import UsageError
from nllb_prune.model.families import family_of
from nllb_prune.model.hub_files import hub_files, wanted_files
from nllb_prune.model.source import is_local, model_folder, read_config
from nllb_prune.weights.checkpoint import family_names, find_layout, open_weights, stored_tensors
from nllb_prune.weights.layout import Layout
from nllb_prune.weights.stored import StoredTensor

_TRANSFORMERS = ">=4.57,<6"


class WeightFiles(Protocol):
    """The weight files of one model, in the folder or on the Hub."""

    @property
    def folder(self) -> Path:
        """Where the configuration and the tokenizer are."""

    @property
    def revision(self) -> str | None:
        """Commit hash on the Hub; None for a folder."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files with a wanted tensor, in order; of a single file, whatever it holds."""

    def names(self) -> Mapping[str, str] | None:
        """Return the name of each tensor, wanted or not -> its file; None for a single file."""

    def opened(self, file: str) -> AbstractContextManager[Sequence[StoredTensor]]:
        """Give the places of all tensors of a file, in the order of the file, which is there until it is left."""

    def size(self, file: str) -> int | None:
        """Return the bytes of a file, None if unknown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LocalFiles:
    """`WeightFiles` of a folder."""

    folder: Path
    files: tuple[str, ...]
    layout: Layout
    known: Mapping[str, str] | None
    """What `names` gives."""
    revision: None = None

    def names(self) -> Mapping[str, str] | None:
        """Return the name of each tensor -> its file; None for a single file."""
        return self.known

    @contextmanager
    def opened(self, file: str) -> Iterator[Sequence[StoredTensor]]:
        """Give the places of the tensors of a file."""
        yield stored_tensors(self.folder / file, self.layout)

    def size(self, file: str) -> int | None:
        """Return the bytes of a file."""
        return (self.folder / file).stat().st_size


def weight_files(
    path_or_id: str | Path,
    *,
    wanted: Callable[[str], bool] = lambda name: True,
    scratch: Path | None = None,
    disk: int | None = None,
    written: int = 0,
    revision: str | None = None,
) -> WeightFiles:
    """Find the weight files of a model; before any of them is fetched, all that can be known to fail is refused.

    Args:
        path_or_id: As for `load_model`.
        wanted: Tells of the name of a tensor whether it is needed; a file without such a tensor is never fetched.
        scratch: Folder to fetch files of the Hub to, one at a time. A fetch that broke goes on there where the Hub's
            library can; by default it begins anew, in the system's folder for temporary files.
        disk: Bytes that may be taken on the disk, as a limit beside what is free.
        written: Bytes that the caller is going to write to the same disk.
        revision: Branch, tag or commit on the Hub.

    Raises:
        UsageError: if there is no such model, its family or the version of transformers is not supported, or the
            largest file and what is written are more than `disk` or than is free.
    """
    import transformers

    check_transformers(transformers.__version__)
    folder = model_folder(path_or_id, revision=revision)
    family = family_of(read_config(folder))
    if not is_local(path_or_id):
        return hub_files(
            str(path_or_id),
            folder,
            prefix=family.base_prefix,
            wanted=wanted,
            scratch=scratch,
            disk=disk,
            written=written,
        )
    layout = find_layout(folder, prefix=family.base_prefix, original=family.original)
    known = family_names(layout) if layout.weight_map is not None else _names_inside(folder, layout)
    return LocalFiles(folder=folder, files=wanted_files(layout, known, wanted), layout=layout, known=known)


def _names_inside(folder: Path, layout: Layout) -> dict[str, str] | None:
    if len(layout.files) == 1:
        return None
    return {
        name: file for file in layout.files for name in layout.names(file, list(open_weights(folder / file, layout)))
    }


def check_transformers(version: str) -> None:
    """Refuse a version of transformers that is not supported.

    Raises:
        UsageError: if it is not.
    """
    from packaging.specifiers import SpecifierSet

    if not SpecifierSet(_TRANSFORMERS).contains(version, prereleases=True):
        raise UsageError(f"`transformers` must be {_TRANSFORMERS}, but is {version} instead; install one of these.")
