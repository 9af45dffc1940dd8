"""Automatic layers: three layers of 32 experts in each stack, 30 kept in each mask to start with."""

import math
import random
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.model.spec import Stack
from nllb_prune.planning.measured.layers import ROUNDS, Limits, most_measures, share_layers

STACKS = (Stack("encoder", "source", (1, 3, 5), 32), Stack("decoder", "target", (1, 3, 5), 32))
CODES = ("aaa", "bbb", "ccc")
PLACES = [(stack.name, key) for stack in STACKS for key in CODES]
EVEN = dict.fromkeys(PLACES, (10, 10, 10))
WIDE = dict.fromkeys(PLACES, Limits(2, (32, 32, 32)))


def counts_in(masks):
    return {(stack, key): tuple(map(len, mask)) for stack, each in masks.masks.items() for key, mask in each.items()}


def cost(parts, counts):
    """Sum over layers of a * exp(-b * k)."""
    return sum(a * math.exp(-b * kept) for (a, b), kept in zip(parts, counts, strict=True))


def best_cost(parts, total, *, least=2, most=32):
    """Give each expert in turn to the layer where it saves most: the best there is, as savings only fall."""
    counts = [least] * len(parts)
    for _ in range(total - sum(counts)):
        saved = [
            a * math.exp(-b * kept) * (1 - math.exp(-b)) if kept < most else -1.0
            for (a, b), kept in zip(parts, counts, strict=True)
        ]
        counts[saved.index(max(saved))] += 1
    return cost(parts, counts)


@pytest.fixture(scope="module")
def separable(fake_measure):
    """Makes a measure whose loss is the sum of what all layers of both masks cost; layers by stack, or by mask."""

    def make(parts):
        def loss(masks, direction):
            found = 0.0
            for stack in masks.stacks:
                key = masks.key(stack.name, *direction)
                own = parts.get((stack.name, key), parts.get(stack.name))
                found += cost(own, map(len, masks.mask(stack.name, *direction)))
            return found

        return fake_measure(loss)

    return make


@pytest.fixture(scope="module")
def select(of_counts):
    return lambda counts: of_counts(counts, stacks=STACKS)


FLAT = ((0.2, 0.1), (0.2, 0.1), (0.2, 0.1))
STEEP = ((1.0, 0.1), (0.2, 0.1), (0.05, 0.1))


def test_experts_go_where_they_save_most(select, separable):
    measure = separable({"encoder": STEEP, "decoder": FLAT})
    masks, found = share_layers(EVEN, select, measure, limits=WIDE)
    counts = counts_in(masks)
    first, second, third = counts["encoder", "aaa"]
    assert first > 15 > second > third
    assert {counts[place] for place in PLACES if place[0] == "decoder"} == {(10, 10, 10)}
    assert {sum(each) for each in counts.values()} == {30}
    reached, best, start = (cost(STEEP, (first, second, third)), best_cost(STEEP, 30), cost(STEEP, (10, 10, 10)))
    assert reached - best <= 0.02 * (start - best)
    assert found["chosen"] == {
        "counts": {"encoder": [first, second, third], "decoder": [10.0] * 3},
        "loss_change": pytest.approx(reached + cost(FLAT, (10, 10, 10)), 1e-5),
    }


def test_each_layer_in_turn_has_half_fewer_and_half_more(select, separable):
    measure = separable({"encoder": FLAT, "decoder": FLAT})
    _, found = share_layers(EVEN, select, measure, limits=WIDE)
    asked = [counts_in(masks) for _, masks, _ in measure.asked]
    assert asked[0] == EVEN
    for n, (stack, layer) in enumerate((stack.name, layer) for stack in STACKS for layer in range(3)):
        for sign, changed in zip((-1, 1), asked[1 + 2 * n : 3 + 2 * n], strict=True):
            moved = tuple(10 + sign * 5 * (each == layer) for each in range(3))
            assert changed == {place: moved if place[0] == stack else (10, 10, 10) for place in PLACES}
    assert asked[13:] == [EVEN]
    assert found["measures"] == len(measure.asked) == 14
    rise, fall = (0.2 * (math.exp(-1.0 + change) - math.exp(-1.0)) for change in (0.5, -0.5))
    (told,) = found["rounds"]
    assert told["marginal"] == {
        stack.name: [{"fewer": pytest.approx(rise, 1e-4), "more": pytest.approx(fall, 1e-4)}] * 3 for stack in STACKS
    }
    assert told["counts"] == {"encoder": [10.0] * 3, "decoder": [10.0] * 3}
    assert told["before"] == told["after"] == pytest.approx(1.2 * math.exp(-1), 1e-5)


def test_no_layer_goes_beyond_what_was_measured_in_a_round(select, separable):
    measure = separable({"encoder": ((9.0, 0.2), (0.01, 0.2), (0.01, 0.2)), "decoder": FLAT})
    masks, found = share_layers(EVEN, select, measure, limits=WIDE)
    encoder = [each["counts"]["encoder"] for each in found["rounds"]]
    assert encoder[:2] == [[10.0, 10.0, 10.0], [15.0, 8.0, 7.0]]
    assert encoder[2][0] == 22.0
    assert len(encoder) == ROUNDS
    assert counts_in(masks)["encoder", "aaa"][0] > 22


def test_one_round_where_no_layer_comes_to_the_end_of_its_range(select, separable):
    nearly = ((0.2, 0.1), (0.21, 0.1), (0.19, 0.1))
    _, found = share_layers(EVEN, select, separable({"encoder": nearly, "decoder": nearly}), limits=WIDE)
    assert len(found["rounds"]) == 1


def test_limits_hold_in_everything_that_is_measured(select, separable):
    limits = {place: Limits(9, (11, 32, 32)) if place[1] == "bbb" else Limits(2, (32, 32, 32)) for place in PLACES}
    measure = separable({"encoder": STEEP, "decoder": STEEP})
    masks, _ = share_layers(EVEN, select, measure, limits=limits)
    for asked in [masks, *(each for _, each, _ in measure.asked)]:
        for place, counts in counts_in(asked).items():
            assert min(counts) >= limits[place].least
            assert all(count <= most for count, most in zip(counts, limits[place].most, strict=True))
    assert counts_in(masks)["encoder", "bbb"] == (11, 10, 9)


def test_a_layer_that_cannot_move_stays(select, separable):
    limits = dict.fromkeys(PLACES, Limits(10, (10, 10, 10)))
    masks, found = share_layers(EVEN, select, separable({"encoder": STEEP, "decoder": FLAT}), limits=limits)
    assert counts_in(masks) == EVEN
    assert len(found["rounds"]) == 1


def test_a_worse_result_is_not_kept(select, fake_measure):
    def loss(masks, direction):
        """Alone, a change of a layer says that the first saves; two at once only harm."""
        first, second, third = map(len, masks.mask("encoder", *direction))
        changed = sum(each != 10 for each in (first, second, third))
        return 1.0 if changed > 1 else 0.5 - 0.01 * first - 0.001 * (second + third)

    masks, found = share_layers(EVEN, select, fake_measure(loss), limits=WIDE)
    assert counts_in(masks) == EVEN
    (told,) = found["rounds"]
    assert told["after"] == 1.0
    assert found["chosen"]["loss_change"] == told["before"] == pytest.approx(0.38)
    assert found["chosen"]["counts"]["encoder"] == [10.0, 10.0, 10.0]


def test_what_more_experts_seem_to_save_more_than_fewer_cost_is_flat(select, fake_measure):
    # losses of 5, 10 and 15 experts: 0.02 and 0.06 an expert, which cannot rise; 0.05 and 0.03; and hardly anything
    tables = ({5: 0.1, 10: 0.0, 15: -0.3}, {5: 0.25, 10: 0.0, 15: -0.15}, {5: 0.005, 10: 0.0, 15: -0.005})

    def loss(masks, direction):
        kept = map(len, masks.mask("encoder", *direction))
        return sum(table.get(count, 0.0) for table, count in zip(tables, kept, strict=True))

    measure = fake_measure(loss)
    share_layers(EVEN, select, measure, limits=WIDE)
    # 0.04 each in the first, and five of the second save more than that
    assert counts_in(measure.asked[13][1])["encoder", "aaa"] == (15, 10, 5)


BY_LANGUAGE = {
    **{("encoder", key): FLAT for key in CODES},
    "decoder": FLAT,
    ("encoder", "aaa"): STEEP,
    ("encoder", "bbb"): STEEP[::-1],
}


def test_every_language_its_own_way(select, separable):
    together, _ = share_layers(EVEN, select, separable(BY_LANGUAGE), limits=WIDE)
    assert len({counts_in(together)["encoder", key] for key in CODES}) == 1
    apart, found = share_layers(EVEN, select, separable(BY_LANGUAGE), limits=WIDE, by_language=True)
    counts = counts_in(apart)
    assert counts["encoder", "aaa"] == counts["encoder", "bbb"][::-1]
    assert counts["encoder", "aaa"][0] > 15
    assert {counts[place] for place in [*PLACES[2:]] if place != ("encoder", "bbb")} == {(10, 10, 10)}
    start, best = cost(STEEP, (10, 10, 10)), best_cost(STEEP, 30)
    assert cost(STEEP, counts["encoder", "aaa"]) - best <= 0.02 * (start - best)
    chosen = found["chosen"]["counts"]["encoder"]
    assert chosen[0] == pytest.approx(sum(counts["encoder", key][0] for key in CODES) / 3, 1e-5)


def test_masks_that_no_direction_measures_go_with_the_mean(select, fake_measure):
    def loss(masks, direction):
        return cost(STEEP, map(len, masks.mask("encoder", *direction)))

    directions = [("aaa", "bbb"), ("bbb", "aaa")]
    masks, _ = share_layers(EVEN, select, fake_measure(loss, directions=directions), limits=WIDE, by_language=True)
    counts = counts_in(masks)
    assert counts["encoder", "ccc"] == counts["encoder", "aaa"] != (10, 10, 10)


def test_masks_of_different_sizes_keep_theirs(select, separable):
    start = {place: {"aaa": (4, 4, 4), "bbb": (12, 10, 8), "ccc": (20, 30, 25)}[place[1]] for place in PLACES}
    masks, _ = share_layers(start, select, separable({"encoder": STEEP, "decoder": STEEP}), limits=WIDE)
    assert {place: sum(each) for place, each in counts_in(masks).items()} == {
        place: sum(each) for place, each in start.items()
    }


@pytest.mark.parametrize(("layers", "most"), [(1, 10), (6, 40), (12, 76)])
def test_most_measures(layers, most):
    assert most_measures(layers) == most


parts = st.lists(st.tuples(st.floats(0.01, 3), st.floats(0.02, 0.3)), min_size=3, max_size=3)


@settings(max_examples=60, deadline=None)
@given(encoder=parts, decoder=parts, start=st.tuples(*[st.integers(10, 14)] * 3))
def test_close_to_the_best_and_never_worse(select, separable, encoder, decoder, start):
    measure = separable({"encoder": encoder, "decoder": decoder})
    masks, found = share_layers(dict.fromkeys(PLACES, start), select, measure, limits=WIDE)
    counts = counts_in(masks)
    assert all(sum(each) == sum(start) for each in counts.values())
    assert found["measures"] == len(measure.asked) <= most_measures(6)
    both = [(encoder, counts["encoder", "aaa"]), (decoder, counts["decoder", "bbb"])]
    reached, before, best = (
        sum(cost(own, kept) for own, kept in both),
        sum(cost(own, start) for own, _ in both),
        sum(best_cost(own, sum(start)) for own, _ in both),
    )
    assert reached <= before + 1e-12
    assert reached - best <= 0.35 * (before - best) + 0.03 * best  # sizes are whole, and rounds few


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    by_language=st.booleans(),
    least=st.integers(1, 8),
    start=st.lists(st.tuples(*[st.integers(8, 24)] * 3), min_size=6, max_size=6),
    most=st.integers(24, 32),
)
def test_noise_breaks_nothing(select, fake_measure, seed, by_language, least, start, most):
    def noise(masks, direction):
        return random.Random(f"{seed}/{direction}/{masks.direction(*direction)}").uniform(-1, 1)

    counts = dict(zip(PLACES, start, strict=True))
    limits = dict.fromkeys(PLACES, Limits(max(2, least), (most,) * 3))

    def run():
        measure = fake_measure(noise)
        return measure, share_layers(counts, select, measure, limits=limits, by_language=by_language)

    measure, (masks, found) = run()
    for asked in [masks, *(each for _, each, _ in measure.asked)]:
        assert all(max(2, least) <= count <= most for each in counts_in(asked).values() for count in each)
    assert {place: sum(each) for place, each in counts_in(masks).items()} == {p: sum(c) for p, c in counts.items()}
    before, after = (
        sum(noise(each, direction) for direction in measure.directions) / 6 for each in (select(counts), masks)
    )
    assert after <= before
    assert found["chosen"]["loss_change"] == pytest.approx(after, rel=1e-5, abs=1e-9)
    assert all(later["before"] == earlier["after"] for earlier, later in pairwise(found["rounds"]))
    assert run()[1] == (masks, found)
