"""The slots hold what swaps brought and nothing twice; what leaves is what was used least recently."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.serving.residency import Arrival, Residency

EXPERTS = 12
A, B, C = ("decoder", "a"), ("decoder", "b"), ("decoder", "c")
MASKS = {A: ((0, 1, 2),), B: ((2, 3, 4),), C: ((5, 6, 7),)}


def bring(residency, *sides, staying=()):
    swap = residency.swap(sides, staying=staying)
    residency.arrived(swap, Arrival(swap.moves))
    residency.touch(sides)
    return [move.expert for move in swap.moves]


def test_only_the_difference_is_moved():
    residency = Residency(MASKS, {"decoder": [6]})
    assert bring(residency, A) == [0, 1, 2]
    assert residency.missing([B]) == 2
    assert bring(residency, B) == [3, 4]
    assert residency.resident(A)
    assert residency.resident(B)
    assert bring(residency, A) == []


def test_what_was_used_least_recently_leaves_and_what_is_shared_with_a_recent_side_stays():
    residency = Residency(MASKS, {"decoder": [6]})
    bring(residency, A)
    bring(residency, B)  # 2 is of both
    swap = residency.swap([C])
    # an empty slot first, then the experts of `a` alone
    assert [(move.expert, move.leaves) for move in swap.moves] == [(5, None), (6, 0), (7, 1)]


def test_ties_leave_by_lowest_id():
    residency = Residency(MASKS, {"decoder": [3]})
    bring(residency, A)
    assert [move.leaves for move in residency.swap([C]).moves] == [0, 1, 2]


def test_staying_sides_lose_nothing():
    residency = Residency(MASKS, {"decoder": [5]})
    bring(residency, A)
    assert residency.swap([C], staying=[A]) is None
    assert bring(residency, B, staying=[A]) == [3, 4]


def test_pinned_sides_never_leave_and_keep_room():
    residency = Residency(MASKS, {"decoder": [6]}, pinned=[C])
    assert residency.fits([A])
    assert not residency.fits([A, B])
    bring(residency, A)
    bring(residency, C)
    bring(residency, B)
    assert residency.resident(C)
    assert not residency.resident(A)
    with pytest.raises(UsageError, match="must have room for the decoder's experts for a and what is pinned"):
        Residency(MASKS, {"decoder": [5]}, pinned=[C])


def test_what_did_not_come_leaves_its_slot_empty():
    residency = Residency(MASKS, {"decoder": [3]})
    bring(residency, A)
    swap = residency.swap([C])
    residency.arrived(swap, Arrival(swap.moves[:1], OSError()))
    assert residency.experts("decoder", 0) == {5: swap.moves[0].slot}
    assert not residency.resident(A)
    assert not residency.resident(C)
    assert bring(residency, C) == [6, 7]


def test_slots_that_are_being_filled_belong_to_nobody():
    residency = Residency(MASKS, {"decoder": [3]})
    swap = residency.swap([A])
    assert residency.swap([C]) is None
    assert not residency.resident(A)
    residency.arrived(swap, Arrival(swap.moves))
    assert residency.resident(A)


# other sides


def test_what_is_in_is_taken_over_and_what_nobody_wants_leaves_first():
    old = Residency(MASKS, {"decoder": [6]})
    bring(old, A)
    bring(old, C)
    before = old.experts("decoder", 0)
    new = Residency({A: ((1, 2, 8),), B: ((5, 9, 10),)}, {"decoder": [6]})
    new.take_over(old)
    assert new.experts("decoder", 0) == before
    assert new.missing([A]) == 1
    swap = new.swap([A])
    assert [(move.expert, move.leaves) for move in swap.moves] == [(8, 0)]  # 6 and 7 are as good
    new.arrived(swap, Arrival(swap.moves))
    new.touch([A])
    assert [move.leaves for move in new.swap([B]).moves] == [6, 7]


mask = st.lists(st.integers(0, EXPERTS - 1), min_size=2, max_size=5, unique=True).map(lambda ids: tuple(sorted(ids)))
sides = st.lists(st.tuples(mask, mask), min_size=2, max_size=6)


@settings(max_examples=200, deadline=None)
@given(sides, st.data())
def test_any_sequence_of_swaps(masks, data):
    """A side that was brought in is in; slots and experts are one to one; moves say what is in their slots."""
    named = {("decoder", str(n)): each for n, each in enumerate(masks)}
    room = data.draw(st.integers(5, EXPERTS))
    residency, held = Residency(named, {"decoder": [room, room]}), {}
    for _ in range(data.draw(st.integers(1, 12))):
        side = data.draw(st.sampled_from(sorted(named)))
        staying = data.draw(st.lists(st.sampled_from(sorted(named)), max_size=2))
        before = {each for each in staying if residency.resident(each)}
        swap = residency.swap([side], staying=staying)
        if swap is None:
            assert not residency.fits([side, *staying])
            continue
        came = swap.moves[: data.draw(st.integers(0, len(swap.moves)))] if data.draw(st.booleans()) else swap.moves
        for move in swap.moves:
            assert held.get((move.layer, move.slot)) == move.leaves
            held.pop((move.layer, move.slot), None)
        held |= {(move.layer, move.slot): move.expert for move in came}
        residency.arrived(swap, Arrival(came))
        residency.touch([side])
        assert residency.resident(side) == (len(came) == len(swap.moves))
        assert all(map(residency.resident, before))
        for layer in range(2):
            there = residency.experts("decoder", layer)
            assert there == {expert: slot for (at, slot), expert in held.items() if at == layer}
            assert len(set(there.values())) == len(there) <= room


@settings(max_examples=100, deadline=None)
@given(sides, sides, st.data())
def test_any_sides_take_over_what_any_others_left(before, after, data):
    old = Residency({("decoder", str(n)): each for n, each in enumerate(before)}, {"decoder": [6, 6]})
    for side in data.draw(st.lists(st.sampled_from(sorted(old.sides)), max_size=5)):
        bring(old, side)
    there = [old.experts("decoder", layer) for layer in range(2)]
    new = Residency({("decoder", str(n)): each for n, each in enumerate(after)}, {"decoder": [6, 6]})
    new.take_over(old)
    assert [new.experts("decoder", layer) for layer in range(2)] == there
    for side in data.draw(st.lists(st.sampled_from(sorted(new.sides)), max_size=5)):
        wanted = after[int(side[1])]
        missing = sum(len({*wanted[layer]} - {*new.experts("decoder", layer)}) for layer in range(2))
        assert new.missing([side]) == missing
        assert len(bring(new, side)) == missing
        assert new.resident(side)
