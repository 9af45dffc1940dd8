"""Readers of parallel text in files: FLORES folders, a file per language, tables."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.languages import find_language

__all__ = ["Reader", "by_code", "canonical", "file_readers", "one_line"]

Reader = Callable[[], tuple[str, ...]]
"""Reads the lines of a language; those made here can be pickled, so that other processes read the same text."""

_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}(_[a-z0-9]+)?")  # FLORES codes, with the variants of FLORES+
_LAYOUTS = (
    "a FLORES folder with `split` (`SPLIT/eng_Latn.SPLIT`), a folder of `eng_Latn.txt` files, "
    "a .tsv file with a header of codes, or a .jsonl file whose keys are codes"
)


def file_readers(path: Path, split: str | None) -> dict[str, Reader]:
    """Choose the layout by what is at the path."""
    if path.is_dir():
        readers = _folder(path, ".txt") if split is None else _folder(_split_folder(path, split), f".{split}")
    elif not path.is_file():
        raise UsageError(f"`{path}` must be parallel text, but there is no such file or folder.")
    elif split is not None:
        raise UsageError(f"`split` must be left out for a file, but is `{split}` instead.")
    elif path.suffix in (".tsv", ".jsonl"):
        readers = _table(path)
    else:
        raise UsageError(f"`{path}` must be {_LAYOUTS}, but is a `{path.suffix}` file instead.")
    if not readers:
        raise UsageError(f"`{path}` must be {_LAYOUTS}, but names no language instead.{_splits_hint(path, split)}")
    return readers


def _folder(path: Path, suffix: str) -> dict[str, Reader]:
    """Return a reader for each `code + suffix` file."""
    paths = {each.name.removesuffix(suffix): each for each in sorted(path.iterdir()) if each.name.endswith(suffix)}
    return {code: _FileReader(paths[name]) for code, name in by_code(paths, path).items()}


@dataclass(frozen=True, slots=True)
class _FileReader:
    """Reads a file of lines."""

    path: Path

    def __call__(self) -> tuple[str, ...]:
        return _read_lines(self.path)


def _split_folder(path: Path, split: str) -> Path:
    if not (path / split).is_dir():
        known = ", ".join(_splits(path)) or "left out, as there are none"
        raise UsageError(f"`split` of `{path}` must be {known}, but is `{split}` instead.")
    return path / split


def _splits(path: Path) -> list[str]:
    """Return the names of the folders with files of the FLORES layout."""
    folders = (each for each in path.iterdir() if each.is_dir())
    return sorted(each.name for each in folders if any(each.glob(f"*_*.{each.name}")))


def _splits_hint(path: Path, split: str | None) -> str:
    known = _splits(path) if path.is_dir() and split is None else []
    return f" Give `split`: {' or '.join(known)}." if known else ""


def _table(path: Path) -> dict[str, Reader]:
    """Return a reader for each column of a TSV file or key of a JSONL file; the rows are parsed once for all."""
    read_names = _tsv_header if path.suffix == ".tsv" else _json_keys
    table = _Table(path, by_code(read_names(path), path))
    return {code: _ColumnReader(table, code) for code in table.names}


@dataclass(slots=True)
class _Table:
    path: Path
    names: Mapping[str, str]
    """Of columns, by code."""
    _columns: dict[str, tuple[str, ...]] = field(default_factory=dict)

    def column(self, code: str) -> tuple[str, ...]:
        """Return the lines of a language; all columns are read with the first."""
        if not self._columns:
            path, rows = self.path, (_tsv_rows if self.path.suffix == ".tsv" else _json_rows)(self.path)
            self._columns = {
                each: tuple(_cell(row, name, f"{path}:{n}") for n, row in rows) for each, name in self.names.items()
            }
        return self._columns[code]


@dataclass(frozen=True, slots=True)
class _ColumnReader:
    """Reads a column of a table."""

    table: _Table
    code: str

    def __call__(self) -> tuple[str, ...]:
        return self.table.column(self.code)


def _tsv_header(path: Path) -> list[str]:
    return _first_line(path).split("\t")


def _tsv_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return each row by column name, with its line number."""
    header, *lines = (line.split("\t") for line in _read_lines(path))
    for n, row in enumerate(lines, 2):
        if len(row) != len(header):
            raise UsageError(f"`{path}:{n}` must have {len(header)} columns as the header, but has {len(row)} instead.")
    return [(n, dict(zip(header, row, strict=True))) for n, row in enumerate(lines, 2)]


def _json_keys(path: Path) -> list[str]:
    return list(_json_object(_first_line(path), f"{path}:1"))


def _json_rows(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """Return each object with its line number."""
    return [(n, _json_object(line, f"{path}:{n}")) for n, line in enumerate(_read_lines(path), 1)]


def _json_object(line: str, where: str) -> dict[str, Any]:
    try:
        content = json.loads(line)
    except json.JSONDecodeError:
        content = None
    if not isinstance(content, dict):
        raise UsageError(f"`{where}` must be a JSON object of `code: line`, but is `{line[:40]}` instead.")
    return content


def _cell(row: Mapping[str, Any], name: str, where: str) -> str:
    return one_line(row.get(name), name, where)


def one_line(text: Any, name: str, where: str) -> str:
    """Return a cell of a table if it is a line of text.

    Raises:
        UsageError: if it is not, naming its column and where it is.
    """
    if not isinstance(text, str) or "\n" in text:
        raise UsageError(f"`{where}` must have one line of text for `{name}`, but has `{text!r}` instead.")
    return text


def _first_line(path: Path) -> str:
    with path.open("rb") as file:
        return next(iter(_decode_lines(file.readline(), path)), "")


def _read_lines(path: Path) -> tuple[str, ...]:
    return _decode_lines(path.read_bytes(), path)


def _decode_lines(content: bytes, path: Path) -> tuple[str, ...]:
    """Split at line feeds only: other Unicode line breaks occur inside sentences."""
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"`{path}` must be UTF-8 text, but is not ({error}).") from None
    lines = text.removesuffix("\n").split("\n") if text else []
    return tuple(line.removesuffix("\r") for line in lines)


def canonical(name: str) -> str:
    """Return the FLORES-200 code of a full code; the code of a language outside NLLB-200 stays as it is."""
    known = find_language(name) if _CODE.fullmatch(name) else None
    return known.code if known else name


def by_code(names: Iterable[str], where: Path | str) -> dict[str, str]:
    """Map FLORES-200 codes to the names that are codes."""
    found: dict[str, str] = {}
    for name in filter(_CODE.fullmatch, names):
        code = canonical(name)
        if code in found:
            raise UsageError(
                f"`{where}` must have one text for `{code}`, but has `{found[code]}` and `{name}` instead."
            )
        found[code] = name
    return found
