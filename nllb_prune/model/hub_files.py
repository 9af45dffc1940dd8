"""`HubFiles`: the weight files of a model on the Hub, of which one at a time is on this disk."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from nllb_prune.errors import UsageError
from nllb_prune.model.hub_download import fetch_file, file_sizes
from nllb_prune.weights.checkpoint import family_names, stored_tensors
from nllb_prune.weights.layout import WEIGHT_FILES, Layout, hub_layout
from nllb_prune.weights.stored import StoredTensor

_FETCHING = ".fetching"

Sizes = Mapping[str, int | None]
"""Bytes by file; None where the Hub does not tell."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubFiles:
    """`WeightFiles` of a model on the Hub."""

    hub_id: str
    folder: Path
    """Of the small files, in the Hub's cache."""
    revision: str
    """Commit hash."""
    layout: Layout
    sizes: Sizes
    """Of the files with a wanted tensor."""
    scratch: Path | None
    """Where to fetch to; the system's folder for temporary files by default."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files with a wanted tensor, in order."""
        return tuple(self.sizes)

    def names(self) -> Mapping[str, str] | None:
        """Return tensor -> file as the index tells; None for a single file."""
        return family_names(self.layout)

    def size(self, file: str) -> int | None:
        """Return the bytes of a file; None if the Hub does not tell."""
        return self.sizes.get(file)

    @contextmanager
    def opened(self, file: str) -> Iterator[Sequence[StoredTensor]]:
        """Fetch a file, give the places of its tensors, delete it when left; one in the Hub's cache stays there."""
        if (self.folder / file).exists():
            yield stored_tensors(self.folder / file, self.layout)
            return
        with _fetching_folder(self.scratch, file) as folder:
            path = fetch_file(self.hub_id, file, revision=self.revision, folder=folder)
            try:
                yield stored_tensors(path, self.layout)
            finally:
                shutil.rmtree(folder.parent)


def hub_files(
    hub_id: str,
    folder: Path,
    *,
    prefix: str,
    wanted: Callable[[str], bool],
    scratch: Path | None,
    disk: int | None,
    written: int,
) -> HubFiles:
    """Find the files with a wanted tensor; the Hub is asked only where its cache lacks one of them.

    `folder` is that of the small files in the cache, `prefix` as for `Checkpoint`, the rest as for `weight_files`.

    Raises:
        UsageError: if there is no weight file, or the largest one and what is written do not fit on the disk.
    """
    revision = folder.name  # the cache calls the folder of a snapshot by its commit
    layout, sizes = _cached(folder, prefix, wanted) or _listed(hub_id, folder, prefix, wanted)
    fetched = {file: size or 0 for file, size in sizes.items() if not (folder / file).exists()}
    _check_disk(fetched, scratch=scratch, disk=disk, written=written)
    return HubFiles(hub_id=hub_id, folder=folder, revision=revision, layout=layout, sizes=sizes, scratch=scratch)


def _cached(folder: Path, prefix: str, wanted: Callable[[str], bool]) -> tuple[Layout, Sizes] | None:
    """Return the layout, and the wanted files if the cache has them all."""
    first = next((file for file in WEIGHT_FILES if (folder / file).exists()), None)
    if first is None:
        return None
    layout = hub_layout(folder, first, prefix)
    paths = [folder / file for file in wanted_files(layout, family_names(layout), wanted)]
    if not all(path.exists() for path in paths):
        return None
    return layout, {path.name: path.stat().st_size for path in paths}


def _listed(hub_id: str, folder: Path, prefix: str, wanted: Callable[[str], bool]) -> tuple[Layout, Sizes]:
    """Return the layout, and the wanted files, as the Hub tells them."""
    listed = file_sizes(hub_id, folder.name)
    first = next((file for file in WEIGHT_FILES if file in listed), None)
    if first is None:
        raise UsageError(
            f"`{hub_id}` must hold the weights of a model ({', '.join(WEIGHT_FILES)}), but holds none of them."
        )
    layout = hub_layout(folder, first, prefix)
    files = wanted_files(layout, family_names(layout), wanted)
    absent = next((file for file in files if file not in listed), None)
    if absent is not None:
        raise UsageError(f"`{hub_id}` must hold `{absent}`, as its index says, but does not.")
    return layout, {file: listed[file] for file in files}


def wanted_files(layout: Layout, names: Mapping[str, str] | None, wanted: Callable[[str], bool]) -> tuple[str, ...]:
    """Return the files with a wanted tensor, in order; all, where the files of the names are not known."""
    if names is None:
        return layout.files
    files = {file for name, file in names.items() if wanted(name)}
    return tuple(file for file in layout.files if file in files)


def _check_disk(fetched: Mapping[str, int], *, scratch: Path | None, disk: int | None, written: int) -> None:
    largest = max(fetched, key=lambda file: fetched[file], default="")
    needed = fetched.get(largest, 0) + written
    place = scratch or Path(tempfile.gettempdir())
    what = f"{needed:,} bytes: {fetched.get(largest, 0):,} of `{largest or 'no file'}` and {written:,} to write"
    if disk is not None and needed > disk:
        raise UsageError(f"`disk` must be at least {what}, but is {disk:,} bytes instead.")
    existing = next(folder for folder in (place, *place.absolute().parents) if folder.exists())
    free = shutil.disk_usage(existing).free
    if needed > free:
        raise UsageError(f"The disk of `{place}` must have {what}, but has {free:,} bytes free.")


@contextmanager
def _fetching_folder(scratch: Path | None, file: str) -> Iterator[Path]:
    """Give a folder for one file: nothing that killed runs left is in it but what the fetch can go on with."""
    if scratch is None:
        with tempfile.TemporaryDirectory(prefix="nllb-prune-", ignore_cleanup_errors=True) as temporary:
            yield Path(temporary) / _FETCHING / file
        return
    folder = scratch / _FETCHING / file
    for other in folder.parent.glob("*"):
        if other != folder:
            shutil.rmtree(other)
    for path in folder.rglob("*.incomplete"):
        if path.name.count(".") > 2:  # newer lines of huggingface_hub give each try a name of its own and never go on
            path.unlink()
    yield folder
