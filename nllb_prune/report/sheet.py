"""A figure of its own, PNG or SVG: axes placed in pixels on one sheet, in the light colours of the page."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nllb_prune._files import write_bytes
from nllb_prune.errors import UsageError
from nllb_prune.report.canvas import heat, plain
from nllb_prune.report.theme import Ramp, colour

FORMATS = (".png", ".svg")
_SHARPNESS = 2  # pixels of a PNG for one of the sheet
_RAMP_WIDTH = 120


class Sheet:
    """Axes and texts at places counted in pixels from the top left corner; one point of a font is one pixel."""

    def __init__(self, width: float, height: float) -> None:
        self.width, self.height = width, height
        self._figure = Figure(figsize=(width / 72, height / 72), facecolor=colour("paper"))

    def axes(self, left: float, top: float, width: float, height: float) -> Axes:
        """Return bare axes in a box."""
        box = (left / self.width, 1 - (top + height) / self.height, width / self.width, height / self.height)
        axes = self._figure.add_axes(box)
        plain(axes)
        axes.tick_params(labelcolor=colour("ink"))
        return axes

    def text(self, left: float, top: float, text: str, *, size: float = 12, role: str = "ink", **style: Any) -> None:
        """Write a line whose baseline is `size` below `top`."""
        place = (left / self.width, 1 - (top + size) / self.height)
        self._figure.text(*place, text, fontsize=size, color=colour(role), parse_math=False, **style)

    def ramp(self, left: float, top: float, ramp: Ramp, *, ends: tuple[str, str], low: float = 0.0) -> None:
        """Explain a colour scale, of which the part from `low` to 1 is in use."""
        room = 8 + 6.2 * len(ends[0])
        self.text(left, top, ends[0], size=11, role="soft")
        scale = self.axes(left + room, top + 2, _RAMP_WIDTH, 9)
        heat(scale, np.linspace(low, 1, _RAMP_WIDTH)[None], (ramp,), low=0, high=1)
        scale.set_axis_off()
        self.text(left + room + _RAMP_WIDTH + 8, top, ends[1], size=11, role="soft")

    def save(self, path: Path) -> None:
        """Write the file; its ending tells the format, and equal figures give equal bytes."""
        check_format(path)
        buffer = io.BytesIO()
        nothing = ("Software",) if path.suffix == ".png" else ("Creator", "Date", "Format", "Type")
        with rc_context({"svg.hashsalt": path.suffix, "svg.fonttype": "none"}):
            self._figure.savefig(buffer, format=path.suffix[1:], dpi=72 * _SHARPNESS, metadata=dict.fromkeys(nothing))
        write_bytes(path, buffer.getvalue())


def check_format(path: Path) -> None:
    """Refuse a file that is no PNG or SVG.

    Raises:
        UsageError: if the name ends otherwise.
    """
    if path.suffix not in FORMATS:
        raise UsageError(f"`{path}` must end in {' or '.join(FORMATS)} to be a picture, but does not.")
