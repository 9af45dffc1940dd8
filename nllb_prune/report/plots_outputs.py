"""Figures of outputs: how long they are, how often a detector flags them; and of fidelity to the full model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, nan

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nllb_prune.evaluation.summary.groups import INTO_ENGLISH
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Figure, Summary
from nllb_prune.evaluation.summary.table import detectors
from nllb_prune.report.canvas import Plot
from nllb_prune.report.names import ANY, group_title, groups, members, number, significant
from nllb_prune.report.rows import Colours, bars, dot, draw_rows, interval, label_rows, value_label
from nllb_prune.report.theme import DENSE, colour

_LENGTH_LIMIT = 2.0  # longer than this is told in words, so that it does not squeeze the rest
_SHARES = (("over_2", "Outputs over twice as long as their reference, %"), ("under_half", "Outputs under half, %"))
# Of `evaluation.fidelity.MEASURES`: words, factor, digits.
_FIDELITY = (
    ("loss_change", "Change of the loss of the reference, nats a token", 1, 3),
    ("end_loss_change", "Change of the loss of the end where it is due, nats", 1, 3),
    ("early_change", "End too early: change of its probability where a word is due, points", 100, 3),
    ("late_change", "End too late: change of the probability of going on where the end is due, points", 100, 2),
    ("kl", "KL divergence from the full model, nats a token", 1, 3),
    ("agreement", "Tokens that both models think the most probable, %", 100, 1),
)
_SPACE = 0.16  # of a row, between the baseline's and the configuration's rate


def length_plots(summary: Summary, colours: Colours) -> list[Plot]:
    """Return the spread of length ratios in each group of directions, the shares far too long, and repetition."""
    spreads = [_lengths(summary, colours, group) for group in groups(summary)]
    shares = [_share(summary, colours, name, title) for name, title in _SHARES]
    repetition = _share(summary, colours, "repeat_rate_4", "Repeated 4-grams in outputs, % of all 4-grams")
    return [*spreads, *shares, repetition]


def detector_plots(summary: Summary, colours: Colours, configuration: ConfigurationSummary) -> list[Plot]:
    """Return the rates of every detector, of the baseline and of a configuration, over all and into English."""
    names = [group.name for group in configuration.groups if group.name == INTO_ENGLISH]
    return [
        plot
        for group in [configuration.groups[0].name, *names]
        if (plot := _rates(summary, colours, configuration, group)) is not None
    ]


def _lengths(summary: Summary, colours: Colours, group: str) -> Plot:
    names = [c.name for c in summary.configurations]
    values = [np.array([d.figures["length_ratio"] for d in members(c, group)]) for c in summary.configurations]
    title = f"Length of output / reference {group_title(group, len(values[0]))}"

    def paint(axes: Axes) -> None:
        label_rows(axes, names)
        axes.axvline(1, color=colour("soft"), linewidth=1.2)
        for row, (name, found) in enumerate(zip(names, values, strict=True)):
            _spread(axes, found, row, colour_=colours[name])
            dot(axes, min(found.mean(), _LENGTH_LIMIT), row, fill=colours[name], hollow=name == DENSE)
            beyond = f" (to {found.max():.1f})" if found.max() > _LENGTH_LIMIT else ""
            axes.annotate(f"{found.mean():.2f}{beyond}", (1, row), (8, 0), **value_label(across=True))
        everything = np.minimum(np.concatenate([*values, [0.95, 1.05]]), _LENGTH_LIMIT)
        room = 0.04 * np.ptp(everything)
        axes.set_xlim(everything.min() - room, everything.max() + room)
        axes.grid(axis="x", color=colour("line"), linewidth=1)

    right = 92 if any(found.max() > _LENGTH_LIMIT for found in values) else 48
    return Plot(title, draw_rows(paint, names, name=title, bottom=28, right=right))


def _spread(axes: Axes, values: NDArray[np.float64], row: int, *, colour_: str) -> None:
    low, first, third, high = np.minimum(np.percentile(values, (0, 25, 75, 100)), _LENGTH_LIMIT)
    interval(axes, (low, high), row, colour_=colour_, thick=1.3)
    interval(axes, (first, third), row, colour_=colour_, thick=5)


def _share(summary: Summary, colours: Colours, name: str, title: str) -> Plot:
    figures = [c.figure(name) for c in summary.configurations]
    values, ends = [100 * f.value for f in figures], [(100 * f.low, 100 * f.high) for f in figures]
    return Plot(title, bars(summary, values, colours, name=title, digits=1, ends=ends))


def fidelity_plots(summary: Summary, colours: Colours) -> list[Plot]:
    """Return each measure of fidelity for the configurations that have it."""
    measured = tuple(c for c in summary.configurations if c.fidelity is not None)
    found = replace(summary, configurations=measured)
    return [
        Plot(title, bars(found, [scale * values[name] for values in tables], colours, name=title, digits=digits))
        for name, title, scale, digits in _FIDELITY
        if (tables := [c.fidelity for c in measured if c.fidelity is not None])
        and all(isfinite(values.get(name, nan)) for values in tables)
    ]


def _rates(summary: Summary, colours: Colours, configuration: ConfigurationSummary, group: str) -> Plot | None:
    ours, theirs = configuration.group(group), summary[summary.baseline].group(group)
    names = [name for name in (*detectors(summary), ANY) if name in ours.figures and name in theirs.figures]
    if not names:
        return None
    title = f"Outputs flagged, %, {configuration.name} and {summary.baseline} {group_title(group, ours.directions)}"
    pairs = [(theirs.figures[name], ours.figures[name]) for name in names]
    fills = (colours[summary.baseline], colours[configuration.name])

    def paint(axes: Axes) -> None:
        label_rows(axes, names)
        for row, pair in enumerate(pairs):
            _pair(axes, row, pair, fills)
        axes.set_xlim(left=-0.01 * axes.get_xlim()[1])
        axes.grid(axis="x", color=colour("line"), linewidth=1)

    svg = draw_rows(paint, names, name=title, bottom=28, right=62)
    note = "On the right, the difference in points; * if it is more than chance (q < .05)."
    keys = tuple(zip((summary.baseline, configuration.name), fills, strict=True))
    return Plot(title, svg, note=note, keys=keys)


def _pair(axes: Axes, row: int, pair: Sequence[Figure], fills: Sequence[str]) -> None:
    for figure, fill, place in zip(pair, fills, (row - _SPACE, row + _SPACE), strict=True):
        interval(axes, (100 * figure.low, 100 * figure.high), place, colour_=fill, thick=1.6)
        dot(axes, 100 * figure.value, place, fill=fill)
    change = pair[1].change
    if change is not None:
        text = number(100 * change.value, 1, sign=True) + ("\u2009*" if significant(change) else "")
        label = value_label(across=True) | {"fontweight": "bold" if significant(change) else "normal"}
        axes.annotate(text, (1, row), (8, 0), **label)
