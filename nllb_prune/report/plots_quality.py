"""Figures of quality by configuration, by budget and by the ratio of encoder to decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes

from nllb_prune.evaluation.summary.groups import ALL, INTO_ENGLISH
from nllb_prune.evaluation.summary.summary import Change, Summary
from nllb_prune.masks import MaskSet
from nllb_prune.report.canvas import WIDTH, Plot, draw, name_tick_rows
from nllb_prune.report.names import group_title, groups, number
from nllb_prune.report.rows import Colours, bars, dot, draw_rows, interval, label_rows, value_label
from nllb_prune.report.series import BudgetSeries, RatioPoint, budget_series, ratio_series
from nllb_prune.report.theme import DENSE, colour, series

_INTERVALS = "Lines are 95 % intervals over sentences."


def quality_plots(summary: Summary, colours: Colours) -> list[Plot]:
    """Return the mean chrF++ of each group of directions, then the difference to the baseline over all of them."""
    means = [_quality_of_group(summary, colours, group) for group in groups(summary)]
    return [*means, *_difference(summary, colours)]


def ratio_plots(summary: Summary, masks: Mapping[str, MaskSet], colours: Colours) -> list[Plot]:
    """Return quality against the encoder's share, one figure for each budget planned at several ratios."""
    return [_ratio(summary, points, colours) for points in ratio_series(summary, masks)]


def budget_plots(summary: Summary, masks: Mapping[str, MaskSet]) -> list[Plot]:
    """Return quality and length against the share of experts kept, a line for each way to plan."""
    found = budget_series(summary, masks)
    asked = [
        ("chrf", ALL, f"Change of mean chrF++ against {summary.baseline} by share of experts kept"),
        ("chrf", INTO_ENGLISH, f"Change of mean chrF++ into English against {summary.baseline} by share kept"),
        ("length_ratio", ALL, "Change of the length ratio by share of experts kept"),
    ]
    drawn = [_budget(found, *each) for each in asked]
    return [plot for plot in drawn if plot is not None]


def _quality_of_group(summary: Summary, colours: Colours, group: str) -> Plot:
    figures = [c.figure("chrf", group) for c in summary.configurations]
    title = f"Mean chrF++ {group_title(group, summary.configurations[0].group(group).directions)}"
    values, ends = [f.value for f in figures], [(f.low, f.high) for f in figures]
    return Plot(title, bars(summary, values, colours, name=title, digits=1, ends=ends), note=_INTERVALS)


def _difference(summary: Summary, colours: Colours) -> list[Plot]:
    found = [(c.name, c.figure("chrf").change) for c in summary.configurations]
    compared = [(name, change) for name, change in found if change is not None]
    if not compared:
        return []
    title = f"Change of mean chrF++ against {summary.baseline}, all directions"

    def paint(axes: Axes) -> None:
        label_rows(axes, [name for name, _ in compared])
        axes.axvline(0, color=colours[summary.baseline], linewidth=1.4)
        for row, (name, change) in enumerate(compared):
            interval(axes, (change.low, change.high), row, colour_=colours[name])
            dot(axes, change.value, row, fill=colours[name], hollow=name == DENSE)
            axes.annotate(number(change.value, 2, sign=True), (1, row), (8, 0), **value_label(across=True))
        axes.grid(axis="x", color=colour("line"), linewidth=1)

    svg = draw_rows(paint, [name for name, _ in compared], name=title, bottom=28, right=58)
    return [Plot(title, svg, note="Lines are 95 % intervals of the paired test over sentences.")]


def _budget(found: Sequence[BudgetSeries], name: str, group: str, title: str) -> Plot | None:
    curves = [(each.title, series(n), each.points(name, group)) for n, each in enumerate(found)]
    curves = [curve for curve in curves if curve[2]]
    if not curves:
        return None

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=colour("soft"), linewidth=1.4)
        for _, fill, points in curves:
            _curve(axes, points, fill=fill)
        kept = sorted({x for _, _, points in curves for x, _ in points})
        axes.set_xticks(kept, [f"{100 * x:.4g} %" for x in kept])
        axes.margins(x=0.06, y=0.1)
        axes.grid(axis="y", color=colour("line"), linewidth=1)

    svg = draw(paint, name=title, height=300, left=56, bottom=34, width=WIDTH)
    keys = tuple((words, fill) for words, fill, _ in curves)
    return Plot(title, svg, note="Bands are 95 % intervals of the paired test.", keys=keys)


def _curve(axes: Axes, points: Sequence[tuple[float, Change]], *, fill: str) -> None:
    kept = [x for x, _ in points]
    lows, highs = [c.low for _, c in points], [c.high for _, c in points]
    axes.fill_between(kept, lows, highs, color=fill, alpha=0.18, linewidth=0)
    axes.plot(kept, [c.value for _, c in points], "o-", color=fill, linewidth=1.8, markersize=6)


def _ratio(summary: Summary, points: Sequence[RatioPoint], colours: Colours) -> Plot:
    title = f"Change of mean chrF++ against {summary.baseline} by where {points[0].kept} kept experts are"

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=colours[summary.baseline], linewidth=1.4)
        axes.plot([p.share for p in points], [p.change.value for p in points], color=colour("soft"), linewidth=1.2)
        for p in points:
            ends = (p.change.low, p.change.high)
            interval(axes, ends, p.share, colour_=colours[p.name], upright=True)
            dot(axes, p.share, p.change.value, fill=colours[p.name])
        _ratio_ticks(axes, points)
        axes.margins(x=0.08, y=0.12)
        axes.grid(axis="y", color=colour("line"), linewidth=1)

    svg = draw(paint, name=title, height=300, left=132, bottom=72)
    note = "The line at 0 is the baseline; bars are 95 % intervals of the paired test."
    return Plot(title, svg, note=note, keys=tuple((p.name, colours[p.name]) for p in points))


def _ratio_ticks(axes: Axes, points: Sequence[RatioPoint]) -> None:
    """Write a small table under the axis: what each point is, from left to right, as far as there is room."""
    room = 0.13 * (points[-1].share - points[0].share)
    ticks: dict[float, str] = {}
    for p in points:
        if not ticks or p.share - max(ticks) >= room:
            ticks[p.share] = f"{p.share:.0%}\n{p.ratio}\n{p.encoder}\n{p.decoder}"
    axes.set_xticks(list(ticks), list(ticks.values()))
    name_tick_rows(axes, "in the encoder\nencoder : decoder\nencoder, a layer\ndecoder, a layer")
