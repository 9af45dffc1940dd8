"""A table of sources and outputs, with references and labels if there are some: what detectors are judged on."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nllb_prune._files import write_text
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.base import BoolArray, Detector, Outputs, can_run
from nllb_prune.evaluation.scores.metrics import FloatArray
from nllb_prune.languages import Direction, language

REQUIRED = ("source", "output")
OPTIONAL = ("reference", "full_output", "log_probability", "ended")
LANGUAGES = ("source_language", "target_language")
SCORE = "score"
"""Columns whose names begin so hold estimates of quality that were made elsewhere, higher is better."""
_GOOD = {"", "0", "false", "good", "no", "none", "ok"}


@dataclass(frozen=True, slots=True)
class Annotated:
    """Rows of a table and the direction of each."""

    header: tuple[str, ...]
    rows: tuple[dict[str, str], ...]
    directions: tuple[Direction, ...]

    @classmethod
    def read(cls, path: Path, *, source: str | None = None, target: str | None = None) -> Annotated:
        """Read tab-separated values with a header; quotes are characters like others.

        Args:
            path: Has the columns `source` and `output`; see `OPTIONAL` and `LANGUAGES` for others it may have.
            source: Language of every source, where there is no column of it.
            target: Language of every output, where there is no column of it.

        Raises:
            UsageError: if a column or a language is missing or unknown, or there is no row.
        """
        header, rows = _read(path)
        if absent := [name for name in REQUIRED if name not in header]:
            raise UsageError(f"`{path}` must have a column `{absent[0]}`, but has {', '.join(header)} instead.")
        sides = [_codes(path, rows, column, given) for column, given in zip(LANGUAGES, (source, target), strict=True)]
        return cls(header, rows, tuple(zip(*sides, strict=True)))

    @property
    def labels(self) -> tuple[str, ...]:
        """Columns of labels: those whose names begin with `label`."""
        return tuple(name for name in self.header if name.startswith("label"))

    def kinds(self, column: str) -> list[str]:
        """Return the label of each row, the empty string where the output is good."""
        values = [row[column].strip() for row in self.rows]
        return ["" if value.casefold() in _GOOD else value for value in values]

    def outputs(self, rows: Sequence[int]) -> Outputs:
        """Return the outputs of some rows of one direction."""
        source, target = self.directions[rows[0]]
        chosen = [self.rows[n] for n in rows]
        ended, sure = self._numbers(chosen, "ended"), self._numbers(chosen, "log_probability")
        return Outputs(
            source=source,
            target=target,
            sources=[row["source"] for row in chosen],
            outputs=[row["output"] for row in chosen],
            references=self._texts(chosen, "reference"),
            full_outputs=self._texts(chosen, "full_output"),
            mean_log_probabilities=sure,
            ended=None if ended is None else ended != 0,
        )

    def values(self, detectors: Iterable[Detector]) -> dict[str, FloatArray]:
        """Return the values ``(rows,)`` of each detector that the columns suffice for."""
        found: dict[str, FloatArray] = {}
        for direction in sorted(set(self.directions)):
            here = [n for n, each in enumerate(self.directions) if each == direction]
            outputs = self.outputs(here)
            for detector in detectors:
                if can_run(detector, outputs):
                    values = found.setdefault(detector.name, np.full(len(self.rows), np.nan))
                    values[here] = detector.values(outputs)
        return found

    def scores(self) -> dict[str, FloatArray]:
        """Return the values ``(rows,)`` of the columns of scores: minus the score, as higher values are worse."""
        columns = [name for name in self.header if name.startswith(SCORE)]
        return {name: -numbers for name in columns if (numbers := self._numbers(self.rows, name)) is not None}

    def write(self, path: Path, values: dict[str, FloatArray], flagged: dict[str, BoolArray]) -> None:
        """Write the rows with the value and the flag of each detector behind the other columns."""
        columns = [name for each in values for name in (each, f"{each} flag")]
        lines = ["\t".join([*self.header, *columns])]
        for n, row in enumerate(self.rows):
            cells = [cell for name in values for cell in (_cell(values[name][n]), str(int(flagged[name][n])))]
            lines.append("\t".join([*(row[name] for name in self.header), *cells]))
        write_text(path, "\n".join(lines) + "\n")

    def _texts(self, rows: Sequence[dict[str, str]], column: str) -> list[str] | None:
        return [row[column] for row in rows] if column in self.header else None

    def _numbers(self, rows: Sequence[dict[str, str]], column: str) -> FloatArray | None:
        """Return the numbers of a column, NaN where a cell is empty."""
        if column not in self.header:
            return None
        try:
            return np.array([float(row[column] or "nan") for row in rows], np.float64)
        except ValueError as error:
            raise UsageError(f"`{column}` must be a number in each row, but is not ({error}).") from None


def _read(path: Path) -> tuple[tuple[str, ...], tuple[dict[str, str], ...]]:
    try:
        with path.open(encoding="utf-8", newline="") as file:
            lines = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"`{path}` must be a table of tab-separated values, but cannot be read ({error}).") from None
    header = tuple(lines[0]) if lines else ()
    if len(lines) < 2 or len(set(header)) < len(header):
        raise UsageError(f"`{path}` must have a header of different names and a row or more, but has not.")
    for number, line in enumerate(lines[1:], 2):
        if len(line) != len(header):
            raise UsageError(
                f"`{path}` must have {len(header)} columns in every line, but has {len(line)} in line {number}."
            )
    return header, tuple(dict(zip(header, line, strict=True)) for line in lines[1:])


def _codes(path: Path, rows: Sequence[dict[str, str]], column: str, given: str | None) -> list[str]:
    """Return the language of each row: of its column, or the given one."""
    if given is not None:
        return [language(given).code] * len(rows)
    if column not in rows[0]:
        option = "--" + column.partition("_")[0]
        raise UsageError(f"`{option}` must name the language, or `{path}` have a column `{column}`, but neither does.")
    codes = {name: language(name).code for name in {row[column] for row in rows}}
    return [codes[row[column]] for row in rows]


def _cell(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.6g}"
