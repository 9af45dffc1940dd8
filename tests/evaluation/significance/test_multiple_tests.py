import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.significance.multiple_tests import q_values


def definition(p_values):
    """The least level at which the step-up procedure of 1995 rejects each test, by trying every level that matters."""
    known = [p for p in p_values if p == p]
    levels = sorted(p * len(known) / rank for p in known for rank in range(1, len(known) + 1))

    def rejected(p, level):
        passing = [k for k in range(1, len(known) + 1) if sorted(known)[k - 1] <= level * k / len(known) * (1 + 1e-12)]
        return bool(passing) and p <= sorted(known)[max(passing) - 1]

    return [next((level for level in levels if rejected(p, level)), np.nan) if p == p else np.nan for p in p_values]


def test_by_hand():
    # 5 tests: .01 * 5 / 1 = .05, .02 * 5 / 2 = .05, .03 * 5 / 3 = .05, .04 * 5 / 4 = .05, .5 * 5 / 5 = .5
    assert q_values([0.04, 0.01, 0.5, 0.03, 0.02]) == pytest.approx([0.05, 0.05, 0.5, 0.05, 0.05])
    # .008 * 4 = .032; .03 * 4 / 2 = .06 is above .04 * 4 / 3 = .0533, so takes that; .9 * 4 / 4 = .9
    assert q_values([0.008, 0.03, 0.04, 0.9]) == pytest.approx([0.032, 0.16 / 3, 0.16 / 3, 0.9])


def test_the_example_of_benjamini_and_hochberg():
    # Their section 4.1: at a level of .05 the first four of fifteen hypotheses are rejected.
    p = [0.0001, 0.0004, 0.0019, 0.0095, 0.0201, 0.0278, 0.0298, 0.0344, 0.0459]
    p += [0.3240, 0.4262, 0.5719, 0.6528, 0.7590, 1.0]
    assert (q_values(p) <= 0.05).tolist() == [True] * 4 + [False] * 11


P_VALUES = st.lists(st.sampled_from([0.0, 0.001, 0.01, 0.04, 0.05, 0.3, 1.0, float("nan")]), max_size=9)


@given(P_VALUES | st.lists(st.floats(0, 1), max_size=9))
def test_equals_the_definition(p_values):
    assert q_values(p_values) == pytest.approx(np.array(definition(p_values)), nan_ok=True)


@given(P_VALUES)
def test_larger_p_values_have_larger_q_values_and_equal_ones_equal(p_values):
    found = q_values(p_values)
    for p, q in zip(p_values, found, strict=True):
        for other, other_q in zip(p_values, found, strict=True):
            assert not p < other or q <= other_q
            assert p != other or q == other_q
        assert np.isnan(q) if p != p else p <= q <= 1


def test_tests_without_a_result_do_not_count():
    assert q_values([0.02, np.nan, 0.04]) == pytest.approx([0.04, np.nan, 0.04], nan_ok=True)
    assert q_values([]).tolist() == []
    assert np.isnan(q_values([np.nan])).all()


def test_what_is_no_p_value_is_refused():
    with pytest.raises(UsageError, match=r"`p_values` must be a list of numbers from 0 to 1 or NaN, but one is 1\.5"):
        q_values([0.1, 1.5])
    with pytest.raises(UsageError, match=r"but one is -0\.1 instead"):
        q_values([-0.1])
