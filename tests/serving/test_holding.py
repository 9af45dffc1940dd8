"""Sentences are held back while they are few, and never for long."""

from nllb_prune.serving.holding import TURNS, Holding


def turns_until_over(coming, in_flight):
    holding, turns = Holding(), 0
    while True:
        turns += 1
        if holding.over(coming, in_flight):
            return turns
        assert turns < 100


def test_nobody_waits_for_nobody():
    assert turns_until_over(1, 0) == 1


def test_as_many_as_those_in_flight_join_at_once():
    assert turns_until_over(10, 10) == 1


def test_few_are_held_back_until_they_lost_as_much_as_the_others_would():
    assert turns_until_over(10, 30) == 3


def test_nobody_is_held_back_for_long():
    assert turns_until_over(1, 128) == TURNS


def test_it_begins_anew_after_a_join_and_when_nobody_could_join():
    holding = Holding()
    assert [holding.over(2, 6) for _ in range(6)] == [False, False, True] * 2
    holding.over(5, 6)
    assert not holding.over(0, 6)
    assert [holding.over(2, 6) for _ in range(3)] == [False, False, True]
