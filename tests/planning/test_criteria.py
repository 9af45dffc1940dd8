import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.calibration.statistics import empty_table
from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack
from nllb_prune.planning.criteria import CRITERIA, Shares, criterion

STACK = Stack("encoder", "source", (3,), 4)


def by_hand():
    """Four tokens, four experts; expert 3 is never chosen."""
    table = empty_table(STACK)
    table["tokens"][0] = 4
    table["first"][0, 0] = [3, 1, 0, 0]
    table["second"][0, 0] = [0, 1, 3, 0]
    table["p_first"][0, 0] = [1.5, 0.75, 0, 0]
    table["p_all"][0, 0] = [1.5, 1.0, 1.0, 0.5]
    return table


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("top1", [0.75, 0.25, 0, 0]),
        ("top2", [0.75, 0.5, 0.75, 0]),
        ("frequency", [0.75, 0.5, 0.75, 0]),
        ("conf", [0.5, 0.75, 0, 0]),
        ("mean", [0.375, 0.25, 0.25, 0.125]),
        ("load_balancing", [0.28125, 0.0625, 0, 0]),
        ("vanilla_importance", [0.375, 0.1875, 0, 0]),
        ("importance", [0.75 * np.exp(0.5), 0.25 * np.exp(0.75), 0, 0]),
    ],
)
def test_criteria_by_hand(name, expected):
    np.testing.assert_allclose(criterion(name)(Shares.of(by_hand())), [expected], rtol=1e-15)


def test_frequency_of_a_top_1_model_counts_first_ranks_only():
    np.testing.assert_array_equal(criterion("frequency")(Shares.of(by_hand(), top_k=1)), [[0.75, 0.25, 0, 0]])


def test_average_is_unweighted_and_counts_unranked_experts_as_zero_confidence():
    other = empty_table(STACK)
    other["tokens"][0] = 1000
    other["first"][0, 0, 1] = 1000
    other["p_first"][0, 0, 1] = 250
    average = Shares.average([Shares.of(by_hand()), Shares.of(other)])
    np.testing.assert_array_equal(average.top1, [[0.375, 0.625, 0, 0]])
    np.testing.assert_array_equal(average.conf, [[0.25, 0.5, 0, 0]])


@st.composite
def tables(draw):
    counts = st.lists(st.integers(0, 10**9), min_size=4, max_size=4)
    table = empty_table(STACK)
    first, second, extra = draw(counts), draw(counts), draw(st.integers(0, 10))
    table["tokens"][0] = draw(st.sampled_from([0, sum(first) + extra]))
    table["first"][0, 0], table["second"][0, 0] = first, second
    table["p_first"][0, 0] = [draw(st.floats(0, 1)) * count for count in first]
    table["p_all"][0, 0] = table["p_first"][0, 0] + draw(st.floats(0, 1e9))
    return table


@given(tables(), st.sampled_from(sorted(CRITERIA)), st.integers(0, 5))
def test_criteria_are_finite_and_leave_the_table_alone(table, name, seed):
    before = {field: values.copy() for field, values in table.items()}
    scores = criterion(name, seed=seed)(Shares.of(table))
    assert scores.shape == (1, 4)
    assert np.isfinite(scores).all()
    assert (scores >= 0).all()
    for field, values in before.items():
        np.testing.assert_array_equal(table[field], values)


def test_random_depends_on_seed_stack_and_key_only():
    shares = Shares.of(by_hand())

    def draw(**names):
        return criterion("random", **{"seed": 1, "stack": "encoder", "key": "aaa", **names})(shares)

    np.testing.assert_array_equal(draw(), draw())
    for other in ({"seed": 2}, {"stack": "decoder"}, {"key": "bbb"}):
        assert (draw() != draw(**other)).all()
    bits = int.from_bytes(hashlib.shake_256(b"1/encoder/aaa").digest(8), "little")
    assert draw()[0, 0] == (bits >> 11) / 2**53


def test_random_is_uniform():
    wide = Stack("encoder", "source", tuple(range(10)), 1000)
    scores = criterion("random")(Shares.of(empty_table(wide)))
    assert abs(scores.mean() - 0.5) < 0.01
    assert 0 <= scores.min() < scores.max() < 1


def test_unknown_criterion_lists_the_known_ones():
    with pytest.raises(UsageError, match="importance, top1, top2") as caught:
        criterion("magic")
    assert all(name in str(caught.value) for name in CRITERIA)


def test_every_criterion_is_described_in_one_line():
    assert all(info.description and "\n" not in info.description for info in CRITERIA.values())
