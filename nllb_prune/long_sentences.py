"""Sentences that are too long for a model, in parts."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cached_property
from itertools import chain
from math import ceil, inf

import regex  # type: ignore[import-untyped]

from nllb_prune.errors import UsageError
from nllb_prune.segmentation import Piece, Segmented, divided
from nllb_prune.sentence_ends import CLOSERS

Length = Callable[[Sequence[str]], Sequence[int]]
"""Returns how many tokens each of several texts has, not cut to any maximum."""
_SENTENCE = regex.compile(  # a full stop after fewer letters may be that of an abbreviation
    rf"(?V1)(?:(?:[!?…]|(?<=[\p{{L}}\p{{M}}]{{4}})\.)[.!?…]*+{CLOSERS}(?=\s)"
    rf"|[\p{{Sentence_Terminal}}--[.!?．\u104A]]++{CLOSERS})"
)
_CLAUSE = regex.compile(
    rf"(?V1)(?:(?:[,;:]|(?<=\s)[–-])++{CLOSERS}(?=\s)|—++"
    rf"|[\p{{Terminal_Punctuation}}--[.!?．,;:]]++{CLOSERS}(?!\p{{N}}))"
)
_WORD = regex.compile(r"[^\s\u200B\u0F0B]++\u0F0B?")  # zero width space; Tibetan's mark between syllables
_CLUSTER = regex.compile(  # \X alone takes quadratic time in a row of flags
    r"\p{RI}\p{RI}(?![\p{GCB=Extend}\p{GCB=ZWJ}\p{GCB=SpacingMark}])|\X"
)
_FILLED = 0.75  # of the most tokens, aimed at: parts differ, and one that is too long after all is cut again


def shortened(segmented: Segmented, *, longest: int, length: Length) -> Segmented:
    """Cut all pieces of more than `longest` tokens into parts.

    A cut is after the mark of a sentence if one is near, else after that of a clause, else at white space, else between
    characters as readers see them; only one such character that is too long by itself is cut further. The parts of a
    sentence are of about the same length. A part of one code point stays, whatever its length.

    Args:
        segmented: A text in sentences.
        longest: Most tokens of a piece.
        length: Counts tokens; called a few times only, with many texts.
    """
    if longest < 1:
        raise UsageError(f"`longest` must be at least 1, but is {longest} instead.")
    known: dict[str, int] = {}
    pieces, before = list(segmented.pieces), 0
    while len(pieces) > before:
        before = len(pieces)
        new = [text for text in dict.fromkeys(piece.text for piece in pieces) if text not in known]
        known.update(zip(new, length(new) if new else (), strict=True))
        pieces = list(chain.from_iterable(_parts(piece, known[piece.text] / longest) for piece in pieces))
    return Segmented(tuple(pieces), segmented.after)


def _parts(piece: Piece, times: float) -> Sequence[Piece]:
    """Cut a piece that is so many times as long as it may be."""
    if times <= 1 or len(piece.text) == 1:
        return (piece,)
    count = min(len(piece.text), ceil(times / _FILLED))
    first, *others = divided(piece.text, _Places(piece.text).cuts(count)).pieces
    return (replace(first, before=piece.before), *others)


class _Places:
    """Where a text may be cut."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._by_preference = [self._ends(pattern) for pattern in (_SENTENCE, _CLAUSE, _WORD)]

    def cuts(self, count: int) -> list[int]:
        """Return the ends of up to `count` parts of about the same length, and of at least two."""
        size = len(self.text) / count
        return [*sorted({self._near(number * size, size / 3) for number in range(1, count)}), len(self.text)]

    def _near(self, middle: float, away: float) -> int:
        for places in self._by_preference:
            if found := _nearest(places, middle, away):
                return found
        return _nearest(self._clusters, middle, inf) or int(middle)

    @cached_property
    def _clusters(self) -> list[int]:
        return self._ends(_CLUSTER)

    def _ends(self, pattern: regex.Pattern[str]) -> list[int]:
        return [match.end() for match in pattern.finditer(self.text) if match.end() < len(self.text)]


def _nearest(places: Sequence[int], middle: float, away: float) -> int | None:
    """Return the place next to the middle, if one is not too far away."""
    number = bisect_left(places, middle)
    near = min(places[max(0, number - 1) : number + 1], key=lambda place: abs(place - middle), default=None)
    return near if near is not None and abs(near - middle) <= away else None
