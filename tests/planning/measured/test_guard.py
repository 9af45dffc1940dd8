"""The guard: what grows, by how much, in which order, and what is recorded of it."""

import json
import random
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Stack
from nllb_prune.planning.measured import Reserve, Tolerances, guard

TOLERANCES = Tolerances()
ENCODER, DECODER = ("encoder", "aaa"), ("decoder", "bbb")
DIRECTION = ("aaa", "bbb")


def experts(limit, *, encoder=1, decoder=1):
    return Reserve(limit=limit, cost={"encoder": encoder, "decoder": decoder})


def sizes(masks):
    return {(stack, key): sum(map(len, mask)) for stack, each in masks.masks.items() for key, mask in each.items()}


def grew(before, after):
    """By how many experts each mask grew, of those that did."""
    old, new = sizes(before), sizes(after)
    return {place: new[place] - old[place] for place in new if new[place] != old[place]}


def without(masks, stack):
    """Full in one stack."""
    full = tuple(tuple(range(masks.stack(stack).experts)) for _ in masks.stack(stack).layers)
    return MaskSet(
        model_name=masks.model_name,
        fingerprint=masks.fingerprint,
        stacks=masks.stacks,
        granularity=masks.granularity,
        masks={**masks.masks, stack: dict.fromkeys(masks.masks[stack], full)},
    )


@pytest.fixture
def needs(fake_measure, kept_by):
    """Makes a measure by which a mask is over tolerance until it keeps as many experts as it needs.

    `over` is how many times the tolerance it is then, and an expert more takes off `each` of it. What both masks of a
    direction are over adds up, so by default a direction passes where its masks do.
    """

    def make(wanted, *, over=1.2, each=0.0, **options):
        def loss(masks, direction):
            found = 0.0
            for (stack, key), (start, need) in wanted.items():
                if masks.key(stack, *direction) == key and (kept := kept_by(masks, stack, direction)) < need:
                    found += over - each * (kept - start)
            return TOLERANCES.loss_change * found

        return fake_measure(loss, **options)

    return make


def test_masks_that_pass_stay(make_masks, fake_measure):
    masks, orders = make_masks()
    measure = fake_measure(lambda masks, direction: 0.15)  # a tolerance is what may be, not what may not
    found = guard(masks, measure, orders, reserve=experts(8))
    assert found.masks.masks == masks.masks
    assert found.failed == ()
    record = found.masks.plan["guard"]
    assert [(each["stage"], each["directions"], each["over"], each["added"]) for each in record["rounds"]] == [
        (stage, 6, {}, {}) for stage in ("encoder", "decoder", "pair", "translations")
    ]
    assert record["measures"] == {"calls": 4, "directions": 24}
    assert found.masks.plan == {**masks.plan, "guard": record}


def test_each_stage_measures_what_it_is_for(make_masks, fake_measure):
    masks, orders = make_masks()
    measure = fake_measure(lambda masks, direction: 0.0)
    guard(masks, measure, orders, reserve=experts(8))
    first, second, third, fourth = (asked[1].masks for asked in measure.asked)
    assert (first, second) == (without(masks, "decoder").masks, without(masks, "encoder").masks)
    assert third == fourth == masks.masks
    assert [asked[0] for asked in measure.asked] == ["losses", "losses", "losses", "translations"]
    assert {asked[2] for asked in measure.asked} == {tuple(permutations(("aaa", "bbb", "ccc"), 2))}


def test_a_mask_over_tolerance_takes_the_next_in_its_order_in_proportion(make_masks, needs, prefix):
    masks, orders = make_masks((12, 4))
    found = guard(masks, needs({ENCODER: (16, 19)}), orders, reserve=experts(8))
    # 16 + 2 + 2: an eighth of what it kept each time, three of four to the first layer
    assert found.masks.masks["encoder"]["aaa"] == prefix(orders[ENCODER], (15, 5))
    assert grew(masks, found.masks) == {ENCODER: 4}
    assert found.failed == ()
    rounds = found.masks.plan["guard"]["rounds"]
    assert [each["stage"] for each in rounds] == ["encoder", "decoder", "encoder", "encoder", "pair", "translations"]
    assert [each["added"] for each in rounds] == [{"encoder/aaa": 2}, {}, {"encoder/aaa": 2}, {}, {}, {}]
    assert [each["over"] for each in rounds] == [{"encoder/aaa": 1.2}, {}, {"encoder/aaa": 1.2}, {}, {}, {}]


@pytest.mark.parametrize(
    ("need", "kept"), [(16, 16), (17, 18), (18, 18), (19, 20), (20, 20), (23, 24), (24, 24), (25, 24), (64, 24)]
)
def test_by_no_more_than_needed_within_a_step(make_masks, needs, need, kept):
    masks, orders = make_masks((12, 4))
    found = guard(masks, needs({ENCODER: (16, need)}), orders, reserve=experts(8))
    assert sizes(found.masks)[ENCODER] == kept
    assert (ENCODER in found.failed) == (need > kept)


@pytest.mark.parametrize(
    ("excess", "steps"),
    [(0.99, 0), (1.0, 0), (1.01, 1), (1.49, 1), (1.51, 2), (2.99, 2), (3.01, 4), (50.0, 4)],
)
def test_what_is_further_over_grows_faster(make_masks, needs, excess, steps):
    masks, orders = make_masks((12, 4))
    found = guard(masks, needs({ENCODER: (16, 17)}, over=excess), orders, reserve=experts(30))
    assert grew(masks, found.masks) == ({ENCODER: 2 * steps} if steps else {})


@pytest.mark.parametrize(("counts", "step"), [((2, 2), 1), ((4, 4), 1), ((5, 4), 2), ((8, 8), 2), ((9, 8), 3)])
def test_a_step_is_an_eighth_rounded_up(make_masks, needs, counts, step):
    masks, orders = make_masks(counts)
    start = sum(counts)
    found = guard(masks, needs({ENCODER: (start, start + 1)}), orders, reserve=experts(30))
    assert grew(masks, found.masks) == {ENCODER: step}


def test_the_last_of_the_reserve_is_less_than_a_step(make_masks, needs, prefix):
    masks, orders = make_masks((12, 4))
    found = guard(masks, needs({ENCODER: (16, 64)}), orders, reserve=experts(5))
    assert found.masks.masks["encoder"]["aaa"] == prefix(orders[ENCODER], (16, 5))
    assert found.failed == (ENCODER,)
    rounds = [each for each in found.masks.plan["guard"]["rounds"] if each["stage"] == "encoder"]
    assert [each["added"] for each in rounds] == [*({"encoder/aaa": number} for number in (2, 2, 1)), {}]


def test_the_furthest_over_tolerance_comes_first_to_the_reserve_whatever_its_stack(make_masks, fake_measure):
    masks, orders = make_masks((12, 4))

    def loss(asked, direction):
        pruned = [stack for stack in ("encoder", "decoder") if asked.mask(stack, *direction)[0] != tuple(range(32))]
        return TOLERANCES.loss_change * sum({"encoder": 1.1, "decoder": 10.0}[stack] for stack in pruned)

    found = guard(masks, fake_measure(loss), orders, reserve=experts(8))
    assert grew(masks, found.masks) == {("decoder", code): 8 for code in ("aaa", "bbb", "ccc")}
    assert set(found.failed) == {(stack, code) for stack in ("encoder", "decoder") for code in ("aaa", "bbb", "ccc")}


def test_only_directions_whose_masks_changed_are_measured_again(make_masks, needs):
    masks, orders = make_masks((12, 4))
    measure = needs({ENCODER: (16, 18), DECODER: (16, 18)})
    guard(masks, measure, orders, reserve=experts(8))
    every, of_source, into_target = (
        set(measure.directions),
        {("aaa", "bbb"), ("aaa", "ccc")},
        {("aaa", "bbb"), ("ccc", "bbb")},
    )
    asked = [set(directions) for _, _, directions in measure.asked]
    assert asked == [every, every, of_source, into_target, every, every]


def test_at_last_everything_is_known_of_the_masks_as_they_are(make_masks, fake_measure, kept_by):
    masks, orders = make_masks((12, 4))

    def longer(masks, direction):
        return {"length_change": 0.04 if kept_by(masks, "encoder", direction) < 18 else 0.0}

    measure = fake_measure(lambda masks, direction: 0.1 / kept_by(masks, "encoder", direction), longer)
    found = guard(masks, measure, orders, reserve=experts(2))
    assert grew(masks, found.masks) == {("encoder", code): 2 for code in ("aaa", "bbb", "ccc")}
    record = found.masks.plan["guard"]
    assert record["masks"]["encoder"]["aaa"]["figures"]["loss_change"] == pytest.approx(0.1 / 18, rel=1e-5)
    assert record["directions"]["aaa-bbb"]["figures"]["loss_change"] == pytest.approx(0.1 / 18, rel=1e-5)
    stages = [each["stage"] for each in record["rounds"]]
    assert stages == [
        "encoder",
        "decoder",
        "pair",
        "translations",
        "translations",
        "encoder",
        "pair",
    ]  # the decoders did not grow
    assert [kind for kind, _, _ in measure.asked].count("translations") == 4  # twice as used, and each stack alone


def test_growth_in_a_late_stage_that_undoes_an_early_one_goes_on(make_masks, fake_measure, kept_by):
    """Lengths make the encoders grow; that makes losses too large, until they have grown further."""
    masks, orders = make_masks((12, 4))
    start = kept_by(masks, "encoder", ("aaa", "bbb"))

    def loss(masks, direction):
        return 0.3 if start < kept_by(masks, "encoder", direction) < start + 6 else 0.0

    def longer(masks, direction):
        return {"length_change": 0.04 if kept_by(masks, "encoder", direction) == start else 0.0}

    found = guard(masks, fake_measure(loss, longer), orders, reserve=experts(20))
    assert found.failed == ()
    assert grew(masks, found.masks) == {("encoder", code): 6 for code in ("aaa", "bbb", "ccc")}


def test_the_reserve_holds_for_directions_that_are_not_measured(make_masks, fake_measure, kept_by):
    """One direction lets an encoder mask grow, another a decoder mask; the direction of both is not measured."""
    masks, orders = make_masks()
    wanting = {("aaa", "bbb"): "encoder", ("bbb", "ccc"): "decoder"}

    def loss(masks, direction):
        stack = wanting[direction]
        return 1.0 if kept_by(masks, stack, direction) < 64 else 0.0

    measure = fake_measure(loss)
    measure.directions = tuple(wanting)
    found = guard(masks, measure, orders, reserve=experts(6))
    assert found.masks.kept("aaa", "ccc") - masks.kept("aaa", "ccc") <= 6
    assert sum(grew(masks, found.masks).values()) > 0


def test_a_language_passes_by_the_mean_over_its_directions(make_masks, fake_measure):
    masks, orders = make_masks()
    over = {("aaa", "bbb"): 0.29, ("aaa", "ccc"): 0.0, ("ccc", "bbb"): 0.0}

    def loss(masks, direction):
        pruned_decoder = len(masks.mask("decoder", *direction)[0]) < 32
        return 0.0 if pruned_decoder else over.get(direction, 0.0)  # the encoder's, and nothing as a pair

    assert guard(masks, fake_measure(loss), orders, reserve=experts(8)).masks.masks == masks.masks
    over["aaa", "ccc"] = 0.02
    found = guard(masks, fake_measure(loss), orders, reserve=experts(8))
    assert grew(masks, found.masks) == {ENCODER: 8}
    assert found.failed == (ENCODER,)


@pytest.mark.parametrize("name", ["loss_change", "end_loss_change", "early_change", "late_change"])
def test_every_loss_counts(make_masks, fake_measure, kept_by, name):
    masks, orders = make_masks()
    tolerance = getattr(TOLERANCES, name)

    def losses(masks, direction):
        return {name: tolerance * (1.01 if kept_by(masks, "encoder", direction) < 18 else 0.99)}

    found = guard(masks, fake_measure(losses), orders, reserve=experts(8))
    assert grew(masks, found.masks) == {("encoder", code): 2 for code in ("aaa", "bbb", "ccc")}


@pytest.mark.parametrize(
    ("figures", "over"),
    [
        ({"length_change": 0.031}, True),
        ({"length_change": -0.031}, True),
        ({"length_change": 0.029}, False),
        ({"runaway_change": 0.011}, True),
        ({"runaway_change": -0.5}, False),
        ({"length_change": float("nan"), "runaway_change": float("nan")}, False),
    ],
)
def test_lengths_are_judged_by_language(make_masks, fake_measure, kept_by, figures, over):
    masks, orders = make_masks()

    def lengths(masks, direction):
        return figures if direction[0] == "aaa" and kept_by(masks, "encoder", direction) < 18 else {}

    measure = fake_measure(lambda masks, direction: 0.0, lengths)
    found = guard(masks, measure, orders, reserve=experts(8))
    # aaa as a source is over in both its directions; bbb and ccc as targets in half of theirs
    assert grew(masks, found.masks) == ({ENCODER: 2} if over else {})
    assert all(each["stage"] == "translations" for each in found.masks.plan["guard"]["rounds"] if each["added"])


@pytest.mark.parametrize("stack", ["encoder", "decoder"])
def test_translations_are_the_fault_of_the_stack_that_does_it_alone(make_masks, fake_measure, kept_by, stack):
    """Every language is over tolerance on both sides, through the masks of one stack."""
    masks, orders = make_masks((12, 4))

    def longer(masks, direction):
        return {"runaway_change": 0.012 if kept_by(masks, stack, direction) < 18 else 0.0}

    measure = fake_measure(lambda masks, direction: 0.0, longer)
    found = guard(masks, measure, orders, reserve=experts(30))
    assert grew(masks, found.masks) == {(stack, code): 2 for code in ("aaa", "bbb", "ccc")}
    assert found.failed == ()


def test_no_losses_can_be_told(make_masks, fake_measure):
    masks, orders = make_masks()
    for loss in (float("nan"), float("inf")):
        with pytest.raises(UsageError, match=f"^`measure` must give finite losses, but that of aaa-bbb is {loss} "):
            guard(masks, fake_measure(lambda masks, direction, loss=loss: loss), orders, reserve=experts(8))


def test_a_figure_of_no_text_is_left_out_of_the_record(make_masks, fake_measure):
    masks, orders = make_masks()
    nothing = float("nan")
    measure = fake_measure(
        lambda masks, direction: {"early_change": nothing},
        lambda masks, direction: {"length_change": nothing, "runaway_change": nothing},
    )
    found = guard(masks, measure, orders, reserve=experts(8))
    record = found.masks.plan["guard"]
    told = [*record["directions"].values(), *(own for each in record["masks"].values() for own in each.values())]
    assert all(set(each["figures"]) == {"loss_change", "end_loss_change", "late_change"} for each in told)
    assert all(each["passed"] for each in told)
    json.dumps(record, allow_nan=False)


def test_other_tolerances(make_masks, needs):
    masks, orders = make_masks()
    measure = needs({ENCODER: (16, 17)}, over=1.9)
    found = guard(masks, measure, orders, reserve=experts(8), tolerances=Tolerances(loss_change=0.3))
    assert found.masks.masks == masks.masks
    assert found.masks.plan["guard"]["tolerances"]["loss_change"] == 0.3


class Pairs:
    """Directions that lose more than their masks alone, where one of these keeps fewer than it needs."""

    def __init__(self, alone, together):
        self.alone, self.together = alone, together

    def __call__(self, masks, direction):
        pruned = [stack.name for stack in masks.stacks if not self._full(masks, stack)]
        if len(pruned) == 1:
            return self.alone.get((pruned[0], masks.key(pruned[0], *direction)), 0.0)
        return self.together(masks, direction)

    @staticmethod
    def _full(masks, stack):
        return all(len(layer) == stack.experts for mask in masks.masks[stack.name].values() for layer in mask)


@pytest.mark.parametrize(
    ("encoder", "decoder", "blamed"),
    [(0.10, 0.05, ENCODER), (0.05, 0.10, DECODER), (0.05, 0.05, ENCODER), (-0.05, 0.0, DECODER)],
)
def test_a_direction_blames_the_mask_whose_own_change_is_larger(
    make_masks, fake_measure, kept_by, encoder, decoder, blamed
):
    masks, orders = make_masks()

    def together(masks, direction):
        grown = kept_by(masks, "encoder", direction) + kept_by(masks, "decoder", direction) > 32
        return 0.2 if direction == DIRECTION and not grown else 0.0

    measure = fake_measure(Pairs({ENCODER: encoder, DECODER: decoder}, together))
    found = guard(masks, measure, orders, reserve=experts(8))
    assert grew(masks, found.masks) == {blamed: 2}
    assert found.failed == ()
    (added,) = (each for each in found.masks.plan["guard"]["rounds"] if each["added"])
    assert (added["stage"], added["over"]) == ("pair", {"/".join(blamed): pytest.approx(4 / 3, rel=1e-5)})


def test_the_figure_that_is_over_says_whom_to_blame(make_masks, fake_measure, kept_by):
    masks, orders = make_masks()

    def together(masks, direction):
        grown = kept_by(masks, "encoder", direction) + kept_by(masks, "decoder", direction) > 32
        return {"loss_change": 0.14, "late_change": 0.09 if direction == DIRECTION and not grown else 0.0}

    alone = {ENCODER: {"loss_change": 0.1, "late_change": 0.01}, DECODER: {"loss_change": 0.04, "late_change": 0.02}}
    found = guard(masks, fake_measure(Pairs(alone, together)), orders, reserve=experts(8))
    assert grew(masks, found.masks) == {DECODER: 4}


def test_the_other_grows_when_the_blamed_has_no_experts_left(make_masks, fake_measure):
    masks, orders = make_masks((12, 4), others={ENCODER: (32, 30)})
    pairs = Pairs({ENCODER: 0.1, DECODER: 0.05}, lambda masks, direction: 0.2 if direction == DIRECTION else 0.0)
    found = guard(masks, fake_measure(pairs), orders, reserve=experts(6))
    assert grew(masks, found.masks) == {ENCODER: 2, DECODER: 4}
    assert found.failed == (ENCODER,)  # none can grow: the larger part is at fault


def test_the_other_grows_when_the_reserve_of_the_blamed_is_used_up_elsewhere(make_masks, needs, fake_measure, kept_by):
    masks, orders = make_masks((12, 4))
    over = {("aaa", "bbb"): 0.2, ("aaa", "ccc"): 0.5}

    def together(masks, direction):
        need = {("aaa", "bbb"): ("decoder", 18), ("aaa", "ccc"): ("decoder", 64)}
        if direction not in need:
            return 0.0
        stack, number = need[direction]
        return over[direction] if kept_by(masks, stack, direction) < number else 0.0

    alone = {ENCODER: 0.1, DECODER: 0.0, ("decoder", "ccc"): 0.2}
    found = guard(masks, fake_measure(Pairs(alone, together)), orders, reserve=experts(8))
    # decoder/ccc is furthest over and takes 8 of aaa-ccc, so encoder/aaa cannot grow and decoder/bbb does for it
    assert grew(masks, found.masks) == {("decoder", "ccc"): 8, DECODER: 2}
    assert found.failed == (("decoder", "ccc"),)


@pytest.mark.parametrize(("bbb", "ccc", "first"), [(0.2, 0.21, ENCODER), (0.21, 0.2, DECODER)])
def test_what_is_furthest_over_comes_first_to_the_reserve(make_masks, fake_measure, bbb, ccc, first):
    masks, orders = make_masks((12, 4))
    over = {("aaa", "bbb"): bbb, ("aaa", "ccc"): ccc}
    # aaa-bbb blames its decoder, aaa-ccc its encoder, and aaa-bbb can pay for one of them
    alone = {ENCODER: 0.05, DECODER: 0.1, ("decoder", "ccc"): 0.0}
    measure = fake_measure(Pairs(alone, lambda masks, direction: over.get(direction, 0.0)))
    found = guard(masks, measure, orders, reserve=experts(2))
    rounds = [each["added"] for each in found.masks.plan["guard"]["rounds"] if each["added"]]
    assert rounds[0] == {"/".join(first): 2}


@pytest.mark.parametrize(("bbb", "ccc"), [(0.6, 0.2), (0.2, 0.6)])
def test_a_mask_is_as_far_over_as_its_worst_direction(make_masks, fake_measure, bbb, ccc):
    masks, orders = make_masks((12, 4))
    over = {("aaa", "bbb"): bbb, ("aaa", "ccc"): ccc}
    measure = fake_measure(Pairs({ENCODER: 0.1}, lambda masks, direction: over.get(direction, 0.0)))
    found = guard(masks, measure, orders, reserve=experts(8))
    (added,) = (each for each in found.masks.plan["guard"]["rounds"] if each["added"])
    assert (added["over"], added["added"]) == ({"encoder/aaa": 4.0}, {"encoder/aaa": 8})


def test_no_reserve_only_measures(make_masks, needs):
    masks, orders = make_masks((12, 4))
    found = guard(masks, needs({ENCODER: (16, 18)}), orders, reserve=experts(0))
    assert found.masks.masks == masks.masks
    assert found.failed == (ENCODER,)
    record = found.masks.plan["guard"]
    assert record["measures"] == {"calls": 4, "directions": 24}
    assert record["failed"] == ["encoder/aaa"]
    assert {key: each["passed"] for key, each in record["masks"]["encoder"].items()} == {
        "aaa": False,
        "bbb": True,
        "ccc": True,
    }
    assert all(each["passed"] for each in record["masks"]["decoder"].values())
    assert {name for name, each in record["directions"].items() if not each["passed"]} == {"aaa-bbb", "aaa-ccc"}


def test_bytes_are_what_directions_may_take(make_masks, needs):
    masks, orders = make_masks((12, 4))
    directions = [("aaa", "ccc"), ("bbb", "aaa")]
    measure = needs({ENCODER: (16, 64), ("decoder", "ccc"): (16, 64)}, directions=directions)
    reserve = Reserve(limit=1000, cost={"encoder": 130, "decoder": 70}, unit="bytes")
    found = guard(masks, measure, orders, reserve=reserve)
    # 2 x (2 x 130 + 2 x 70) = 800 bytes of 1,000; what is left takes one expert of each
    assert grew(masks, found.masks) == {ENCODER: 5, ("decoder", "ccc"): 5}
    assert found.failed == (ENCODER, ("decoder", "ccc"))
    assert found.masks.plan["guard"]["reserve"] == {"bytes": 1000}


def test_the_record_of_a_small_guard(make_masks, needs):
    masks, orders = make_masks((12, 4))
    measure = needs({ENCODER: (16, 18), DECODER: (16, 64)}, directions=[("aaa", "bbb")])
    record = guard(masks, measure, orders, reserve=experts(3)).masks.plan["guard"]
    figures = {"end_loss_change": 0.0, "early_change": 0.0, "late_change": 0.0}
    lengths = {"length_change": 0.0, "runaway_change": 0.0}
    assert record["reserve"] == {"experts": 3}
    assert record["measures"] == {"calls": len(measure.asked), "directions": len(measure.asked)}
    assert record["failed"] == ["decoder/bbb"]
    assert record["masks"] == {
        "encoder": {
            "aaa": {"planned": 16, "kept": 18, "figures": {"loss_change": 0.0, **figures, **lengths}, "passed": True}
        },
        "decoder": {
            "bbb": {"planned": 16, "kept": 17, "figures": {"loss_change": 0.18, **figures, **lengths}, "passed": False}
        },
    }
    assert record["directions"] == {
        "aaa-bbb": {"figures": {"loss_change": 0.18, **figures, **lengths}, "passed": False}
    }
    assert record["rounds"] == [
        {"stage": "encoder", "directions": 1, "over": {"encoder/aaa": 1.2}, "added": {"encoder/aaa": 2}},
        {"stage": "decoder", "directions": 1, "over": {"decoder/bbb": 1.2}, "added": {"decoder/bbb": 1}},
        {"stage": "encoder", "directions": 1, "over": {}, "added": {}},
        {"stage": "decoder", "directions": 1, "over": {"decoder/bbb": 1.2}, "added": {}},
        {"stage": "pair", "directions": 1, "over": {"decoder/bbb": 1.2}, "added": {}},
        {"stage": "translations", "directions": 1, "over": {}, "added": {}},
    ]


def test_measures_are_told_before_they_are_made(make_masks, needs):
    masks, orders = make_masks((12, 4))
    measure, told = needs({ENCODER: (16, 18)}), []

    def tell(stage, directions):
        assert len(told) == len(measure.asked)
        told.append((stage, directions))

    guard(masks, measure, orders, reserve=experts(8), told=tell)
    assert told == [("encoder", 6), ("decoder", 6), ("encoder", 2), ("pair", 6), ("translations", 6)]


def test_masks_that_no_direction_measures_stay(make_masks, needs):
    masks, orders = make_masks((12, 4))
    wanted = {("encoder", code): (16, 64) for code in ("aaa", "bbb", "ccc")}
    measure = needs(wanted, directions=[("aaa", "bbb"), ("ddd", "bbb")])
    found = guard(masks, measure, orders, reserve=experts(4))
    assert grew(masks, found.masks) == {ENCODER: 4}
    assert set(found.masks.plan["guard"]["directions"]) == {"aaa-bbb"}
    assert {stack: list(each) for stack, each in found.masks.plan["guard"]["masks"].items()} == {
        "encoder": ["aaa"],
        "decoder": ["bbb"],
    }


@pytest.mark.parametrize(("directions", "named"), [([("ddd", "aaa")], "ddd-aaa"), ([], "none")])
def test_a_measure_of_other_directions_is_refused(make_masks, needs, directions, named):
    masks, orders = make_masks()
    message = f"^`measure` must have a direction that the masks have, but has only {named}.$"
    with pytest.raises(UsageError, match=message):
        guard(masks, needs({}, directions=directions), orders, reserve=experts(8))


def test_one_stack_has_no_stages_of_stacks(make_masks, needs, prefix):
    stack = Stack("decoder", "direction", (0, 1), 32)
    masks, orders = make_masks((12, 4), stacks=(stack,), keys={"decoder": ("aaa-bbb", "bbb-aaa")})
    place = ("decoder", "aaa-bbb")
    measure = needs({place: (16, 19)}, directions=[("aaa", "bbb"), ("bbb", "aaa")])
    found = guard(masks, measure, orders, reserve=Reserve(limit=8, cost={"decoder": 1}))
    assert found.masks.masks["decoder"]["aaa-bbb"] == prefix(orders[place], (15, 5))
    assert grew(masks, found.masks) == {place: 4}
    assert found.failed == ()
    stages = [(each["stage"], each["directions"]) for each in found.masks.plan["guard"]["rounds"]]
    assert stages == [("pair", 2), ("pair", 1), ("pair", 1), ("translations", 2)]
    failed = guard(masks, measure, orders, reserve=Reserve(limit=1, cost={"decoder": 1})).failed
    assert failed == (place,)


def test_pairs_have_masks_of_their_own(make_masks, needs):
    keys = dict.fromkeys(("encoder", "decoder"), ("aaa-bbb", "aaa-ccc"))
    masks, orders = make_masks((12, 4), keys=keys, granularity="pair")
    measure = needs({("encoder", "aaa-bbb"): (16, 18)})
    found = guard(masks, measure, orders, reserve=experts(8))
    assert grew(masks, found.masks) == {("encoder", "aaa-bbb"): 2}
    both = (("aaa", "bbb"), ("aaa", "ccc"))
    assert [directions for _, _, directions in measure.asked[:3]] == [both, both, (("aaa", "bbb"),)]


def test_one_mask_for_all(make_masks, needs):
    masks, orders = make_masks((12, 4), keys=dict.fromkeys(("encoder", "decoder"), ("*",)), granularity="global")
    measure = needs({("decoder", "*"): (16, 20)})
    found = guard(masks, measure, orders, reserve=experts(8))
    assert grew(masks, found.masks) == {("decoder", "*"): 4}
    assert {len(directions) for _, _, directions in measure.asked} == {6}


def test_orders_end_where_only_some_can_be_kept(make_masks, needs, prefix):
    masks, orders = make_masks((12, 4))
    narrow = {**orders, ENCODER: [orders[ENCODER][0][:13], orders[ENCODER][1][:5]]}
    found = guard(masks, needs({ENCODER: (16, 64)}), narrow, reserve=experts(30))
    assert found.masks.masks["encoder"]["aaa"] == prefix(orders[ENCODER], (13, 5))
    assert found.failed == (ENCODER,)


# Figures that are drawn anew for every mask: nothing can be expected of them but what always holds.


def drawn(seed, kind, scale):
    """Random figures of the masks of a direction; those of a stack alone depend on that mask only."""

    def figures(masks, direction):
        own = [masks.mask(stack.name, *direction) for stack in masks.stacks]
        random_of = random.Random(f"{seed}/{kind}/{direction}/{own}")
        names = ("length_change", "runaway_change") if kind == "translations" else ("loss_change", "late_change")
        return {name: random_of.uniform(-0.5, scale) * getattr(TOLERANCES, name) for name in names}

    return figures


@st.composite
def cases(draw):
    counts = draw(st.tuples(st.integers(2, 16), st.integers(2, 16)))
    in_bytes = draw(st.booleans())
    cost = {stack: draw(st.integers(1, 7)) if in_bytes else 1 for stack in ("encoder", "decoder")}
    every = list(permutations(("aaa", "bbb", "ccc"), 2))
    return {
        "counts": counts,
        "seed": draw(st.integers(0, 10**6)),
        "scale": draw(st.sampled_from([0.9, 1.5, 3.0, 8.0])),
        "limit": draw(st.integers(0, 60)),
        "cost": cost,
        "unit": "bytes" if in_bytes else "experts",
        "directions": draw(st.lists(st.sampled_from(every), min_size=1, unique=True)),
        "others": draw(
            st.dictionaries(st.sampled_from([ENCODER, DECODER]), st.tuples(st.integers(2, 32), st.integers(2, 32)))
        ),
    }


@settings(max_examples=120, deadline=None)
@given(case=cases())
def test_whatever_is_measured(make_masks, fake_measure, tmp_path_factory, case):
    masks, orders = make_masks(case["counts"], others=case["others"])

    def run():
        measure = fake_measure(
            drawn(case["seed"], "losses", case["scale"]),
            drawn(case["seed"], "translations", case["scale"]),
            directions=case["directions"],
        )
        reserve = Reserve(limit=case["limit"], cost=case["cost"], unit=case["unit"])
        return measure, guard(masks, measure, orders, reserve=reserve)

    measure, found = run()
    _check_growth(masks, found.masks, orders, case)
    _check_figures(found, measure)
    _check_failed(found, measure)
    record = found.masks.plan["guard"]
    assert record["measures"]["calls"] == len(measure.asked)
    assert record["measures"]["directions"] == sum(len(directions) for _, _, directions in measure.asked)
    assert run()[1].masks.to_text() == found.masks.to_text()
    path = tmp_path_factory.mktemp("guard") / "masks.json"
    found.masks.save(path)
    assert MaskSet.load(path) == found.masks
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def _check_growth(before, after, orders, case):
    extra = grew(before, after)
    for stack, each in after.masks.items():
        for key, mask in each.items():
            old = before.masks[stack][key]
            assert all(set(a) <= set(b) for a, b in zip(old, mask, strict=True))
            for layer, ids in enumerate(mask):
                assert set(ids) == set(orders[stack, key][layer][: len(ids)])
    for source, target in case["directions"]:
        spent = extra.get(("encoder", source), 0) * case["cost"]["encoder"]
        assert spent + extra.get(("decoder", target), 0) * case["cost"]["decoder"] <= case["limit"]
    added = {}
    for each in after.plan["guard"]["rounds"]:
        for name, number in each["added"].items():
            added[name] = added.get(name, 0) + number
    assert added == {"/".join(place): number for place, number in extra.items()}


def _mean(figures):
    return {name: sum(each[name] for each in figures) / len(figures) for name in figures[0]}


def _by_mask(found, measure):
    """Figures of each mask measured again: alone, and of lengths."""
    directions = {}
    for source, target in measure.directions:
        directions.setdefault(("encoder", source), []).append((source, target))
        directions.setdefault(("decoder", target), []).append((source, target))
    other = {"encoder": "decoder", "decoder": "encoder"}
    alone = {stack: without(found.masks, other[stack]) for stack in other}
    return {
        place: {
            **_mean([measure.losses_of(alone[place[0]], each) for each in own]),
            **_mean([measure.lengths_of(found.masks, each) for each in own]),
        }
        for place, own in directions.items()
    }


def _check_figures(found, measure):
    record = found.masks.plan["guard"]
    by_mask = _by_mask(found, measure)
    told = {(stack, key): each for stack, own in record["masks"].items() for key, each in own.items()}
    assert {place: each["figures"] for place, each in told.items()} == {
        place: pytest.approx(figures, rel=1e-5, abs=1e-12) for place, figures in by_mask.items()
    }
    assert {place: each["kept"] for place, each in told.items()} == {
        place: size for place, size in sizes(found.masks).items() if place in by_mask
    }
    assert {name: each["figures"] for name, each in record["directions"].items()} == {
        "-".join(each): pytest.approx(
            {**measure.losses_of(found.masks, each), **measure.lengths_of(found.masks, each)}, rel=1e-5, abs=1e-12
        )
        for each in measure.directions
    }


def _only(figures, names):
    return {name: value for name, value in figures.items() if name in names}


def _used_with(place, directions):
    both = [{("encoder", source), ("decoder", target)} for source, target in directions]
    return set().union(*(places for places in both if place in places))


def _check_failed(found, measure):
    """Named are all masks over tolerance, and one of those of every direction that is; and no others."""
    by_mask = _by_mask(found, measure)
    over, translated = (
        {place for place, figures in by_mask.items() if TOLERANCES.worst(_only(figures, kind))[0] > 1}
        for kind in (("loss_change", "late_change"), ("length_change", "runaway_change"))
    )
    pairs = {each for each in measure.directions if TOLERANCES.worst(measure.losses_of(found.masks, each))[0] > 1}
    failed, record = set(found.failed), found.masks.plan["guard"]
    assert over <= failed
    masks_of = {(source, target): {("encoder", source), ("decoder", target)} for source, target in pairs}
    assert all(places & failed for places in masks_of.values())
    used_with = {place: _used_with(place, measure.directions) for place in translated}
    assert all(places & failed for places in used_with.values())  # its own fault, or that of another
    blamed = {place for places in (*masks_of.values(), *used_with.values()) for place in places}
    assert failed <= over | blamed
    assert record["failed"] == ["/".join(place) for place in found.failed]
    assert {name for name, each in record["directions"].items() if not each["passed"]} == {
        "-".join(each) for each in pairs
    }
    told = {(stack, key): each for stack, own in record["masks"].items() for key, each in own.items()}
    assert {place for place, each in told.items() if not each["passed"]} == failed
