import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.labelled import agreement, roc_auc


def pairwise(values, faulty):
    """Every faulty sentence against every other one."""
    bad = [v for v, f in zip(values, faulty, strict=True) if f and not math.isnan(v)]
    good = [v for v, f in zip(values, faulty, strict=True) if not f and not math.isnan(v)]
    wins = sum(1.0 if b > g else 0.5 if b == g else 0.0 for b in bad for g in good)
    return wins / (len(bad) * len(good)) if bad and good else math.nan


@pytest.mark.parametrize(
    ("values", "faulty", "expected"),
    [
        ([0, 1, 2, 3], [0, 0, 1, 1], 1.0),
        ([3, 2, 1, 0], [0, 0, 1, 1], 0.0),
        ([1, 1, 1, 1], [0, 1, 0, 1], 0.5),
        ([0, 1, 1, 2], [0, 0, 1, 1], 0.875),  # 1 tie of 4 pairs
        ([0, math.nan, 2], [0, 1, 1], 1.0),
        ([0, 1], [1, 1], math.nan),
        ([math.nan, 1], [0, 1], math.nan),
    ],
)
def test_roc_auc_by_hand(values, faulty, expected):
    found = roc_auc(np.array(values, float), np.array(faulty, bool))
    assert found == pytest.approx(expected, nan_ok=True)


ROWS = st.lists(st.tuples(st.one_of(st.just(math.nan), st.integers(-3, 3).map(float)), st.booleans()), max_size=30)


@given(ROWS)
def test_roc_auc_equals_the_count_of_all_pairs(rows):
    values, faulty = [v for v, _ in rows], [f for _, f in rows]
    found = roc_auc(np.array(values, float), np.array(faulty, bool))
    assert found == pytest.approx(pairwise(values, faulty), nan_ok=True)


@given(ROWS)
def test_roc_auc_of_the_opposite_is_the_rest(rows):
    values, faulty = np.array([v for v, _ in rows], float), np.array([f for _, f in rows], bool)
    assert roc_auc(-values, faulty) == pytest.approx(1 - roc_auc(values, faulty), nan_ok=True)


def test_precision_and_recall_by_hand():
    found = agreement(np.array([1, 1, 1, 0, 0], bool), np.array([1, 0, 0, 1, 1], bool))
    assert (found.flagged, found.faulty, found.both) == (3, 3, 1)
    assert (found.precision, found.recall, found.f1) == pytest.approx((1 / 3, 1 / 3, 1 / 3))
    found = agreement(np.array([1, 0, 0, 0], bool), np.array([1, 1, 1, 0], bool))
    assert (found.precision, found.recall, found.f1) == pytest.approx((1, 1 / 3, 0.5))


def test_nothing_flagged_or_faulty_is_no_number():
    nothing = agreement(np.zeros(3, bool), np.zeros(3, bool))
    assert all(map(math.isnan, (nothing.precision, nothing.recall, nothing.f1)))
    missed = agreement(np.zeros(3, bool), np.ones(3, bool))
    assert math.isnan(missed.precision)
    assert (missed.recall, missed.f1) == (0, 0)


def test_labels_must_be_as_many_as_values():
    with pytest.raises(UsageError, match="`faulty` must have 2 labels, but has 1 instead"):
        roc_auc(np.zeros(2), np.zeros(1, bool))
