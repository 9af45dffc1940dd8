"""Long jobs as lists of items with one result file each: a killed run continues where it was."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, Protocol, TypeVar

from nllb_prune._files import write_bytes
from nllb_prune._version import __version__
from nllb_prune.errors import UsageError

FORMAT = "nllb-prune/result"
VERSION = 1

Settings = Mapping[str, Any]
Header = dict[str, Any]
Progress = Callable[[Iterable[Any]], Iterable[Any]]

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_FEW = 3


class HasId(Protocol):
    """Anything with an id that can name a file."""

    @property
    def id(self) -> str:
        """Letters, digits and `._+-`, unique in its list."""


@dataclass(frozen=True, slots=True)
class WorkItem:
    """One piece of a long job."""

    id: str


Item = TypeVar("Item", bound=HasId)
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class ResultFormat(Generic[Result]):
    """How a result and its header (format, version, tool, item, settings, digest) become the bytes of a file."""

    extension: str
    pack: Callable[[Result, Header], bytes]
    unpack: Callable[[bytes], tuple[Result, Header]]
    """Raises ValueError, KeyError or TypeError on bytes of another format."""
    read_header: Callable[[BinaryIO], Header]
    """Reads no more of a file than it must; raises as `unpack` does."""


def _pack_json(result: Any, header: Header) -> bytes:
    return _canonical({**header, "result": result}) + b"\n"


def _unpack_json(content: bytes) -> tuple[Any, Header]:
    header = json.loads(content)
    return header.pop("result"), header


def _read_json_header(file: BinaryIO) -> Header:
    return _unpack_json(file.read())[1]


def _pack_bytes(result: bytes, header: Header) -> bytes:
    return _canonical(header) + b"\n" + result


def _unpack_bytes(content: bytes) -> tuple[bytes, Header]:
    first_line, _, result = content.partition(b"\n")
    return result, json.loads(first_line)


def _read_first_line(file: BinaryIO) -> Header:
    header: Header = json.loads(file.readline())
    return header


def _canonical(content: Any) -> bytes:
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


JSON_RESULTS: ResultFormat[Any] = ResultFormat("json", _pack_json, _unpack_json, _read_json_header)
"""One JSON object, the result under `result`."""
BYTES_RESULTS: ResultFormat[bytes] = ResultFormat("bin", _pack_bytes, _unpack_bytes, _read_first_line)
"""The header as one line of JSON, then the bytes."""


def run_items(
    items: Sequence[Item],
    folder: Path,
    *,
    settings: Settings | Callable[[Item], Settings],
    compute: Callable[[Item], Result],
    results: ResultFormat[Result] = JSON_RESULTS,
    restart: bool = False,
    progress: Progress | None = None,
) -> list[Result]:
    """Return the result of each item, in order, computing only those without a file; see `compute_items`."""
    compute_items(
        items, folder, settings=settings, compute=compute, results=results, restart=restart, progress=progress
    )
    return list(iterate_items(items, folder, settings=settings, results=results))


def compute_items(
    items: Sequence[Item],
    folder: Path,
    *,
    settings: Settings | Callable[[Item], Settings],
    compute: Callable[[Item], Result],
    results: ResultFormat[Result] = JSON_RESULTS,
    restart: bool = False,
    progress: Progress | None = None,
) -> None:
    """Compute the items without a file `folder/<id>.<extension>` and write theirs; no result is kept in memory.

    Args:
        items: the list; ids are unique.
        folder: where the result files are; made as needed.
        settings: JSON values that the results depend on, of all items or of each; stored in each file.
        compute: makes the result of an item. What it raises ends the run; the files of finished items stay.
        results: how results are written.
        restart: remove the files of these items first.
        progress: wraps the list of items still to be computed, as tqdm does.

    Raises:
        UsageError: if a file was made with other settings, or is none of these files; before anything is computed.
    """
    _check_ids(items)
    if restart:
        for item in items:
            _path(folder, item, results).unlink(missing_ok=True)
    pending = missing_items(items, folder, results=results)
    absent = {item.id for item in pending}
    for item in items:
        if item.id not in absent:
            _check_file(_path(folder, item, results), _settings_of(item, settings), results)
    for item in progress(pending) if progress else pending:
        content = results.pack(compute(item), _header(item.id, _settings_of(item, settings)))
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
    return (_read(_path(folder, item, results), _settings_of(item, settings), results) for item in items)


def missing_items(items: Sequence[Item], folder: Path, *, results: ResultFormat[Any] = JSON_RESULTS) -> list[Item]:
    """Return the items that have no file yet."""
    return [item for item in items if not _path(folder, item, results).exists()]


def named(names: Sequence[str]) -> str:
    """List the first few names, for a message."""
    more = len(names) - _FEW
    return ", ".join(names[:_FEW]) + (f" and {more} more" if more > 0 else "")


def settings_digest(settings: Settings) -> str:
    """Return a short hash of the settings, the same for equal JSON."""
    return hashlib.sha256(_canonical(dict(settings))).hexdigest()[:16]


def _header(name: str, settings: Settings) -> Header:
    return {
        "format": FORMAT,
        "version": VERSION,
        "tool": __version__,
        "item": name,
        "settings": dict(settings),
        "digest": settings_digest(settings),
    }


def _path(folder: Path, item: HasId, results: ResultFormat[Any]) -> Path:
    return folder / f"{item.id}.{results.extension}"


def _settings_of(item: Item, settings: Settings | Callable[[Item], Settings]) -> Settings:
    return settings(item) if callable(settings) else settings


def _read(path: Path, settings: Settings, results: ResultFormat[Result]) -> Result:
    with _readable(path):
        result, header = results.unpack(path.read_bytes())
    _check_header(path, header, settings)
    return result


def _check_file(path: Path, settings: Settings, results: ResultFormat[Any]) -> None:
    with _readable(path), path.open("rb") as file:
        header = results.read_header(file)
    _check_header(path, header, settings)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise UsageError(f"`{path}` must be a result file, but cannot be read ({error!r}). {_ADVICE}") from None


def _check_header(path: Path, header: Header, settings: Settings) -> None:
    with _readable(path):
        form, version, digest, theirs = (header[key] for key in ("format", "version", "digest", "settings"))
    if (form, version) != (FORMAT, VERSION):
        raise UsageError(
            f"`{path}` must be of format {FORMAT} version {VERSION}, but is {form} version {version} instead. {_ADVICE}"
        )
    if digest != settings_digest(settings):
        raise UsageError(
            f"`{path}` must be made with the settings of this run, "
            f"but was made with others: {_differences(theirs, settings)}. {_ADVICE}"
        )


_ADVICE = "Choose another folder, or make the results again with `--restart`."


def _differences(theirs: Settings, ours: Settings) -> str:
    """Name each setting that differs, its value in the file and its value now."""
    plain: Settings = json.loads(_canonical(dict(ours)))
    names = [name for name in sorted({*theirs, *plain}) if _shown(theirs, name) != _shown(plain, name)]
    return "; ".join(f"`{name}` was {_shown(theirs, name)} and is {_shown(plain, name)}" for name in names)


def _shown(settings: Settings, name: str) -> str:
    return _canonical(settings[name]).decode() if name in settings else "not set"


def _check_ids(items: Sequence[HasId]) -> None:
    names = [item.id for item in items]
    for name in names:
        if not _ID.fullmatch(name):
            raise UsageError(
                f"`id` must be letters, digits and `._+-`, and begin with a letter or digit, but is {name!r} instead."
            )
    twice = sorted(name for name, count in Counter(names).items() if count > 1)
    if twice:
        raise UsageError(f"`items` must have an id each, but {', '.join(twice)} occur more than once.")
