"""Changes of chrF++ by group of directions, and by resource class of source and target."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nllb_prune.evaluation.summary.groups import ALL
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Summary
from nllb_prune.evaluation.summary.table import figure_of
from nllb_prune.report.names import groups, interval, number, significant

CLASSES = ("high", "low", "very low")


@dataclass(frozen=True, slots=True)
class Cell:
    """A change with what stands below it."""

    value: str
    detail: str
    significant: bool
    tint: int = 0
    """Share of the colour of losses (below 0) or gains, in percent."""


@dataclass(frozen=True, slots=True)
class ClassTable:
    """Rows are classes of the source, columns of the target; None where the evaluation has no such direction."""

    name: str
    rows: Sequence[tuple[str, Sequence[Cell | None]]]


def group_names(summary: Summary) -> list[str]:
    """Return the groups of the table: all, and with or without English."""
    return list(dict.fromkeys([ALL, *groups(summary)]))


def group_rows(summary: Summary) -> list[tuple[str, list[Cell | None]]]:
    """Return the change of chrF++ of each compared configuration, by group."""
    names = group_names(summary)
    return [
        (c.name, [_cell(c, name, most=0.0) for name in names])
        for c in summary.configurations
        if c.figure("chrf").change is not None
    ]


def class_tables(summary: Summary, *, first: str | None) -> list[ClassTable]:
    """Return the changes by resource class, the configuration `first` at the top; nothing of one class."""
    tables = [_class_table(c) for c in sorted(summary.configurations, key=lambda c: c.name != first)]
    return [table for table in tables if sum(cell is not None for _, cells in table.rows for cell in cells) > 1]


def _class_table(configuration: ConfigurationSummary) -> ClassTable:
    names = [[f"{source} → {target}" for target in CLASSES] for source in CLASSES]
    found = [figure_of(configuration, "chrf", name) for row in names for name in row]
    most = max((abs(f.change.value) for f in found if f is not None and f.change is not None), default=0.0)
    rows = [[_cell(configuration, name, most=most) for name in row] for row in names]
    return ClassTable(configuration.name, list(zip(CLASSES, rows, strict=True)))


def _cell(configuration: ConfigurationSummary, group: str, *, most: float) -> Cell | None:
    figure = figure_of(configuration, "chrf", group)
    if figure is None or figure.change is None:
        return None
    change, count = figure.change, configuration.group(group).directions
    tint = round(45 * change.value / most) if most else 0
    detail = f"{interval(change.low, change.high)} · {count:,}"
    return Cell(number(change.value, sign=True), detail, significant(change), tint)
