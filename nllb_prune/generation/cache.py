"""Keys and values of the rows that are being decoded, in memory that is allocated once and grows when it must.

The rows share *columns*: a step writes one column, whatever the target position of each row, so writing is one copy
and a row that joins later simply starts at a later column. A column has one *slot* for each beam of a row. When beams
are reordered no key moves: each beam only remembers which slots are its own past, as a mask that follows its beam, and
the queries of all beams of a row run over the row's slots together. A row that leaves is overwritten by the last one.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from nllb_prune.model.blocks import KeysValues

PROMPT = 2
"""Columns of a prompt: the start token and the language token."""

_COLUMNS = 32  # to begin with
_ALIGNMENT = 8  # columns; kernels on GPUs want masks that start at a multiple of so many elements


def columns_for(limit: int) -> int:
    """Return how many columns a cache has at most while no row has a higher limit than this.

    It grows by a quarter when a row looks back over more than seven eighths of them: 5/4 x 8/7.
    """
    return max(_COLUMNS, 10 * limit // 7 + 3 * _ALIGNMENT)


def rows_for(rows: int) -> int:
    """Return how many rows a cache has memory for at most while there are never more than so many."""
    return rows + rows // 4


class TargetCache:
    """Keys and values of the target side.

    Args:
        layers: Decoder layers.
        beams: Beams of a row.
    """

    def __init__(self, *, layers: int, beams: int) -> None:
        self.layers, self.beams = layers, beams
        self.rows = 0
        self.column = PROMPT
        """The next to be written."""
        self.starts: list[int] = []
        """First column of each row."""
        self._first = 0  # column that the queries of the present step look at
        self._room = 0  # rows that there is memory for
        self._columns = _COLUMNS
        self._memory: list[Tensor | None] = [None] * layers  # (2, rows, heads, slots, width) each
        self._visible: Tensor | None = None  # (rows, beams, slots), added to attention scores

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns that there is memory for."""
        return self._room, self._columns

    def join(self, count: int, like: Tensor) -> Joining:
        """Make room for rows whose prompt ends at the present column; return what their prompt is written through."""
        first = self.rows
        self.rows += count
        self._room = self._room if self.rows <= self._room else max(self.rows, rows_for(self._room))
        self.starts += [self.column - PROMPT] * count
        visible = self._visible = self._fitted_mask(like)
        visible[first : self.rows] = float("-inf")
        prompt = slice((self.column - PROMPT) * self.beams, self.column * self.beams, self.beams)
        visible[first : self.rows, :, prompt] = 0  # it is in the slots of the first beam
        return Joining(self, slice(first, self.rows), prompt)

    def write(self, layer: int, new: KeysValues, rows: slice, slots: slice) -> Tensor:
        """Write keys and values into slots of a layer; return its memory ``(2, rows, heads, slots, width)``."""
        _, heads, _, width = new.keys.shape
        wanted = (2, self._room, heads, self._columns * self.beams, width)
        memory = self._memory[layer] = _fitted(self._memory[layer], wanted, new.keys)
        memory[0, rows, :, slots] = new.keys
        memory[1, rows, :, slots] = new.values
        return memory

    def begin_step(self) -> Tensor | None:
        """Start a column: return the mask of the step, as `DecoderCall.visible`, or `None` when nothing is hidden."""
        self._make_room()
        column = self._slots(self.column, self.column + 1)
        visible = self._mask()[: self.rows]
        visible[:, :, column].diagonal(dim1=1, dim2=2).zero_()
        self._first = min(self.starts)
        if self.beams == 1 and self._first == max(self.starts):
            return None
        self._first -= self._first % _ALIGNMENT
        return visible[:, None, :, self._slots(self._first, self.column + 1)]

    def extend(self, layer: int, new: KeysValues) -> KeysValues:
        """Write the column of a step in a layer; return all that the queries may look at."""
        memory = self.write(layer, new, slice(0, self.rows), self._slots(self.column, self.column + 1))
        keys, values = memory[:, : self.rows, :, self._slots(self._first, self.column + 1)]
        return KeysValues(keys, values)

    def end_step(self, parents: Sequence[Sequence[int]]) -> None:
        """Finish a column: each beam of a row goes on from the past of its parent ``(rows, beams)``."""
        same = list(range(self.beams))
        if any(row != same for row in parents):
            visible = self._mask()[: self.rows]
            index = torch.tensor(parents, device=visible.device)[:, :, None].expand(-1, -1, visible.shape[2])
            visible.copy_(visible.gather(1, index))
        self.column += 1

    def move(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Keep the first `rows` rows, after copying each ``(to, from)``."""
        if moves:
            to, source = (list(side) for side in zip(*moves, strict=True))
            used = self._slots(min(self.starts), self.column)
            for memory in self._held():
                memory[:, to, :, used] = memory[:, source, :, used]
            self._mask()[to] = self._mask()[source]
            for a, b in moves:
                self.starts[a] = self.starts[b]
        self.rows = rows
        del self.starts[rows:]
        if not rows:  # what one long row needed is not kept for ever
            self.column, self._columns, self._room = PROMPT, _COLUMNS, 0
            self._memory, self._visible = [None] * self.layers, None

    def _held(self) -> list[Tensor]:
        return [memory for memory in self._memory if memory is not None]

    def _slots(self, first: int, last: int) -> slice:
        """Return the slots of the columns from `first` to before `last`."""
        return slice(first * self.beams, last * self.beams)

    def _mask(self) -> Tensor:
        assert self._visible is not None, "a row has joined"
        return self._visible

    def _fitted_mask(self, like: Tensor) -> Tensor:
        return _fitted(self._visible, (self._room, self.beams, self._columns * self.beams), like, fill=float("-inf"))

    def _make_room(self) -> None:
        """Drop the columns that no row looks at, or make more, when the last column is reached."""
        if self.column < self._columns:
            return
        unused = min(self.starts)
        span = self.column - unused
        if 8 * unused < self._columns:
            self._columns = _aligned(self._columns * 5 // 4)
            self._visible = self._fitted_mask(self._mask())
            return
        kept, old = self._slots(0, span), self._slots(unused, self.column)
        self._columns = min(self._columns, max(_COLUMNS, _aligned(span * 5 // 4)))
        self._room = min(self._room, rows_for(self.rows))
        size = self._columns * self.beams
        for layer, memory in enumerate(self._memory):
            if memory is not None:
                self._memory[layer] = _shifted(memory, 1, -2, self._room, size, kept, old)
        self._visible = _shifted(self._mask(), 0, -1, self._room, size, kept, old)
        self._visible[:, :, kept.stop :] = float("-inf")
        self.starts = [start - unused for start in self.starts]
        self.column -= unused


class Joining:
    """Writes the prompt of rows that join: two columns, in the slots of the first beam."""

    def __init__(self, cache: TargetCache, rows: slice, slots: slice) -> None:
        self._cache, self._rows, self._slots = cache, rows, slots

    def extend(self, layer: int, new: KeysValues) -> KeysValues:
        """Write the prompt in a layer; it looks at nothing else."""
        self._cache.write(layer, new, self._rows, self._slots)
        return new


def _aligned(columns: int) -> int:
    return -(-columns // _ALIGNMENT) * _ALIGNMENT


def _shifted(memory: Tensor, rows_at: int, slots_at: int, rows: int, slots: int, kept: slice, old: slice) -> Tensor:
    """Return memory whose `old` slots are at `kept`, of fewer rows and slots where there were more than are wanted."""
    moved = memory.movedim(slots_at, 0)
    if memory.shape[rows_at] <= rows and memory.shape[slots_at] <= slots:
        moved[kept] = moved[old].clone()
        return memory
    shape = list(memory.shape)
    shape[rows_at], shape[slots_at] = min(shape[rows_at], rows), min(shape[slots_at], slots)
    smaller = memory.new_zeros(shape)
    smaller.movedim(slots_at, 0)[kept] = moved[old].narrow(rows_at + 1, 0, shape[rows_at])  # slots are in front
    return smaller


def _fitted(held: Tensor | None, wanted: tuple[int, ...], like: Tensor, *, fill: float = 0.0) -> Tensor:
    """Return memory of at least the wanted shape with what was held in its corner."""
    if held is not None and all(have >= want for have, want in zip(held.shape, wanted, strict=True)):
        return held
    shape = wanted if held is None else tuple(max(a, b) for a, b in zip(held.shape, wanted, strict=True))
    memory = like.new_full(shape, fill)
    if held is not None:
        memory[tuple(slice(size) for size in held.shape)] = held
    return memory


class SourceMemory:
    """Keys and values of the encoder's output by decoder layer, for the rows being decoded."""

    def __init__(self) -> None:
        self._memory: list[Tensor] = []  # (2, rows, heads, positions, width) each
        self._lengths: list[int] = []
        self.visible: Tensor | None = None
        """As `DecoderCall.source_visible`."""

    @property
    def size(self) -> int:
        """Rows times positions that there is memory for."""
        if not self._memory:
            return 0
        each, _, heads, _, width = self._memory[0].shape
        return self._memory[0].untyped_storage().nbytes() // (each * heads * width * self._memory[0].itemsize)

    def layer(self, number: int) -> KeysValues:
        """Return what the queries of a layer attend to."""
        keys, values = self._memory[number]
        return KeysValues(keys, values)

    def join(self, layers: Sequence[KeysValues], visible: Tensor | None, lengths: Sequence[int]) -> None:
        """Add rows of sources of these lengths; the shorter of the two sides is padded."""
        if not self._memory:
            self._memory = [torch.stack(layer) for layer in layers]
            self.visible, self._lengths = visible, list(lengths)
            return
        before, coming = self._memory[0], layers[0].keys
        length = max(before.shape[-2], coming.shape[-2])
        if visible is not None or self.visible is not None or before.shape[-2] != coming.shape[-2]:
            self.visible = torch.cat([_visible(self.visible, before, length), _visible(visible, coming, length)])
        rows = before.shape[1]
        for number, (old, new) in enumerate(zip(self._memory, layers, strict=True)):
            each, _, heads, _, width = old.shape
            memory = old.new_zeros(each, rows + coming.shape[0], heads, length, width)
            memory[:, :rows, :, : old.shape[-2]] = old
            memory[0, rows:, :, : new.keys.shape[-2]] = new.keys
            memory[1, rows:, :, : new.keys.shape[-2]] = new.values
            self._memory[number] = memory
        self._lengths = [*self._lengths, *lengths]

    def move(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Keep the first `rows` rows, after copying each ``(to, from)``."""
        if not rows or not self._memory:
            self._memory, self.visible, self._lengths = [], None, []
            return
        for a, b in moves:
            self._lengths[a] = self._lengths[b]
        del self._lengths[rows:]
        longest = max(self._lengths)  # a long sentence that left must not cost those that stay
        if moves:
            to, source = (list(side) for side in zip(*moves, strict=True))
            for memory in self._memory:
                memory[:, to] = memory[:, source]
            if self.visible is not None:
                self.visible[to] = self.visible[source]
        self._memory = [memory[:, :rows, :, :longest] for memory in self._memory]
        self.visible = None if self.visible is None else self.visible[:rows, ..., :longest]


def _visible(visible: Tensor | None, memory: Tensor, length: int) -> Tensor:
    rows, positions = memory.shape[-4], memory.shape[-2]
    shown = memory.new_zeros(rows, 1, 1, positions) if visible is None else visible
    return functional.pad(shown, (0, length - positions), value=float("-inf"))
