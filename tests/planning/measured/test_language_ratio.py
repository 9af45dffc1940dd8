"""A ratio for each language: 64 experts over its encoder and its decoder mask."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack
from nllb_prune.planning.measured.language_ratio import MEASURES, search_language_ratios

CODES = ("aaa", "bbb", "ccc")
GRID = (4, 8, 20, 32, 44, 56)  # experts of the encoder at the shares that are measured, 4 the fewest
ALL = 64


def sizes(masks):
    return {(stack, key): sum(map(len, mask)) for stack, each in masks.masks.items() for key, mask in each.items()}


@pytest.fixture(scope="module")
def separable(fake_measure, kept_by):
    """Makes a measure whose loss is the sum of what pruning each of the two masks costs, 0 of all experts."""

    def make(cost, **options):
        def loss(masks, direction):
            kept = {(name, masks.key(name, *direction)): kept_by(masks, name, direction) for name in masks.masks}
            return sum(cost(*place, experts) for place, experts in kept.items() if experts < ALL)

        return fake_measure(loss, **options)

    return make


def exponential(parts):
    return lambda stack, key, experts: parts[stack, key][0] * math.exp(-experts / parts[stack, key][1])


def best_of(cost, key):
    """The best share of a language over all that lie between measured ones."""
    return min(range(4, 57), key=lambda experts: cost("encoder", key, experts) + cost("decoder", key, 64 - experts))


PARTS = {
    ("encoder", "aaa"): (2.0, 12.0),
    ("decoder", "aaa"): (0.5, 8.0),
    ("encoder", "bbb"): (1.0, 10.0),
    ("decoder", "bbb"): (3.0, 20.0),
    ("encoder", "ccc"): (1.0, 9.0),
    ("decoder", "ccc"): (1.0, 9.0),
}


def test_each_language_has_its_own_best_share(plan_with, plan_totals, separable, stacks):
    cost = exponential(PARTS)
    measure = separable(cost)
    masks, found = search_language_ratios(plan_with, plan_totals, measure, stacks)
    best = {key: best_of(cost, key) for key in CODES}
    assert best == {"aaa": 43, "bbb": 19, "ccc": 32}
    assert sizes(masks) == {("encoder", key): each for key, each in best.items()} | {
        ("decoder", key): 64 - each for key, each in best.items()
    }
    assert found["chosen"] == "per_language"
    assert found["languages"] == {
        key: {
            "encoder": each,
            "decoder": 64 - each,
            "expected_loss_change": pytest.approx(cost("encoder", key, each) + cost("decoder", key, 64 - each), 1e-4),
        }
        for key, each in best.items()
    }
    assert found["loss_change"]["per_language"] < found["loss_change"]["shared"]


def test_what_is_measured_and_told(plan_with, plan_totals, separable, stacks):
    cost = exponential(PARTS)
    measure = separable(cost)
    masks, found = search_language_ratios(plan_with, plan_totals, measure, stacks)
    assert len(measure.asked) == found["measures"] == MEASURES == 14
    asked = [sizes(each) for _, each, _ in measure.asked]
    for n, experts in enumerate(GRID):
        first, second = asked[2 * n : 2 * n + 2]
        assert (first["encoder", "aaa"], first["decoder", "aaa"]) == (experts, ALL)
        assert (second["encoder", "aaa"], second["decoder", "aaa"]) == (ALL, 64 - experts)
    assert asked[12]["encoder", "aaa"] == found["shared"]["encoder"]
    assert asked[13] == sizes(masks)
    assert [point["experts"]["encoder"] for point in found["curve"]] == list(GRID)
    for point in found["curve"]:
        for stack, alone in point["alone"].items():
            experts = int(point["experts"][stack])
            assert alone == pytest.approx(sum(cost(stack, key, experts) for key in CODES) / 3, 1e-5)


def test_the_best_share_for_all_has_the_lowest_sum(plan_with, plan_totals, separable, stacks):
    cost = exponential(PARTS)
    _, found = search_language_ratios(plan_with, plan_totals, separable(cost), stacks)
    sums = {e: sum(cost("encoder", key, e) + cost("decoder", key, 64 - e) for key in CODES) for e in GRID}
    best = min(GRID, key=sums.__getitem__)
    assert found["shared"] == {"encoder": best, "decoder": 64 - best}
    assert found["loss_change"]["shared"] == pytest.approx(sums[best] / 3, 1e-5)


@pytest.mark.parametrize("penalty", [1.0, 0.0])
def test_one_share_for_all_where_that_is_better(plan_with, plan_totals, fake_measure, kept_by, stacks, penalty):
    cost = exponential(PARTS)

    def loss(masks, direction):
        kept = {name: kept_by(masks, name, direction) for name in masks.masks}
        own = sum(cost(n, masks.key(n, *direction), experts) for n, experts in kept.items() if experts < ALL)
        return own + penalty * (ALL not in kept.values() and sum(kept.values()) != 64)

    masks, found = search_language_ratios(plan_with, plan_totals, fake_measure(loss), stacks)
    assert found["chosen"] == ("shared" if penalty else "per_language")
    if penalty:
        assert {(stack, size) for (stack, _), size in sizes(masks).items()} == set(found["shared"].items())
        assert masks == plan_with(found["shared"])


def test_a_tie_keeps_the_share_for_all(plan_with, plan_totals, separable, stacks):
    masks, found = search_language_ratios(plan_with, plan_totals, separable(lambda *_: 0.25), stacks)
    assert found["chosen"] == "shared"
    assert found["loss_change"]["per_language"] == found["loss_change"]["shared"] == 0.5
    assert sizes(masks)["encoder", "aaa"] == GRID[0]


def test_only_languages_on_both_sides_share(of_counts, plan_totals, separable, stacks):
    places = [("encoder", "aaa"), ("encoder", "bbb"), ("encoder", "ccc"), ("decoder", "aaa"), ("decoder", "bbb")]

    def plan(weights):
        experts = min(max(round(64 * weights["encoder"]), 4), 60)
        return plan_totals({place: experts if place[0] == "encoder" else 64 - experts for place in places})

    cost = exponential(PARTS)
    directions = [("aaa", "bbb"), ("bbb", "aaa"), ("ccc", "aaa")]
    masks, found = search_language_ratios(plan, plan_totals, separable(cost, directions=directions), stacks)
    assert set(found["languages"]) == {"aaa", "bbb"}
    assert sizes(masks)["encoder", "ccc"] == found["shared"]["encoder"]
    assert sizes(masks)["encoder", "aaa"] == best_of(cost, "aaa")


def between(points, experts):
    """Straight lines between the logarithms of measured losses."""
    low = max(each for each in points if each <= experts)
    high = min(each for each in points if each >= experts)
    share = 0.0 if low == high else (experts - low) / (high - low)
    return points[low] ** (1 - share) * points[high] ** share


def test_a_loss_that_rises_with_experts_is_taken_as_flat(plan_with, plan_totals, separable, stacks):
    encoder = {4: 0.5, 8: 0.1, 20: 0.3, 32: 0.01, 44: 0.02, 56: 0.01}
    decoder = {60: 0.01, 56: 0.01, 44: 0.012, 32: 0.2, 20: 0.4, 8: 0.8}
    measured = {"encoder": encoder, "decoder": decoder}
    measure = separable(lambda stack, key, experts: measured[stack].get(experts, 1.0))
    _, found = search_language_ratios(plan_with, plan_totals, measure, stacks)
    flat = {**encoder, 20: 0.1, 44: 0.01}
    best = min(range(4, 57), key=lambda experts: between(flat, experts) + between(decoder, 64 - experts))
    assert best == 25
    assert {key: each["encoder"] for key, each in found["languages"].items()} == dict.fromkeys(CODES, best)


scales = st.floats(8, 25)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(0.1, 3), scales), min_size=6, max_size=6), st.booleans())
def test_totals_of_a_language_are_the_budget(plan_with, plan_totals, separable, stacks, drawn, powers):
    parts = dict(zip(PARTS, drawn, strict=True))

    def power(stack, key, experts):
        return parts[stack, key][0] * (4 / experts) ** (parts[stack, key][1] / 8)

    cost = power if powers else exponential(parts)
    masks, found = search_language_ratios(plan_with, plan_totals, separable(cost), stacks)
    kept = sizes(masks)
    assert all(kept["encoder", key] + kept["decoder", key] == 64 for key in CODES)
    assert found["loss_change"][found["chosen"]] == min(found["loss_change"].values())
    for key in CODES:
        own, best = (
            sum(cost(stack, key, each) for stack, each in (("encoder", experts), ("decoder", 64 - experts)))
            for experts in (found["languages"][key]["encoder"], best_of(cost, key))
        )
        assert own <= best * (1.15 if powers else 1.0 + 1e-9)  # powers are no exponentials between measured ones


def test_one_stack_has_nothing_to_share_with(fake_measure):
    only = (Stack("decoder", "direction", (0, 1), 32),)
    with pytest.raises(UsageError, match=r"^`ratio` must be left out for a model with the sparse stack decoder alone"):
        search_language_ratios(
            lambda _: pytest.fail("planned"), lambda _: pytest.fail("planned"), fake_measure(lambda *_: 0.0), only
        )
