"""`Planner`: the orders in which masks take their experts, and the counts of other totals."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.planning import plan
from nllb_prune.planning.planner import Planner
from nllb_prune.planning.scopes import SCOPES
from nllb_prune.planning.settings import Settings, settings_of


@pytest.fixture(scope="module")
def by_seed(make_statistics):
    return [make_statistics(seed=seed) for seed in range(3)]


@st.composite
def asked(draw):
    scope = draw(st.sampled_from(sorted(SCOPES)))
    return {
        "scope": scope,
        "criterion": draw(st.sampled_from(["importance", "top2", "routing_mass"])),
        "reverse": draw(st.booleans()) if not SCOPES[scope].mass else False,
        "granularity": draw(st.sampled_from(["language", "pair", "global"])),
        "ratio": draw(st.sampled_from([None, "3:1", "1:1", "1:5"])),
        "minimum": draw(st.integers(2, 4)),
        "protect_end": draw(st.integers(0, 3)),
        "reference": "bbb",
        "aggregation": draw(st.sampled_from(["pooled", "mean-of-directions"])),
    }


def first_of(order, counts):
    return tuple(tuple(sorted(ids[:count])) for ids, count in zip(order, counts, strict=True))


def counts_in(masks):
    return {(stack, key): tuple(map(len, mask)) for stack, each in masks.masks.items() for key, mask in each.items()}


def check_orders(planner, masks, experts=8):
    orders = planner.orders()
    assert orders.keys() == counts_in(masks).keys() == planner.counts.keys()
    for (stack, key), order in orders.items():
        assert masks.masks[stack][key] == first_of(order, planner.counts[stack, key])
        assert all(len(set(ids)) == len(ids) and set(ids) <= set(range(experts)) for ids in order)
    return orders


@given(asked(), st.integers(0, 2), st.integers(16, 32))
def test_masks_keep_the_first_of_each_order(by_seed, options, seed, kept):
    planner = Planner(by_seed[seed], Settings(kept=kept, **options))
    masks = planner.masks()
    assert masks.masks == plan(by_seed[seed], kept=kept, **options).masks
    orders = check_orders(planner, masks)
    assert all(sorted(ids) == list(range(8)) for order in orders.values() for ids in order)


@given(asked(), st.integers(0, 2), st.integers(16, 32), st.integers(0, 16))
def test_orders_have_only_what_other_masks_keep(by_seed, options, seed, kept, more):
    wide = plan(by_seed[seed], kept=min(kept + more, 32), **options)
    planner = Planner(by_seed[seed], Settings(kept=kept, within=wide, **options))
    for (stack, key), order in check_orders(planner, planner.masks()).items():
        assert [set(ids) for ids in order] == [set(ids) for ids in wide.masks[stack][key]]


@given(asked(), st.integers(0, 2), st.integers(16, 32), st.data())
def test_other_counts_select_the_first_of_each_order(by_seed, options, seed, kept, data):
    planner = Planner(by_seed[seed], Settings(kept=kept, **options))
    counts = {place: tuple(data.draw(st.integers(2, 8)) for _ in range(2)) for place in planner.counts}
    masks = planner.masks(counts)
    assert counts_in(masks) == counts
    for (stack, key), order in planner.orders().items():
        assert masks.masks[stack][key] == first_of(order, counts[stack, key])
    told = masks.plan["counts"]
    for stack, key in counts:
        own = told[stack] if isinstance(told[stack], list) else told[stack][key]
        assert own == list(counts[stack, key])


@given(asked(), st.integers(0, 2), st.integers(16, 32), st.data())
def test_counts_of_totals(by_seed, options, seed, kept, data):
    planner = Planner(by_seed[seed], Settings(kept=kept, **options))
    assert planner.minimum == options["minimum"]
    assert planner.counts_of({place: sum(each) for place, each in planner.counts.items()}) == planner.counts
    small = {place: data.draw(st.integers(2 * planner.minimum, 16)) for place in planner.counts}
    large = {place: data.draw(st.integers(total, 16)) for place, total in small.items()}
    few, many = planner.counts_of(small), planner.counts_of(large)
    assert {place: sum(each) for place, each in few.items()} == small
    assert {place: sum(each) for place, each in many.items()} == large
    for place, counts in few.items():
        assert all(planner.minimum <= a <= b <= 8 for a, b in zip(counts, many[place], strict=True))
    assert counts_in(planner.masks(few)) == few


def test_counts_that_others_leave_no_experts_for_are_refused(by_seed):
    within = plan(by_seed[0], kept=16)
    planner = Planner(by_seed[0], Settings(kept=16, within=within))
    counts = {**planner.counts, ("decoder", "bbb"): (2, 3)}
    message = "^`within` must keep 3 or more experts in layer 1 of decoder/bbb for this budget, but keeps 2 instead.$"
    with pytest.raises(UsageError, match=message):
        planner.masks(counts)


def test_languages_of_a_union_that_has_one_budget_share_an_order(by_seed):
    planner = Planner(by_seed[0], Settings(kept=16, granularity="union", budget_for="union"))
    masks, orders = planner.masks(), planner.orders()
    assert set(orders) == {("encoder", "+"), ("decoder", "+")}
    for (stack, key), order in orders.items():
        assert set(masks.masks[stack].values()) == {first_of(order, planner.counts[stack, key])}


def test_settings_of_the_arguments_of_a_plan():
    options = {"kept": 0.25, "languages": iter(["bbb", "aaa", "bbb"]), "overrides": None, "scope": "ranking"}
    assert settings_of(options) == Settings(kept=0.25, languages=("bbb", "aaa"), scope="ranking")
    assert settings_of({}) == Settings()
    overrides = {"aaa": {"decoder": 4}}
    assert settings_of({"overrides": overrides}).overrides == overrides
