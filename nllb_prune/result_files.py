"""Result files: how a result and what it was made with become bytes, and what is stale about a file."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Generic, TypeVar

from nllb_prune._version import __version__
from nllb_prune.errors import UsageError

__all__ = [
    "BYTES_RESULTS",
    "JSON_RESULTS",
    "Header",
    "ResultFormat",
    "Settings",
    "StaleFile",
    "canonical_json",
    "settings_digest",
]

FORMAT = "nllb-prune/result"
VERSION = 1

Settings = Mapping[str, Any]
Header = dict[str, Any]
Result = TypeVar("Result")

_ADVICE = "Choose another folder, or make the results again with `--restart`."
_UNREADABLE = (ValueError, KeyError, TypeError, AttributeError, OSError)
_FEW = 3


@dataclass(frozen=True, slots=True)
class ResultFormat(Generic[Result]):
    """How a result and its header (format, version, tool, item, settings, digest) become the bytes of a file."""

    extension: str
    pack: Callable[[Result, Header], bytes]
    unpack: Callable[[bytes], tuple[Result, Header]]
    """Raises ValueError, KeyError or TypeError on bytes of another format."""
    read_header: Callable[[BinaryIO], Header]
    """Reads no more of a file than it must; raises as `unpack` does."""


@dataclass(frozen=True, slots=True)
class StaleFile:
    """A file that is no result of this run."""

    path: Path
    problem: str
    """What it must be and what it is instead."""
    reasons: tuple[str, ...]
    """The same in a few words, one for each setting that differs."""

    def error(self) -> UsageError:
        """Return what refuses the file."""
        return UsageError(f"`{self.path}` {self.problem}. {_ADVICE}")


def stale_reasons(files: Iterable[StaleFile]) -> str:
    """Say in one line what was stale, the most frequent reasons first: "`beams` was 1 and is 4 (90 files)"."""
    counted = Counter(reason for file in files for reason in file.reasons)
    few = [f"{reason} ({count} file{'s' * (count > 1)})" for reason, count in counted.most_common(_FEW)]
    more = len(counted) - len(few)
    return "; ".join(few) + (f"; and {more} more reasons" if more else "")


def stale_file(path: Path, settings: Settings, results: ResultFormat[Any]) -> StaleFile | None:
    """Return what is wrong with a file, from its header; None if it is a result of these settings."""
    try:
        with path.open("rb") as file:
            header = results.read_header(file)
    except _UNREADABLE as error:
        return _unreadable(path, error)
    return _stale_header(path, header, settings)


def read_result(path: Path, settings: Settings, results: ResultFormat[Result]) -> Result:
    """Read the result of these settings.

    Raises:
        UsageError: if the file was made with others, or is none of these files.
    """
    try:
        result, header = results.unpack(path.read_bytes())
    except _UNREADABLE as error:
        raise _unreadable(path, error).error() from None
    if stale := _stale_header(path, header, settings):
        raise stale.error()
    return result


def header_of(name: str, settings: Settings) -> Header:
    """Return the header of an item's file."""
    return {
        "format": FORMAT,
        "version": VERSION,
        "tool": __version__,
        "item": name,
        "settings": dict(settings),
        "digest": settings_digest(settings),
    }


def settings_digest(settings: Settings) -> str:
    """Return a short hash of the settings, the same for equal JSON."""
    return hashlib.sha256(canonical_json(dict(settings))).hexdigest()[:16]


def _unreadable(path: Path, error: Exception) -> StaleFile:
    return StaleFile(path, f"must be a result file, but cannot be read ({error!r})", ("cannot be read",))


def _stale_header(path: Path, header: Header, settings: Settings) -> StaleFile | None:
    try:
        form, version, digest, theirs = (header[key] for key in ("format", "version", "digest", "settings"))
        differences = () if digest == settings_digest(settings) else _differences(theirs, settings)
    except _UNREADABLE as error:
        return _unreadable(path, error)
    if (form, version) != (FORMAT, VERSION):
        problem = f"must be of format {FORMAT} version {VERSION}, but is {form} version {version} instead"
        return StaleFile(path, problem, (f"format was {form} version {version} and is {FORMAT} version {VERSION}",))
    if digest == settings_digest(settings):
        return None
    problem = "must be made with the settings of this run, but was made with others"
    return StaleFile(path, f"{problem}: {'; '.join(differences)}", differences)


def _differences(theirs: Settings, ours: Settings) -> tuple[str, ...]:
    """Name each setting that differs, its value in the file and its value now."""
    plain: Settings = json.loads(canonical_json(dict(ours)))
    names = [name for name in sorted({*theirs, *plain}) if _shown(theirs, name) != _shown(plain, name)]
    return tuple(f"`{name}` was {_shown(theirs, name)} and is {_shown(plain, name)}" for name in names)


def _shown(settings: Settings, name: str) -> str:
    return canonical_json(settings[name]).decode() if name in settings else "not set"


def _pack_json(result: Any, header: Header) -> bytes:
    return canonical_json({**header, "result": result}) + b"\n"


def _unpack_json(content: bytes) -> tuple[Any, Header]:
    header = json.loads(content)
    return header.pop("result"), header


def _read_json_header(file: BinaryIO) -> Header:
    return _unpack_json(file.read())[1]


def _pack_bytes(result: bytes, header: Header) -> bytes:
    return canonical_json(header) + b"\n" + result


def _unpack_bytes(content: bytes) -> tuple[bytes, Header]:
    first_line, _, result = content.partition(b"\n")
    return result, json.loads(first_line)


def _read_first_line(file: BinaryIO) -> Header:
    header: Header = json.loads(file.readline())
    return header


def canonical_json(content: Any) -> bytes:
    """Return JSON on one line, the same bytes for equal values; NaN is refused."""
    return json.dumps(content, ensure_ascii=False, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


JSON_RESULTS: ResultFormat[Any] = ResultFormat("json", _pack_json, _unpack_json, _read_json_header)
"""One JSON object, the result under `result`."""
BYTES_RESULTS: ResultFormat[bytes] = ResultFormat("bin", _pack_bytes, _unpack_bytes, _read_first_line)
"""The header as one line of JSON, then the bytes."""
