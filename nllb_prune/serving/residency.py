"""Which experts are in the slots, and which leave when others come: policy over ids, without a tensor.

A *language side* is a stack and the key of one of its masks, such as the decoder's for German. Its experts are brought
in together; an expert that several sides share is there once. What leaves first is what belongs to the sides that were
used least recently.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.model.move import Move

Side = tuple[str, str]
"""Stack and key of a mask: a language, a direction, `*`, or `FULL`."""

FULL = "full"
"""Key of a side that is all experts of a stack, beside those of masks; the name of no language."""

_Layers = tuple[int, ...]
"""Experts of each sparse layer of a stack, bit e for expert e."""

_NEVER = -1
"""When an expert was used last that nobody will use."""


@dataclass(frozen=True, slots=True)
class Swap:
    """What brings in some language sides: the experts that are not there yet, and no others."""

    sides: tuple[Side, ...]
    moves: tuple[Move, ...]


@dataclass(frozen=True, slots=True)
class Arrival:
    """What came of a swap: the moves that were made, all unless there was an error."""

    moves: tuple[Move, ...]
    error: Exception | None = None


class Residency:
    """The slots of all sparse layers.

    Args:
        masks: Kept experts of each language side.
        slots: Slots of each sparse layer by stack.
        pinned: Sides that never leave once they are in; room for them is always kept.

    Raises:
        UsageError: if a side does not fit beside those that are pinned.
    """

    def __init__(
        self, masks: Mapping[Side, ExpertMask], slots: Mapping[str, Sequence[int]], *, pinned: Collection[Side] = ()
    ) -> None:
        self._sides = {side: tuple(sum(1 << expert for expert in ids) for ids in mask) for side, mask in masks.items()}
        self._stacks = {name: [_Layer(count) for count in counts] for name, counts in slots.items()}
        self.pinned = frozenset(pinned)
        self._clock = 0
        self._known: dict[Side, bool] = {}  # whether a side is in, as far as it was asked since the last change
        for side in self._sides:
            if not self.fits([side]):
                raise UsageError(
                    f"`slots` must have room for {side_name(side)}" + (" and what is pinned" if pinned else "") + ", "
                    "but have not; give more memory or pin fewer languages."
                )

    def take_over(self, other: Residency) -> None:
        """Begin with the experts that are in the slots of another, of as many; what no side wants leaves first."""
        self._stacks, self._clock = other._stacks, other._clock
        self._known.clear()
        for stack, union in self._unions(self._sides).items():
            for wanted, layer in zip(union, self._stacks[stack], strict=True):
                layer.touch(layer.there & ~wanted, _NEVER)

    @property
    def sides(self) -> Collection[Side]:
        """All sides that there are."""
        return self._sides.keys()

    def resident(self, side: Side) -> bool:
        """Return whether all experts of a side are in."""
        if side not in self._known:
            layers = zip(self._sides[side], self._stacks[side[0]], strict=True)
            self._known[side] = all(not wanted & ~layer.there for wanted, layer in layers)
        return self._known[side]

    def missing(self, sides: Iterable[Side]) -> int:
        """Return how many experts must be brought in for some sides."""
        return sum(
            (wanted & ~layer.there).bit_count()
            for stack, union in self._unions(sides).items()
            for wanted, layer in zip(union, self._stacks[stack], strict=True)
        )

    def fits(self, sides: Iterable[Side]) -> bool:
        """Return whether some sides, and those that are pinned, can be in at once."""
        return all(
            wanted.bit_count() <= layer.slots
            for stack, union in self._unions([*sides, *self.pinned]).items()
            for wanted, layer in zip(union, self._stacks[stack], strict=True)
        )

    def touch(self, sides: Iterable[Side]) -> None:
        """Take note that sides are used now."""
        self._clock += 1
        for side in sides:
            for wanted, layer in zip(self._sides[side], self._stacks[side[0]], strict=True):
                layer.touch(wanted, self._clock)

    def swap(self, sides: Sequence[Side], *, staying: Iterable[Side] = ()) -> Swap | None:
        """Clear the slots that some sides need and return what is to be copied into them; `None` if that is too much.

        The slots belong to nobody until `arrived` is told of the swap.

        Args:
            sides: To bring in.
            staying: Sides that must not lose an expert.
        """
        staying = list(staying)
        if not self.fits([*sides, *staying]):
            return None
        wanted, kept = self._unions(sides), self._unions([*sides, *staying, *self.pinned])
        if any(
            (here & ~layer.there).bit_count() > layer.room(stay)
            for stack, union in wanted.items()
            for here, stay, layer in zip(union, kept[stack], self._stacks[stack], strict=True)
        ):  # slots that another swap is filling
            return None
        self._known.clear()
        moves: list[Move] = []
        for stack, union in wanted.items():
            for number, (layer, here) in enumerate(zip(self._stacks[stack], union, strict=True)):
                for expert in _ids(here & ~layer.there):
                    slot, leaves = layer.clear(kept[stack][number])
                    moves.append(Move(stack, number, slot, expert, leaves))
        return Swap(tuple(sides), tuple(moves))

    def arrived(self, swap: Swap, arrival: Arrival) -> None:
        """Take note of the experts that are in their slots now; those that did not come leave their slots empty."""
        self._known.clear()
        came = set(arrival.moves)
        for move in swap.moves:
            layer = self._stacks[move.stack][move.layer]
            if move in came:
                layer.fill(move.slot, move.expert, self._clock)
            else:
                layer.empty.append(move.slot)

    def experts(self, stack: str, layer: int) -> dict[int, int]:
        """Return the slot of each expert that is in a layer."""
        return dict(self._stacks[stack][layer].slot_of)

    def _unions(self, sides: Iterable[Side]) -> dict[str, _Layers]:
        """Return the experts that any of the sides wants, by stack."""
        unions: dict[str, _Layers] = {}
        for side in sides:
            wanted, before = self._sides[side], unions.get(side[0])
            unions[side[0]] = wanted if before is None else tuple(a | b for a, b in zip(wanted, before, strict=True))
        return unions


class _Layer:
    """The slots of one sparse layer."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.there = 0  # bits of the experts that are in
        self.slot_of: dict[int, int] = {}
        self.empty = list(range(slots))[::-1]
        self.used: dict[int, int] = {}  # when an expert was used last

    def touch(self, wanted: int, now: int) -> None:
        for expert in _ids(wanted & self.there):
            self.used[expert] = now

    def room(self, staying: int) -> int:
        """Return how many experts can come in when some stay."""
        return len(self.empty) + (self.there & ~staying).bit_count()

    def clear(self, staying: int) -> tuple[int, int | None]:
        """Empty a slot and return it with the expert that leaves: the one used least recently, ties by lowest id."""
        if self.empty:
            return self.empty.pop(), None
        leaves = min(_ids(self.there & ~staying), key=lambda expert: (self.used[expert], expert))
        self.there &= ~(1 << leaves)
        del self.used[leaves]
        return self.slot_of.pop(leaves), leaves

    def fill(self, slot: int, expert: int, now: int) -> None:
        self.there |= 1 << expert
        self.slot_of[expert] = slot
        self.used[expert] = now


def _ids(bits: int) -> list[int]:
    """Return the numbers of the bits that are set, ascending."""
    found = []
    while bits:
        lowest = bits & -bits
        found.append(lowest.bit_length() - 1)
        bits ^= lowest
    return found


def side_name(side: Side) -> str:
    """Return what to call a side in a message."""
    stack, key = side
    if key == FULL:
        return f"all of the {stack}'s experts"
    return f"the {stack}'s experts for {'all languages' if key == '*' else key}"
