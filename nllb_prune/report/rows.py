"""Figures with one row for each thing that is measured: bars, dots with intervals, spreads."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from nllb_prune.evaluation.summary.summary import Summary
from nllb_prune.report.canvas import WIDTH, draw, label_room, short
from nllb_prune.report.names import number
from nllb_prune.report.theme import DENSE, colour

ROW, SIZE = 27, 12.5

Colours = Mapping[str, str]
"""(Light) colours by configuration."""
Ends = tuple[float, float]


def label_rows(axes: Axes, names: Sequence[str]) -> None:
    """Name the rows from top to bottom."""
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=colour("ink"), labelsize=SIZE)


def draw_rows(paint: Callable[[Axes], None], names: Sequence[str], *, name: str, bottom: float, right: float) -> str:
    """Return the SVG of a figure that is as high as its rows need."""
    left = label_room([short(each) for each in names], SIZE)
    height = ROW * len(names) + bottom + 6
    return draw(paint, name=name, height=height, left=left, bottom=bottom, right=right, width=WIDTH)


def bars(
    summary: Summary, values: Sequence[float], colours: Colours, *, name: str, digits: int, ends: Sequence[Ends] = ()
) -> str:
    """Return a bar from 0 for each configuration, with its interval if `ends` are given."""
    names = [c.name for c in summary.configurations]

    def paint(axes: Axes) -> None:
        label_rows(axes, names)
        for row, (each, value) in enumerate(zip(names, values, strict=True)):
            fill, edge = ("none", colours[each]) if each == DENSE else (colours[each], "none")
            axes.barh(row, value, height=0.62, facecolor=fill, edgecolor=edge, linewidth=1.4)
            place = max(value, ends[row][1]) if ends else max(value, 0.0)
            axes.annotate(number(value, digits), (place, row), (5, 0), **value_label())
        for row, each_ends in enumerate(ends):
            interval(axes, each_ends, row, colour_=colour("ink"), thick=1.2)
        reach = [*values, *(end for pair in ends for end in pair)]
        axes.set_xlim(min([0, *reach]), max([*reach, 1e-9]))
        axes.axvline(0, color=colour("soft"), linewidth=1)
        axes.set_xticks([])

    return draw_rows(paint, names, name=name, bottom=6, right=50)


def value_label(*, across: bool = False) -> dict[str, Any]:
    """Return how to write a value: at the end of its bar, or in a column `across` the right margin."""
    place = ("axes fraction", "data") if across else "data"
    return {
        "xycoords": place,
        "textcoords": "offset points",
        "va": "center",
        "color": colour("ink"),
        "fontsize": 12,
        "annotation_clip": False,
    }


def dot(axes: Axes, x: float, y: float, *, fill: str, hollow: bool = False) -> None:
    """Draw one value."""
    face = colour("paper") if hollow else fill
    axes.plot([x], [y], "o", markersize=8, markerfacecolor=face, markeredgecolor=fill, markeredgewidth=1.6)


def interval(
    axes: Axes, ends: Ends, place: float, *, colour_: str, upright: bool = False, thick: float = 2.2
) -> None:  # fmt: skip
    """Draw a line between two ends."""
    x, y = (ends, (place, place)) if not upright else ((place, place), ends)
    axes.plot(x, y, color=colour_, linewidth=thick, solid_capstyle="round")
