"""Figures of the search for layers: what each had and has, and what half of that more or fewer changes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from nllb_prune.masks import MaskSet
from nllb_prune.report.canvas import Plot
from nllb_prune.report.names import number
from nllb_prune.report.rows import dot, draw_rows, interval, label_rows, value_label
from nllb_prune.report.theme import colour, series

Layers = Sequence[tuple[str, int, str]]
"""Stack, which of its sparse layers, and what to call it."""


def layer_search_plots(name: str, masks: MaskSet) -> list[Plot]:
    """Return the experts of each layer before and after, and what half of them more or fewer change."""
    search = masks.plan.get("layer_search")
    if search is None:
        return []
    layers = [
        (stack.name, n, f"{stack.name} layer {layer}") for stack in masks.stacks for n, layer in enumerate(stack.layers)
    ]
    return [_counts(name, search, layers), _worth(name, search, layers)]


def _counts(name: str, search: Mapping[str, Any], layers: Layers) -> Plot:
    title = f"Experts of each layer before and after, mean over masks, {name}"
    before, after = search["rounds"][0], search["chosen"]
    ends = [(before["counts"][stack][n], after["counts"][stack][n]) for stack, n, _ in layers]
    labels = [label for _, _, label in layers]

    def paint(axes: Axes) -> None:
        label_rows(axes, labels)
        for row, (old, new) in enumerate(ends):
            interval(axes, (old, new), row, colour_=colour("soft"), thick=1.3)
            dot(axes, old, row, fill=colour("soft"), hollow=True)
            dot(axes, new, row, fill=series(0))
            axes.annotate(f"{old:.4g} → {new:.4g}", (1, row), (8, 0), **value_label(across=True))
        axes.set_xlim(left=0)
        axes.grid(axis="x", color=colour("line"), linewidth=1)

    note = (
        f"Rings before, dots after. Token loss rose by {before['before']:.3f} nats before and by "
        f"{after['loss_change']:.3f} after, {search['measures']} measures."
    )
    return Plot(title, draw_rows(paint, labels, name=title, bottom=28, right=92), note=note)


def _worth(name: str, search: Mapping[str, Any], layers: Layers) -> Plot:
    title = f"Change of token loss with half of a layer's experts fewer or more, {name}"
    marginal = search["rounds"][0]["marginal"]
    each = [marginal[stack][n] for stack, n, _ in layers]
    labels = [label for _, _, label in layers]
    fills = (colour("loss"), colour("gain"))

    def paint(axes: Axes) -> None:
        label_rows(axes, labels)
        for row, change in enumerate(each):
            axes.barh(row - 0.19, change["fewer"], height=0.34, color=fills[0])
            axes.barh(row + 0.19, change["more"], height=0.34, color=fills[1])
            text = f"{number(change['fewer'], 4, sign=True)} {number(change['more'], 4, sign=True)}"
            axes.annotate(text, (1, row), (8, 0), **value_label(across=True))
        axes.axvline(0, color=colour("soft"), linewidth=1)
        axes.grid(axis="x", color=colour("line"), linewidth=1)
        axes.locator_params(axis="x", nbins=5)

    keys = (("half as many fewer", fills[0]), ("half as many more", fills[1]))
    note = "Nats a token, each layer alone, as planned. No bar: a layer at its least cannot have fewer."
    return Plot(title, draw_rows(paint, labels, name=title, bottom=28, right=126), note=note, keys=keys)
