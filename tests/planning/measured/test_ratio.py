"""The automatic ratio: 64 experts over an encoder and a decoder, of which 4 to 60 can be in each."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack
from nllb_prune.planning.measured.ratio import FIRST, MEASURES, search_ratio

STEP = 3  # of 64, the last


def encoder_experts(masks):
    (size,) = {sum(map(len, mask)) for mask in masks.masks["encoder"].values()}
    return size


@pytest.fixture(scope="module")
def by_encoder(fake_measure):
    """Makes a measure whose loss is a function of the experts of the encoder."""

    def make(function):
        return fake_measure(lambda masks, direction: function(sum(map(len, masks.mask("encoder", *direction)))))

    return make


def test_five_shares_then_two_steps_around_the_best(plan_with, by_encoder, stacks):
    measure = by_encoder(lambda experts: abs(experts - 22) / 100)
    masks, found = search_ratio(plan_with, measure, stacks)
    # 8, 20, 32, 44 and 56; 14 and 26 around 20; 17 and 23
    assert [encoder_experts(asked) for _, asked, _ in measure.asked] == [8, 20, 32, 44, 56, 14, 26, 17, 23]
    assert encoder_experts(masks) == 23
    assert found["measures"] == MEASURES == 9
    assert [point["experts"]["encoder"] for point in found["curve"]] == [8, 14, 17, 20, 23, 26, 32, 44, 56]
    assert [point["experts"]["decoder"] for point in found["curve"]] == [56, 50, 47, 44, 41, 38, 32, 20, 8]
    assert [point["loss_change"] for point in found["curve"]] == [0.14, 0.08, 0.05, 0.02, 0.01, 0.04, 0.1, 0.22, 0.34]
    assert found["chosen"] == {"encoder": 23, "decoder": 41}


def test_all_directions_that_have_masks_are_measured(plan_with, by_encoder, fake_measure, stacks):
    directions = [("aaa", "bbb"), ("ddd", "bbb"), ("ccc", "aaa")]
    measure = fake_measure(lambda masks, direction: 1.0 if direction == ("ccc", "aaa") else 0.5, directions=directions)
    _, found = search_ratio(plan_with, measure, stacks)
    assert {asked for _, _, asked in measure.asked} == {(("aaa", "bbb"), ("ccc", "aaa"))}
    assert {point["loss_change"] for point in found["curve"]} == {0.75}
    assert all(point["worst"] == {"direction": "ccc-aaa", "loss_change": 1.0} for point in found["curve"])


slopes = st.floats(1e-3, 10)


@settings(deadline=None)
@given(best=st.integers(0, 64), rise=slopes, fall=slopes, power=st.sampled_from([0.5, 1, 2, 4]))
def test_one_valley_is_found_to_within_a_step(plan_with, by_encoder, stacks, best, rise, fall, power):
    measure = by_encoder(lambda experts: (rise if experts > best else fall) * abs(experts - best) ** power)
    masks, found = search_ratio(plan_with, measure, stacks)
    assert abs(encoder_experts(masks) - min(max(best, 4), 60)) <= STEP
    assert len(measure.asked) == found["measures"] <= MEASURES


@settings(deadline=None)
@given(st.data())
def test_whatever_is_measured(plan_with, by_encoder, stacks, data):
    losses = data.draw(st.lists(st.floats(-1, 1), min_size=65, max_size=65))
    measure = by_encoder(losses.__getitem__)
    masks, found = search_ratio(plan_with, measure, stacks)
    measured = [encoder_experts(asked) for _, asked, _ in measure.asked]
    assert len(set(measured)) == len(measured) == found["measures"] == len(found["curve"]) <= MEASURES
    assert [point["experts"]["encoder"] for point in found["curve"]] == sorted(measured)
    lowest = min(losses[experts] for experts in measured)
    assert losses[encoder_experts(masks)] == pytest.approx(lowest, abs=1e-12)
    assert found["chosen"] == {"encoder": encoder_experts(masks), "decoder": 64 - encoder_experts(masks)}
    measure = by_encoder(losses.__getitem__)
    assert search_ratio(plan_with, measure, stacks) == (masks, found)


def test_ties_go_to_the_lower_share(plan_with, by_encoder, stacks):
    masks, found = search_ratio(plan_with, by_encoder(lambda experts: 0.0), stacks)
    assert encoder_experts(masks) == min(point["experts"]["encoder"] for point in found["curve"]) == 4
    masks, _ = search_ratio(plan_with, by_encoder(lambda experts: min(abs(experts - 20), abs(experts - 44))), stacks)
    assert encoder_experts(masks) == 20


@pytest.mark.parametrize("unit", [12, 24, 60])
def test_masks_that_are_equal_are_measured_once(plan_with, by_encoder, stacks, unit):
    def coarse(weights):
        experts = min(60, max(4, unit * round(64 * weights["encoder"] / unit)))
        return plan_with({"encoder": experts, "decoder": 64 - experts})

    measure = by_encoder(lambda experts: abs(experts - 30))
    masks, found = search_ratio(coarse, measure, stacks)
    measured = [encoder_experts(asked) for _, asked, _ in measure.asked]
    assert sorted(set(measured)) == sorted(measured) == [point["experts"]["encoder"] for point in found["curve"]]
    assert found["measures"] == len(measured) < MEASURES
    assert encoder_experts(masks) == min(measured, key=lambda experts: (abs(experts - 30), experts))


def test_the_range_does_not_end_at_the_first_shares(plan_with, by_encoder, stacks):
    for best, expected in ((0, 4), (64, 60)):
        masks, _ = search_ratio(plan_with, by_encoder(lambda experts, best=best: abs(experts - best)), stacks)
        assert encoder_experts(masks) == expected
    assert (min(FIRST), max(FIRST)) == (1 / 8, 7 / 8)


@pytest.mark.parametrize("names", [("decoder",), ("encoder",)])
def test_one_stack_has_nothing_to_share_with(fake_measure, names):
    only = tuple(Stack(name, "direction", (0, 1), 32) for name in names)
    message = f"^`ratio` must be left out for a model with the sparse stack {names[0]} alone, but is auto.$"
    with pytest.raises(UsageError, match=message):
        search_ratio(lambda weights: pytest.fail("planned"), fake_measure(lambda *_: 0.0), only)
