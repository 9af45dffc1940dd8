import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nllb_prune.errors import UsageError
from nllb_prune.planning.selection import top_per_layer

SCORES = arrays(np.float64, (2, 6), elements=st.sampled_from([-0.0, 0.0, 0.25, 0.5, 1.0]))


def test_the_best_of_each_layer():
    assert top_per_layer(np.array([[0.1, 0.9, 0.5], [3.0, 1.0, 2.0]]), (2, 1)) == ((1, 2), (0,))


@given(SCORES, st.tuples(st.integers(0, 6), st.integers(0, 6)))
def test_ties_go_to_the_lowest_id_and_scores_are_untouched(scores, counts):
    before = scores.copy()
    chosen = top_per_layer(scores, counts)
    np.testing.assert_array_equal(scores, before)
    for row, count, ids in zip(scores.tolist(), counts, chosen, strict=True):
        assert ids == tuple(sorted(sorted(range(6), key=lambda expert: (-row[expert], expert))[:count]))


@given(SCORES, st.permutations(range(6)))
def test_permuting_experts_keeps_the_multiset_of_scores(scores, order):
    chosen = top_per_layer(scores, (3, 3))
    permuted = top_per_layer(scores[:, order], (3, 3))
    for layer in range(2):
        kept, again = scores[layer, list(chosen[layer])], scores[:, order][layer, list(permuted[layer])]
        np.testing.assert_array_equal(np.sort(kept), np.sort(again))


def test_read_only_scores_are_fine():
    scores = np.ones((1, 3))
    scores.flags.writeable = False
    assert top_per_layer(scores, (2,)) == ((0, 1),)


@pytest.mark.parametrize(
    ("scores", "counts", "message"),
    [
        (np.ones((2, 3)), (1,), "shape"),
        (np.ones(3), (1,), "shape"),
        (np.array([[1.0, np.nan]]), (1,), "finite"),
        (np.ones((1, 3)), (4,), "0 to 3"),
        (np.ones((1, 3)), (-1,), "0 to 3"),
    ],
)
def test_refused(scores, counts, message):
    with pytest.raises(UsageError, match=message):
        top_per_layer(scores, counts)
