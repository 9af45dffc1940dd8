"""What the page shows of a guard: the outcome, a table of masks, the worst directions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nllb_prune.masks import MaskSet
from nllb_prune.planning.memory import show_bytes
from nllb_prune.report.canvas import Plot
from nllb_prune.report.cards import Fact
from nllb_prune.report.guard import guard_of
from nllb_prune.report.guarded import GuardedDirection, GuardedMask, GuardRecord
from nllb_prune.report.names import key_name
from nllb_prune.report.plots_guard import guard_plots
from nllb_prune.report.plots_masks import mask_name
from nllb_prune.report.tolerated import FIGURES, OF_DIRECTIONS, Reading

_SHOWN = 16
"""Masks in the table at once, and directions in theirs; the others unfold."""


@dataclass(frozen=True, slots=True)
class Cell:
    """A figure, and what stands below it: how many times its tolerance it is, if it is over."""

    value: str
    times: str = ""


@dataclass(frozen=True, slots=True)
class Row:
    """A mask or a direction."""

    name: str
    detail: str
    passed: bool
    why: tuple[str, ...]
    """The direction that it failed for and in what; nothing where the cells tell."""
    sizes: str
    """Experts planned and kept; nothing for directions."""
    cells: tuple[Cell, ...]


@dataclass(frozen=True, slots=True)
class Table:
    """Rows to show at once and to unfold."""

    header: tuple[tuple[str, str], ...]
    """Figures and their tolerances."""
    rows: tuple[Row, ...]
    more: tuple[Row, ...]
    rest: str
    """What is to unfold."""


@dataclass(frozen=True, slots=True)
class GuardPage:
    """The guard of one configuration."""

    name: str
    outcome: str
    passed: bool
    facts: tuple[Fact, ...]
    text: str
    """What was measured on."""
    plots: tuple[Plot, ...]
    masks: Table
    directions: Table


def guard_pages(masks: Mapping[str, MaskSet]) -> list[GuardPage]:
    """Return what to show, in the order of the configurations; nothing of those without a guard."""
    found = [(name, guard_of(each)) for name, each in masks.items()]
    return [_page(name, record) for name, record in found if record is not None]


def _page(name: str, record: GuardRecord) -> GuardPage:
    return GuardPage(
        name=name,
        outcome=_outcome(record),
        passed=not record.failed,
        facts=tuple(_facts(record)),
        text=_text(record),
        plots=tuple(guard_plots(name, record)),
        masks=_mask_table(record),
        directions=_direction_table(record),
    )


def _outcome(record: GuardRecord) -> str:
    failed, every, unmeasured = len(record.failed), len(record.masks), len(record.unmeasured)
    said = f"{failed} of {every} masks failed" if failed else f"all {every} masks passed"
    return f"{said}, {unmeasured} not measured" if unmeasured else said


def _facts(record: GuardRecord) -> list[Fact]:
    parts = [(stack, record.of_stack(stack)) for stack in record.stacks]
    by_stack = ", ".join(f"{stack} {_passed(each)}" for stack, each in parts)
    limit, unit = record.reserve
    reserve = show_bytes(limit) if unit == "bytes" else f"{limit} experts"
    mean = sum(record.added) / len(record.added)
    return [
        Fact("masks passed", _passed(record.masks), by_stack),
        Fact("directions passed", _passed(record.directions), "by their losses, at last"),
        Fact("masks grown", f"{record.grown}"),
        Fact("experts added", f"{mean:.1f} a direction", f"at most {max(record.added)}; reserve: {reserve}"),
        Fact("measures", f"{record.measures}", f"{record.passes:,} directions in all"),
    ]


def _passed(of: Sequence[GuardedMask] | Sequence[GuardedDirection]) -> str:
    return f"{sum(each.passed for each in of):,} of {len(of):,}"


def _text(record: GuardRecord) -> str:
    """Say what was measured on, as far as that is known."""
    text = record.text
    if "sentences" not in text:
        return ""
    languages = f", {len(text['text'])} languages" if "text" in text else ""
    after = f" after the first {text['skipped']:,}" if text.get("skipped") else ""
    lines = f" Sentences are spread over {text['lines']:,} lines{after}." if "lines" in text else ""
    translated = f", {text['decoded']:,} of them translated" if text.get("decoded") else ", none translated"
    return (
        f"Measured on {len(record.directions):,} directions{languages}, {text['sentences']:,} sentences "
        f"each{translated}.{lines}"
    )


def _mask_table(record: GuardRecord) -> Table:
    names = [name for name in FIGURES if any(name in each.readings for each in record.masks)]
    rows = [_mask_row(each, names) for each in record.masks]
    shown = min(len(record.touched) or _SHOWN, _SHOWN)
    more = rows[shown:]
    waiting = max(0, len(record.touched) - shown)
    rest = [f"{waiting} more that failed or grew"] if waiting else []
    if len(more) > waiting:
        rest.append(f"{len(more) - waiting} that passed as planned")
    return Table(_header(names, record), tuple(rows[:shown]), tuple(more), " and ".join(rest))


def _header(names: Sequence[str], record: GuardRecord) -> tuple[tuple[str, str], ...]:
    return tuple((FIGURES[name].words, FIGURES[name].tolerance(getattr(record.tolerances, name))) for name in names)


def _mask_row(mask: GuardedMask, names: Sequence[str]) -> Row:
    reading, direction = mask.worst
    why = (mask_name(direction), f"{reading.words} {reading.times} ×") if reading and direction else ()
    sizes = f"{mask.planned} → {mask.kept}" if mask.grown else f"{mask.kept}"
    cells = _cells(mask.readings, names)
    return Row(mask_name(mask.key), f"{mask.stack} · {mask.key}", mask.passed, why, sizes, cells)


def _direction_table(record: GuardRecord) -> Table:
    names = [name for name in OF_DIRECTIONS if any(name in each.readings for each in record.directions)]
    failed = [each for each in record.directions if not each.passed]
    rows = [
        Row(key_name(each.direction), each.direction, each.passed, (), "", _cells(each.readings, names))
        for each in record.directions[:_SHOWN]
    ]
    hidden = max(0, len(failed) - _SHOWN)
    return Table(_header(names, record), tuple(rows), (), f"{hidden:,} more directions failed." if hidden else "")


def _cells(readings: Mapping[str, Reading], names: Sequence[str]) -> tuple[Cell, ...]:
    return tuple(_cell(readings.get(name)) for name in names)


def _cell(reading: Reading | None) -> Cell:
    if reading is None:
        return Cell("—")
    return Cell(FIGURES[reading.name].text(reading.value), f"{reading.times} ×" if reading.over else "")
