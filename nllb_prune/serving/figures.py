"""`Figures`: what a translator has done so far, and what it is doing."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a translator has done so far, and what it is doing."""

    sentences: int
    """Finished and not."""
    waiting: int
    """Submitted and not finished."""
    in_flight: int
    """Of these, those that are being translated."""
    swaps: int
    experts_moved: int
    bytes_moved: int
    resident: tuple[str, ...]
    """Stack and language of the sides whose experts are all in memory, as in `decoder.deu_Latn`."""
    working_peak: int
    """The most bytes that were set aside for caches and workspace at once."""
    steps: int
    """Of decoding, over all sentences in flight of a kind."""
    rows: int
    """Sentences in flight, added up over the steps."""
    source_tokens: int
    """Of the sentences that are finished."""
    target_tokens: int
    """Of their best translations."""
