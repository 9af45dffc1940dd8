"""Figures of masks alone: which experts each language keeps, what languages share, how two sets of masks differ."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from numpy.typing import NDArray

from nllb_prune.errors import UsageError
from nllb_prune.masks import GLOBAL_KEY, MaskSet, mask_array
from nllb_prune.model.spec import Stack
from nllb_prune.planning.similarity import Overlap, overlap
from nllb_prune.report.canvas import heat, label_room, short
from nllb_prune.report.names import key_name
from nllb_prune.report.ordering import leaf_order
from nllb_prune.report.sheet import Sheet
from nllb_prune.report.theme import SEQUENTIAL, colour

_MOST = 1000  # masks of a stack: rows of one or two pixels
_PRINTED = 16  # masks up to which the numbers fit in their cells
_FAINTEST = 0.3  # of the colour scale, so that an expert kept by a single language is still seen
_MARGIN, _LAYER_GAP, _PANEL_GAP = 24, 8, 32
_TITLE, _SCALE = 206, 190  # widths of the title of the similarities and of their scale

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Rows:
    """How the rows of a figure are drawn; sizes are in pixels."""

    height: int
    font: float
    """Size of the labels; 0 if there is no room for them."""

    @classmethod
    def of(cls, count: int) -> Rows:
        """Return what fits so many rows."""
        for most, height, font in ((5, 40, 12), (_PRINTED, 30, 12), (60, 16, 11.5), (260, 9, 7.5)):
            if count <= most:
                return cls(height, font)
        return cls(max(1, 2400 // count), 0)

    def label_room(self, labels: list[str]) -> float:
        """Return the width that the labels need."""
        return label_room(labels, self.font) if self.font else 0


@dataclass(frozen=True, slots=True)
class _Band:
    """What is drawn of one stack, with the masks in the order of the rows."""

    stack: Stack
    title: str
    names: list[str]
    kept: NDArray[np.bool_]
    """(masks, layers, experts)"""
    similarity: FloatArray
    """(masks, masks), NaN on the diagonal"""
    overlap: Overlap

    @property
    def rows(self) -> Rows:
        return Rows.of(len(self.names))

    @property
    def most(self) -> int:
        """Masks that keep the most shared expert."""
        return int(self.kept.sum(axis=0).max())

    @property
    def body(self) -> int:
        return self.rows.height * len(self.names)

    @property
    def expert_width(self) -> int:
        return min(max(256 // self.stack.experts, 1), 10)

    @property
    def layer_width(self) -> int:
        return self.stack.experts * self.expert_width

    @property
    def kept_width(self) -> int:
        return len(self.stack.layers) * (self.layer_width + _LAYER_GAP) - _LAYER_GAP

    @property
    def label_room(self) -> float:
        return self.rows.label_room(self.names)

    @property
    def compares(self) -> bool:
        return len(self.names) > 1

    @property
    def labels_right(self) -> bool:
        """Whether the labels on the left are too far to be read off."""
        return len(self.names) > 40

    @property
    def width(self) -> float:
        matrix = self.body + (self.label_room if self.labels_right else 0)
        return self.label_room + self.kept_width + (_PANEL_GAP + max(matrix, _TITLE + _SCALE) if self.compares else 0)

    @property
    def height(self) -> float:
        return 50 + self.body + max(self.label_room if self.compares else 0, 30) + 20


def masks_sheet(masks: MaskSet) -> Sheet:
    """Return the kept experts by mask and layer, and the Jaccard similarities, for each stack.

    Rows are ordered so that similar masks are neighbours, experts so that the most shared ones come first; those of a
    single mask stay in order.

    Raises:
        UsageError: if there are more masks than rows can be told apart.
    """
    bands = [_band(masks, stack) for stack in masks.stacks if masks.masks[stack.name]]
    if not bands:
        raise UsageError("`masks` must hold one mask or more to be drawn, but hold none.")
    width = 2 * _MARGIN + max(max(band.width for band in bands), 460)
    sheet = Sheet(width, 62 + _MARGIN + sum(band.height for band in bands))
    sheet.text(_MARGIN, 18, f"Experts that {masks.model_name} keeps", size=18, weight="bold")
    union, total = sum(band.overlap.union for band in bands), sum(band.stack.total for band in bands)
    sheet.text(_MARGIN, 44, f"{_what(masks)}; {union:,} of {total:,} experts are in use", role="soft")
    top = 78.0
    for band in bands:
        _draw(sheet, band, top)
        top += band.height
    return sheet


def _what(masks: MaskSet) -> str:
    if masks.granularity == "global":
        return "One mask for all"
    return f"Masks by {masks.granularity if masks.granularity == 'language' else 'direction'}"


def _band(masks: MaskSet, stack: Stack) -> _Band:
    by_key = masks.masks[stack.name]
    if len(by_key) > _MOST:
        raise UsageError(
            f"`masks` must have {_MOST:,} masks or fewer in a stack to be drawn, "
            f"but have {len(by_key):,} in the {stack.name} instead."
        )
    found = overlap(masks, stack.name)
    order = leaf_order(1 - found.matrix)
    names = [mask_name(found.keys[n]) for n in order]
    kept = np.stack([mask_array(by_key[found.keys[n]], stack.experts) for n in order])
    similarity = np.where(np.eye(len(order), dtype=bool), np.nan, found.matrix[np.ix_(order, order)])
    return _Band(stack, _title(masks, stack), names, kept, similarity, found)


def mask_name(key: str) -> str:
    """Return what to call a mask: a language by its name, a direction by its codes, which take less room."""
    if key == GLOBAL_KEY:
        return "all"
    return key.replace("-", " → ") if "-" in key else short(key_name(key))


def _title(masks: MaskSet, stack: Stack) -> str:
    by = {"language": f" (by {stack.keyed_by} language)", "pair": " (by direction)", "global": ""}[masks.granularity]
    return stack.name.capitalize() + by.replace("direction language", "direction")


def _draw(sheet: Sheet, band: _Band, top: float) -> None:
    left = _MARGIN + band.label_room
    sheet.text(_MARGIN, top, band.title, size=14, weight="bold")
    for layer in range(len(band.stack.layers)):
        _draw_layer(sheet, band, layer, left + layer * (band.layer_width + _LAYER_GAP), top)
    below = top + 50 + band.body + 10
    if band.compares:
        _draw_similarity(sheet, band, left + band.kept_width + _PANEL_GAP, top)
    if band.most > 1:
        most = "all" if band.most == len(band.names) else f"{band.most} of {len(band.names)}"
        sheet.ramp(left, below, SEQUENTIAL[0], ends=("kept by 1", f"by {most}"), low=_FAINTEST)


def _draw_layer(sheet: Sheet, band: _Band, layer: int, left: float, top: float) -> None:
    kept = band.kept[:, layer]  # (masks, experts)
    count = kept.sum(axis=0)
    sheet.text(left, top + 29, _layer_title(band, layer, int((count > 0).sum())), size=11, role="soft")
    share = (count - 1) / (band.most - 1) if band.most > 1 else np.ones(len(count))
    values = np.where(kept, _FAINTEST + (1 - _FAINTEST) * share, np.nan)
    axes = sheet.axes(left, top + 48, band.layer_width, band.body)
    axes.set_facecolor(SEQUENTIAL[0][0])
    heat(axes, values[:, by_sharing(kept)] if band.compares else values, SEQUENTIAL[:1], low=0, high=1)
    axes.set_xticks([])
    _label_rows(axes, band.names if layer == 0 else [], band.rows)


def _layer_title(band: _Band, layer: int, used: int) -> str:
    title, count = f"layer {band.stack.layers[layer]}", f"{used} of {band.stack.experts}"
    return f"{title}: {count} in use" if band.layer_width > 110 else f"{title}: {used}"


def by_sharing(kept: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the experts by falling number of masks that keep them, equals by where; kept is (masks, experts)."""
    count = kept.sum(axis=0)
    middle = (kept * np.arange(len(kept))[:, None]).sum(axis=0) / np.maximum(count, 1)
    return np.lexsort((middle, -count))


def _draw_similarity(sheet: Sheet, band: _Band, left: float, top: float) -> None:
    low, high = float(np.nanmin(band.similarity)), float(np.nanmax(band.similarity))
    high = max(high, low + 0.01)
    sheet.text(left, top + 29, f"Jaccard similarity: {band.overlap.mean:.2f} on average", size=11, role="soft")
    axes = sheet.axes(left, top + 48, band.body, band.body)
    axes.set_facecolor(colour("line"))
    heat(axes, band.similarity, SEQUENTIAL[:1], low=low, high=high)
    _label_rows(axes, band.names if band.labels_right else [], band.rows, right=True)
    axes.set_xticks(range(len(band.names)), band.names if band.rows.font else [""] * len(band.names), rotation=90)
    axes.tick_params(axis="x", labelsize=band.rows.font or 1)
    if len(band.names) <= _PRINTED:
        _print(axes, band.similarity, low, high)
    sheet.ramp(left + _TITLE, top + 29, SEQUENTIAL[0], ends=(f"{low:.2f}", f"{high:.2f}"))


def _label_rows(axes: Axes, names: Sequence[str], rows: Rows, *, right: bool = False) -> None:
    if not names or not rows.font:
        axes.set_yticks([])
        return
    axes.set_yticks(range(len(names)), names)
    axes.tick_params(axis="y", labelsize=rows.font, labelright=right, labelleft=not right, pad=4)


def _print(axes: Axes, values: FloatArray, low: float, high: float) -> None:
    for (row, column), value in np.ndenumerate(values):
        if np.isfinite(value):
            ink = colour("strong") if (value - low) / (high - low) > 0.55 else colour("ink")
            text = f"{value:.2f}".removeprefix("0")
            axes.text(column, row, text, ha="center", va="center", fontsize=10, color=ink)
