"""The reserve: what it is read from, and what is left of it."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.planning.measured import AskedReserve, Reserve, parse_reserve

A, B, X, Y = ("encoder", "a"), ("encoder", "b"), ("decoder", "x"), ("decoder", "y")


@pytest.mark.parametrize(
    ("text", "amount", "in_bytes"),
    [
        ("24", 24, False),
        (" 24 ", 24, False),
        ("0", 0, False),
        ("25%", 0.25, False),
        ("12.5%", 0.125, False),
        ("0%", 0.0, False),
        ("150%", 1.5, False),
        ("0.25", 0.25, False),
        ("0.0", 0.0, False),
        (".5", 0.5, False),
        ("2GB", 2 * 10**9, True),
        ("2 GB", 2 * 10**9, True),
        ("1.5GiB", 3 * 2**29, True),
        ("800MiB", 800 * 2**20, True),
        ("64k", 64_000, True),
        ("100B", 100, True),
    ],
)
def test_texts(text, amount, in_bytes):
    found = parse_reserve(text)
    assert found == AskedReserve(amount, in_bytes=in_bytes)
    assert type(found.amount) is type(amount)  # a number of experts and a share are told apart by it


@pytest.mark.parametrize(
    "text",
    [
        "", "%", "some", "25%%", "1:2", "24 experts", "GB", "2GX", "-2GB", "²", "-1", "-25%", "-0.5", "nan", "inf",
        "1e400", "+24", "24.0", "1_000", "1.5",
    ],
)  # fmt: skip
def test_other_texts_are_refused(text):
    with pytest.raises(UsageError) as error:
        parse_reserve(text)
    assert str(error.value) == (
        "`reserve` must be a number of experts (24), a share of those kept (25% or 0.25) or a size (2GB), "
        f"but is {text} instead."
    )


@pytest.mark.parametrize("amount", [-1, -0.1, float("nan"), float("inf"), True, False])
def test_amounts_that_are_none(amount):
    with pytest.raises(UsageError, match=f"^`reserve` must be 0 or more, but is {amount} instead.$"):
        AskedReserve(amount)


def test_the_mask_that_spent_most_says_what_is_left():
    reserve = Reserve(limit=10, cost={"encoder": 1, "decoder": 1})
    assert reserve.affordable(A, [[X, Y]]) == 10
    reserve.spend(X, 4)
    assert reserve.affordable(A, [[X, Y]]) == 6
    assert reserve.affordable(A, [[Y]]) == 10
    reserve.spend(A, 5)
    assert reserve.affordable(A, [[X, Y]]) == 1
    assert reserve.affordable(Y, [[A, B]]) == 5
    assert reserve.affordable(X, [[A]]) == 1
    reserve.spend(A, 1)
    assert reserve.affordable(X, [[A]]) == 0
    assert reserve.affordable(Y, [[B]]) == 10


def test_other_stacks_add_up():
    reserve = Reserve(limit=10, cost={"encoder": 1, "decoder": 1}, spent={A: 2, X: 3, Y: 1})
    assert reserve.affordable(B, [[A], [X, Y]]) == 5


def test_bytes_by_what_an_expert_of_the_stack_takes():
    reserve = Reserve(limit=100, cost={"encoder": 20, "decoder": 30}, unit="bytes")
    assert [reserve.affordable(A, [[X]]), reserve.affordable(X, [[A]])] == [5, 3]
    reserve.spend(X, 1)
    assert [reserve.affordable(A, [[X]]), reserve.affordable(X, [[A]])] == [3, 2]
    reserve.spend(A, 3)
    assert [reserve.affordable(A, [[X]]), reserve.affordable(X, [[A]])] == [0, 0]


def test_an_overspent_reserve_has_nothing_left():
    reserve = Reserve(limit=3, cost={"encoder": 1, "decoder": 1})
    reserve.spend(A, 5)
    assert reserve.affordable(X, [[A]]) == 0


def test_a_mask_of_one_stack_has_what_it_did_not_spend():
    reserve = Reserve(limit=7, cost={"encoder": 2})
    assert reserve.affordable(A, []) == 3
    reserve.spend(A, 2)
    assert reserve.affordable(A, []) == 1


places = st.sampled_from([A, B, X, Y])


@given(st.integers(0, 60), st.integers(1, 9), st.integers(1, 9), st.lists(st.tuples(places, st.integers(1, 5))))
def test_spending_what_is_affordable_never_exceeds_the_limit(limit, encoder, decoder, wishes):
    reserve = Reserve(limit=limit, cost={"encoder": encoder, "decoder": decoder})
    directions = [(source, target) for source in (A, B) for target in (X, Y)]
    for place, wish in wishes:
        others = [X, Y] if place in (A, B) else [A, B]
        number = min(wish, reserve.affordable(place, [others]))
        reserve.spend(place, number)
        spent = [sum(reserve.spent.get(p, 0) * reserve.cost[p[0]] for p in each) for each in directions]
        assert max(spent) <= limit
        if number < wish:  # one more would have been too many
            more = {**reserve.spent, place: reserve.spent.get(place, 0) + 1}
            using = [each for each in directions if place in each]
            assert max(sum(more.get(p, 0) * reserve.cost[p[0]] for p in each) for each in using) > limit
