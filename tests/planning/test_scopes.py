import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nllb_prune.errors import UsageError
from nllb_prune.planning.scopes import SCOPES, by_mass, by_rank, by_score, by_weight, fill, scope_named

EVEN = np.ones(2)
# two layers, best first: one expert does most of the work in the first, all share it in the second
SCORES = np.array([[8.0, 1.0, 1.0, 0.0], [0.5, 0.5, 0.5, 0.5]])


def test_keys_by_hand():
    np.testing.assert_array_equal(by_rank(SCORES, EVEN), [[0, 1, 2, 3], [0, 1, 2, 3]])
    np.testing.assert_allclose(by_mass(SCORES, EVEN), [[0, 0.8, 0.9, 1], [0, 0.25, 0.5, 0.75]])
    np.testing.assert_array_equal(by_score(SCORES, EVEN), -SCORES)
    np.testing.assert_allclose(
        by_weight(SCORES, np.array([1.0, 2.0])), [[0.5, 1.5, 2.5, 3.5], [0.25, 0.75, 1.25, 1.75]]
    )


def test_a_layer_without_mass_counts_as_even():
    np.testing.assert_array_equal(by_mass(np.zeros((1, 4)), EVEN[:1]), [[0, 0.25, 0.5, 0.75]])


@pytest.mark.parametrize(
    ("scope", "total", "counts"),
    [
        ("layer", 5, (3, 2)),
        ("threshold", 5, (1, 4)),  # theta 0.8: the first expert of the one, all of the other
        ("threshold", 6, (2, 4)),
        ("ranking", 3, (3, 0)),
        ("divergence", 3, (1, 2)),
        ("divergence", 6, (2, 4)),
    ],
)
def test_counts_by_hand(scope, total, counts):
    keys = SCOPES[scope].keys(SCORES, np.array([1.0, 2.0]))
    assert fill([keys], total) == [counts]


@given(arrays(np.float64, (3, 5), elements=st.sampled_from([0.0, 0.25, 0.5, 3.0])), st.floats(0.01, 1))
def test_a_threshold_is_the_smallest_prefix_that_reaches_it(scores, theta):
    scores = -np.sort(-scores, axis=1)
    below = (by_mass(scores, np.ones(3)) < theta).sum(axis=1)
    for layer, count in zip(scores, below, strict=True):
        if layer.sum():
            shares = np.concatenate([[0.0], np.cumsum(layer) / np.cumsum(layer)[-1]])
            assert shares[count] >= theta
            assert shares[count - 1] < theta


def test_ties_go_to_the_first_stack_and_layer():
    same = np.zeros((2, 3))
    assert fill([same, same], 4) == [(3, 1), (0, 0)]
    assert fill([same], 0) == [(0, 0)]


@given(
    st.lists(arrays(np.float64, (2, 4), elements=st.floats(-5, 5)), min_size=1, max_size=3),
    st.integers(0, 8),
)
def test_filling_is_exact_and_monotone(scores, total):
    keys = [np.sort(each, axis=1) for each in scores]
    before = [each.copy() for each in keys]
    counts, more = fill(keys, total), fill(keys, total + 1)
    assert sum(map(sum, counts)) == min(total, 8 * len(keys))
    assert all(a <= b for x, y in zip(counts, more, strict=True) for a, b in zip(x, y, strict=True))
    for each, old in zip(keys, before, strict=True):
        np.testing.assert_array_equal(each, old)


def test_unknown():
    with pytest.raises(UsageError, match="`scope` must be one of layer, threshold, stack-threshold, ranking, diverg"):
        scope_named("theta")
