import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from nllb_prune.planning.candidates import Candidates
from nllb_prune.planning.scopes import SCOPES, fill

LAYER = SCOPES["layer"]
ONE = np.ones(1)


def one(scores, scope="layer", **options):
    return Candidates.of(np.array([scores], dtype=np.float64), SCOPES[scope], weights=ONE, **options)


def flags(*ids, experts=4):
    return np.isin(np.arange(experts), ids)[None]


def test_protected_come_first_and_the_best_of_them_if_there_is_no_room():
    draft = one([4, 3, 2, 1], protected=flags(2, 3))
    assert [draft.select((count,)) for count in (1, 2, 3)] == [((2,),), ((2, 3),), ((0, 2, 3),)]
    assert draft.too_protected((1,))
    assert not draft.too_protected((2,))
    assert not one([4, 3, 2, 1]).too_protected((0,))


def test_what_is_not_allowed_comes_last_even_if_protected():
    draft = one([4, 3, 2, 1], allowed=flags(1, 3), protected=flags(0, 3))
    assert draft.available() == (2,)
    assert [draft.select((count,)) for count in (1, 2)] == [((3,),), ((1, 3),)]


def test_what_can_be_kept_in_the_order_it_is_taken():
    assert one([1, 4, 3, 2]).possible() == [[1, 2, 3, 0]]
    assert one([4, 3, 2, 1], protected=flags(3)).possible() == [[3, 0, 1, 2]]
    assert one([4, 3, 2, 1], allowed=flags(1, 3)).possible() == [[1, 3]]
    assert one([4, 3, 2, 1], allowed=flags(1, 3), protected=flags(0, 3)).possible() == [[3, 1]]
    scores = np.array([[1.0, 2.0], [2.0, 1.0]])
    allowed = np.array([[True, True], [False, True]])
    draft = Candidates.of(scores, LAYER, weights=np.ones(2), allowed=allowed)
    assert draft.possible() == [[1, 0], [1]]
    assert all(type(each) is int for ids in draft.possible() for each in ids)


def test_mass_is_that_of_the_allowed():
    draft = one([4, 3, 2, 1], "threshold", allowed=flags(1, 3))
    np.testing.assert_array_equal(draft.keys, [[0, 0.75, np.inf, np.inf]])


def test_the_minimum_comes_before_all():
    assert one([4, 3, 2, 1]).slots(2).tolist() == [[-np.inf, -np.inf, 2, 3]]


def test_sharing_takes_the_best_of_each_in_turn():
    parts = [one([9, 8, 1, 0, 0]), one([0, 1, 7, 8, 9])]  # best first: 0 1 2 3 4 and 4 3 2 1 0
    shared = Candidates.shared(parts, level=True)
    # best ranks 0 1 2 1 0, sums 4 4 4 4 4
    assert shared.order.tolist() == [[0, 4, 1, 3, 2]]
    assert shared.keys.tolist() == [[0, 1, 2, 3, 4]]


def test_ties_of_sharing_go_to_the_lower_sum():
    parts = [one([9, 5, 6, 0]), one([1, 2, 9, 0])]  # ranks 0 2 1 3 and 2 1 0 3
    assert Candidates.shared(parts, level=True).order.tolist() == [[2, 0, 1, 3]]


SCORES = arrays(np.float64, (3, 2, 6), elements=st.sampled_from([0.0, 0.5, 1.0, 2.0, 5.0]))


@given(SCORES, st.sampled_from(sorted(SCOPES)), st.integers(1, 12))
def test_a_shared_budget_is_filled_by_the_best_of_each(scores, scope, total):
    parts = [Candidates.of(each, SCOPES[scope], weights=np.array([1.0, 3.0])) for each in scores]
    shared = Candidates.shared(parts, level=scope == "layer")
    counts = fill([shared.slots(0)], total)[0]
    kept = shared.select(counts)
    assert sum(map(len, kept)) == total
    for layer, ids in enumerate(kept):
        entries = {
            expert: min(p.keys[layer, p.order[layer].tolist().index(expert)] for p in parts) for expert in range(6)
        }
        worst = max((entries[expert] for expert in ids), default=-np.inf)
        assert all(entries[expert] >= worst for expert in set(range(6)) - set(ids))
    assert all(np.all(np.diff(each) >= 0) for each in shared.keys)


MARKS = st.none() | arrays(np.bool_, (2, 6))


@given(SCORES, st.sampled_from(sorted(SCOPES)), MARKS, MARKS, st.lists(st.integers(0, 6), min_size=2, max_size=2))
def test_the_first_of_those_possible_are_selected(scores, scope, allowed, protected, wanted):
    draft = Candidates.of(scores[0], SCOPES[scope], weights=np.array([1.0, 3.0]), allowed=allowed, protected=protected)
    possible = draft.possible()
    assert tuple(map(len, possible)) == draft.available()
    assert [set(ids) for ids in possible] == [
        set(np.flatnonzero(each)) for each in (np.ones((2, 6)) if allowed is None else allowed)
    ]
    counts = tuple(min(want, len(ids)) for want, ids in zip(wanted, possible, strict=True))
    assert draft.select(counts) == tuple(tuple(sorted(ids[:n])) for n, ids in zip(counts, possible, strict=True))


@given(SCORES, st.sampled_from(sorted(SCOPES)))
def test_sharing_with_oneself_changes_nothing(scores, scope):
    part = Candidates.of(scores[0], SCOPES[scope], weights=np.array([1.0, 3.0]))
    shared = Candidates.shared([part, part], level=scope == "layer")
    np.testing.assert_array_equal(shared.keys, part.keys)
    np.testing.assert_array_equal(np.sort(shared.order, axis=1), np.sort(part.order, axis=1))
