import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.calibration.fields import GROUPS, fields_of
from nllb_prune.calibration.statistics import empty_table
from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack
from nllb_prune.planning.criteria import CRITERIA, describe_criteria, distinct_criteria, score
from nllb_prune.planning.evidence import Evidence

STACK = Stack("encoder", "source", (3,), 4)
LOG_2 = np.log(2)
SHAPES = {"class": 4, "layer": 1, "expert": 4, "other": 4, "dimension": 2, "byte": 2, "sample": 0}


def field(name, values):
    """Return an array of the field's shape that holds the values of its one layer, in class `all` if it has classes."""
    info = fields_of(GROUPS)[name]
    array = np.zeros([SHAPES[axis] for axis in info.axes], info.dtype)
    array[(0, 0) if info.axes[0] == "class" else 0] = values
    return array


def by_hand():
    """Four tokens, four experts, two dimensions, 16 token ids; expert 3 is never chosen.

    Outputs: of expert 0 (3, 4), (3, 4), (0, 0); of expert 1 (0, 2), (0, -2); of expert 2 (1, 0) three times.
    Combining weights: expert 0 3/4, 1/2, 3/4; expert 1 3/4, 1/4; expert 2 1/4, 1/2, 1/4.
    """
    table = empty_table(STACK)
    table["tokens"][0] = 4
    values = {
        "first": [3, 1, 0, 0],
        "second": [0, 1, 3, 0],
        "p_first": [1.5, 0.75, 0, 0],
        "p_second": [0, 0.125, 0.75, 0],
        "p_all": [1.5, 1.0, 1.0, 0.5],
        "gate": [2.0, 1.0, 1.0, 0],
        "norm": [10, 4, 3, 0],
        "gate_norm": [6.25, 2, 1, 0],
        "gate_norm_squared": [14.0625 + 6.25, 2.25 + 0.25, 0.375, 0],
        "norm_max": [5, 2, 1, 0],
        "activation_max": [4, 2, 1, 0],
        "token_ids": [[0b1111, 0b1], [0b11, 0], [0b100, 0b1], [0, 0]],
        "together": [[0, 1, 2, 0], [0, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]],
        "output_sum": [[6, 8], [0, 0], [3, 0], [0, 0]],
        "output_squared": [[18, 32], [0, 8], [3, 0], [0, 0]],
        "gradient_sum": [[0, 0], [2, 0], [0, 3], [0, 0]],
        "gradient_squared": [[27, 12], [4, 8], [12, 3], [0, 0]],
    }
    return table | {name: field(name, array) for name, array in values.items()}


def weights_by_hand():
    values = {
        "weight_norm": [3, 1, 2, 4],
        "weight_similarity": [0.5, -0.25, 1, 0],
        "router_norm": [2, 4, 1, 3],
        "stable_rank": [5, 8, 7, 6],
    }
    return {name: field(name, array) for name, array in values.items()}


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("top1", [0.75, 0.25, 0, 0]),
        ("top2", [0.75, 0.5, 0.75, 0]),
        ("frequency", [0.75, 0.5, 0.75, 0]),
        ("confidence", [0.5, 0.75, 0, 0]),
        ("mean", [0.375, 0.25, 0.25, 0.125]),
        ("load_balance", [0.28125, 0.0625, 0, 0]),
        ("importance_vanilla", [0.375, 0.1875, 0, 0]),
        ("importance", [0.75 * np.exp(0.5), 0.25 * np.exp(0.75), 0, 0]),
        ("soft", [1.5, 1.0, 1.0, 0.5]),
        ("soft_topk", [1.5, 0.875, 0.75, 0]),
        ("routing_mass", [0.5, 0.25, 0.25, 0]),
        ("alpha", [0.5, 0.25, 0.25, 0]),
        ("reap", [6.25 / 3, 1, 1 / 3, 0]),
        ("reap_l2", [np.sqrt(20.3125 / 3), np.sqrt(1.25), np.sqrt(0.125), 0]),
        ("ean_mean", [10 / 3, 2, 1, 0]),
        ("ean_sum", [10, 4, 3, 0]),
        ("weighted_ean_sum", [6.25, 2, 1, 0]),
        ("max_activation", [4, 2, 1, 0]),
        ("mc_ean", [np.sqrt(18) + np.sqrt(32), np.sqrt(8), np.sqrt(3), 0]),
        # variances 2 and 32/9; 0 and 4; 0 and 0; the last expert has no tokens; 0 counts as 2**-10 squared
        ("mc_eae", [0.5 * np.log(2 * 32 / 9), -10 * LOG_2 + LOG_2, -20 * LOG_2, -20 * LOG_2]),
        ("vocabulary_coverage", [5 / 16, 2 / 16, 2 / 16, 0]),
        # ids shared with others: expert 0 has 2 with expert 1 and 2 with expert 2, which have none together
        ("shared_tokens", [-4, -2, -2, 0]),
        ("egn", [np.sqrt(27) + np.sqrt(12), 2 + np.sqrt(8), np.sqrt(12) + np.sqrt(3), 0]),
        # variances 9 and 4; 1 and 4; 4 and 0, which counts as 2**-21 squared
        ("ege", [np.log(6), np.log(2), LOG_2 - 21 * LOG_2, -42 * LOG_2]),
        # the pairs with expert 3 have none: it goes; then of 0, 1, 2 the pairs (0, 1) and (1, 2) have 1: 1 is used less
        ("co_selection", [4, 2, 3, 1]),
        ("expert_weight_norm", [3, 1, 2, 4]),
        ("expert_similarity", [-0.5, 0.25, -1, 0]),
        ("router_weight_norm", [-2, -4, -1, -3]),
        ("stable_rank", [-5, -8, -7, -6]),
    ],
)
def test_criteria_by_hand(name, expected):
    scores = score(name, Evidence([by_hand()], weights=weights_by_hand()))
    np.testing.assert_allclose(scores, [expected], rtol=1e-14)


def test_every_criterion_is_checked_by_hand():
    (mark,) = (m for m in test_criteria_by_hand.pytestmark if m.name == "parametrize")
    assert {name for name, _ in mark.args[1]} | {"random"} == set(CRITERIA)


def test_criteria_of_a_top_1_model_count_first_ranks_only():
    evidence = Evidence([by_hand()], top_k=1)
    np.testing.assert_array_equal(score("frequency", evidence), [[0.75, 0.25, 0, 0]])
    np.testing.assert_array_equal(score("soft_topk", evidence), [[1.5, 0.75, 0, 0]])
    np.testing.assert_array_equal(score("ean_mean", evidence), [[10 / 3, 4, 3, 0]])


def test_alpha_divides_by_the_living_experts_of_each_layer():
    table = empty_table(Stack("encoder", "source", (1, 3, 5), 2))
    table["tokens"][0] = 16
    table["gate"][0] = [[3, 1], [0, 5], [0, 0]]  # gates need not sum to the tokens
    np.testing.assert_array_equal(score("alpha", Evidence([table])), [[0.75, 0.25], [0, 1], [0, 0]])


def test_criteria_are_computed_after_the_mean_over_directions():
    other = empty_table(STACK)
    other["tokens"][0] = 1000
    other["first"][0, 0, 1] = 1000
    other["p_first"][0, 0, 1] = 250
    scores = score("importance", Evidence([by_hand(), other]))
    np.testing.assert_allclose(scores, [[0.375 * np.exp(0.25), 0.625 * np.exp(0.5), 0, 0]], rtol=1e-15)


@pytest.mark.parametrize("name", [name for name, each in CRITERIA.items() if each.opposite is None])
def test_reverse_negates(name):
    evidence = Evidence([by_hand()], weights=weights_by_hand(), draw="1")
    assert score(name, evidence).any()
    np.testing.assert_array_equal(score(name, evidence, reverse=True), -score(name, evidence))


def chosen_together(counts, first):
    """Return evidence of pairs (a, b) that so many tokens rank a, b, and of the tokens that rank each expert first."""
    table = empty_table(STACK) | {"together": field("together", 0)}
    for (a, b), count in counts.items():
        table["together"][0, a, b] = count
    table["tokens"][0] = sum(first)
    table["first"][0, 0] = first
    return Evidence([table])


ROUND_ROBIN = {(0, 1): 1, (2, 0): 6, (0, 3): 5, (1, 2): 4, (3, 1): 3, (2, 3): 2}


@pytest.mark.parametrize(
    ("counts", "first", "lowest", "highest"),
    [
        # lowest: (0, 1) loses 0, (2, 3) loses 2, (1, 3) loses 1; highest: (0, 2) loses 0, (1, 2) loses 2, (1, 3) 1
        (ROUND_ROBIN, [1, 3, 2, 4], [1, 3, 2, 4], [1, 3, 2, 4]),
        # lowest: (0, 1) loses 1, (2, 3) loses 3, (0, 2) loses 2; highest: (0, 2) loses 2, (0, 3) loses 3, (0, 1) 1
        (ROUND_ROBIN, [9, 3, 2, 1], [4, 1, 3, 2], [4, 3, 1, 2]),
        # equally used: the higher id goes; lowest: (0, 1), (2, 3), (0, 2); highest: (0, 2), (0, 3), (0, 1)
        (ROUND_ROBIN, [5, 5, 5, 5], [4, 1, 3, 2], [4, 3, 1, 2]),
        # all pairs alike: the least used of all goes, and of those the one of the highest id
        ({}, [2, 1, 1, 3], [3, 2, 1, 4], [3, 2, 1, 4]),
        ({}, [0, 0, 0, 0], [4, 3, 2, 1], [4, 3, 2, 1]),
    ],
)
def test_co_selection_drops_the_less_used_of_the_extreme_pair(counts, first, lowest, highest):
    evidence = chosen_together(counts, first)
    np.testing.assert_array_equal(score("co_selection", evidence), [lowest])
    np.testing.assert_array_equal(score("co_selection", evidence, reverse=True), [highest])


def one_at_a_time(together, used):
    """Return the rounds of `co_selection` for one layer, pair by pair."""
    alive, rounds = set(range(len(used))), [len(used)] * len(used)
    for number in range(1, len(used)):
        pairs = [(a, b) for a in alive for b in alive if a < b]
        count = min(together[a][b] + together[b][a] for a, b in pairs)
        candidates = {e for a, b in pairs if together[a][b] + together[b][a] == count for e in (a, b)}
        goes = min(candidates, key=lambda e: (used[e], -e))
        rounds[goes] = number
        alive.remove(goes)
    return rounds


@given(st.integers(0, 10**6))
def test_co_selection_takes_layers_one_by_one(seed):
    random = np.random.default_rng(seed)
    table = empty_table(Stack("encoder", "source", (1, 3), 7))
    table["together"] = random.integers(0, 5, (2, 7, 7)) * (1 - np.eye(7, dtype=np.int64))
    table["first"][0] = table["together"].sum(axis=2)
    table["second"][0] = table["together"].sum(axis=1)
    table["tokens"][0] = 100
    used = table["first"][0] + table["second"][0]
    expected = [one_at_a_time(table["together"][layer], used[layer]) for layer in range(2)]
    np.testing.assert_array_equal(score("co_selection", Evidence([table])), expected)


def test_spread_of_fewer_than_two_tokens_is_lowest():
    table = empty_table(STACK)
    table["tokens"][0], table["first"][0, 0] = 5, [1, 2, 2, 0]
    table |= {
        "output_sum": field("output_sum", [[9, 9], [2, 2], [2, 2], [0, 0]]),
        "output_squared": field("output_squared", [[81.5, 81], [2, 2], [2.5, 2], [0, 0]]),  # 81.5: not quite 9 squared
    }
    least = -20 * LOG_2  # two dimensions at 2**-10; the variances of expert 2 are 1/4 and 0
    np.testing.assert_allclose(score("mc_eae", Evidence([table])), [[least, least, -LOG_2 - 10 * LOG_2, least]])


@st.composite
def tables(draw):
    """Tables of every group that has text."""
    counts = st.lists(st.integers(0, 10**6), min_size=4, max_size=4)
    table = empty_table(STACK)
    first, second, extra = draw(counts), draw(counts), draw(st.integers(0, 10))
    tokens = sum(first) + extra
    random = np.random.default_rng(draw(st.integers(0, 10**6)))
    table["tokens"][0] = tokens
    routed = np.array(first) + np.array(second)
    values = {"first": first, "second": second, "p_first": random.random(4) * first, "p_all": random.random(4) * tokens}
    values |= {"p_second": random.random(4) * second, "gate": random.random(4) * routed}
    for name in ("norm", "gate_norm", "gate_norm_squared", "norm_max", "activation_max"):
        values[name] = random.random(4) * routed
    values["token_ids"] = random.integers(0, 256, (4, 2))
    values["together"] = random.integers(0, 9, (4, 4)) * (1 - np.eye(4, dtype=np.int64))
    for name in ("output", "gradient"):
        values[f"{name}_sum"] = random.normal(size=(4, 2)) * routed[:, None]
        values[f"{name}_squared"] = random.random((4, 2)) * routed[:, None]
    return table | {name: field(name, array) for name, array in values.items()}


@given(st.lists(tables(), min_size=1, max_size=3), st.sampled_from(sorted(CRITERIA)), st.booleans())
def test_criteria_are_finite_and_leave_the_tables_alone(parts, name, reverse):
    weights = weights_by_hand()
    copies = [{key: values.copy() for key, values in table.items()} for table in (*parts, weights)]
    scores = score(name, Evidence(parts, weights=weights), reverse=reverse)
    assert scores.shape == (1, 4)
    assert scores.dtype == np.float64
    assert np.isfinite(scores).all()
    if CRITERIA[name].mass and not reverse:
        assert (scores >= 0).all()
    for table, before in zip((*parts, weights), copies, strict=True):
        assert table.keys() == before.keys()
        for key, values in before.items():
            np.testing.assert_array_equal(table[key], values)


@given(st.lists(tables(), min_size=1, max_size=3), st.sampled_from([n for n, c in CRITERIA.items() if c.same_as]))
def test_criteria_said_to_rank_the_same_do(parts, name):
    evidence = Evidence(parts)
    ours, theirs = score(name, evidence)[0], score(CRITERIA[name].same_as, evidence)[0]
    if not theirs.any():
        assert not ours.any()
        return
    np.testing.assert_allclose(ours / ours.max(), theirs / theirs.max(), rtol=1e-12)


@pytest.mark.parametrize("name", list(CRITERIA))
def test_criteria_need_the_groups_they_say(name):
    everything, groups = by_hand() | weights_by_hand(), ("core", *CRITERIA[name].groups)
    enough = {key: everything[key] for key in fields_of(groups)}
    assert score(name, Evidence([enough])).shape == (1, 4)
    for group in CRITERIA[name].groups:
        less = {key: values for key, values in enough.items() if key not in fields_of([group])}
        with pytest.raises(UsageError, match=f"must hold the group {group} for this, but hold only core"):
            score(name, Evidence([less]))


def test_random_depends_on_the_draw_only():
    def draw(text, **options):
        return score("random", Evidence([by_hand()], draw=text, **options))

    np.testing.assert_array_equal(draw("1/encoder/aaa"), draw("1/encoder/aaa", top_k=1, position=3))
    np.testing.assert_array_equal(
        draw("1/encoder/aaa"), score("random", Evidence([empty_table(STACK)], draw="1/encoder/aaa"))
    )
    for other in ("2/encoder/aaa", "1/decoder/aaa", "1/encoder/bbb"):
        assert (draw("1/encoder/aaa") != draw(other)).all()
    bits = int.from_bytes(hashlib.shake_256(b"1/encoder/aaa").digest(8), "little")
    assert draw("1/encoder/aaa")[0, 0] == (bits >> 11) / 2**53


def test_random_is_uniform():
    wide = Stack("encoder", "source", tuple(range(10)), 1000)
    scores = score("random", Evidence([empty_table(wide)], draw="0//"))
    assert abs(scores.mean() - 0.5) < 0.01
    assert 0 <= scores.min() < scores.max() < 1


def test_unknown_criterion_lists_the_known_ones():
    with pytest.raises(UsageError, match="`criterion` must be one of importance, top1, top2") as caught:
        score("magic", Evidence([by_hand()]))
    assert str(caught.value).endswith("but is magic instead.")
    assert all(name in str(caught.value) for name in CRITERIA)


def test_distinct_criteria_rank_as_no_other_does():
    assert set(CRITERIA) - set(distinct_criteria()) == {"frequency", "soft", "alpha"}
    assert {CRITERIA[name].same_as for name in ("frequency", "soft", "alpha")} <= set(distinct_criteria())


def test_criteria_are_described_in_a_line_each():
    rows = describe_criteria()
    assert [row[0] for row in rows] == list(CRITERIA)
    assert rows[0] == ("importance", "lowest", "core", "top1 * exp(confidence)", "arXiv 2212.09811, its best", "")
    by_name = {row[0]: row for row in rows}
    assert by_name["shared_tokens"][1:3] == ("highest", "vocabulary")
    assert by_name["soft"][5] == "mean"
    assert all(row[3] and row[4] and "\n" not in "".join(row) for row in rows)
