import numpy as np
import pytest

from nllb_prune.calibration.statistics import ExpertStatistics, empty_table
from nllb_prune.errors import UsageError
from nllb_prune.planning import CRITERIA, MaskSet, Shares, plan, top_per_layer


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
    masks = planned(pairs, aggregation="mean-of-directions", criterion="vanilla_importance")
    shares = Shares.average([Shares.of(pairs.table("decoder", key)) for key in ("aaa-ccc", "bbb-ccc")])
    assert masks.mask("decoder", "aaa", "ccc") == top_per_layer(shares.top1 * shares.conf, (2, 2))


def test_pair_and_global_granularity(pairs):
    by_pair = planned(pairs, granularity="pair")
    assert sorted(by_pair.masks["encoder"]) == sorted(pairs.keys("encoder"))
    for aggregation in ("pooled", "mean-of-directions"):
        assert list(planned(pairs, granularity="global", aggregation=aggregation).masks["decoder"]) == ["*"]
    language = planned(pairs.as_language(), granularity="global")
    assert language.masks == planned(pairs, granularity="global").masks


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
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
        ({"granularity": "layer"}, "language, pair, global"),
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
