import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Fingerprint, Stack
from nllb_prune.planning.similarity import KeyComparison, compare, jaccard, jaccard_matrix, mean_jaccard, overlap

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


@given(st.lists(MASK, min_size=1, max_size=6))
def test_a_matrix_is_symmetric_with_ones_on_the_diagonal(masks):
    matrix = jaccard_matrix(masks)
    np.testing.assert_array_equal(matrix, matrix.T)
    np.testing.assert_array_equal(np.diag(matrix), 1.0)
    assert ((matrix >= 0) & (matrix <= 1)).all()
    assert matrix[0, -1] == jaccard(masks[0], masks[-1])


STACK = Stack("decoder", "target", (1, 3), 10)


def mask_set(**masks):
    fingerprint = Fingerprint.of([STACK], [1.0] * 20)
    return MaskSet(
        model_name="mini", fingerprint=fingerprint, stacks=(STACK,), granularity="language", masks={"decoder": masks}
    )


def test_overlap_of_a_stack():
    found = overlap(mask_set(ccc=C, aaa=A, bbb=B), "decoder")
    assert found.keys == ("aaa", "bbb", "ccc")
    np.testing.assert_array_equal(found.matrix, jaccard_matrix([A, B, C]))
    assert found.mean == pytest.approx(mean_jaccard([A, B, C]))
    assert found.most_similar == ("aaa", "bbb", 0.5)
    assert found.least_similar == ("bbb", "ccc", pytest.approx(1 / 6))
    assert found.union == 3 + 5


def test_overlap_of_one_mask_and_of_none():
    alone = overlap(mask_set(aaa=A), "decoder")
    assert (alone.mean, alone.most_similar, alone.least_similar, alone.union) == (1.0, None, None, 4)
    with pytest.raises(UsageError, match="1 to 5,000 masks to compare, but has 0"):
        overlap(mask_set(), "decoder")


def test_two_sets_are_compared_by_what_both_have():
    ours, theirs = mask_set(aaa=A, bbb=B), mask_set(bbb=((0, 1, 2), (2, 4)), ccc=C)
    assert compare(ours, theirs, "decoder") == (KeyComparison("bbb", pytest.approx(0.5), 3, 1, 2),)
