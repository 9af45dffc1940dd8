"""Matrices of languages by languages, from three to the 202 of NLLB-200, as figures of the page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import wrap
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nllb_prune.report.canvas import WIDE, WIDTH, draw, heat, label_room, short
from nllb_prune.report.theme import Ramp, colour

_PRINTED = 16  # languages up to which the numbers fit in their cells
_CELL, _LEAST_CELL = 14.0, 4.2  # pixels: usual, and what 202 languages leave
_TWO_LINES = 10  # languages up to which labels are broken
_MARGIN = 4

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Matrix:
    """A matrix that was drawn."""

    svg: str
    width: int
    box: tuple[float, float, float, float]
    """Left, top, width and height of the cells, as shares of the figure."""

    def cells(self, rows: Sequence[str], columns: Sequence[str], **more: Any) -> dict[str, Any]:
        """Return what the page needs to tell which cell is under the pointer."""
        return {"box": [round(each, 5) for each in self.box], "rows": list(rows), "columns": list(columns), **more}


def label_step(room: float, size: float) -> int:
    """Return every which row has a label, if rows are `room` high and labels `size`."""
    return max(1, int(np.ceil((size + 1) / room)))


def draw_matrix(
    values: FloatArray,
    rows: Sequence[str],
    columns: Sequence[str],
    *,
    name: str,
    ramps: tuple[Ramp, Ramp],
    ends: tuple[float, float],
    text: Callable[[float], str],
) -> Matrix:
    """Draw values (rows, columns) as squares: few have their numbers in them, many are small with some labels."""
    count = max(len(rows), len(columns))
    size = 12.0 if count <= 60 else 10.0
    row_labels, column_labels = (_labels(names, count) for names in (rows, columns))
    left, bottom = label_room(row_labels, size), label_room(column_labels, size)
    cell = _cell(len(columns), left)
    width, body = round(left + cell * len(columns) + _MARGIN), cell * len(rows)
    height = body + bottom + _MARGIN

    def paint(axes: Axes) -> None:
        heat(axes, values, ramps, low=ends[0], high=ends[1])
        step = label_step(cell, size)
        axes.set_yticks(range(0, len(rows), step), row_labels[::step])
        axes.set_xticks(range(0, len(columns), step), column_labels[::step], rotation=90)
        axes.tick_params(labelcolor=colour("ink"), labelsize=size)
        if count <= _PRINTED:
            _print_values(axes, values, ends, text, size=min(11.5, cell * 0.34))

    svg = draw(
        paint, name=name, height=height, left=left, bottom=bottom, top=_MARGIN, right=_MARGIN, width=width
    )  # fmt: skip
    box = (left / width, _MARGIN / height, (width - left - _MARGIN) / width, body / height)
    return Matrix(svg, width, box)


def _cell(columns: int, left: float) -> float:
    """Return the side of a cell: as large as half the page allows, or else the whole page."""
    usual = (WIDTH - left - _MARGIN) / columns
    return usual if usual >= _CELL else min(_CELL, max((WIDE - left - _MARGIN) / columns, _LEAST_CELL))


def _labels(names: Sequence[str], count: int) -> list[str]:
    return ["\n".join(wrap(short(name), 15)) if count <= _TWO_LINES else short(name) for name in names]


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
