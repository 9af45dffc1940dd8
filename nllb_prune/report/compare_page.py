"""Two compared evaluations as a page and as a table for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from nllb_prune._files import write_text
from nllb_prune.evaluation.summary.groups import ALL, INTO_ENGLISH, OUT_OF_ENGLISH
from nllb_prune.evaluation.summary.table import NONE, size
from nllb_prune.report.compare import ConfigurationPair, EvaluationComparison, FigurePair, Notice
from nllb_prune.report.names import ANY, interval, key_name, number
from nllb_prune.report.rendering import render_template

INDEPENDENT = "Intervals of the two evaluations are taken as independent: each comes from its own summary."
_WITHHELD = "not compared"

# Column: words, figure, group, factor, digits.
_COLUMNS = (
    ("chrF++", "chrf", ALL, 1, 2),
    ("out of eng", "chrf", OUT_OF_ENGLISH, 1, 2),
    ("into eng", "chrf", INTO_ENGLISH, 1, 2),
    ("BLEU", "bleu", ALL, 1, 2),
    ("spBLEU", "spbleu", ALL, 1, 2),
    ("length", "length_ratio", ALL, 1, 3),
    ("flagged %", ANY, ALL, 100, 1),
)


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure of both: its difference, the interval of that, and the two values."""

    difference: str
    interval: str
    values: str
    certain: bool


@dataclass(frozen=True, slots=True)
class Row:
    """A configuration of both."""

    name: str
    kept: str
    memory: str
    verdict: str
    cells: tuple[Cell | None, ...]


def write_comparison(path: Path, comparison: EvaluationComparison) -> None:
    """Write the page; equal input gives equal bytes."""
    write_text(path, render_comparison(comparison))


def render_comparison(comparison: EvaluationComparison) -> str:
    """Return the HTML."""
    return render_template(
        "compare.html.jinja",
        title=f"{comparison.names[0]} and {comparison.names[1]}",
        names=comparison.names,
        withheld=[each for each in comparison.notices if each.withheld],
        notices=[each for each in comparison.notices if not each.withheld],
        header=[column[0] for column in _columns(comparison)],
        rows=rows(comparison),
        moved=[(pair.name, moved_rows(pair)) for pair in comparison.configurations],
        only=comparison.only,
        independent=INDEPENDENT,
    )


def rows(comparison: EvaluationComparison) -> list[Row]:
    """Return a line for each configuration that both have."""
    columns = _columns(comparison)
    return [
        Row(
            pair.name,
            _both(*(f"{share:.1%}" for share in pair.kept)),
            _both(*map(size, pair.weight_bytes)),
            _both(*(outcome or "baseline" for outcome in pair.outcomes)),
            tuple(_cell(pair.figure(name, group), scale, digits) for _, name, group, scale, digits in columns),
        )
        for pair in comparison.configurations
    ]


def moved_rows(pair: ConfigurationPair) -> list[tuple[str, ...]]:
    """Return the directions that moved most: codes, names, chrF++ of both, difference, length of both."""
    return [
        (
            each.direction,
            key_name(each.direction),
            f"{each.first:.1f}",
            f"{each.second:.1f}",
            number(each.difference, 1, sign=True),
            f"{each.length_first:.2f}",
            f"{each.length_second:.2f}",
        )
        for each in pair.moved
    ]


def terminal_table(comparison: EvaluationComparison) -> tuple[list[str], list[tuple[str, ...]]]:
    """Return header and lines of the table for the terminal: second minus first, with intervals."""
    header = ["configuration", *(column[0] for column in _columns(comparison)), "verdict"]
    return header, [(row.name, *map(_plain, row.cells), row.verdict) for row in rows(comparison)]


def notice_lines(notices: Sequence[Notice]) -> list[str]:
    """Return what was made differently, what keeps numbers from being compared in capitals and first."""
    ordered = sorted(notices, key=lambda each: not each.withheld)
    words = {True: "NOT COMPARED, differs", False: "differs"}
    return [f"{words[each.withheld]}: {each.what}: {each.first} | {each.second}" for each in ordered]


def _columns(comparison: EvaluationComparison) -> list[tuple[str, str, str, int, int]]:
    """Return the columns that any configuration has."""
    pairs = comparison.configurations
    return [each for each in _COLUMNS if any(pair.figure(each[1], each[2]) is not None for pair in pairs)]


def _cell(pair: FigurePair | None, scale: int, digits: int) -> Cell | None:
    if pair is None:
        return None
    values = f"{number(scale * pair.first.value, digits)} → {number(scale * pair.second.value, digits)}"
    found = pair.difference
    if found is None:
        return Cell(_WITHHELD, "", values, certain=False)
    ends = interval(scale * found.low, scale * found.high, digits)
    return Cell(number(scale * found.value, digits, sign=True), ends, values, found.certain)


def _plain(cell: Cell | None) -> str:
    if cell is None:
        return NONE
    return f"{cell.difference} ({cell.interval})" if cell.interval else f"{cell.values} {cell.difference}"


def _both(first: str, second: str) -> str:
    return first if first == second else f"{first} → {second}"
