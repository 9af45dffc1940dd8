"""Plans that a measure decides: the decisions one after the other, and what is refused."""

import json
import math
from dataclasses import replace
from itertools import permutations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import ParameterCounts, Stack
from nllb_prune.planning import plan
from nllb_prune.planning.measured import AskedReserve, Decisions, Tolerances, plan_measured, prospect
from nllb_prune.planning.planner import Planner
from nllb_prune.planning.settings import Settings

CODES = ("aaa", "bbb", "ccc")
DIRECTIONS = tuple(permutations(CODES, 2))
EXPERTS = 16
PARAMETERS = ParameterCounts(dense=1000, router=32, expert={"encoder": 10, "decoder": 30})
STACKS = (Stack("encoder", "source", (1, 3), EXPERTS), Stack("decoder", "target", (1, 3), EXPERTS))
WEIGHTS = {"encoder": (0.3, 0.6), "decoder": (1.2, 0.5)}
"""What pruning a layer costs: of each stack, how steeply it falls in each of its layers."""


def layer_loss(weight, kept):
    return 0.0 if kept == EXPERTS else weight * math.exp(-kept / 4)


def loss(masks, direction):
    return sum(
        layer_loss(weight, len(ids))
        for stack in masks.stacks
        for weight, ids in zip(WEIGHTS[stack.name], masks.mask(stack.name, *direction), strict=True)
    )


def sizes(masks):
    return {(stack, key): sum(map(len, mask)) for stack, each in masks.masks.items() for key, mask in each.items()}


@pytest.fixture(scope="module")
def statistics(make_statistics):
    return make_statistics(STACKS)


@pytest.fixture(scope="module")
def with_parameters(statistics):
    return replace(statistics, spec=replace(statistics.spec, parameters=PARAMETERS))


@pytest.fixture(scope="module")
def measure(fake_measure):
    return fake_measure(loss)


EVERYTHING = Decisions(ratio="auto", layers="auto", guard=True, tolerances=Tolerances(loss_change=0.3))


def test_without_decisions_it_is_the_plan(statistics, fake_measure):
    measure = fake_measure(loss)
    found = plan_measured(statistics, measure, decisions=Decisions(), kept=24)
    assert found.masks == plan(statistics, kept=24).masks
    assert found.plan == {**plan(statistics, kept=24).plan, "measured": measure.signature}
    assert not measure.asked
    assert not Decisions()
    assert all((Decisions(guard=True), Decisions(ratio="auto"), Decisions(layers="auto-per-language")))


def test_one_decision_after_the_other(statistics, measure, fake_measure):
    told = []
    measure = fake_measure(loss)
    found = plan_measured(
        statistics, measure, decisions=EVERYTHING, told=lambda stage, count: told.append((stage, count)), kept=24
    )
    stages = list(dict.fromkeys(stage for stage, _ in told))
    assert stages == ["ratio", "layers", "encoder", "decoder", "pair", "translations"]
    assert len(told) == len(measure.asked)
    record = found.plan
    assert record["measured"] == {"text": "none", "sentences": 3}
    assert [stage for stage, _ in told].count("ratio") == record["ratio_search"]["measures"]
    assert [stage for stage, _ in told].count("layers") == record["layer_search"]["measures"]
    assert record["guard"]["measures"]["calls"] == len(told) - sum(
        record[name]["measures"] for name in ("ratio_search", "layer_search")
    )
    # each goes on from what the one before found
    planned = {stack: each["aaa"]["planned"] for stack, each in record["guard"]["masks"].items()}
    assert planned == record["ratio_search"]["chosen"] == record["budget"]["ratio"]
    assert {stack: sum(each) for stack, each in record["layer_search"]["chosen"]["counts"].items()} == planned
    assert record["layer_search"]["rounds"][0]["before"] == min(
        point["loss_change"] for point in record["ratio_search"]["curve"]
    )


def test_equal_input_gives_equal_bytes_that_load(statistics, measure, tmp_path):
    masks = plan_measured(statistics, measure, decisions=EVERYTHING, kept=24)
    assert plan_measured(statistics, measure, decisions=EVERYTHING, kept=24).to_text() == masks.to_text()
    masks.save(tmp_path / "masks.json")
    assert MaskSet.load(tmp_path / "masks.json") == masks
    json.dumps(masks.plan, allow_nan=False)


def test_the_ratio_is_the_best_of_those_that_plan_makes(statistics, measure):
    found = plan_measured(statistics, measure, decisions=Decisions(ratio="auto"), kept=24)
    chosen = found.plan["budget"]["ratio"]
    assert found.masks == plan(statistics, kept=24, ratio=chosen).masks
    best = min(
        range(4, 21),
        key=lambda n: loss(plan(statistics, kept=24, ratio={"encoder": n, "decoder": 24 - n}), DIRECTIONS[0]),
    )
    assert abs(chosen["encoder"] - best) <= 2  # 3/64 of 24, rounded
    assert sum(chosen.values()) == 24
    assert found.plan["kept_experts"] == 24


def test_the_ratio_of_a_budget_in_bytes(with_parameters, measure):
    memory = 2 * 1000 + 4 * 32 + 2 * 480
    found = plan_measured(with_parameters, measure, decisions=Decisions(ratio="auto"), memory=memory)
    assert found.plan["bytes"] <= memory
    for point in found.plan["ratio_search"]["curve"]:
        experts = point["experts"]
        assert 2 * 1000 + 4 * 32 + 2 * (10 * experts["encoder"] + 30 * experts["decoder"]) <= memory
    totals = {sum(point["experts"].values()) for point in found.plan["ratio_search"]["curve"]}
    assert len(totals) > 3  # a decoder expert is three of the encoder
    assert sum(sizes(found)[stack, "aaa"] for stack in ("encoder", "decoder")) == found.plan["kept_experts"]


def test_the_layers_keep_totals_and_the_order_of_the_criterion(statistics, measure):
    before = plan(statistics, kept=24)
    found = plan_measured(statistics, measure, decisions=Decisions(layers="auto"), kept=24)
    assert sizes(found) == sizes(before)
    first, second = found.plan["counts"]["encoder"]
    assert second > first
    third, fourth = found.plan["counts"]["decoder"]
    assert third > fourth
    _follows_the_criterion(statistics, found, kept=24)


def uneven(masks, direction):
    """Pruning the decoder costs nothing but for aaa."""
    encoder, decoder = (sum(map(len, masks.mask(name, *direction))) for name in ("encoder", "decoder"))
    own = math.exp(-encoder / 6) * (encoder < 32)
    return own + 5 * math.exp(-decoder / 6) * (decoder < 32) * (direction[1] == "aaa")


def test_a_ratio_for_each_language(statistics, fake_measure):
    found = plan_measured(statistics, fake_measure(uneven), decisions=Decisions(ratio="auto-per-language"), kept=24)
    kept = sizes(found)
    assert all(kept["encoder", key] + kept["decoder", key] == 24 for key in CODES)
    assert kept["decoder", "aaa"] > 12 > kept["decoder", "bbb"] == kept["decoder", "ccc"]
    assert found.plan["ratio_search"]["languages"]["aaa"]["decoder"] == kept["decoder", "aaa"]
    assert found.plan["counts"]["decoder"]["aaa"] == [len(ids) for ids in found.masks["decoder"]["aaa"]]
    _follows_the_criterion(statistics, found, kept=24)


def test_layers_for_each_language_after_a_ratio_for_each(statistics, fake_measure):
    decisions = Decisions(ratio="auto-per-language", layers="auto-per-language", guard=True)
    found = plan_measured(statistics, fake_measure(uneven), decisions=decisions, kept=24)
    by_mask = found.plan["guard"]["masks"]
    planned = {(stack, key): each["planned"] for stack, own in by_mask.items() for key, each in own.items()}
    alone = plan_measured(statistics, fake_measure(uneven), decisions=Decisions(ratio="auto-per-language"), kept=24)
    assert planned == sizes(alone)
    assert planned["decoder", "aaa"] != planned["decoder", "bbb"]
    _follows_the_criterion(statistics, found, kept=24)


def _follows_the_criterion(statistics, masks, **options):
    orders = Planner(statistics, Settings(**options)).orders()
    for (stack, key), order in orders.items():
        for ids, ranked in zip(masks.masks[stack][key], order, strict=True):
            assert set(ids) == set(ranked[: len(ids)])


GROWING = Decisions(guard=True, tolerances=Tolerances(loss_change=0.12), reserve=AskedReserve(5))


def test_counts_and_bytes_are_those_after_the_guard(with_parameters, fake_measure):
    def of_aaa(masks, direction):
        return loss(masks, direction) if direction[0] == "aaa" else 0.0

    before = plan(with_parameters, kept=24, dtype="float32")
    found = plan_measured(with_parameters, fake_measure(of_aaa), decisions=GROWING, kept=24, dtype="float32")
    kept = sizes(found)
    assert kept["decoder", "bbb"] > sizes(before)["decoder", "bbb"] == kept["decoder", "aaa"]
    assert found.plan["counts"] == {
        "encoder": [9, 9],
        "decoder": {key: [len(ids) for ids in mask] for key, mask in found.masks["decoder"].items()},
    }
    assert found.plan["kept_experts"] == round(sum(found.kept(*each) for each in DIRECTIONS) / 6) > 24
    largest = max(10 * kept["encoder", source] + 30 * kept["decoder", target] for source, target in DIRECTIONS)
    assert found.plan["bytes"] == 4 * (1000 + largest + 32) > before.plan["bytes"]
    assert found.plan["dtype"] == "float32"
    assert found.plan["budget"] == before.plan["budget"]


def test_counts_that_are_alike_are_told_once(statistics, fake_measure):
    def of_decoder(masks, direction):
        decoder = sum(map(len, masks.mask("decoder", *direction)))
        return 0.2 if decoder < 8 else 0.0

    found = plan_measured(statistics, fake_measure(of_decoder), decisions=Decisions(guard=True), kept=24)
    assert found.plan["counts"] == {"encoder": [9, 9], "decoder": [4, 4]}
    assert found.plan["kept_experts"] == 26


@pytest.mark.parametrize(
    ("asked", "limit"),
    [
        (AskedReserve(7), {"experts": 7}),
        (AskedReserve(0), {"experts": 0}),
        (AskedReserve(0.25), {"experts": 6}),
        (AskedReserve(0.3), {"experts": 7}),
        (AskedReserve(0.0), {"experts": 0}),
        (AskedReserve(1000, in_bytes=True), {"bytes": 1000}),
    ],
)
def test_reserves(with_parameters, measure, asked, limit):
    decisions = Decisions(guard=True, tolerances=Tolerances(loss_change=0.01), reserve=asked)
    found = plan_measured(with_parameters, measure, decisions=decisions, kept=24)
    assert found.plan["guard"]["reserve"] == limit
    before = plan(with_parameters, kept=24)
    (unit, most), costs = next(iter(limit.items())), {"experts": (1, 1), "bytes": (20, 60)}
    for source, target in DIRECTIONS:
        more = [sizes(found)[place] - sizes(before)[place] for place in (("encoder", source), ("decoder", target))]
        spent = sum(cost * number for cost, number in zip(costs[unit], more, strict=True))
        assert most - max(costs[unit]) < spent <= most  # nothing passes, so it is used up


def test_the_reserve_is_a_quarter_by_default(statistics, measure):
    found = plan_measured(statistics, measure, decisions=Decisions(guard=True), kept=24)
    assert found.plan["guard"]["reserve"] == {"experts": 6}


def test_a_share_of_what_the_measured_directions_keep(statistics, fake_measure):
    decisions = Decisions(guard=True, reserve=AskedReserve(0.5))
    overrides = {"aaa": {"encoder": 16}}
    measure = fake_measure(lambda masks, direction: 0.0, directions=[("aaa", "bbb"), ("bbb", "aaa")])
    found = plan_measured(statistics, measure, decisions=decisions, kept=24, overrides=overrides)
    assert found.plan["guard"]["reserve"] == {"experts": round(0.5 * (32 + 6 + 18 + 6) / 2)}


@pytest.mark.parametrize("granularity", ["pair", "global"])
def test_other_granularities(statistics, measure, granularity):
    found = plan_measured(statistics, measure, decisions=EVERYTHING, kept=24, granularity=granularity)
    assert set(found.masks["encoder"]) == (
        {"*"} if granularity == "global" else {"-".join(each) for each in DIRECTIONS}
    )
    assert {"ratio_search", "layer_search", "guard", "measured"} <= set(found.plan)
    _follows_the_criterion(statistics, found, kept=24, granularity=granularity)


@pytest.mark.parametrize("scope", ["threshold", "stack-threshold", "ranking", "divergence"])
def test_other_scopes(statistics, measure, scope):
    decisions = replace(EVERYTHING, ratio=None)
    options = {"kept": 40, "scope": scope, "reference": "bbb"}
    found = plan_measured(statistics, measure, decisions=decisions, **options)
    before = sizes(plan(statistics, **options))
    planned = found.plan["guard"]["masks"]
    assert {place: planned[place[0]][place[1]]["planned"] for place in before} == before
    _follows_the_criterion(statistics, found, **options)


def test_only_what_other_masks_keep(statistics, measure):
    within = plan(statistics, kept=40, criterion="routing_mass", ratio="1:1")
    decisions = replace(EVERYTHING, ratio=None, tolerances=Tolerances(loss_change=0.001))
    options = {"kept": 36, "within": within, "ratio": "1:1"}
    found = plan_measured(statistics, measure, decisions=decisions, **options)
    for stack, each in found.masks.items():
        for key, mask in each.items():
            assert all(set(ids) <= set(most) for ids, most in zip(mask, within.masks[stack][key], strict=True))
    assert sum(sizes(found).values()) > 3 * 36
    _follows_the_criterion(statistics, found, **options)


def test_one_stack(make_statistics, fake_measure):
    (stack,) = stacks = (Stack("decoder", "target", (1, 3), EXPERTS),)
    statistics = make_statistics(stacks)
    measure = fake_measure(loss)
    decisions = Decisions(layers="auto", guard=True, tolerances=Tolerances(loss_change=0.1))
    found = plan_measured(statistics, measure, decisions=decisions, kept=12)
    assert found.plan["guard"]["rounds"][0]["stage"] == "pair"
    assert sizes(found)[stack.name, "aaa"] > 12
    for ratio in ("auto", "auto-per-language"):
        message = "^`ratio` must be left out for a model with the sparse stack decoder alone, but is auto.$"
        with pytest.raises(UsageError, match=message):
            plan_measured(statistics, measure, decisions=Decisions(ratio=ratio), kept=12)


@settings(max_examples=25, deadline=None)
@given(
    kept=st.integers(12, 56),
    ratio=st.sampled_from([None, "auto", "auto-per-language"]),
    layers=st.sampled_from([None, "auto", "auto-per-language"]),
    tolerance=st.floats(0.01, 1),
    share=st.floats(0, 0.6),
    protect_end=st.integers(0, 3),
)
def test_any_decisions(with_parameters, measure, kept, ratio, layers, tolerance, share, protect_end):
    decisions = Decisions(
        ratio=ratio,
        layers=layers,
        guard=True,
        tolerances=Tolerances(loss_change=tolerance),
        reserve=AskedReserve(share),
    )
    options = {"kept": kept, "protect_end": protect_end}
    found = plan_measured(with_parameters, measure, decisions=decisions, **options)
    _follows_the_criterion(with_parameters, found, **options)
    record, limit = found.plan["guard"], round(share * kept)
    assert record["tolerances"]["loss_change"] == tolerance
    assert record["reserve"] == {"experts": limit} or ratio == "auto-per-language"
    more = {
        (stack, key): own["kept"] - own["planned"]
        for stack, each in record["masks"].items()
        for key, own in each.items()
    }
    most = record["reserve"]["experts"]
    assert all(more["encoder", source] + more["decoder", target] <= most for source, target in DIRECTIONS)
    own = {key: sum(record["masks"][stack][key]["planned"] for stack in found.masks) for key in CODES}
    assert own == dict.fromkeys(CODES, kept)
    assert {place: sum(map(len, found.masks[place[0]][place[1]])) for place in more} == {
        (stack, key): each["kept"] for stack, by_key in record["masks"].items() for key, each in by_key.items()
    }
    counts = found.plan["counts"]
    for stack, each in found.masks.items():
        for key, mask in each.items():
            told = counts[stack] if isinstance(counts[stack], list) else counts[stack][key]
            assert told == [len(ids) for ids in mask]


UNION = "`granularity` must be language, pair or global for masks that are measured, but is union."
PER_LANGUAGE = "`granularity` must be language for a ratio per language, but is {} instead."


@pytest.mark.parametrize(
    ("decisions", "options", "message"),
    [
        ({"ratio": "best"}, {}, "`ratio` must be auto or auto-per-language, but is best instead."),
        ({"layers": "best"}, {}, "`layers` must be auto or auto-per-language, but is best instead."),
        ({"guard": True}, {"granularity": "union"}, UNION),
        ({"layers": "auto"}, {"granularity": "union"}, UNION),
        ({"ratio": "auto-per-language"}, {"granularity": "union"}, UNION),
        (
            {"ratio": "auto"},
            {"ratio": "3:1"},
            "`ratio` must be left out or given, but is both auto and set by a ratio.",
        ),
        (
            {"ratio": "auto"},
            {"kept": None, "counts": {"encoder": 6, "decoder": 6}},
            "`ratio` must be left out or given, but is both auto and set by counts.",
        ),
        (
            {"ratio": "auto-per-language"},
            {"scope": "threshold"},
            "`ratio` must be left out or given, but is both auto-per-language and set by threshold.",
        ),
        (
            {"ratio": "auto"},
            {"scope": "ranking"},
            "`ratio` must be left out or given, but is both auto and set by ranking.",
        ),
        ({"ratio": "auto-per-language"}, {"granularity": "pair"}, PER_LANGUAGE.format("pair")),
        ({"ratio": "auto-per-language"}, {"granularity": "global"}, PER_LANGUAGE.format("global")),
        (
            {"ratio": "auto-per-language"},
            {"kept": None, "memory": 5000},
            "`memory` must be left out for a ratio per language, as directions between two languages keep more or less "
            "than either, but is given. Give `kept`, and see what the largest direction takes.",
        ),
        (
            {"guard": True, "reserve": AskedReserve(10**9, in_bytes=True)},
            {},
            "`statistics` must have the model's parameter counts for a reserve in bytes, but have none. "
            "Calibrate again.",
        ),
        (
            {"guard": True},
            {"kept": 3},
            "`kept` must be 8 to 64 experts (2 or more in each of 4 sparse layers), but is 3",
        ),
        ({"guard": True}, {"kept": None}, "`budget` must be one of kept, pruned, memory, counts, but is none instead."),
        ({"guard": True}, {"criterion": "none"}, "`criterion` must be one of "),
    ],
)
def test_refused_before_anything_is_measured(statistics, with_parameters, fake_measure, decisions, options, message):
    measure = fake_measure(loss)
    made_of = with_parameters if "memory" in options else statistics
    with pytest.raises(UsageError) as error:
        plan_measured(made_of, measure, decisions=Decisions(**decisions), **{"kept": 24, **options})
    assert str(error.value).startswith(message)
    assert not measure.asked
    with pytest.raises(UsageError) as before:  # nor is a model needed for that
        prospect(made_of, decisions=Decisions(**decisions), **{"kept": 24, **options})
    assert str(before.value) == str(error.value)


@pytest.mark.parametrize("ratio", [None, "auto", "auto-per-language"])
@pytest.mark.parametrize("layers", [None, "auto", "auto-per-language"])
@pytest.mark.parametrize("tolerance", [0.001, 0.3, 9.0])
def test_what_is_ahead(statistics, fake_measure, ratio, layers, tolerance):
    decisions = Decisions(ratio=ratio, layers=layers, guard=True, tolerances=Tolerances(loss_change=tolerance))
    ahead, measure = prospect(statistics, decisions=decisions, kept=24), fake_measure(loss)
    assert ahead.masks == plan(statistics, kept=24)
    plan_measured(statistics, measure, decisions=decisions, kept=24)
    fewest, most = ahead.measures
    assert fewest <= len(measure.asked) <= most


@pytest.mark.parametrize("decisions", [{"guard": True}, {"ratio": "auto"}, {"layers": "auto"}])
def test_a_measure_of_other_languages_is_refused(statistics, fake_measure, decisions):
    measure = fake_measure(loss, directions=[("ddd", "eee")])
    message = "^`measure` must have a direction that the masks have, but has only ddd-eee.$"
    with pytest.raises(UsageError, match=message):
        plan_measured(statistics, measure, decisions=Decisions(**decisions), kept=24)


def test_a_union_can_have_its_ratio_found(statistics, measure):
    found = plan_measured(
        statistics, measure, decisions=Decisions(ratio="auto"), kept=24, granularity="union", budget_for="union"
    )
    assert found.plan["ratio_search"]["measures"] >= 5
    assert len(set(found.masks["encoder"].values())) == 1
