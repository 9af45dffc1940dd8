"""Parallel text: one list of lines per language, line n the same sentence in every language, read when asked for."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from nllb_prune.corpus_readers import Reader, canonical, file_readers
from nllb_prune.errors import UsageError

__all__ = ["DATASETS", "ParallelText"]

DATASETS = "datasets:"
"""Begins the name of a data set that the library `datasets` reads, a Hub id or a local folder."""

Origin = tuple[str, str | None]
"""Path or name, and split."""


class ParallelText:
    """Aligned lines in several languages, named by FLORES-200 code whatever name the files use."""

    def __init__(
        self, readers: Mapping[str, Reader], *, limit: int | None = None, origin: Origin | None = None
    ) -> None:
        self._readers = dict(readers)
        self._limit = limit
        self._origin = origin
        self._loaded: dict[str, tuple[str, ...]] = {}
        self._digests: dict[str, str] = {}

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle where the text is, or, if it is of no file, the lines themselves."""
        if self._origin is not None:
            return _reopened, (*self._origin, self._limit)
        return _in_memory, ({code: self.lines(code) for code in self.languages},)

    @classmethod
    def open(cls, path: str | Path, split: str | None = None) -> ParallelText:
        """Find the languages of a corpus without reading its text.

        Args:
            path: a FLORES folder (`path/split/code.split`), a folder of `code.txt` files, a `.tsv` file with a header
                of codes, or a `.jsonl` file with an object of `code: line` per line. Other files, columns and keys
                are ignored. Or `datasets:NAME`, a Hub id or a local folder that the library `datasets` reads, with a
                configuration or a column by code.
            split: the split of a FLORES folder or of a data set, and only there.

        Raises:
            UsageError: if there is no such corpus, or two names in it mean the same language.
        """
        name = str(path)
        if name.startswith(DATASETS):
            from nllb_prune.corpus_datasets import dataset_readers  # the library is an extra

            return cls(dataset_readers(name.removeprefix(DATASETS), split), origin=(name, split))
        return cls(file_readers(Path(path), split), origin=(str(Path(path).absolute()), split))

    @property
    def languages(self) -> tuple[str, ...]:
        """Codes of the languages there is text for, sorted."""
        return tuple(sorted(self._readers))

    def lines(self, code: str) -> tuple[str, ...]:
        """Return the lines of a language; empty ones count.

        Raises:
            UsageError: if the language is missing, or has another number of lines than one read before.
        """
        code = canonical(code)
        if code not in self._loaded:
            self._loaded[code] = self._load(code)
        return self._loaded[code][: self._limit]

    def digest(self, code: str) -> str:
        """Return the first 16 digits of the SHA-256 of a language's lines, each with a line feed at its end."""
        if code not in self._digests:
            content = "".join(f"{line}\n" for line in self.lines(code))
            self._digests[code] = hashlib.sha256(content.encode()).hexdigest()[:16]
        return self._digests[code]

    def head(self, n: int) -> ParallelText:
        """Return the first `n` lines of every language, or all where there are fewer."""
        if n < 1:
            raise UsageError(f"`n` must be at least 1 line, but is {n} instead.")
        limit = n if self._limit is None else min(n, self._limit)
        return ParallelText(self._readers, limit=limit, origin=self._origin)

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


def _reopened(path: str, split: str | None, limit: int | None) -> ParallelText:
    text = ParallelText.open(path, split)
    return text if limit is None else text.head(limit)


def _in_memory(lines: Mapping[str, tuple[str, ...]]) -> ParallelText:
    return ParallelText({code: partial(_same, found) for code, found in lines.items()})


def _same(lines: tuple[str, ...]) -> tuple[str, ...]:
    return lines
