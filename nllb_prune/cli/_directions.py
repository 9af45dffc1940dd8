"""Directions that a command names, among those that masks were planned for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction, all_languages, parse_directions

if TYPE_CHECKING:
    from nllb_prune.masks import MaskSet


def one_direction(text: str, masks: MaskSet) -> Direction:
    """Read a single direction."""
    found = parse_directions(text, _languages([masks]))
    if len(found) != 1:
        raise UsageError(f"`{text}` must be one direction such as eng_Latn-deu_Latn, but is {len(found)} instead.")
    return found[0]


def planned_directions(text: str, parts: Sequence[MaskSet]) -> tuple[Direction, ...]:
    """Read directions as `parse_directions` does; `*` and `all` stand for those that have masks in one of the parts."""
    found: list[Direction] = []
    for part in [each for each in text.split(",") if each.strip()] or [text]:
        pairs = parse_directions(part, _languages(parts))
        anything = "*" in part or part.strip() == "all"
        found += [pair for pair in pairs if not anything or any(masks.covers(*pair) for masks in parts)]
    return tuple(dict.fromkeys(found))


def _languages(parts: Sequence[MaskSet]) -> tuple[str, ...]:
    """Return the languages of masks, or all if they are global and fit any."""
    known = sorted({code for masks in parts for code in masks.languages()})
    return tuple(known) or tuple(each.code for each in all_languages())
