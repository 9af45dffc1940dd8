"""Keys and values of the rows that are being decoded, in memory that is allocated once.

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
        self._memory: Tensor | None = None  # (layers, 2, rows, heads, slots, width)
        self._visible: Tensor | None = None  # (rows, beams, slots), added to attention scores

    def join(self, count: int, like: Tensor) -> Joining:
        """Make room for rows whose prompt ends at the present column; return what their prompt is written through."""
        first = self.rows
        self.rows += count
        self._room = self._room if self.rows <= self._room else max(self.rows, 2 * self._room)
        self.starts += [self.column - PROMPT] * count
        visible = self._visible = self._fitted_mask(like)
        visible[first : self.rows] = float("-inf")
        prompt = slice((self.column - PROMPT) * self.beams, self.column * self.beams, self.beams)
        visible[first : self.rows, :, prompt] = 0  # it is in the slots of the first beam
        return Joining(self, slice(first, self.rows), prompt)

    def write(self, layer: int, new: KeysValues, rows: slice, slots: slice) -> Tensor:
        """Write keys and values into slots of a layer; return its memory ``(2, rows, heads, slots, width)``."""
        _, heads, _, width = new.keys.shape
        wanted = (self.layers, 2, self._room, heads, self._columns * self.beams, width)
        memory = self._memory = _fitted(self._memory, wanted, new.keys)
        memory[layer, 0, rows, :, slots] = new.keys
        memory[layer, 1, rows, :, slots] = new.values
        return memory[layer]

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
        if moves and self._memory is not None:
            to, source = (list(side) for side in zip(*moves, strict=True))
            used = self._slots(min(self.starts), self.column)
            self._memory[:, :, to, :, used] = self._memory[:, :, source, :, used]
            self._mask()[to] = self._mask()[source]
            for a, b in moves:
                self.starts[a] = self.starts[b]
        self.rows = rows
        del self.starts[rows:]
        if not rows:  # what one long row needed is not kept for ever
            self.column, self._columns, self._room = PROMPT, _COLUMNS, 0
            self._memory = self._visible = None

    def _slots(self, first: int, last: int) -> slice:
        """Return the slots of the columns from `first` to before `last`."""
        return slice(first * self.beams, last * self.beams)

    def _mask(self) -> Tensor:
        assert self._visible is not None, "a row has joined"
        return self._visible

    def _fitted_mask(self, like: Tensor) -> Tensor:
        return _fitted(self._visible, (self._room, self.beams, self._columns * self.beams), like, fill=float("-inf"))

    def _make_room(self) -> None:
        """Drop the columns that no row looks at, or double the memory, when the last column is reached."""
        if self.column < self._columns:
            return
        unused = min(self.starts)
        if unused < self._columns // 2:
            self._columns *= 2
            self._visible = self._fitted_mask(self._mask())
            return
        kept, old = self._slots(0, self.column - unused), self._slots(unused, self.column)
        for memory in (self._memory, self._visible):
            if memory is not None:
                slots = memory.movedim(-1 if memory is self._visible else -2, 0)
                slots[kept] = slots[old].clone()
        self._mask()[:, :, kept.stop :] = float("-inf")
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
        self._memory: Tensor | None = None  # (layers, 2, rows, heads, positions, width)
        self._lengths: list[int] = []
        self.visible: Tensor | None = None
        """As `DecoderCall.source_visible`."""

    def layer(self, number: int) -> KeysValues:
        """Return what the queries of a layer attend to."""
        assert self._memory is not None, "a row has joined"
        keys, values = self._memory[number]
        return KeysValues(keys, values)

    def join(self, layers: Sequence[KeysValues], visible: Tensor | None, lengths: Sequence[int]) -> None:
        """Add rows of sources of these lengths; the shorter of the two sides is padded."""
        new = torch.stack([torch.stack(layer) for layer in layers])
        old = self._memory
        if old is None:
            self._memory, self.visible, self._lengths = new, visible, list(lengths)
            return
        length = max(old.shape[-2], new.shape[-2])
        memory = torch.cat([_lengthened(side, length) for side in (old, new)], dim=2)
        if visible is not None or self.visible is not None or old.shape[-2] != new.shape[-2]:
            self.visible = torch.cat([_visible(self.visible, old, length), _visible(visible, new, length)])
        self._memory, self._lengths = memory, [*self._lengths, *lengths]

    def move(self, moves: Sequence[tuple[int, int]], rows: int) -> None:
        """Keep the first `rows` rows, after copying each ``(to, from)``."""
        if not rows or self._memory is None:
            self._memory, self.visible, self._lengths = None, None, []
            return
        for a, b in moves:
            self._lengths[a] = self._lengths[b]
        del self._lengths[rows:]
        if moves:
            to, source = (list(side) for side in zip(*moves, strict=True))
            self._memory[:, :, to] = self._memory[:, :, source]
            if self.visible is not None:
                self.visible[to] = self.visible[source]
        longest = max(self._lengths)  # a long sentence that left must not cost those that stay
        self._memory = self._memory[:, :, :rows, :, :longest]
        self.visible = None if self.visible is None else self.visible[:rows, ..., :longest]


def _lengthened(memory: Tensor, length: int) -> Tensor:
    return functional.pad(memory, (0, 0, 0, length - memory.shape[-2]))


def _visible(visible: Tensor | None, memory: Tensor, length: int) -> Tensor:
    rows, positions = memory.shape[2], memory.shape[-2]
    shown = memory.new_zeros(rows, 1, 1, positions) if visible is None else visible
    return functional.pad(shown, (0, length - positions), value=float("-inf"))
