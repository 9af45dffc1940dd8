"""Parallel text: one list of lines per language, line n the same sentence in every language, read when asked for."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.languages import find_language

__all__ = ["ParallelText"]

Reader = Callable[[], tuple[str, ...]]

_CODE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}(_[a-z0-9]+)?")  # FLORES codes, with the variants of FLORES+
_LAYOUTS = (
    "a FLORES folder with `split` (`SPLIT/eng_Latn.SPLIT`), a folder of `eng_Latn.txt` files, "
    "a .tsv file with a header of codes, or a .jsonl file whose keys are codes"
)


class ParallelText:
    """Aligned lines in several languages, named by FLORES-200 code whatever name the files use."""

    def __init__(self, readers: Mapping[str, Reader], *, limit: int | None = None) -> None:
        self._readers = dict(readers)
        self._limit = limit
        self._loaded: dict[str, tuple[str, ...]] = {}

    @classmethod
    def open(cls, path: str | Path, split: str | None = None) -> ParallelText:
        """Find the languages of a corpus without reading its text.

        Args:
            path: a FLORES folder (`path/split/code.split`), a folder of `code.txt` files, a `.tsv` file with a header
                of codes, or a `.jsonl` file with an object of `code: line` per line. Other files, columns and keys
                are ignored.
            split: the split of a FLORES folder, and only there.

        Raises:
            UsageError: if there is no such corpus, or two names in it mean the same language.
        """
        return cls(_readers(Path(path), split))

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages there is text for, sorted."""
        return tuple(sorted(self._readers))

    def lines(self, code: str) -> tuple[str, ...]:
        """Return the lines of a language; empty ones count.

        Raises:
            UsageError: if the language is missing, or has another number of lines than one read before.
        """
        code = _canonical(code)
        if code not in self._loaded:
            self._loaded[code] = self._load(code)
        return self._loaded[code][: self._limit]

    def digest(self, code: str) -> str:
        """Return the first 16 digits of the SHA-256 of a language's lines, each with a line feed at its end."""
        return hashlib.sha256("".join(f"{line}\n" for line in self.lines(code)).encode()).hexdigest()[:16]

    def head(self, n: int) -> ParallelText:
        """Return the first `n` lines of every language, or all where there are fewer."""
        if n < 1:
            raise UsageError(f"`n` must be at least 1 line, but is {n} instead.")
        return ParallelText(self._readers, limit=n if self._limit is None else min(n, self._limit))

    def _load(self, code: str) -> tuple[str, ...]:
        if code not in self._readers:
            raise UsageError(f"`language` must be one of {', '.join(self.languages)}, but is `{code}` instead.")
        lines = self._readers[code]()
        other = next(iter(self._loaded), code)
        if other in self._loaded and len(self._loaded[other]) != len(lines):
            raise UsageError(
                f"All languages must have the same number of lines, but `{other}` has {len(self._loaded[other]):,} "
                f"and `{code}` {len(lines):,} instead."
            )
        return lines


def _readers(path: Path, split: str | None) -> dict[str, Reader]:
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
    return {code: _file_reader(paths[name]) for code, name in _by_code(paths, path).items()}


def _file_reader(path: Path) -> Reader:
    return lambda: _read_lines(path)


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
    read_names, read_rows = (_tsv_header, _tsv_rows) if path.suffix == ".tsv" else (_json_keys, _json_rows)
    by_code = _by_code(read_names(path), path)

    @cache
    def columns() -> dict[str, tuple[str, ...]]:
        rows = read_rows(path)
        return {code: tuple(_cell(row, name, f"{path}:{n}") for n, row in rows) for code, name in by_code.items()}

    def reader(code: str) -> Reader:
        return lambda: columns()[code]

    return {code: reader(code) for code in by_code}


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
    text = row.get(name)
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


def _canonical(name: str) -> str:
    """Return the FLORES-200 code of a full code; the code of a language outside NLLB-200 stays as it is."""
    known = find_language(name) if _CODE.fullmatch(name) else None
    return known.code if known else name


def _by_code(names: Mapping[str, Any] | list[str], path: Path) -> dict[str, str]:
    """Map FLORES-200 codes to the names that are codes."""
    found: dict[str, str] = {}
    for name in filter(_CODE.fullmatch, names):
        code = _canonical(name)
        if code in found:
            raise UsageError(f"`{path}` must have one text for `{code}`, but has `{found[code]}` and `{name}` instead.")
        found[code] = name
    return found
