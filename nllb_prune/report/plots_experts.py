"""Figures of experts and languages: importance, similarity, and the change of quality by source and target."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from textwrap import wrap

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.evaluation.summary import ENGLISH, ConfigurationSummary
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Stack
from nllb_prune.planning.criteria import importance
from nllb_prune.planning.evidence import Evidence
from nllb_prune.planning.similarity import jaccard_matrix
from nllb_prune.report.canvas import WIDTH, Plot, draw, heat, label_room, short
from nllb_prune.report.names import key_name, number
from nllb_prune.report.ordering import by_strongest_row, leaf_order, overlap_distance
from nllb_prune.report.theme import DIVERGING, SEQUENTIAL, Ramp, colour

_PRINTED = 16  # languages up to which the numbers fit in their cells
_DENSE_ENOUGH = 0.3  # share of the cells of a matrix that must be known

FloatArray = NDArray[np.float64]


def importance_plots(statistics: ExpertStatistics, stack: Stack) -> list[Plot]:
    """Return the importance of the experts of a stack for each language, one figure a sparse layer."""
    statistics = statistics.as_language()
    keys = statistics.keys(stack.name)
    if not keys:
        return []
    tables = [statistics.table(stack.name, key) for key in keys]
    scores = np.stack([importance(Evidence([table], top_k=statistics.spec.top_k)) for table in tables])
    order = leaf_order(overlap_distance(scores.reshape(len(keys), -1)))  # scores: (languages, layers, experts)
    names = [key_name(keys[n]) for n in order]
    return [_importance(stack, n, scores[order, n], names) for n in range(len(stack.layers))]


def _importance(stack: Stack, layer: int, scores: FloatArray, names: Sequence[str]) -> Plot:
    title = f"{stack.name.capitalize()} layer {stack.layers[layer]}: importance of {stack.experts} experts"
    relative = scores / np.maximum(scores.max(axis=1, keepdims=True), 1e-300)
    values = relative[:, by_strongest_row(relative)]
    row = 19 if len(names) <= 24 else 11

    def paint(axes: Axes) -> None:
        heat(axes, values, SEQUENTIAL, low=0, high=1)
        axes.set_yticks(range(len(names)), [short(name) for name in names])
        axes.tick_params(axis="y", labelsize=min(12, row - 1), labelcolor=colour("ink"))
        axes.set_xticks([])

    size = min(12, row - 1)
    left = label_room([short(name) for name in names], size)
    svg = draw(paint, name=title, height=row * len(names) + 12, left=left, bottom=6, right=4)
    return Plot(title, svg)


def similarity_plot(masks: MaskSet, stack: Stack) -> Plot | None:
    """Return how much the kept experts of every two languages have in common; none for fewer than three languages."""
    by_key = masks.masks[stack.name]
    if len(by_key) < 3:
        return None
    matrix = jaccard_matrix(list(by_key.values()))
    order = leaf_order(1 - matrix)
    names = [key_name(list(by_key)[n]) for n in order]
    off = np.where(np.eye(len(order), dtype=bool), np.nan, matrix[np.ix_(order, order)])
    title = f"Shared {stack.name} experts by {stack.keyed_by} language (Jaccard)"
    low, high = float(np.nanmin(off)), max(float(np.nanmax(off)), float(np.nanmin(off)) + 0.01)
    svg, width = _matrix(off, names, names, name=title, ramps=SEQUENTIAL, ends=(low, high), text=_share)
    note = f"Random choices of this size would share about {_by_chance(masks, stack):.2f}."
    return Plot(title, svg, note=note, width=width, scale="sequential", ends=(f"{low:.2f}", f"{high:.2f}"))


def _by_chance(masks: MaskSet, stack: Stack) -> float:
    """Return what random sets of k among E experts share: k^2/E are in both, 2k - k^2/E in either."""
    kept = np.mean([len(layer) for mask in masks.masks[stack.name].values() for layer in mask])
    return float(kept / (2 * stack.experts - kept))


def change_plot(configuration: ConfigurationSummary, baseline: ConfigurationSummary) -> Plot | None:
    """Return the change of chrF++ by source and target; none where the directions form no matrix."""
    before = {d.direction: d.chrf for d in baseline.directions}
    changes = {(d.source, d.target): d.chrf - before[d.direction] for d in configuration.directions}
    sources, targets = (_ordered({pair[side] for pair in changes}) for side in (0, 1))
    cells = len(sources) * len(targets) - len(set(sources) & set(targets))
    if min(len(sources), len(targets)) < 3 or len(changes) < _DENSE_ENOUGH * cells:
        return None
    values = np.array([[changes.get((source, target), np.nan) for target in targets] for source in sources])
    most = max(float(np.nanmax(np.abs(values))), 0.1)
    title = f"Change of chrF++, {configuration.name} against {baseline.name}, by source (rows) and target (columns)"
    rows, columns = ([key_name(code) for code in codes] for codes in (sources, targets))
    text = partial(number, digits=1, sign=True)
    svg, width = _matrix(values, rows, columns, name=title, ramps=DIVERGING, ends=(-most, most), text=text)
    ends = (number(-most, 1), number(most, 1, sign=True))
    note = "Empty cells were not measured."
    return Plot(title, svg, note=note, width=width, scale="diverging", ends=ends)


def _ordered(codes: set[str]) -> list[str]:
    return sorted(codes, key=lambda code: (code != ENGLISH, key_name(code)))


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")


def _matrix(
    values: FloatArray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    name: str,
    ramps: tuple[Ramp, Ramp],
    ends: tuple[float, float],
    text: Callable[[float], str],
) -> tuple[str, int]:
    """Return the SVG of a matrix of squares, and its width."""
    row_labels, column_labels = _wrapped(rows, len(columns)), _wrapped(columns, len(columns))
    left, bottom = label_room(row_labels, 12), label_room(column_labels, 12)
    cell = max((WIDTH - left - 4) / len(columns), 14)
    width, height = round(left + cell * len(columns) + 4), cell * len(rows) + bottom + 4

    def paint(axes: Axes) -> None:
        heat(axes, values, ramps, low=ends[0], high=ends[1])
        axes.set_yticks(range(len(rows)), row_labels)
        axes.set_xticks(range(len(columns)), column_labels, rotation=90)
        axes.tick_params(labelcolor=colour("ink"), labelsize=12)
        if max(values.shape) <= _PRINTED:
            _print_values(axes, values, ends, text, size=min(11.5, cell * 0.34))

    return draw(paint, name=name, height=height, left=left, bottom=bottom, top=4, right=4, width=width), width


def _wrapped(labels: Sequence[str], count: int) -> list[str]:
    """Break long labels where the cells leave room for two lines."""
    return ["\n".join(wrap(short(label), 15)) if count <= 10 else short(label) for label in labels]


def _print_values(
    axes: Axes, values: FloatArray, ends: tuple[float, float], text: Callable[[float], str], *, size: float
) -> None:
    middle, half = sum(ends) / 2, (ends[1] - ends[0]) / 2
    diverging = ends[0] < 0
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            strength = abs(value - middle) / half if diverging else (value - ends[0]) / (2 * half)
            ink = colour("strong") if strength > 0.55 else colour("ink")
            axes.text(column, row, text(value), ha="center", va="center", fontsize=size, color=ink)
