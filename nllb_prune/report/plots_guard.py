"""A figure of the guard: how far each mask is from its tolerances, and how far it was before it grew."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes

from nllb_prune.report.canvas import Plot
from nllb_prune.report.guarded import GuardedMask, GuardRecord
from nllb_prune.report.plots_masks import mask_name
from nllb_prune.report.rows import draw_rows, interval, label_rows, value_label
from nllb_prune.report.theme import colour

_ROWS = 24
_FARTHEST = 4.0  # times the tolerance: what is farther is told in words, so that it does not squeeze the rest
_NEAR = 0.04  # times the tolerance: points closer than this are one


def guard_plots(name: str, record: GuardRecord) -> list[Plot]:
    """Return a figure for each stack, with a row for each mask, or for those that need most if there are many."""
    return [_plot(name, stack, record.of_stack(stack)) for stack in record.stacks if record.of_stack(stack)]


def _plot(name: str, stack: str, masks: Sequence[GuardedMask]) -> Plot:
    title = f"Worst figure of each {stack} mask, times its tolerance, {name}"
    shown, labels = masks[:_ROWS], [mask_name(each.key) for each in masks[:_ROWS]]

    def paint(axes: Axes) -> None:
        label_rows(axes, labels)
        axes.axvline(1, color=colour("soft"), linewidth=1.6)
        for row, mask in enumerate(shown):
            _draw(axes, mask, row)
        axes.set_xlim(-0.05, max([1.3, *(1.05 * _near(max(mask.excess, mask.most)) for mask in shown)]))
        axes.grid(axis="x", color=colour("line"), linewidth=1)

    rest = len(masks) - len(shown)
    others = f" {rest} masks that are below are not drawn." if rest else ""
    note = (
        "Dots passed, crosses failed; rings are the most that a mask was over before. Diamonds are the worst "
        f"direction, where a mask failed for one. On the right, experts planned and kept.{others}"
    )
    return Plot(title, draw_rows(paint, labels, name=title, bottom=28, right=_right(shown)), note=note)


def _draw(axes: Axes, mask: GuardedMask, row: int) -> None:
    own = 0.0 if mask.own is None else mask.own.excess
    single = mask.direction.worst.excess if mask.direction and mask.direction.worst else 0.0
    reach = [own, max(mask.most, own), max(single, own)]
    interval(axes, (_near(own), _near(max(reach))), row, colour_=colour("soft"), thick=1.3)
    if mask.most > max(own, single) + _NEAR:
        _mark(axes, mask.most, row, "o", edge=colour("soft"), face=colour("paper"))
    if single > own:
        _mark(axes, single, row, "D", edge=colour("bad"), face=colour("bad"), size=6.5)
    fill = colour("good" if mask.passed else "bad")
    _mark(axes, own, row, "o" if mask.passed else "X", edge=fill, face=fill)
    axes.annotate(_words(mask), (1, row), (8, 0), **value_label(across=True))


def _mark(axes: Axes, x: float, y: float, marker: str, *, edge: str, face: str, size: float = 8) -> None:
    axes.plot([_near(x)], [y], marker, markersize=size, markerfacecolor=face, markeredgecolor=edge, markeredgewidth=1.4)


def _near(excess: float) -> float:
    return min(excess, _FARTHEST)


def _words(mask: GuardedMask) -> str:
    sizes = f"{mask.planned} → {mask.kept}" if mask.grown else f"{mask.kept}"
    return f"{sizes} ({mask.excess:.0f} ×)" if mask.excess > _FARTHEST else sizes


def _right(masks: Sequence[GuardedMask]) -> float:
    return 18 + 7.2 * max(len(_words(mask)) for mask in masks)
