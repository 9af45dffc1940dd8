"""Figures in which every direction has a place: the change of chrF++ by source and target, and against BLEU's."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nllb_prune.evaluation.summary.groups import ENGLISH
from nllb_prune.evaluation.summary.summary import ConfigurationSummary
from nllb_prune.report.canvas import Plot, draw, heat
from nllb_prune.report.matrix import draw_matrix
from nllb_prune.report.names import key_name, metric_name, number
from nllb_prune.report.theme import DIVERGING, SEQUENTIAL, colour, series

_DENSE_ENOUGH = 0.3  # share of the cells of a matrix that must be known
_NAMED = 30  # languages up to which rows stand by name, and above which by what they lose
_DOTS = 1500  # directions up to which each is a dot, and above which they are counted in a grid
_BINS = 60
_INTO, _REST = series(1), series(0)

Changes = Mapping[tuple[str, str], float]
FloatArray = NDArray[np.float64]


def change_plot(configuration: ConfigurationSummary) -> Plot | None:
    """Return the change of chrF++ by source and target; none where the directions form no matrix."""
    changes = {(d.source, d.target): d.changes["chrf"].value for d in configuration.directions if "chrf" in d.changes}
    sources, targets = (_ordered(changes, side) for side in (0, 1))
    cells = len(sources) * len(targets) - len(set(sources) & set(targets))
    if min(len(sources), len(targets)) < 3 or len(changes) < _DENSE_ENOUGH * cells:
        return None
    values = np.array([[changes.get((source, target), np.nan) for target in targets] for source in sources])
    most = max(float(np.nanpercentile(np.abs(values), 99 if values.size > 400 else 100)), 0.1)
    title = f"Change of chrF++, {configuration.name} against {configuration.baseline}, by source (rows) and target"
    rows, columns = ([key_name(code) for code in codes] for codes in (sources, targets))
    text = partial(number, digits=1, sign=True)
    drawn = draw_matrix(values, rows, columns, name=title, ramps=DIVERGING, ends=(-most, most), text=text)
    return Plot(
        title,
        drawn.svg,
        note=_note(max(len(sources), len(targets)), complete=len(changes) == cells),
        width=drawn.width,
        scale="diverging",
        ends=(number(-most, 1), number(most, 1, sign=True)),
        cells=drawn.cells(sources, targets, configuration=configuration.name),
    )


def _note(languages: int, *, complete: bool) -> str:
    order = "" if languages <= _NAMED else "Languages stand by their mean change, the greatest loss first. "
    return order + ("" if complete else "Empty cells were not measured.")


def _ordered(changes: Changes, side: int) -> list[str]:
    """Return the languages of a side: few by name, English first; many by their mean change."""
    by_language: dict[str, list[float]] = {}
    for pair, change in changes.items():
        by_language.setdefault(pair[side], []).append(change)
    if len(by_language) <= _NAMED:
        return sorted(by_language, key=lambda code: (code != ENGLISH, key_name(code)))
    return sorted(by_language, key=lambda code: (float(np.mean(by_language[code])), code))


def metrics_plot(configuration: ConfigurationSummary, other: str) -> Plot | None:
    """Return the change of chrF++ against that of another metric, by direction.

    A configuration that writes too much keeps its chrF++, which weighs recall, and loses BLEU: it falls below the
    diagonal.
    """
    both = [(d.target, d.changes) for d in configuration.directions if {"chrf", other} <= d.changes.keys()]
    if not both:
        return None
    points = np.array([[changes["chrf"].value, changes[other].value] for _, changes in both])  # (directions, 2)
    into = np.array([target == ENGLISH for target, _ in both])
    title = f"Change of chrF++ (across) and of {metric_name(other)} (up), {configuration.name}"
    svg = draw(partial(_scatter, points=points, into=into), name=title, height=330, left=48)
    keys = [(f"into English ({into.sum():,})", _INTO)] if into.any() else []
    if not into.all():
        keys.append((f"other directions ({(~into).sum():,})", _REST))
    note = "" if len(points) <= _DOTS else "Other directions are counted: the darker, the more."
    return Plot(title, svg, note=note, keys=tuple(keys))


def _scatter(axes: Axes, *, points: FloatArray, into: NDArray[np.bool_]) -> None:
    low, high = min(float(points.min()), -0.1), max(float(points.max()), 0.1)
    room = 0.05 * (high - low)
    ends = (low - room, high + room)
    axes.grid(color=colour("line"), linewidth=1)
    if len(points) > _DOTS:
        _count(axes, points[~into], ends)
    else:
        _dots(axes, points[~into], fill=_REST, marker="o")
    axes.plot(ends, ends, color=colour("soft"), linewidth=1.2)
    for line in (axes.axhline, axes.axvline):
        line(0, color=colour("soft"), linewidth=0.8)
    _dots(axes, points[into], fill=_INTO, marker="D")
    axes.set_xlim(ends)
    axes.set_ylim(ends)
    axes.locator_params(nbins=6)


def _dots(axes: Axes, points: FloatArray, *, fill: str, marker: str) -> None:
    size = 6.5 if len(points) <= 200 else 4
    axes.plot(*points.T, marker, markersize=size, markerfacecolor=fill, markeredgecolor=colour("paper"), markeredgewidth=0.7)  # fmt: skip  # noqa: E501


def _count(axes: Axes, points: FloatArray, ends: tuple[float, float]) -> None:
    found, _, _ = np.histogram2d(points[:, 0], points[:, 1], bins=_BINS, range=[list(ends), list(ends)])  # (across, up)
    shown = np.where(found > 0, np.sqrt(found), np.nan).T[::-1]
    heat(axes, shown, SEQUENTIAL, low=-0.25 * float(np.sqrt(found.max())), high=float(np.sqrt(found.max())))
    for image in axes.images:
        image.set_extent((*ends, *ends))
