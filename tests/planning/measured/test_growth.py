"""Growth: which experts a mask gets next."""

from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.planning.measured.growth import grown

ORDER = [[5, 3, 1, 7, 0, 2, 4, 6], [0, 1, 2, 3, 4, 5, 6, 7]]
BASE = ((3, 5), (0, 1))


def test_the_next_in_the_order_even_layers_in_turn():
    found = [grown(BASE, ORDER, number, base=BASE) for number in range(5)]
    assert found == [
        BASE,
        ((1, 3, 5), (0, 1)),
        ((1, 3, 5), (0, 1, 2)),
        ((1, 3, 5, 7), (0, 1, 2)),
        ((1, 3, 5, 7), (0, 1, 2, 3)),
    ]


@pytest.mark.parametrize(
    ("kept", "number", "expected"),
    [
        ((6, 2), 4, (9, 3)),
        ((6, 2), 8, (12, 4)),
        ((2, 6), 4, (3, 9)),
        ((4, 4), 3, (6, 5)),
        ((1, 3), 4, (2, 6)),
        ((6, 2), 1, (7, 2)),
        ((6, 2), 2, (8, 2)),  # 2.5 of 2 against 7.5 of 6: the tie goes to the first
        ((6, 2), 3, (8, 3)),
    ],
)
def test_layers_grow_in_proportion(kept, number, expected):
    order = [list(range(16))] * 2
    base = tuple(tuple(range(count)) for count in kept)
    assert grown(base, order, number, base=base) == tuple(tuple(range(count)) for count in expected)


def test_proportion_is_that_of_the_base_not_of_what_has_grown():
    order = [list(range(16))] * 2
    base, uneven = ((0, 1, 2, 3), (0, 1)), ((0, 1, 2, 3), (0, 1, 2, 3))
    assert [len(ids) for ids in grown(uneven, order, 4, base=base)] == [8, 4]


def test_a_full_layer_leaves_the_rest_to_others():
    order = [[0, 1, 2], [0, 1, 2, 3, 4]]
    base = ((0, 1), (0, 1))
    assert grown(base, order, 4, base=base) == ((0, 1, 2), (0, 1, 2, 3, 4))


def test_no_more_than_there_are():
    assert grown(BASE, ORDER, 99, base=BASE) == (tuple(range(8)),) * 2
    narrow = [[5, 3, 1], [0, 1]]
    assert grown(BASE, narrow, 99, base=BASE) == ((1, 3, 5), (0, 1))
    assert grown(BASE, [[5, 3], [0, 1]], 99, base=BASE) == BASE


def test_experts_out_of_order_stay():
    assert grown(((4, 6), (0, 7)), ORDER, 2, base=BASE) == ((4, 5, 6), (0, 1, 7))


orders = st.lists(st.permutations(range(10)), min_size=1, max_size=4)


@given(orders, st.data())
def test_grown_in_steps_as_at_once_and_in_proportion(order, data):
    counts = [data.draw(st.integers(1, 5)) for _ in order]
    base = tuple(tuple(sorted(ids[:count])) for ids, count in zip(order, counts, strict=True))
    numbers = data.draw(st.lists(st.integers(0, 8), max_size=4))
    mask = base
    for number in numbers:
        wider = grown(mask, order, number, base=base)
        assert all(set(old) <= set(new) for old, new in zip(mask, wider, strict=True))
        mask = wider
    assert mask == grown(base, order, sum(numbers), base=base)
    sizes = [len(ids) for ids in mask]
    assert sum(sizes) == min(sum(counts) + sum(numbers), 10 * len(order))
    assert mask == tuple(tuple(sorted(ids[:size])) for ids, size in zip(order, sizes, strict=True))
    got = [(size, count) for size, count in zip(sizes, counts, strict=True) if size > count]
    for size, count in got:  # no layer had its last expert before another, not full, was due one
        last = Fraction(2 * size - 1, 2 * count)
        waiting = [Fraction(2 * s + 1, 2 * c) for s, c in zip(sizes, counts, strict=True) if s < 10]
        assert all(last <= due for due in waiting)
