"""Long jobs as lists of items with one result file each: a killed run continues where it was."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar, get_args

from nllb_prune._files import write_bytes
from nllb_prune.errors import UsageError
from nllb_prune.result_files import (
    BYTES_RESULTS,
    JSON_RESULTS,
    ResultFormat,
    Settings,
    StaleFile,
    header_of,
    read_result,
    settings_digest,
    stale_file,
    stale_reasons,
)

__all__ = [
    "BYTES_RESULTS",
    "JSON_RESULTS",
    "Mapper",
    "Progress",
    "ResultFormat",
    "Stale",
    "StaleFile",
    "WorkItem",
    "compute_items",
    "iterate_items",
    "missing_items",
    "named",
    "one_by_one",
    "run_items",
    "settings_digest",
    "stale_reasons",
]

Progress = Callable[[Iterable[Any]], Iterable[Any]]
Stale = Literal["refuse", "recompute"]

_PART = r"[A-Za-z0-9][A-Za-z0-9 ._+:%-]*"  # no part begins with a dot: a file stays inside its folder
_ID = re.compile(rf"{_PART}(/{_PART})*")
_FEW = 3


class HasId(Protocol):
    """Anything with an id that can name a file."""

    @property
    def id(self) -> str:
        """Letters, digits, spaces and `._+:%-`, unique in its list; slashes are those of folders."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One piece of a long job."""

    id: str


Item = TypeVar("Item", bound=HasId)
Result = TypeVar("Result")
Mapper = Callable[[Sequence[Item]], Generator[tuple[Item, Result], None, None]]
"""Computes items: yields each of them once, with its result, in the order in which they are finished."""


def one_by_one(compute: Callable[[Item], Result]) -> Mapper[Item, Result]:
    """Compute items in this process, in their order."""

    def mapper(items: Sequence[Item]) -> Generator[tuple[Item, Result], None, None]:
        for item in items:
            yield item, compute(item)

    return mapper


def run_items(
    items: Sequence[Item],
    folder: Path,
    *,
    settings: Settings | Callable[[Item], Settings],
    compute: Callable[[Item], Result] | None = None,
    mapper: Mapper[Item, Result] | None = None,
    results: ResultFormat[Result] = JSON_RESULTS,
    restart: bool = False,
    stale: Stale = "refuse",
    on_stale: Callable[[Sequence[StaleFile]], None] | None = None,
    progress: Progress | None = None,
) -> list[Result]:
    """Return the result of each item, in order, computing only those without a file; see `compute_items`."""
    compute_items(
        items,
        folder,
        settings=settings,
        compute=compute,
        mapper=mapper,
        results=results,
        restart=restart,
        stale=stale,
        on_stale=on_stale,
        progress=progress,
    )
    return list(iterate_items(items, folder, settings=settings, results=results))


def compute_items(
    items: Sequence[Item],
    folder: Path,
    *,
    settings: Settings | Callable[[Item], Settings],
    compute: Callable[[Item], Result] | None = None,
    mapper: Mapper[Item, Result] | None = None,
    results: ResultFormat[Result] = JSON_RESULTS,
    restart: bool = False,
    stale: Stale = "refuse",
    on_stale: Callable[[Sequence[StaleFile]], None] | None = None,
    progress: Progress | None = None,
) -> None:
    """Compute the items without a file `folder/<id>.<extension>` and write theirs; no result is kept in memory.

    Each file is written, at once and whole, when its result is there: a killed run loses what was in flight.

    Args:
        items: the list; ids are unique.
        folder: where the result files are; made as needed.
        settings: JSON values that the results depend on, of all items or of each; stored in each file.
        compute: makes the result of an item, in this process. What it raises ends the run; the files of finished items
            stay.
        mapper: makes the results of several, instead of `compute`.
        results: how results are written.
        restart: make all results again. Where stale files are refused, the old ones are removed first, otherwise each
            is replaced when its new result is there.
        stale: whether files that were made with other settings, by another version of the format, or are none of these
            files end the run (`refuse`), or are replaced (`recompute`), each when its new result is there.
        on_stale: told of the files to be replaced, if any, before the first item is computed; `stale_reasons` words it.
        progress: wraps the list of items still to be computed, as tqdm does.

    Raises:
        UsageError: if a file is stale and stale files are refused; before anything is computed.
    """
    _check_ids(items)
    if stale not in get_args(Stale):
        raise UsageError(f"`stale` must be one of {', '.join(get_args(Stale))}, but is {stale} instead.")
    if restart and stale == "refuse":
        for item in items:
            _path(folder, item, results).unlink(missing_ok=True)
    absent = {item.id for item in missing_items(items, folder, results=results)}
    found = [item for item in items if item.id not in absent]
    again = restart and stale == "recompute"
    outdated = {} if again else _outdated(found, folder, settings, results, refuse=stale == "refuse")
    if outdated and on_stale is not None:
        on_stale(list(outdated.values()))
    pending = [item for item in items if again or item.id in absent or item.id in outdated]
    for item, result in _finished(_chosen(compute, mapper), pending, progress):
        content = results.pack(result, header_of(item.id, _settings_of(item, settings)))
        write_bytes(_path(folder, item, results), content)


def iterate_items(
    items: Sequence[Item],
    folder: Path,
    *,
    settings: Settings | Callable[[Item], Settings],
    results: ResultFormat[Result] = JSON_RESULTS,
) -> Iterator[Result]:
    """Yield the result of each computed item, in order, as it is read from its file: only one is in memory at a time.

    Raises:
        UsageError: at once if items have no file; at its turn if a file is not of these settings.
    """
    if missing := [item.id for item in missing_items(items, folder, results=results)]:
        raise UsageError(
            f"`{folder}` must hold the results of {len(items)} items, but lacks {len(missing)} of them "
            f"({named(missing)}). Compute them first."
        )
    return (read_result(_path(folder, item, results), _settings_of(item, settings), results) for item in items)


def missing_items(items: Sequence[Item], folder: Path, *, results: ResultFormat[Any] = JSON_RESULTS) -> list[Item]:
    """Return the items that have no file yet."""
    return [item for item in items if not _path(folder, item, results).exists()]


def named(names: Sequence[str]) -> str:
    """List the first few names, for a message."""
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more} more" if more > 0 else "")


def _outdated(
    items: Sequence[Item],
    folder: Path,
    settings: Settings | Callable[[Item], Settings],
    results: ResultFormat[Any],
    *,
    refuse: bool,
) -> dict[str, StaleFile]:
    """Return the stale files by item, or refuse the first."""
    outdated: dict[str, StaleFile] = {}
    for item in items:
        if found := stale_file(_path(folder, item, results), _settings_of(item, settings), results):
            if refuse:
                raise found.error()
            outdated[item.id] = found
    return outdated


def _chosen(compute: Callable[[Item], Result] | None, mapper: Mapper[Item, Result] | None) -> Mapper[Item, Result]:
    if (compute is None) == (mapper is None):
        raise UsageError(f"One of `compute` and `mapper` must be given, but {'both' if compute else 'none'} are.")
    if mapper is not None:
        return mapper
    assert compute is not None
    return one_by_one(compute)


def _finished(
    mapper: Mapper[Item, Result], pending: Sequence[Item], progress: Progress | None
) -> Iterator[tuple[Item, Result]]:
    """Yield the pending items as they are finished, each once; one step of `progress` for each."""
    if not pending:
        return
    steps = iter(progress(pending) if progress else pending)
    waiting = {item.id for item in pending}
    next(steps, None)
    with closing(mapper(pending)) as finished:
        for item, result in finished:
            if item.id not in waiting:
                raise UsageError(f"`mapper` must yield each item of its list once, but yields {item.id} too.")
            waiting.remove(item.id)
            yield item, result
            next(steps, None)
    if waiting:
        raise UsageError(f"`mapper` must yield each item of its list, but leaves out {named(sorted(waiting))}.")


def _path(folder: Path, item: HasId, results: ResultFormat[Any]) -> Path:
    return folder / f"{item.id}.{results.extension}"


def _settings_of(item: Item, settings: Settings | Callable[[Item], Settings]) -> Settings:
    return settings(item) if callable(settings) else settings


def _check_ids(items: Sequence[HasId]) -> None:
    names = [item.id for item in items]
    for name in names:
        if not _ID.fullmatch(name):
            raise UsageError(
                "`id` must be letters, digits, spaces and `._+:%-`, and begin with a letter or digit, as must what "
                f"follows a slash, but is {name!r} instead."
            )
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UsageError(f"`items` must have an id each, but {', '.join(twice)} occur more than once.")
