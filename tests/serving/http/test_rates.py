"""Rates, on a clock that is moved by hand."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.serving.http.rates import Rates

GAPS = st.lists(st.floats(0, 30) | st.just(0.0), min_size=1, max_size=60)


class Clock:
    def __init__(self, start=1e6):
        self.seconds = start

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


def test_a_burst_then_the_rate(clock):
    rates = Rates(60, 3, clock)
    assert [rates.take("a") for _ in range(3)] == [0, 0, 0]
    assert rates.take("a") == pytest.approx(1)
    clock.seconds += 0.4
    assert rates.take("a") == pytest.approx(0.6)
    clock.seconds += 0.6
    assert rates.take("a") == 0
    assert rates.take("a") == pytest.approx(1)
    clock.seconds += 1000
    assert [rates.take("a") for _ in range(4)] == [0, 0, 0, pytest.approx(1)]


def test_a_burst_is_a_minute_by_default(clock):
    rates = Rates(10, now=clock)
    assert [rates.take("a") for _ in range(11)] == [0] * 10 + [pytest.approx(6)]
    assert [rates.take("b", per_minute=20) for _ in range(21)] == [0] * 20 + [pytest.approx(3)]


def test_clients_do_not_share(clock):
    rates = Rates(1, now=clock)
    assert [rates.take(who) for who in "abc"] == [0, 0, 0]
    assert all(rates.take(who) == pytest.approx(60) for who in "abc")


def test_a_cost_beyond_the_burst_is_owed(clock):
    rates = Rates(60, 10, clock)
    assert rates.take("a", 1) == 0
    assert rates.take("a", 100) == pytest.approx(1)
    clock.seconds += 1
    assert rates.take("a", 100) == 0
    assert rates.take("a", 1) == pytest.approx(91)
    assert rates.take("a", 0) == pytest.approx(90)


@given(GAPS, st.integers(1, 100), st.integers(1, 20), st.data())
def test_no_window_lets_through_more_than_burst_and_rate(gaps, rate, burst, data):
    clock = Clock()
    rates = Rates(rate, burst, clock)
    taken = []
    for gap in gaps:
        clock.seconds += gap
        cost = data.draw(st.integers(1, burst))
        if rates.take("a", cost) == 0:
            taken.append((clock.seconds, cost))
    for first in range(len(taken)):
        through = 0
        for seconds, cost in taken[first:]:
            through += cost
            assert through <= burst + rate / 60 * (seconds - taken[first][0]) + 1e-3


@given(GAPS, st.integers(1, 600), st.integers(1, 20))
def test_nobody_is_refused_under_the_rate(gaps, rate, burst):
    clock = Clock()
    rates = Rates(rate, burst, clock)
    for gap in gaps:
        clock.seconds += 60 / rate + gap
        assert rates.take("a") == 0


@given(GAPS, st.integers(1, 600), st.integers(1, 20))
def test_who_waits_as_told_gets_in_and_not_much_sooner(gaps, rate, burst):
    clock = Clock()
    rates = Rates(rate, burst, clock)
    for gap in gaps:
        clock.seconds += gap
        wait = rates.take("a")
        if wait > 1e-3:
            clock.seconds += wait - 1e-3
            assert rates.take("a") > 0
            clock.seconds += 1e-3
            assert rates.take("a") == 0


def test_full_buckets_are_forgotten(clock):
    rates = Rates(60, 1, clock)
    for number in range(1000):
        rates.take(str(number))
        clock.seconds += 1
    assert len(rates) == 1


def test_no_more_clients_are_kept_than_agreed_and_those_who_owe_most_stay(clock):
    rates = Rates(1, 1, clock, clients=100)
    rates.take("greedy", 1000)
    for number in range(10_000):
        rates.take(str(number))
        assert len(rates) <= 100
    assert rates.take("greedy") > 0
    assert rates.take("9999") > 0


def test_time_does_not_grow_with_clients(clock):
    rates = Rates(1, 1, clock, clients=50_000)
    started = time.process_time()
    for number in range(100_000):
        rates.take(str(number))
        clock.seconds += 1e-6
    assert time.process_time() - started < 5


@pytest.mark.parametrize("wrong", [{"per_minute": 0}, {"per_minute": 1, "burst": 0}, {"per_minute": 1, "clients": 0}])
def test_wrong_numbers(wrong):
    with pytest.raises(UsageError, match="must be 1 or more, but is 0"):
        Rates(**wrong)


@pytest.mark.parametrize("wrong", [{"cost": -1}, {"cost": float("nan")}, {"cost": float("inf")}, {"per_minute": 0}])
def test_wrong_taking(wrong):
    with pytest.raises(UsageError, match="`per_minute` must be 1 or more and `cost` 0 or more"):
        Rates(1).take("a", **wrong)
