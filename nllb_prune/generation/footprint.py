"""What decoding takes in memory: a bound on the bytes of caches and workspace, before sentences join.

A row costs what the longest row beside it costs: caches are rectangular. The factors are those of `TargetCache` and
`SourceMemory`, and counts of the tensors that are alive at once in a layer; a test holds them against what torch
allocates.
"""

from __future__ import annotations

from dataclasses import dataclass

from nllb_prune.generation.cache import columns_for, rows_for
from nllb_prune.model.decoding_sizes import DecodingSizes
from nllb_prune.model.spec import ModelSpec


@dataclass(frozen=True, slots=True)
class Rows:
    """Sentences in flight, and the longest of each side."""

    count: int = 0
    source: int = 0
    limit: int = 0

    def with_one(self, source: int, limit: int) -> Rows:
        """Return them with one more."""
        return Rows(self.count + 1, max(self.source, source), max(self.limit, limit))

    def __add__(self, other: Rows) -> Rows:
        return Rows(self.count + other.count, max(self.source, other.source), max(self.limit, other.limit))


@dataclass(frozen=True, slots=True)
class Held:
    """What the caches of a loop have memory for already."""

    rows: int = 0
    columns: int = 0
    source: int = 0
    """Rows times source positions."""


class Footprint:
    """Bytes that a loop needs, at most, from now until its sentences are finished.

    Args:
        sizes: Of the model.
        spec: Of the model.
        itemsize: Bytes of a number.
        beams: Of a row.
        expanded: Numbers of the matrices of quantised experts that are floats at once.
    """

    def __init__(self, sizes: DecodingSizes, spec: ModelSpec, *, itemsize: int, beams: int, expanded: int = 0) -> None:
        self._sizes, self._itemsize, self._beams, self._expanded = sizes, itemsize, beams, expanded
        self._experts, self._top_k = max((stack.experts for stack in spec.stacks), default=0), spec.top_k
        self._position = 2 * sizes.decoder_layers * sizes.d_model * itemsize  # keys and values

    def cache(self, rows: Rows, joining: Rows = Rows(), held: Held = Held()) -> int:
        """Return the bytes of keys and values of rows and others that join them."""
        together, layers = rows + joining, self._sizes.decoder_layers
        if not together.count:
            return 0
        room = max(held.rows, rows_for(together.count))
        columns = max(held.columns, columns_for(together.limit))
        target = room * columns * self._beams * self._position
        mask = 3 * room * columns * self._beams**2 * self._itemsize
        source = max(held.source, together.count * together.source)
        coming = joining.count * joining.source * (self._position + self._sizes.d_model * self._itemsize)
        return target + mask + source * self._position + coming + (target + 2 * source * self._position) // layers

    def workspace(self, rows: Rows, joining: Rows = Rows()) -> int:
        """Return the bytes that a step of all rows, or the encoder with those that join, needs besides."""
        together = rows + joining
        return 3 * self._expanded * self._itemsize + max(
            self._layer(joining.count * joining.source),
            self._layer(together.count * self._beams) + self._choice(together.count * self._beams),
        )

    def _layer(self, tokens: int) -> int:
        sizes = self._sizes
        numbers = 6 * sizes.d_model + self._top_k * 3 * (sizes.d_model + sizes.ffn)
        return tokens * (numbers * self._itemsize + 3 * self._experts * 4)  # routers are in float32

    def _choice(self, beams: int) -> int:
        return beams * self._sizes.vocabulary * (self._itemsize + 6)  # logits, as floats too, and what is sorted
