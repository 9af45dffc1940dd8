"""Figures of scores: quality by configuration and by ratio, length and repetition."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nllb_prune.evaluation.summary import Summary
from nllb_prune.masks import MaskSet
from nllb_prune.report.canvas import WIDTH, Plot, draw, label_room, short
from nllb_prune.report.names import group_title, groups, members, number
from nllb_prune.report.ratios import RatioPoint, ratio_series
from nllb_prune.report.theme import DENSE, colour

_ROW, _SIZE = 27, 12.5
_LENGTH_LIMIT = 2.0  # longer than this is told in words, so that it does not squeeze the rest

Colours = Mapping[str, str]


def quality_plots(summary: Summary, colours: Colours) -> list[Plot]:
    """Return the mean chrF++ of each group of directions, then the difference to the baseline over all of them."""
    means = [_quality_of_group(summary, colours, group) for group in groups(summary)]
    return [*means, *_difference(summary, colours)]


def ratio_plots(summary: Summary, masks: Mapping[str, MaskSet], colours: Colours) -> list[Plot]:
    """Return quality against the encoder's share, one figure for each budget planned at several ratios."""
    return [_ratio(summary, series, colours) for series in ratio_series(summary, masks)]


def length_plots(summary: Summary, colours: Colours) -> list[Plot]:
    """Return the length ratio of each group of directions with its spread, then the repetition rate."""
    return [*(_length(summary, colours, group) for group in groups(summary)), _repetition(summary, colours)]


def _quality_of_group(summary: Summary, colours: Colours, group: str) -> Plot:
    directions = [members(c, group) for c in summary.configurations]
    values = [c.mean("chrf", among=among) for c, among in zip(summary.configurations, directions, strict=True)]
    title = f"Mean chrF++ {group_title(group, len(directions[0]))}"
    return Plot(title, _bars(summary, values, colours, name=title, digits=1))


def _repetition(summary: Summary, colours: Colours) -> Plot:
    title = "Repeated 4-grams in the output, % of all 4-grams, all directions"
    values = [100 * c.mean("repeat_rate") for c in summary.configurations]
    return Plot(title, _bars(summary, values, colours, name=title, digits=1))


def _bars(summary: Summary, values: Sequence[float], colours: Colours, *, name: str, digits: int) -> str:
    names = [c.name for c in summary.configurations]

    def paint(axes: Axes) -> None:
        _rows(axes, names)
        for row, (each, value) in enumerate(zip(names, values, strict=True)):
            fill, edge = ("none", colours[each]) if each == DENSE else (colours[each], "none")
            axes.barh(row, value, height=0.62, facecolor=fill, edgecolor=edge, linewidth=1.4)
            axes.annotate(number(value, digits), (value, row), (5, 0), **_value_label())
        axes.set_xlim(0, max([*values, 1e-9]))
        axes.axvline(0, color=colour("soft"), linewidth=1)
        axes.set_xticks([])

    return _draw_rows(paint, names, name=name, bottom=6, right=44)


def _difference(summary: Summary, colours: Colours) -> list[Plot]:
    compared = [c for c in summary.configurations if c.comparison is not None]
    if not compared:
        return []
    title = f"Change of mean chrF++ against {summary.baseline}, all directions"

    def paint(axes: Axes) -> None:
        _rows(axes, [c.name for c in compared])
        axes.axvline(0, color=colours[summary.baseline], linewidth=1.4)
        for row, c in enumerate(compared):
            assert c.comparison is not None
            low, high, middle = c.comparison.low, c.comparison.high, c.comparison.difference
            _interval(axes, (low, high), row, colour_=colours[c.name])
            _dot(axes, middle, row, name=c.name, colours=colours)
            axes.annotate(number(middle, 2, sign=True), (1, row), (8, 0), **_value_label(across=True))
        axes.grid(axis="x", color=colour("line"), linewidth=1)

    svg = _draw_rows(paint, [c.name for c in compared], name=title, bottom=28, right=58)
    return [Plot(title, svg, note="Bars are 95 % intervals of the paired bootstrap over sentences.")]


def _length(summary: Summary, colours: Colours, group: str) -> Plot:
    names = [c.name for c in summary.configurations]
    values = [np.array([d.length_ratio for d in members(c, group)]) for c in summary.configurations]
    title = f"Length of output / reference {group_title(group, len(values[0]))}"

    def paint(axes: Axes) -> None:
        _rows(axes, names)
        axes.axvline(1, color=colour("soft"), linewidth=1.2)
        for row, (name, found) in enumerate(zip(names, values, strict=True)):
            _spread(axes, found, row, colour_=colours[name])
            _dot(axes, min(found.mean(), _LENGTH_LIMIT), row, name=name, colours=colours)
            beyond = f" (to {found.max():.1f})" if found.max() > _LENGTH_LIMIT else ""
            axes.annotate(f"{found.mean():.2f}{beyond}", (1, row), (8, 0), **_value_label(across=True))
        everything = np.minimum(np.concatenate([*values, [0.95, 1.05]]), _LENGTH_LIMIT)
        room = 0.04 * np.ptp(everything)
        axes.set_xlim(everything.min() - room, everything.max() + room)
        axes.grid(axis="x", color=colour("line"), linewidth=1)

    right = 92 if any(found.max() > _LENGTH_LIMIT for found in values) else 48
    return Plot(title, _draw_rows(paint, names, name=title, bottom=28, right=right))


def _ratio(summary: Summary, series: Sequence[RatioPoint], colours: Colours) -> Plot:
    kept = series[0].kept
    title = f"Change of mean chrF++ against {summary.baseline} by where {kept} kept experts are"

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=colours[summary.baseline], linewidth=1.4)
        shares = [point.share for point in series]
        axes.plot(shares, [p.difference for p in series], color=colour("soft"), linewidth=1.2)
        for point in series:
            _interval(axes, point.interval, point.share, colour_=colours[point.name], upright=True)
            _dot(axes, point.share, point.difference, name=point.name, colours=colours)
        _ratio_ticks(axes, series)
        axes.margins(x=0.08, y=0.12)
        axes.grid(axis="y", color=colour("line"), linewidth=1)

    svg = draw(paint, name=title, height=300, left=132, bottom=72)
    note = "The line at 0 is the baseline; bars are 95 % intervals of the paired bootstrap."
    return Plot(title, svg, note=note, configurations=tuple(point.name for point in series))


def _ratio_ticks(axes: Axes, series: Sequence[RatioPoint]) -> None:
    """Write a small table under the axis: what each point is, from left to right, as far as there is room."""
    room = 0.13 * (series[-1].share - series[0].share)
    ticks: dict[float, str] = {}
    for p in series:
        if not ticks or p.share - max(ticks) >= room:
            ticks[p.share] = f"{p.share:.0%}\n{p.ratio}\n{p.encoder}\n{p.decoder}"
    axes.set_xticks(list(ticks), list(ticks.values()))
    axes.tick_params(axis="x", labelcolor=colour("ink"))
    words = "in the encoder\nencoder : decoder\nencoder, a layer\ndecoder, a layer"
    axes.annotate(
        words,
        (0, 0),
        (-8, -5),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="right",
        va="top",
        color=colour("soft"),
        fontsize=12,
        annotation_clip=False,
    )


def _rows(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), [short(name) for name in names])
    axes.set_ylim(len(names) - 0.5, -0.5)
    axes.tick_params(axis="y", labelcolor=colour("ink"), labelsize=_SIZE)


def _draw_rows(paint: Callable[[Axes], None], names: Sequence[str], *, name: str, bottom: float, right: float) -> str:
    left = label_room([short(each) for each in names], _SIZE)
    height = _ROW * len(names) + bottom + 6
    return draw(paint, name=name, height=height, left=left, bottom=bottom, right=right, width=WIDTH)


def _value_label(*, across: bool = False) -> dict[str, Any]:
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


def _dot(axes: Axes, x: float, y: float, *, name: str, colours: Colours) -> None:
    face = colour("paper") if name == DENSE else colours[name]
    axes.plot([x], [y], "o", markersize=8, markerfacecolor=face, markeredgecolor=colours[name], markeredgewidth=1.6)


def _interval(
    axes: Axes, ends: tuple[float, float], place: float, *, colour_: str, upright: bool = False, thick: float = 2.2
) -> None:
    x, y = (ends, (place, place)) if not upright else ((place, place), ends)
    axes.plot(x, y, color=colour_, linewidth=thick, solid_capstyle="round")


def _spread(axes: Axes, values: NDArray[np.float64], row: int, *, colour_: str) -> None:
    low, first, third, high = np.minimum(np.percentile(values, (0, 25, 75, 100)), _LENGTH_LIMIT)
    _interval(axes, (low, high), row, colour_=colour_, thick=1.3)
    _interval(axes, (first, third), row, colour_=colour_, thick=5)
