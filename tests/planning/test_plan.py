from dataclasses import replace

import numpy as np
import pytest

from nllb_prune.calibration.statistics import ExpertStatistics, empty_table
from nllb_prune.errors import UsageError
from nllb_prune.masks import union
from nllb_prune.model.spec import ParameterCounts
from nllb_prune.planning import CRITERIA, MaskSet, plan, top_per_layer

# What the tables of the tests hold is enough for these.
CORE = [name for name, criterion in CRITERIA.items() if not criterion.groups]
PARAMETERS = ParameterCounts(dense=1000, router=32, expert={"encoder": 10, "decoder": 30})
SMALLEST = 2 * 1000 + 4 * 32


@pytest.fixture(scope="module")
def pairs(make_statistics):
    return make_statistics()


def planned(statistics, **options):
    return plan(statistics, **{"kept": 16, "model_name": "small", **options})


def test_a_mask_per_language_with_the_published_formula(pairs):
    masks = planned(pairs.as_language())
    table = pairs.as_language().table("encoder", "aaa")
    first, tokens = table["first"][0], table["tokens"][0]
    conf = np.divide(table["p_first"][0], first, out=np.zeros(first.shape), where=first > 0)
    assert masks.mask("encoder", "aaa", "bbb") == top_per_layer(first / tokens * np.exp(conf), (6, 6))
    assert [len(layer) for layer in masks.mask("decoder", "aaa", "bbb")] == [2, 2]
    assert masks.sources() == masks.targets() == ("aaa", "bbb", "ccc")
    assert masks.kept("aaa", "bbb") == 16


def test_mini_counts(make_statistics, mini_stacks):
    masks = plan(make_statistics(mini_stacks, languages=("aaa", "bbb")), kept=0.1875, model_name="mini")
    assert masks.plan["counts"] == {"encoder": [18, 18, 18], "decoder": [6, 6, 6]}
    assert masks.plan["kept_experts"] == 72
    assert masks.kept_fraction("aaa", "bbb") == 0.1875


def test_pooling_pairs_equals_planning_on_language_statistics(pairs):
    assert planned(pairs).masks == planned(pairs.as_language()).masks


def test_mean_of_directions_averages_before_the_criterion(pairs):
    masks = planned(pairs, aggregation="mean-of-directions", criterion="load_balance")
    tables = [pairs.table("decoder", key) for key in ("aaa-ccc", "bbb-ccc")]
    top1, mean = (np.mean([t[name][0] / t["tokens"][0] for t in tables], axis=0) for name in ("first", "p_all"))
    assert masks.mask("decoder", "aaa", "ccc") == top_per_layer(top1 * mean, (2, 2))


def test_pair_and_global_granularity(pairs):
    by_pair = planned(pairs, granularity="pair")
    assert sorted(by_pair.masks["encoder"]) == sorted(pairs.keys("encoder"))
    for aggregation in ("pooled", "mean-of-directions"):
        assert list(planned(pairs, granularity="global", aggregation=aggregation).masks["decoder"]) == ["*"]
    language = planned(pairs.as_language(), granularity="global")
    assert language.masks == planned(pairs, granularity="global").masks


@pytest.mark.parametrize("criterion", CORE)
def test_every_criterion_plans_the_same_twice(pairs, criterion, tmp_path):
    masks = planned(pairs, criterion=criterion)
    masks.save(tmp_path / "masks.json")
    assert MaskSet.load(tmp_path / "masks.json") == masks == planned(pairs, criterion=criterion)


def test_random_plans_differ_by_seed(pairs):
    assert planned(pairs, criterion="random", seed=1).masks != planned(pairs, criterion="random", seed=2).masks


def test_the_plan_says_how_it_was_made(pairs):
    made = planned(pairs, ratio={"encoder": 9.0, "decoder": 1.0}, criterion="random", seed=3).plan
    assert (made["criterion"], made["seed"], made["aggregation"]) == ("random", 3, "pooled")
    assert made["budget"] == {"kept": 16, "ratio": {"encoder": 9.0, "decoder": 1.0}, "minimum": 2}
    assert made["counts"] == {"encoder": [6, 6], "decoder": [2, 2]}
    assert "below its minimum" in made["notes"][0]
    assert made["statistics"]["digest"] == pairs.digest()
    assert made["statistics"]["signature"] == {"mode": "references"}


def test_equal_ratios_give_equal_plans(pairs):
    by_default = planned(pairs)
    assert by_default == planned(pairs, ratio="3:1") == planned(pairs, ratio={"decoder": 1, "encoder": 3})
    assert by_default.plan["budget"]["ratio"] == {"encoder": 3.0, "decoder": 1.0}
    assert planned(pairs, model_name=None).model_name == "nllb-moe"


def test_planning_leaves_the_statistics_alone(pairs):
    before = pairs.to_bytes()
    planned(pairs, aggregation="mean-of-directions")
    assert pairs.to_bytes() == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"criterion": "magic"}, "importance, top1"),
        ({"granularity": "layer"}, "language, pair, global, union"),
        ({"scope": "all"}, "layer, threshold, stack-threshold, ranking, divergence"),
        ({"budget_for": "all"}, "each, union"),
        ({"budget_for": "union"}, "must be each for a mask per language"),
        ({"kept": None}, "one of kept, pruned, memory, counts, but is none"),
        ({"pruned": 0.5}, "but is kept and pruned"),
        ({"kept": None, "pruned": 1.0}, "`pruned` must be 0 or more and below 1"),
        ({"kept": None, "pruned": 0.99}, "must be 8 to 32 experts"),
        ({"kept": None, "memory": 10**9}, "parameter counts for a budget in bytes, but have none"),
        ({"kept": None, "counts": {"encoder": 4}}, "encoder and decoder"),
        ({"kept": None, "counts": {"encoder": 4, "decoder": 4}, "ratio": "3:1"}, "given without a ratio"),
        ({"kept": None, "counts": {"encoder": 4, "decoder": 4}, "scope": "ranking"}, "without the scope ranking"),
        ({"dtype": "int8"}, "bfloat16, float16, float32"),
        ({"scope": "threshold", "criterion": "random"}, "parts of a whole .importance, .* but is random instead"),
        ({"scope": "stack-threshold", "reverse": True}, "but is importance reversed"),
        ({"scope": "divergence"}, r"`reference` must have encoder statistics \(aaa, bbb, ccc\), but is eng_Latn"),
        ({"protect_end": -1}, "0 to 8 experts"),
        ({"protect_end": 1, "criterion": "stable_rank"}, "does not tell positions apart"),
        ({"protect_super": True}, "group norms for super experts"),
        ({"criterion": "reap"}, "collect norms"),
        ({"languages": ["aaa", "xxx", "yyy"]}, r"statistics \(aaa, bbb, ccc\), but xxx, yyy have none"),
        ({"languages": []}, "one or more languages"),
        ({"overrides": {"aaa": {"decoder": 9}}}, "2 to 8 experts a layer"),
        ({"overrides": {"aaa": {"decoder": 3}}, "granularity": "global"}, "share a budget"),
        ({"scope": "ranking", "kept": 15}, "16 to 32 experts .4 or more"),
        ({"granularity": "pair"}, "must be of pairs for a mask per pair"),
        ({"aggregation": "median"}, "pooled, mean-of-directions"),
        ({"aggregation": "mean-of-directions"}, "must be of pairs for mean-of-directions"),
        ({"minimum": 1}, "2 or more, the model's top-k"),
        ({"kept": 7}, "8 to 32 experts"),
        ({"kept": 0.99, "minimum": 9}, "1 to 8"),
    ],
)
def test_refused(pairs, options, message):
    with pytest.raises(UsageError, match=message):
        planned(pairs.as_language(), **options)


@pytest.mark.parametrize("granularity", ["language", "global"])
def test_statistics_without_text_are_refused(pairs, granularity):
    stacks = pairs.spec.stacks
    empty = {(stack.name, "aaa"): empty_table(stack) for stack in stacks}
    statistics = ExpertStatistics(pairs.spec, "language", empty, items=(), signature={})
    with pytest.raises(UsageError, match="must have tokens for encoder/"):
        planned(statistics, granularity=granularity)


@pytest.mark.parametrize("aggregation", ["pooled", "mean-of-directions"])
def test_a_global_mask_of_nothing_is_refused(pairs, aggregation):
    statistics = ExpertStatistics(pairs.spec, "pair", {}, items=(), signature={})
    with pytest.raises(UsageError, match=r"encoder/\*"):
        planned(statistics, granularity="global", aggregation=aggregation)


# budgets


def test_pruned_is_what_is_not_kept(pairs):
    assert planned(pairs, kept=None, pruned=0.5).masks == planned(pairs).masks
    assert planned(pairs, kept=None, pruned=0.5).plan["budget"]["pruned"] == 0.5
    assert planned(pairs, kept=None, pruned=0.0).kept("aaa", "bbb") == 32


def test_counts_by_hand(pairs):
    masks = planned(pairs, kept=None, counts={"encoder": (3, 7), "decoder": 2})
    assert masks.plan["counts"] == {"encoder": [3, 7], "decoder": [2, 2]}
    assert masks.plan["kept_experts"] == 14
    assert masks.plan["budget"] == {"counts": {"encoder": [3, 7], "decoder": 2}, "minimum": 2}
    assert planned(pairs, kept=None, counts={"encoder": 6, "decoder": 2}).masks == planned(pairs).masks


@pytest.fixture(scope="module")
def sized(pairs):
    """The same with parameter counts: an expert takes 20 bytes in the encoder, 60 in the decoder."""
    spec = replace(pairs.spec, parameters=PARAMETERS)
    return ExpertStatistics(spec, "pair", pairs.tables, items=pairs.items, signature=pairs.signature)


@pytest.mark.parametrize("scope", ["layer", "stack-threshold", "threshold", "ranking"])
@pytest.mark.parametrize("granularity", ["language", "pair", "global"])
@pytest.mark.parametrize("experts", [800, 640, 801])
def test_the_largest_budget_that_fits(sized, scope, granularity, experts):
    options = {"scope": scope, "granularity": granularity, "minimum": 2}
    masks = planned(sized, kept=None, memory=SMALLEST + experts, **options)
    assert masks.plan["bytes"] <= SMALLEST + experts
    total = masks.plan["kept_experts"] if isinstance(masks.plan["counts"]["encoder"], list) else None
    budgets = [planned(sized, kept=kept, **options) for kept in range(8, 33)]
    fitting = [each for each in budgets if each.plan["bytes"] <= SMALLEST + experts]
    assert masks.masks == fitting[-1].masks
    assert total in (None, fitting[-1].plan["kept_experts"])


def test_memory_by_hand(sized):
    # 3:1 of 16 experts is 12 * 20 + 4 * 60 = 480 bytes, of 17 it is 13 and 4: 500
    assert planned(sized, kept=None, memory=SMALLEST + 499).plan["counts"] == {"encoder": [6, 6], "decoder": [2, 2]}
    assert planned(sized, kept=None, memory=SMALLEST + 500).plan["counts"] == {"encoder": [7, 6], "decoder": [2, 2]}
    masks = planned(sized, kept=None, memory=2 * (SMALLEST + 500), dtype="float32")
    assert (masks.plan["dtype"], masks.plan["counts"]["encoder"]) == (
        "float32",
        [7, 7],
    )  # routers do not double: 18 experts
    with pytest.raises(UsageError, match=r"must be 2.45 kB \(2448 bytes\) or more .* \(8\), but is 2.40 kB"):
        planned(sized, kept=None, memory=2400)
    with pytest.raises(UsageError, match="`budget_for` must be union"):
        planned(sized, kept=None, memory=2600, granularity="union")


def test_memory_counts_the_overrides(sized):
    masks = planned(sized, kept=None, memory=SMALLEST + 8 * 60 + 100, overrides={"aaa": {"decoder": 4}})
    assert masks.plan["bytes"] == SMALLEST + 8 * 60 + 100
    assert [len(layer) for layer in masks.mask("encoder", "bbb", "aaa")] == [3, 2]


# overrides


@pytest.mark.parametrize("scope", ["layer", "threshold", "stack-threshold"])
def test_an_override_changes_one_mask(pairs, scope):
    before = planned(pairs, kept=20, scope=scope)
    after = planned(pairs, kept=20, scope=scope, overrides={"bbb": {"decoder": 5}})
    assert [len(layer) for layer in after.mask("decoder", "aaa", "bbb")] == [5, 5]
    assert after.masks["encoder"] == before.masks["encoder"]
    assert {**after.masks["decoder"], "bbb": before.masks["decoder"]["bbb"]} == before.masks["decoder"]
    assert after.plan["overrides"] == {"bbb": {"decoder": 5}}
    assert after.plan["counts"]["decoder"]["bbb"] == [5, 5]


def test_overrides_of_pairs_follow_the_side_of_the_stack(pairs):
    masks = planned(pairs, granularity="pair", overrides={"bbb": {"decoder": 5, "encoder": 3}})
    assert [len(layer) for layer in masks.mask("decoder", "aaa", "bbb")] == [5, 5]
    assert [len(layer) for layer in masks.mask("encoder", "aaa", "bbb")] == [6, 6]
    assert [len(layer) for layer in masks.mask("encoder", "bbb", "aaa")] == [3, 3]


# scopes


def test_a_threshold_over_the_model_shares_the_budget_of_a_language(pairs):
    masks = planned(pairs, kept=20, scope="threshold")
    own = [sum(len(layer) for stack in masks.masks.values() for layer in stack[code]) for code in ("aaa", "bbb", "ccc")]
    assert own == [20, 20, 20]
    assert masks.plan["scope"] == "threshold"
    assert masks.plan["budget"] == {"kept": 20, "minimum": 4}
    assert masks.plan["counts"]["encoder"]["aaa"] == [len(layer) for layer in masks.masks["encoder"]["aaa"]]
    assert "compare length ratios" in masks.plan["notes"][0]


def test_a_threshold_by_hand(make_statistics, small_stacks):
    """Layers that each put their mass on one, two, four and eight experts."""
    template = make_statistics()
    tables = {}
    for stack, wide in zip(small_stacks, ((1, 2), (4, 8)), strict=True):
        table = empty_table(stack)
        table["tokens"][:] = 80
        for layer, experts in enumerate(wide):
            table["first"][:, layer, -experts:] = 80 // experts
        tables[stack.name, "aaa"] = table
    statistics = ExpertStatistics(template.spec, "language", tables, items=("aaa",), signature={})
    counts = {
        kept: planned(statistics, kept=kept, scope="threshold", minimum=2, criterion="top1").plan["counts"]
        for kept in (8, 12, 14, 16)
    }
    assert counts[8] == {"encoder": [2, 2], "decoder": [2, 2]}
    assert counts[12] == {"encoder": [2, 2], "decoder": [3, 5]}  # theta 0.51 to 0.63
    assert counts[14] == {"encoder": [2, 2], "decoder": [4, 6]}
    assert counts[16] == {"encoder": [2, 2], "decoder": [4, 8]}


def test_a_language_of_one_side_has_its_part(pairs):
    tables = {place: table for place, table in pairs.as_language().tables.items() if place != ("encoder", "ccc")}
    statistics = ExpertStatistics(pairs.spec, "language", tables, items=(), signature={})
    masks = planned(statistics, kept=24, scope="ranking", ratio="1:1")
    assert sum(map(len, masks.masks["decoder"]["ccc"])) == 12
    assert masks.plan["budget"]["ratio"] == {"encoder": 1.0, "decoder": 1.0}


def test_divergence_gives_more_to_layers_unlike_the_reference(make_statistics, mini_stacks):
    statistics = make_statistics(mini_stacks)
    masks = planned(statistics, kept=120, scope="divergence", reference="aaa")
    assert {sum(map(len, mask)) for mask in masks.masks["encoder"].values()} == {90}
    assert {sum(map(len, mask)) for mask in masks.masks["decoder"].values()} == {30}
    assert masks.plan["reference"] == "aaa"
    by_pair = planned(statistics, kept=120, scope="divergence", reference="aaa", granularity="pair")
    assert list(map(len, by_pair.masks["encoder"]["bbb-ccc"])) == list(map(len, masks.masks["encoder"]["bbb"]))
    of_all = planned(statistics, kept=120, scope="divergence", reference="aaa", granularity="global")
    assert list(map(len, of_all.masks["encoder"]["*"])) == list(map(len, masks.masks["encoder"]["aaa"]))


def test_a_minimum_that_the_model_does_not_have_is_said(make_statistics, small_stacks):
    stacks = tuple(replace(stack, experts=3) for stack in small_stacks)
    masks = planned(make_statistics(stacks), kept=12, scope="ranking")
    assert masks.plan["budget"]["minimum"] == 3
    assert "not 4, as there are no more" in masks.plan["notes"][0]


# protection


def test_experts_of_the_end_are_kept_in_the_decoder(pairs):
    statistics = with_end(pairs)
    before, after = planned(statistics), planned(statistics, protect_end=1)
    assert after.plan["protected"] == {"end": 1}
    assert after.masks["encoder"] == before.masks["encoder"]
    for key, mask in after.masks["decoder"].items():
        assert all(7 in layer and len(layer) == 2 for layer in mask), key
    assert after.plan["notes"] == []
    assert planned(statistics, protect_end=3).plan["notes"] == [
        "A layer protects more experts than it keeps in 3 of the masks: the best of them stay."
    ]


def with_end(pairs):
    """The same, but at `end` the last expert does all the work in the decoder."""
    tables = {}
    for (stack, key), table in pairs.tables.items():
        tables[stack, key] = {name: array.copy() for name, array in table.items()}
        if stack == "decoder":
            tables[stack, key]["first"][4] = 0
            tables[stack, key]["first"][4, :, 7] = table["tokens"][4]
    return ExpertStatistics(pairs.spec, "pair", tables, items=pairs.items, signature=pairs.signature)


def test_the_end_must_have_tokens(pairs):
    tables = {place: {name: array.copy() for name, array in table.items()} for place, table in pairs.tables.items()}
    for table in tables.values():
        table["tokens"][-1] = 0
    statistics = ExpertStatistics(pairs.spec, "pair", tables, items=(), signature={})
    with pytest.raises(UsageError, match="tokens for decoder/aaa at positions of the class end"):
        planned(statistics, protect_end=1)


def test_super_experts_are_kept(pairs):
    norms = dict.fromkeys(("norm", "gate_norm", "gate_norm_squared", "norm_max", "activation_max"))
    tables = {}
    for place, table in pairs.as_language().tables.items():
        ones = {name: np.ones(table["first"].shape) for name in norms}
        tables[place] = {**table, **ones}
    worst = int(np.argmin(pairs.as_language().table("encoder", "aaa")["first"][0, 1]))
    tables["encoder", "bbb"]["activation_max"][0, 1, worst] = 50.0
    statistics = ExpertStatistics(pairs.spec, "language", tables, items=(), signature={}, collect=("core", "norms"))
    masks = planned(statistics, kept=8, protect_super=True)
    assert masks.plan["protected"]["super"] == {"encoder": [[], [worst]], "decoder": [[], []]}
    assert all(worst in mask[1] for mask in masks.masks["encoder"].values())


# languages and unions


def test_only_some_languages(pairs):
    all_of_them = planned(pairs)
    some = planned(pairs, languages=["ccc", "aaa"])
    assert {stack: set(each) for stack, each in some.masks.items()} == {
        "encoder": {"aaa", "ccc"},
        "decoder": {"aaa", "ccc"},
    }
    assert some.masks["decoder"]["ccc"] == all_of_them.masks["decoder"]["ccc"]
    assert some.plan["languages"] == ["aaa", "ccc"]
    assert list(planned(pairs, languages=["aaa", "ccc"], granularity="pair").masks["encoder"]) == ["aaa-ccc", "ccc-aaa"]
    one = planned(pairs, languages=["aaa"], granularity="global")
    assert one.masks["decoder"]["*"] == all_of_them.masks["decoder"]["aaa"]
    with pytest.raises(UsageError, match="directions between them"):
        planned(pairs, languages=["aaa"], granularity="pair")


@pytest.mark.parametrize("scope", ["layer", "threshold"])
def test_the_union_of_what_each_keeps(pairs, scope):
    own = planned(pairs, kept=20, scope=scope)
    shared = planned(pairs, kept=20, scope=scope, granularity="union", languages=["aaa", "bbb"])
    for stack in ("encoder", "decoder"):
        expected = union(own.masks[stack][code] for code in ("aaa", "bbb"))
        assert shared.masks[stack] == {"aaa": expected, "bbb": expected}
        assert shared.plan["counts"][stack] == [len(layer) for layer in expected]
    assert shared.granularity == "language"
    assert shared.plan["union"] == {"budget_for": "each"}


@pytest.mark.parametrize("scope", ["layer", "threshold", "stack-threshold", "ranking"])
def test_a_union_that_is_the_budget(pairs, scope):
    shared = planned(pairs, kept=20, scope=scope, granularity="union", budget_for="union")
    assert shared.kept("aaa", "bbb") == 20
    assert len(set(shared.masks["decoder"].values())) == 1
    one = planned(pairs, kept=20, scope=scope, granularity="union", budget_for="union", languages=["bbb"])
    own = planned(pairs, kept=20, scope=scope)
    assert {stack: by_key["bbb"] for stack, by_key in own.masks.items()} == {
        stack: by_key["bbb"] for stack, by_key in one.masks.items()
    }


def test_a_union_that_is_the_budget_holds_the_best_of_each(pairs):
    shared = planned(pairs, kept=20, granularity="union", budget_for="union")
    for stack in ("encoder", "decoder"):
        kept = shared.masks[stack]["aaa"]
        bests = [
            planned(pairs, kept=None, counts=dict.fromkeys(("encoder", "decoder"), k)).masks[stack] for k in range(2, 9)
        ]
        unions = [union(each.values()) for each in bests]
        for layer, ids in enumerate(kept):
            inside = [set(each[layer]) for each in unions if len(each[layer]) <= len(ids)]
            assert all(each <= set(ids) for each in inside)


# within and reverse


def test_within_keeps_only_what_was_kept(pairs):
    wide = planned(pairs, kept=24, criterion="random")
    for scope in ("layer", "threshold", "ranking"):
        narrow = planned(pairs, kept=16, scope=scope, minimum=2, within=wide)
        for stack, by_key in narrow.masks.items():
            for key, mask in by_key.items():
                assert all(set(a) <= set(b) for a, b in zip(mask, wide.masks[stack][key], strict=True))
        assert narrow.plan["within"] == wide.signature
    assert planned(pairs, kept=24, within=wide).masks == wide.masks
    assert planned(pairs, within=planned(pairs, kept=32)).masks == planned(pairs).masks


def test_within_global_and_language_masks_serve_pairs(pairs):
    for granularity in ("global", "language"):
        wide = planned(pairs, kept=24, granularity=granularity)
        narrow = planned(pairs, kept=12, granularity="pair", within=wide)
        for stack in ("encoder", "decoder"):
            inside = wide.mask(stack, "aaa", "bbb")
            assert all(set(a) <= set(b) for a, b in zip(narrow.mask(stack, "aaa", "bbb"), inside, strict=True))


def test_within_must_have_room(pairs, make_statistics, mini_stacks):
    wide = planned(pairs, kept=12)
    with pytest.raises(UsageError, match=r"`within` must keep \d or more experts in layer 0 of encoder/aaa .* keeps 4"):
        planned(pairs, kept=16, within=wide)
    with pytest.raises(UsageError, match=r"must have a mask for encoder/\*"):
        planned(pairs, kept=8, granularity="global", within=wide)
    with pytest.raises(UsageError, match="must belong to the model"):
        planned(make_statistics(mini_stacks), kept=16, within=wide)


def test_reverse_keeps_the_other_end(pairs):
    table = pairs.as_language().table("encoder", "aaa")
    masks = planned(pairs, criterion="top1", reverse=True)
    assert masks.mask("encoder", "aaa", "bbb") == top_per_layer(-table["first"][0].astype(float), (6, 6))
    assert masks.plan["reverse"] is True
