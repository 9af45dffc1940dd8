import pytest

from nllb_prune.errors import UsageError
from nllb_prune.planning import plan, plan_in_rounds


def sizes(masks):
    return [sum(map(len, mask)) for stack in masks.masks.values() for mask in stack.values()]


def nested(inner, outer):
    return all(
        set(kept) <= set(before)
        for stack, by_key in inner.masks.items()
        for key, mask in by_key.items()
        for kept, before in zip(mask, outer.masks[stack][key], strict=True)
    )


@pytest.fixture
def observing(make_statistics):
    """Other statistics at each round, and the masks they were asked for."""
    asked = []

    def observe(masks):
        asked.append(masks)
        return make_statistics(seed=len(asked)).as_language()

    return asked, observe


def test_each_round_drops_as_many_and_keeps_within_the_one_before(make_statistics, observing):
    asked, observe = observing
    masks = plan_in_rounds(make_statistics().as_language(), observe, rounds=3, kept=14)
    assert [each.kept("aaa", "bbb") for each in asked] == [26, 20]  # from 32, in steps of six
    assert masks.kept("aaa", "bbb") == 14
    assert nested(asked[1], asked[0])
    assert nested(masks, asked[1])
    last = make_statistics(seed=2).as_language()
    assert masks.masks == plan(last, kept=14, within=asked[1]).masks
    assert masks.masks != plan(last, kept=14).masks


def test_one_round_observes_nothing(make_statistics, observing):
    asked, observe = observing
    statistics = make_statistics().as_language()
    masks = plan_in_rounds(statistics, observe, rounds=1, kept=0.5, scope="stack-threshold", minimum=2)
    assert masks.to_text() == plan(statistics, kept=0.5, scope="stack-threshold", minimum=2).to_text()
    assert asked == []


@pytest.mark.parametrize("budget", [{"pruned": 0.5}, {"counts": {"encoder": 6, "decoder": 2}}])
def test_any_budget(make_statistics, observing, budget):
    asked, observe = observing
    statistics = make_statistics().as_language()
    masks = plan_in_rounds(statistics, observe, rounds=2, **budget)
    assert sizes(masks) == sizes(plan(statistics, **budget))
    assert asked[0].kept("aaa", "bbb") == 24


def test_no_round_is_refused(make_statistics):
    with pytest.raises(UsageError, match="`rounds` must be 1 or more, but is 0"):
        plan_in_rounds(make_statistics(), lambda masks: None, rounds=0, kept=16)
