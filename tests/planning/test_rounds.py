from dataclasses import replace

import pytest

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.cli import main
from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import ParameterCounts
from nllb_prune.planning import plan, plan_in_rounds
from nllb_prune.planning.scopes import SCOPES


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


BUDGETS = [
    {"kept": 14},
    {"kept": 0.7, "ratio": "1:1"},
    {"pruned": 0.5},
    {"memory": 2 * (10**9 + 14 * 10**8) + 4000},
    {"counts": {"encoder": 3, "decoder": 7}},
    {"counts": {"encoder": (3, 8), "decoder": (7, 2)}},
]


def with_bytes(statistics):
    parameters = ParameterCounts(dense=10**9, router=1000, expert={"encoder": 10**8, "decoder": 10**8})
    return ExpertStatistics(
        replace(statistics.spec, parameters=parameters),
        statistics.granularity,
        statistics.tables,
        items=statistics.items,
        signature=statistics.signature,
    )


def observer(make_statistics, granularity="pair"):
    """Other statistics at each round, of the directions that the masks cover only."""
    asked = []

    def observe(masks):
        asked.append(masks)
        languages = [code for code in ("aaa", "bbb", "ccc") if masks.granularity == "global" or code in masks.sources()]
        return with_bytes(make_statistics(seed=len(asked), languages=languages, granularity=granularity))

    return asked, observe


def by_stack(masks, key=None):
    """Experts of each layer of one mask a stack, that of a key or the first."""
    return [list(map(len, masks.masks[name][key or next(iter(masks.masks[name]))])) for name in ("encoder", "decoder")]


CASES = [
    (budget, scope, granularity)
    for budget in BUDGETS
    for scope in (SCOPES if "counts" not in budget else ["layer"])
    for granularity in ("language", "pair", "global", "union", "shared")
    if "memory" not in budget or granularity != "union"  # that is refused without rounds too, as are scopes of counts
]


@pytest.mark.parametrize(("budget", "scope", "granularity"), CASES, ids=str)
def test_any_budget(make_statistics, budget, scope, granularity):
    asked, observe = observer(make_statistics)
    options = {**budget, "scope": scope, "granularity": granularity, "reference": "aaa", "minimum": 2}
    options |= {"granularity": "union", "budget_for": "union"} if granularity == "shared" else {}
    statistics = with_bytes(make_statistics())
    masks = plan_in_rounds(statistics, observe, rounds=3, **options)
    if scope in ("layer", "stack-threshold") and granularity != "union":
        once = plan(statistics, **options)
        assert [sum(each) for each in by_stack(masks)] == [sum(each) for each in by_stack(once)]
        assert masks.plan["budget"] == once.plan["budget"]
    assert (len(asked), masks.plan["rounds"]) == (2, 3)
    assert nested(asked[1], asked[0])
    assert nested(masks, asked[1])


@pytest.mark.parametrize(
    ("budget", "steps"),
    [
        ({"counts": {"encoder": 2, "decoder": 8}}, [[[6, 6], [8, 8]], [[4, 4], [8, 8]], [[2, 2], [8, 8]]]),
        ({"counts": {"encoder": (2, 8), "decoder": 5}}, [[[6, 8], [7, 7]], [[4, 8], [6, 6]], [[2, 8], [5, 5]]]),
        ({"kept": 20, "ratio": "1:1"}, [[[7, 7], [7, 7]], [[6, 6], [6, 6]], [[5, 5], [5, 5]]]),
        ({"kept": 14}, [[[7, 7], [6, 6]], [[6, 6], [4, 4]], [[5, 5], [2, 2]]]),
    ],
    ids=str,
)
def test_steps_are_equal_in_every_stack(make_statistics, budget, steps):
    asked, observe = observer(make_statistics)
    masks = plan_in_rounds(make_statistics(), observe, rounds=3, **budget)
    assert [by_stack(each) for each in (*asked, masks)] == steps


@pytest.mark.parametrize("scope", ["threshold", "ranking"])
def test_steps_of_the_whole_model_are_shared_as_its_budget_is(make_statistics, scope):
    asked, observe = observer(make_statistics)
    statistics = make_statistics()
    masks = plan_in_rounds(statistics, observe, rounds=3, kept=14, scope=scope, minimum=2)
    totals = [{key: sum(map(sum, by_stack(each, key))) for key in ("aaa", "bbb", "ccc")} for each in (*asked, masks)]
    assert totals == [dict.fromkeys(("aaa", "bbb", "ccc"), total) for total in (26, 20, 14)]
    assert asked[0].masks == plan(statistics, kept=26, scope=scope, minimum=2).masks


def test_bytes_that_would_hold_more_than_is_left(make_statistics):
    """In some rounds, languages are alike enough for more experts to fit than the step before has left."""
    memory = 2 * (10**9 + 20 * 10**8) + 4000
    for seed in range(12):
        observed = iter(range(100 * seed + 1, 100 * seed + 100))
        masks = plan_in_rounds(
            with_bytes(make_statistics(seed=seed)),
            lambda masks, observed=observed: with_bytes(make_statistics(seed=next(observed))),
            rounds=12,
            memory=memory,
            scope="ranking",
            minimum=2,
        )
        assert masks.plan["bytes"] <= memory
        assert masks.plan["budget"] == {"memory": memory, "minimum": 2}


@pytest.mark.parametrize("scope", SCOPES)
def test_steps_start_from_what_within_leaves(make_statistics, scope):
    asked, observe = observer(make_statistics)
    statistics = make_statistics()
    options = {"scope": scope, "reference": "aaa", "minimum": 2}
    half = plan(statistics, kept=20, ratio="1:1", **options)
    masks = plan_in_rounds(statistics, observe, rounds=3, kept=14, ratio="1:1", within=half, **options)
    assert [sum(map(sum, by_stack(each))) for each in (*asked, masks)] == [18, 16, 14]
    assert nested(asked[0], half)
    assert masks.plan["within"] == half.signature


def test_within_that_keeps_other_experts_for_each_language_of_a_shared_budget(make_statistics):
    asked, observe = observer(make_statistics)
    statistics = make_statistics()
    narrow = plan(statistics, counts={"encoder": 4, "decoder": 4})
    options = {"granularity": "union", "budget_for": "union", "counts": {"encoder": 5, "decoder": 5}}
    start = [len(set().union(*layers)) for layers in zip(*narrow.masks["encoder"].values(), strict=True)]
    assert max(map(len, next(iter(narrow.masks["encoder"].values())))) < 5 < max(start)
    masks = plan_in_rounds(statistics, observe, rounds=2, within=narrow, **options)
    assert by_stack(asked[0])[0] == [each - (each - 5) // 2 for each in start]
    assert by_stack(masks) == [[5, 5], [5, 5]]


@pytest.mark.parametrize("granularity", ["language", "pair", "union"])
@pytest.mark.parametrize("scope", ["layer", "divergence"])
def test_only_directions_between_languages_are_needed(make_statistics, granularity, scope):
    asked, observe = observer(make_statistics)
    options = {"scope": scope, "reference": "aaa", "minimum": 2, "granularity": granularity}
    masks = plan_in_rounds(make_statistics(), observe, rounds=2, kept=14, languages=iter(("aaa", "bbb")), **options)
    assert asked[0].languages() == masks.languages() == ("aaa", "bbb")


def test_the_steps_of_a_union_are_those_of_each_language(make_statistics):
    asked, observe = observer(make_statistics)
    statistics = make_statistics()
    masks = plan_in_rounds(statistics, observe, rounds=3, kept=14, granularity="union")
    assert asked[0].masks == plan(statistics, kept=26, ratio="14:12", granularity="union").masks
    assert nested(masks, asked[1])
    last = make_statistics(seed=2)
    assert masks.masks == plan(last, kept=14, granularity="union", within=asked[1]).masks


def test_a_reference_that_is_not_observed_is_refused(make_statistics):
    with pytest.raises(UsageError, match=r"`reference` must be one of .* \(aaa, bbb\), but is ccc"):
        plan_in_rounds(
            make_statistics(),
            lambda masks: None,
            rounds=2,
            kept=16,
            scope="divergence",
            reference="ccc",
            languages=("aaa", "bbb"),
        )


@pytest.mark.parametrize("languages", [None, ("aaa", "bbb")])
def test_languages_set_by_hand_have_steps_of_their_own(make_statistics, languages):
    asked, observe = observer(make_statistics)
    overrides = {"aaa": {"encoder": 2, "decoder": 8}, "bbb": {"decoder": 5}, "ccc": {"decoder": 3}}
    masks = plan_in_rounds(make_statistics(), observe, rounds=3, kept=14, overrides=overrides, languages=languages)
    assert [by_stack(each, "aaa") for each in (*asked, masks)] == [
        [[6, 6], [8, 8]],
        [[4, 4], [8, 8]],
        [[2, 2], [8, 8]],
    ]
    assert [by_stack(each, "bbb") for each in (*asked, masks)] == [
        [[7, 7], [7, 7]],
        [[6, 6], [6, 6]],
        [[5, 5], [5, 5]],
    ]


@pytest.mark.parametrize("rounds", [2, 5])
@pytest.mark.parametrize("count", [2, 8])
def test_languages_set_by_hand_wait_where_the_whole_model_shares(make_statistics, rounds, count):
    asked, observe = observer(make_statistics)
    options = {"kept": 24, "scope": "threshold", "minimum": 2, "overrides": {"aaa": {"encoder": count}}}
    masks = plan_in_rounds(make_statistics(), observe, rounds=rounds, **options)
    assert [by_stack(each, "aaa")[0] for each in asked] == [[8, 8]] * (rounds - 1)
    assert by_stack(masks, "aaa")[0] == [count, count]
    assert sum(map(sum, by_stack(masks, "bbb"))) == 24


def test_rounds_are_recorded_where_there_are_several(make_statistics, observing):
    statistics, (_, observe) = make_statistics().as_language(), observing
    assert "rounds" not in plan_in_rounds(statistics, observe, rounds=1, kept=16).plan
    masks = plan_in_rounds(statistics, observe, rounds=2, kept=16)
    assert masks.plan["rounds"] == 2
    assert "within" not in masks.plan  # as asked; that of the steps is theirs


def test_no_round_is_refused(make_statistics):
    with pytest.raises(UsageError, match="`rounds` must be 1 or more, but is 0"):
        plan_in_rounds(make_statistics(), lambda masks: None, rounds=0, kept=16)


LANGUAGES = ("eng_Latn", "deu_Latn", "spa_Latn")


@pytest.fixture(scope="module")
def of_mini(tmp_path_factory):
    """Statistics of `mini`, of three languages."""
    path = tmp_path_factory.mktemp("mini") / "s.safetensors"
    directions = ",".join(f"{a}-{b}" for a in LANGUAGES for b in LANGUAGES if a != b)
    assert main(["calibrate", "mini", "--directions", directions, "--sentences", "2", "--output", str(path)]) == 0
    return path


def in_rounds(path, *arguments, model="mini"):
    return main(["plan", str(path), "--rounds", "2", "--model", str(model), *map(str, arguments)])


@pytest.mark.parametrize(
    "arguments",
    [
        ("--counts", "encoder=4,decoder=30"),
        ("--keep", "25%", "--languages", "eng_Latn,deu_Latn"),
        ("--keep", "25%", "--granularity", "union", "--languages", "eng_Latn,deu_Latn"),
    ],
    ids=" ".join,
)
def test_command(of_mini, tmp_path, capfd, arguments):
    output = tmp_path / "masks.json"
    assert in_rounds(of_mini, *arguments, "--output", output) == 0
    assert capfd.readouterr().err == ""
    assert MaskSet.load(output).plan["rounds"] == 2
    assert (tmp_path / "masks.work").is_dir()


def test_a_dry_run_leaves_no_folder_but_the_one_asked_for(of_mini, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert in_rounds(of_mini, "--keep", "25%", "--dry-run") == 0
    assert in_rounds(of_mini, "--keep", "25%", "--dry-run", "--output", "masks.json") == 0
    assert list(tmp_path.iterdir()) == []
    assert in_rounds(of_mini, "--keep", "25%", "--dry-run", "--work", "mine") == 0
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]


def test_another_model_is_refused_before_anything_is_computed(make_statistics, tmp_path, capfd, monkeypatch):
    monkeypatch.setattr("nllb_prune.model.loading.load_model", None)
    path = tmp_path / "other.safetensors"
    make_statistics().save(path)
    assert in_rounds(path, "--keep", "25%", "--dry-run") == 1
    (line,) = capfd.readouterr().err.splitlines()
    assert f"`--model` must be the model that `{path}` is of (nllb-moe, fingerprint " in line
    assert "but `mini` is another" in line


def test_statistics_without_a_dtype(of_mini, tmp_path):
    made = ExpertStatistics.load(of_mini)
    signature = {name: value for name, value in made.signature.items() if name != "dtype"}
    path = tmp_path / "s.safetensors"
    ExpertStatistics(made.spec, made.granularity, made.tables, items=made.items, signature=signature).save(path)
    output = [tmp_path / f"{name}.json" for name in ("masks", "same")]
    assert in_rounds(path, "--keep", "25%", "--output", output[0]) == 0
    assert in_rounds(of_mini, "--keep", "25%", "--output", output[1]) == 0
    assert MaskSet.load(output[0]).masks == MaskSet.load(output[1]).masks
