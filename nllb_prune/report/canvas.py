"""From a drawing to a small SVG that lives inside the page: its text is text, its colours follow the scheme."""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray

from nllb_prune.report.theme import Ramp, colour, on_page

WIDTH = 440
"""Of a usual figure; one unit is one pixel of the page, as two stand side by side on a screen and one on a phone."""
WIDE = 1020
"""Of a figure that takes the whole column."""
_LONGEST = 24  # characters of a label
_SHADES = 49  # as many as the eye tells apart, odd so that zero has its own; fewer make smaller pictures


@dataclass(frozen=True, slots=True)
class Plot:
    """A figure and what it shows."""

    title: str
    svg: str
    note: str = ""
    width: int = WIDTH
    scale: Literal["", "sequential", "diverging"] = ""
    """The colour scale to explain, if it has one."""
    ends: tuple[str, str] = ("", "")
    """What the two ends of the scale stand for."""
    keys: tuple[tuple[str, str], ...] = ()
    """What (light) colours stand for: words and colour."""
    cells: Mapping[str, Any] = field(default_factory=dict)
    """Where the cells of a matrix are and what they are of, for the page to tell what is under the pointer."""


def short(label: str) -> str:
    """Cut a label that would take the room of the figure."""
    return label if len(label) <= _LONGEST else label[: _LONGEST - 1].rstrip() + "…"


def label_room(labels: list[str], size: float) -> float:
    """Return the width that the longest label needs, with a gap."""
    lines = [line for label in labels for line in label.splitlines()]
    return 14 + 0.57 * size * max(map(len, lines), default=0)


def draw(
    paint: Callable[[Axes], None],
    *,
    name: str,
    height: float,
    left: float,
    bottom: float = 34,
    top: float = 6,
    right: float = 16,
    width: float = WIDTH,
) -> str:
    """Return the SVG of what `paint` does to one pair of axes; sizes and margins are in pixels.

    `name` keeps the inner references of one figure apart from those of the others on the page.
    """
    with rc_context({"svg.fonttype": "none", "image.composite_image": False, "text.parse_math": False}):
        figure = Figure(figsize=(width / 72, height / 72))
        box = (left / width, bottom / height, 1 - (left + right) / width, 1 - (bottom + top) / height)
        axes = figure.add_axes(box)
        plain(axes)
        paint(axes)
        return _svg(figure, salt=name)


def plain(axes: Axes) -> None:
    """Take away all that is not needed: background, frame and ticks."""
    axes.set_facecolor("none")
    for side in axes.spines.values():
        side.set_visible(False)
    axes.tick_params(length=0, labelsize=12, labelcolor=colour("soft"), pad=5)
    axes.set_axisbelow(True)


def name_tick_rows(axes: Axes, names: str) -> None:
    """Write what the lines of the tick labels under the axis are, left of them, one name a line."""
    axes.tick_params(axis="x", labelcolor=colour("ink"))
    axes.annotate(
        names,
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


def heat(axes: Axes, values: NDArray[np.float64], ramps: Sequence[Ramp], *, low: float, high: float) -> None:
    """Paint a matrix once for each colour scheme, of which the page shows one; NaN stays clear."""
    for ramp in ramps:
        colours = LinearSegmentedColormap.from_list("ramp", ramp, N=_SHADES).with_extremes(bad="none")
        masked = np.ma.masked_invalid(values)
        axes.imshow(masked, cmap=colours, vmin=low, vmax=high, aspect="auto", interpolation="none")


def _svg(figure: Figure, *, salt: str) -> str:
    buffer = io.StringIO()
    with rc_context({"svg.hashsalt": salt}):
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(buffer, format="svg", transparent=True, metadata=nothing)
    return _inline(buffer.getvalue())


def _inline(document: str) -> str:
    """Keep what an SVG needs inside HTML: no prologue, no style for the whole page, no names that would repeat."""
    text = document[document.index("<svg") :]
    for unwanted in (r"<metadata>.*?</metadata>", r"<style.*?</style>", r"<!--.*?-->", r"<defs>\s*</defs>"):
        text = re.sub(unwanted, "", text, flags=re.DOTALL)
    text = re.sub(r'<svg [^>]*?(viewBox="[^"]*")[^>]*>', r'<svg \1 aria-hidden="true">', text, count=1)
    text = re.sub(r' id="(?:[\w.]+_\d+|image\w+)"', "", text)
    text = re.sub(r"font-family: [^;\"]*(?:; )?", "", text)
    text = re.sub(r"font: (?:(\d+) )?([\d.]+)px [^;\"]*", _font, text)
    text = re.sub(r"base64,\s+", "base64,", text).replace("xlink:href", "href")
    text = _with_schemes(text)
    return on_page(re.sub(r"\s*\n\s*", "\n", text).strip())


def _font(match: re.Match[str]) -> str:
    weight = f"font-weight: {match[1]}; " if match[1] else ""
    return f"{weight}font-size: {match[2]}px"


def _with_schemes(text: str) -> str:
    """Name the pictures of `heat` in turn after the scheme they are for."""
    parts: list[Any] = text.split("<image ")
    for n in range(1, len(parts)):
        parts[n] = f'class="{"light" if n % 2 else "dark"}" {parts[n]}'
    return "<image ".join(parts)
