import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.planning.similarity import jaccard, jaccard_matrix, mean_jaccard

A, B, C = ((0, 1), (0, 1)), ((0, 1), (2, 3)), ((1, 2), (1, 9))
LAYER = st.sets(st.integers(0, 9), max_size=6).map(lambda ids: tuple(sorted(ids)))
MASK = st.tuples(LAYER, LAYER, LAYER)


def test_by_hand():
    assert jaccard(A, A) == 1.0
    assert jaccard(A, B) == 0.5
    assert jaccard(A, C) == pytest.approx(1 / 3)
    assert jaccard(((),), ((),)) == 1.0


@given(MASK, MASK)
def test_equals_the_definition_on_sets(a, b):
    layers = [len(set(x) & set(y)) / len(set(x) | set(y)) if x or y else 1.0 for x, y in zip(a, b, strict=True)]
    assert jaccard(a, b) == pytest.approx(sum(layers) / 3)
    assert jaccard(a, b) == jaccard(b, a)


def test_matrix_and_mean():
    matrix = jaccard_matrix([A, B, C])
    assert matrix.shape == (3, 3)
    np.testing.assert_array_equal(np.diag(matrix), 1.0)
    assert mean_jaccard([A, B, C]) == pytest.approx((jaccard(A, B) + jaccard(A, C) + jaccard(B, C)) / 3)
    assert mean_jaccard([A]) == 1.0


@pytest.mark.parametrize("masks", [[], [A, ((0, 1),)]])
def test_refused(masks):
    with pytest.raises(UsageError, match="same number of layers"):
        jaccard_matrix(masks)
