"""Parallel text that the library `datasets` reads, from the Hub or a local folder: it comes with the extra `datasets`.

Two layouts: a configuration by code with a column of text, as FLORES+ on the Hub has; or one configuration with a
column by code, plain or as in `sentence_eng_Latn`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from nllb_prune.corpus_readers import Reader, by_code, one_line
from nllb_prune.errors import UsageError

__all__ = ["dataset_readers"]

_TEXT_COLUMNS = ("text", "sentence")  # FLORES+, FLORES-200
_PREFIX = "sentence_"  # FLORES-200, all languages in one
_USUAL = ("default", "all")
_LAYOUTS = (
    "a data set with a configuration named by each code, or a column (`eng_Latn`, `sentence_eng_Latn`) of each code"
)


def dataset_readers(name: str, split: str | None) -> dict[str, Reader]:
    """Find the languages of a data set.

    Names and splits are looked up, with the network only if `name` is a Hub id and the Hub is not switched off
    (`HF_HUB_OFFLINE`); text is fetched when a language is read, but for the first where its columns are not declared.

    Raises:
        UsageError: if the library or the data set is missing, or has no such split or no language.
    """
    datasets = _library()
    configurations = _asked(name, lambda: datasets.get_dataset_config_names(name))
    codes = by_code(configurations, f"datasets:{name}")
    if codes:
        source = _Source(name, _split(datasets, name, next(iter(codes.values())), split))
        return {code: _TextReader(source, configuration) for code, configuration in codes.items()}
    configuration = _only(name, configurations)
    source = _Source(name, _split(datasets, name, configuration, split))
    return _column_readers(source, configuration)


@dataclass(slots=True)
class _Source:
    """A split of a data set; its configurations are read once each."""

    name: str
    split: str
    _tables: dict[str, Any] = field(default_factory=dict)

    def columns(self, configuration: str) -> list[str]:
        """Return the names of the columns, of which text is read only if they are not declared."""
        datasets = _library()
        builder = _asked(self.name, lambda: datasets.load_dataset_builder(self.name, configuration))
        return list(builder.info.features or self.table(configuration).column_names)

    def table(self, configuration: str) -> Any:
        """Return the rows of a configuration."""
        if configuration not in self._tables:
            datasets = _library()
            with _quiet(datasets):
                self._tables[configuration] = _asked(
                    self.name, lambda: datasets.load_dataset(self.name, configuration, split=self.split)
                )
        return self._tables[configuration]

    def lines(self, configuration: str, column: str) -> tuple[str, ...]:
        where = f"datasets:{self.name}/{configuration}/{self.split}"
        cells = self.table(configuration)[column]
        return tuple(one_line(cell, column, f"{where}:{row}") for row, cell in enumerate(cells, 1))


@dataclass(frozen=True, slots=True)
class _TextReader:
    """Reads the text of a configuration."""

    source: _Source
    configuration: str

    def __call__(self) -> tuple[str, ...]:
        columns = self.source.table(self.configuration).column_names
        column = next((each for each in _TEXT_COLUMNS if each in columns), None)
        if column is None:
            raise UsageError(
                f"`datasets:{self.source.name}/{self.configuration}` must have a column {' or '.join(_TEXT_COLUMNS)}, "
                f"but has {', '.join(columns)} instead."
            )
        return self.source.lines(self.configuration, column)


@dataclass(frozen=True, slots=True)
class _ColumnReader:
    """Reads a column of a configuration."""

    source: _Source
    configuration: str
    column: str

    def __call__(self) -> tuple[str, ...]:
        return self.source.lines(self.configuration, self.column)


def _column_readers(source: _Source, configuration: str) -> dict[str, Reader]:
    names = {column.removeprefix(_PREFIX): column for column in source.columns(configuration)}
    codes = by_code(names, f"datasets:{source.name}")
    if not codes:
        raise UsageError(f"`datasets:{source.name}` must be {_LAYOUTS}, but has {', '.join(names.values())} instead.")
    return {code: _ColumnReader(source, configuration, names[name]) for code, name in codes.items()}


def _only(name: str, configurations: Sequence[str]) -> str:
    usual = configurations if len(configurations) == 1 else [each for each in _USUAL if each in configurations]
    if not usual:
        raise UsageError(f"`datasets:{name}` must be {_LAYOUTS}, but has {', '.join(configurations)} instead.")
    return usual[0]


def _split(datasets: Any, name: str, configuration: str, split: str | None) -> str:
    known: list[str] = _asked(name, lambda: datasets.get_dataset_split_names(name, configuration))
    if split is None and len(known) == 1:
        return known[0]
    if split is None or split not in known:
        given = "missing" if split is None else f"`{split}` instead"
        raise UsageError(f"`split` of `datasets:{name}` must be {' or '.join(known)}, but is {given}.")
    return split


def _asked(name: str, question: Callable[[], Any]) -> Any:
    try:
        return question()
    except Exception as error:  # the library raises what its loaders, the Hub and the file system raise
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        raise UsageError(
            f"`datasets:{name}` must be a data set on the Hub or a folder of one, but cannot be read ({reason})."
        ) from None


@contextmanager
def _quiet(datasets: Any) -> Iterator[None]:
    """Show the library's progress on terminals only."""
    if sys.stderr.isatty() or not datasets.is_progress_bar_enabled():
        yield
        return
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        datasets.enable_progress_bars()


def _library() -> Any:
    try:
        import datasets
    except ImportError:
        raise UsageError(
            "`datasets:` needs the library datasets, which is not installed. "
            "Run `pip install 'nllb-prune[datasets]'`, or give a folder or a file."
        ) from None
    return datasets
