"""A figure of two sets of masks: what both keep and what only one keeps, by language."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.planning.similarity import KeyComparison, compare
from nllb_prune.report.canvas import short
from nllb_prune.report.plots_masks import Rows, mask_name
from nllb_prune.report.sheet import Sheet
from nllb_prune.report.theme import colour, series

_MOST = 400  # masks of a stack: bars of six pixels
_MARGIN, _BARS, _NUMBER = 24, 300, 64  # widths

_COLOURS = (series(1), colour("line"), series(0))  # only ours, shared, only theirs


def comparison_sheet(ours: MaskSet, theirs: MaskSet, *, names: tuple[str, str]) -> Sheet:
    """Return a bar for every language or direction that both have, and its Jaccard similarity, for each stack.

    Args:
        ours: masks.
        theirs: other masks of the same layers.
        names: what to call the two.

    Raises:
        UsageError: if they share no key, or so many that bars could not be told apart.
    """
    compared = {stack.name: _sorted(compare(ours, theirs, stack.name)) for stack in ours.stacks}
    panels = [(name, found) for name, found in compared.items() if found]
    count = max((len(found) for _, found in panels), default=0)
    if not 1 <= count <= _MOST:
        raise UsageError(f"`masks` must share 1 to {_MOST} keys in a stack to be drawn, but share {count:,} instead.")
    rows = _rows(count)
    room = rows.label_room([mask_name(each.key) for _, found in panels for each in found])
    panel = room + _BARS + _NUMBER
    width = 2 * _MARGIN + max(panel * len(panels), 520)
    sheet = Sheet(width, 146 + rows.height * count + _MARGIN)
    sheet.text(_MARGIN, 18, "Kept experts of two sets of masks", size=18, weight="bold")
    _legend(sheet, [f"only {short(names[0])}", "both", f"only {short(names[1])}"])
    for n, (name, found) in enumerate(panels):
        _draw(sheet, name, found, rows=rows, left=_MARGIN + n * panel + room)
    return sheet


def _rows(count: int) -> Rows:
    return Rows(20, 12) if count <= 60 else Rows(11, 8.5) if count <= 260 else Rows(6, 5)


def _sorted(found: Sequence[KeyComparison]) -> list[KeyComparison]:
    return sorted(found, key=lambda each: (-each.jaccard, each.key))


def _legend(sheet: Sheet, texts: Sequence[str]) -> None:
    left = float(_MARGIN)
    for text, fill in zip(texts, _COLOURS, strict=True):
        sheet.axes(left, 49, 11, 11).set(facecolor=fill, xticks=[], yticks=[])
        sheet.text(left + 18, 47, text, role="soft")
        left += 18 + 7.2 * len(text) + 20


def _draw(sheet: Sheet, name: str, found: Sequence[KeyComparison], *, rows: Rows, left: float) -> None:
    mean = float(np.mean([each.jaccard for each in found]))
    sheet.text(left, 86, name.capitalize(), size=14, weight="bold")
    sheet.text(left, 107, f"Jaccard similarity: {mean:.2f} on average", size=11, role="soft")
    axes = sheet.axes(left, 128, _BARS, rows.height * len(found))
    start = np.zeros(len(found))
    for part, fill in zip(("only_ours", "shared", "only_theirs"), _COLOURS, strict=True):
        length = np.array([getattr(each, part) for each in found], dtype=np.float64)
        axes.barh(range(len(found)), length, left=start, height=0.74, color=fill)
        start += length
    axes.set_xlim(0, start.max())
    axes.set_ylim(len(found) - 0.5, -0.5)
    axes.set_xticks([])
    axes.set_yticks(range(len(found)), [mask_name(each.key) for each in found])
    axes.tick_params(axis="y", labelsize=rows.font, pad=4)
    _numbers(axes, found, start.tolist(), size=rows.font)


def _numbers(axes: Axes, found: Sequence[KeyComparison], ends: Sequence[float], *, size: float) -> None:
    for row, (each, end) in enumerate(zip(found, ends, strict=True)):
        axes.annotate(
            f"{each.jaccard:.2f}", (end, row), (6, 0), textcoords="offset points", va="center", fontsize=size,
            color=colour("soft"),
        )  # fmt: skip
