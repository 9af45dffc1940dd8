"""Figures of experts and languages: how important experts are to languages, and what languages share."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Stack
from nllb_prune.planning.criteria import importance
from nllb_prune.planning.evidence import Evidence
from nllb_prune.planning.similarity import jaccard_matrix
from nllb_prune.report.canvas import Plot, draw, heat, label_room, short
from nllb_prune.report.matrix import draw_matrix, label_step
from nllb_prune.report.names import key_name
from nllb_prune.report.ordering import by_strongest_row, leaf_order, overlap_distance
from nllb_prune.report.theme import SEQUENTIAL, colour

FloatArray = NDArray[np.float64]
# Languages up to which rows are so high and their labels so large, in pixels.
_ROWS = ((24, 19, 12.0), (60, 11, 10.0), (10_000, 4, 10.0))


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
    row, size = next((row, size) for most, row, size in _ROWS if len(names) <= most)
    labels = [short(name) for name in names]

    def paint(axes: Axes) -> None:
        heat(axes, values, SEQUENTIAL, low=0, high=1)
        step = label_step(row, size)
        axes.set_yticks(range(0, len(names), step), labels[::step])
        axes.tick_params(axis="y", labelsize=size, labelcolor=colour("ink"))
        axes.set_xticks([])

    left = label_room(labels, size)
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
    drawn = draw_matrix(off, names, names, name=title, ramps=SEQUENTIAL, ends=(low, high), text=_share)
    note = f"Random choices of this size would share about {_by_chance(masks, stack):.2f}."
    ends = (f"{low:.2f}", f"{high:.2f}")
    return Plot(title, drawn.svg, note=note, width=drawn.width, scale="sequential", ends=ends)


def _by_chance(masks: MaskSet, stack: Stack) -> float:
    """Return what random sets of k among E experts share: k^2/E are in both, 2k - k^2/E in either."""
    kept = np.mean([len(layer) for mask in masks.masks[stack.name].values() for layer in mask])
    return float(kept / (2 * stack.experts - kept))


def _share(value: float) -> str:
    return f"{value:.2f}".removeprefix("0")
