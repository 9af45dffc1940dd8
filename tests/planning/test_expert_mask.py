import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import LayerChange, applied, difference, size, union

A, B = ((0, 1, 7), (2, 3)), ((4, 5), (0, 3))
LAYER = st.sets(st.integers(0, 9), max_size=6).map(lambda ids: tuple(sorted(ids)))
MASK = st.tuples(LAYER, LAYER, LAYER)


def test_by_hand():
    assert union([A, B]) == ((0, 1, 4, 5, 7), (0, 2, 3))
    assert union([A]) == A
    assert difference(A, B) == (LayerChange((4, 5), (0, 1, 7), ()), LayerChange((0,), (2,), (3,)))
    assert size(A) == 5


@given(st.lists(MASK, min_size=1))
def test_a_union_contains_all_and_nothing_else(masks):
    for layer, ids in enumerate(union(masks)):
        assert list(ids) == sorted({expert for mask in masks for expert in mask[layer]})


@given(MASK, MASK)
def test_a_difference_leads_from_one_mask_to_the_other(before, after):
    change = difference(before, after)
    assert applied(change, before) == after
    for old, new, layer in zip(before, after, change, strict=True):
        assert not set(layer.incoming) & set(old)
        assert not set(layer.outgoing) & set(new)
        assert len(layer.incoming) - len(layer.outgoing) == len(new) - len(old)


def test_a_change_of_another_mask_is_refused():
    with pytest.raises(UsageError, match="other experts in layer 1"):
        applied(difference(A, B), ((0, 1, 7), (2, 4)))
    with pytest.raises(UsageError, match="must have 1 layers, as the mask, but has 2"):
        applied(difference(A, B), ((0, 1, 7),))
    with pytest.raises(UsageError, match="must have 2 layers, as `before`, but has 1"):
        difference(A, ((0, 1),))
