"""Figures of the search for a ratio: what each costs, what is best for each language."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes

from nllb_prune.masks import MaskSet
from nllb_prune.report.canvas import Plot, draw, name_tick_rows
from nllb_prune.report.names import number
from nllb_prune.report.plots_masks import mask_name
from nllb_prune.report.rows import dot, draw_rows, interval, label_rows, value_label
from nllb_prune.report.theme import colour, series

_ROWS = 24
_ROOM = 0.13  # of the width, between two ticks


def ratio_search_plots(name: str, masks: MaskSet) -> list[Plot]:
    """Return what was measured at each ratio, and for a ratio per language what each has; none if none was searched."""
    search = masks.plan.get("ratio_search")
    if search is None:
        return []
    stacks = [stack.name for stack in masks.stacks]
    if "languages" in search:
        return [_alone(name, search, stacks), *_languages(name, search, stacks)]
    return [_mean(name, search, stacks), _worst(name, search, stacks)]


def _mean(name: str, search: Mapping[str, Any], stacks: Sequence[str]) -> Plot:
    title = f"Change of token loss by where the experts are, mean over directions, {name}"
    values = [point["loss_change"] for point in search["curve"]]
    note = f"The lowest was taken: {_experts(search['chosen'], stacks)}. Nats a token, {search['measures']} measures."
    return Plot(title, _curve(title, search["curve"], [(values, series(0))], search["chosen"], stacks), note=note)


def _worst(name: str, search: Mapping[str, Any], stacks: Sequence[str]) -> Plot:
    title = f"Change of token loss in the worst direction, {name}"
    values = [point["worst"]["loss_change"] for point in search["curve"]]
    chosen = next(point["worst"] for point in search["curve"] if point["experts"] == search["chosen"])
    note = f"With the ratio that was taken it is {mask_name(chosen['direction'])}. Nats a token."
    return Plot(title, _curve(title, search["curve"], [(values, series(1))], search["chosen"], stacks), note=note)


def _alone(name: str, search: Mapping[str, Any], stacks: Sequence[str]) -> Plot:
    title = f"Change of token loss when one stack alone is pruned, mean over masks, {name}"
    each = [[point["alone"][stack] for point in search["curve"]] for stack in stacks]
    both = [sum(values) for values in zip(*each, strict=True)]
    curves = [*((values, series(n)) for n, values in enumerate(each)), (both, colour("ink"))]
    words = (*(f"{stack} alone" for stack in stacks), "both added")
    keys = tuple((each_words, fill) for each_words, (_, fill) in zip(words, curves, strict=True))
    best = _experts(search["shared"], stacks)
    note = f"The best ratio for all is marked: {best}. Nats a token, {search['measures']} measures."
    return Plot(title, _curve(title, search["curve"], curves, search["shared"], stacks), note=note, keys=keys)


def _curve(
    title: str,
    points: Sequence[Mapping[str, Any]],
    curves: Sequence[tuple[Sequence[float], str]],
    chosen: Mapping[str, float],
    stacks: Sequence[str],
) -> str:
    """Return the SVG of curves over the share of the first stack, with one ratio marked in the last of them."""
    shares = [_share(point["experts"], stacks) for point in points]
    marked = next(n for n, point in enumerate(points) if point["experts"] == chosen)

    def paint(axes: Axes) -> None:
        axes.axhline(0, color=colour("soft"), linewidth=1.2)
        axes.axvline(shares[marked], color=colour("soft"), linewidth=1.2, linestyle=(0, (4, 3)))
        for values, fill in curves:
            axes.plot(shares, values, "o-", color=fill, linewidth=1.6, markersize=5)
        values, fill = curves[-1]
        dot(axes, shares[marked], values[marked], fill=fill, hollow=True)
        axes.annotate(number(values[marked], 3, sign=True), (shares[marked], values[marked]), **_beside(shares, marked))
        _ticks(axes, [point["experts"] for point in points], shares, marked, stacks)
        axes.margins(x=0.08, y=0.14)
        axes.grid(axis="y", color=colour("line"), linewidth=1)

    return draw(paint, name=title, height=280, left=76, bottom=44)


def _beside(shares: Sequence[float], marked: int) -> dict[str, Any]:
    """Return how to write a value above its point, towards the middle."""
    left = shares[marked] < (min(shares) + max(shares)) / 2
    return {**value_label(), "ha": "left" if left else "right", "xytext": (6 if left else -6, 12), "fontweight": "bold"}


def _ticks(
    axes: Axes, experts: Sequence[Mapping[str, float]], shares: Sequence[float], marked: int, stacks: Sequence[str]
) -> None:
    """Write the experts of both stacks under the axis, as far as there is room, those that are marked first."""
    room = _ROOM * (max(shares) - min(shares))
    ticks: dict[float, str] = {}
    for n in sorted(range(len(shares)), key=lambda n: n != marked):
        if all(abs(shares[n] - other) >= room for other in ticks):
            ticks[shares[n]] = "\n".join(f"{experts[n][stack]:.4g}" for stack in stacks)
    axes.set_xticks(list(ticks), list(ticks.values()))
    name_tick_rows(axes, "\n".join(stacks))


def _languages(name: str, search: Mapping[str, Any], stacks: Sequence[str]) -> list[Plot]:
    shares = {key: _share(each, stacks) for key, each in search["languages"].items()}
    order = sorted(shares, key=lambda key: (shares[key], key))
    if not order:
        return []
    rest = max(0, len(order) - _ROWS)
    shown = order if not rest else [*order[: _ROWS // 2], *order[-_ROWS // 2 :]]
    title = f"Share of a language's experts in the {stacks[0]}, %, {name}"
    labels = [mask_name(key) for key in shown]
    shared = _share(search["shared"], stacks)

    def paint(axes: Axes) -> None:
        label_rows(axes, labels)
        axes.axvline(100 * shared, color=colour("soft"), linewidth=1.4)
        for row, key in enumerate(shown):
            interval(axes, (100 * shared, 100 * shares[key]), row, colour_=colour("soft"), thick=1.3)
            dot(axes, 100 * shares[key], row, fill=series(0))
            axes.annotate(_experts(search["languages"][key], stacks), (1, row), (8, 0), **value_label(across=True))
        axes.grid(axis="x", color=colour("line"), linewidth=1)

    own, losses = search["chosen"] == "per_language", search["loss_change"]
    note = (
        f"The line is the best ratio for all. Token loss rises by {losses['per_language']:.3f} nats with these ratios "
        f"and by {losses['shared']:.3f} with the one for all, so {'these were' if own else 'that was'} taken."
        + (f" {rest} languages between are not drawn." if rest else "")
    )
    return [Plot(title, draw_rows(paint, labels, name=title, bottom=28, right=70), note=note)]


def _share(experts: Mapping[str, float], stacks: Sequence[str]) -> float:
    """Return the share of the first stack."""
    return experts[stacks[0]] / sum(experts[stack] for stack in stacks)


def _experts(experts: Mapping[str, float], stacks: Sequence[str]) -> str:
    return " + ".join(f"{experts[stack]:.4g}" for stack in stacks)
