import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.calibration.fields import GROUPS
from nllb_prune.calibration.statistics import empty_table
from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Stack
from nllb_prune.planning.evidence import Evidence

STACK = Stack("encoder", "source", (3,), 4)
END = 3  # the position class `end` of an encoder


def core(tokens, first, second=(0, 0, 0, 0), *, p_first=(0, 0, 0, 0), p_all=(0, 0, 0, 0), gate=(0, 0, 0, 0)):
    table = empty_table(STACK)
    table["tokens"][0] = tokens
    given_values = {"first": first, "second": second, "p_first": p_first, "p_all": p_all, "gate": gate}
    for name, values in given_values.items():
        table[name][0, 0] = values
    return table


def with_norms(table, **fields):
    """Add the group `norms`, fields that are not given all zeros."""
    for field in GROUPS["norms"].fields:
        table[field.name] = np.zeros((4, 1, 4))
        table[field.name][0, 0] = fields.get(field.name, 0)
    return table


def test_an_expert_that_no_token_ranks_first_has_no_confidence_in_that_direction():
    small = core(4, [3, 1, 0, 0], p_first=[1.5, 0.75, 0, 0])
    large = core(1000, [0, 1000, 0, 0], p_first=[0, 250, 0, 0])
    evidence = Evidence([small, large])
    np.testing.assert_array_equal(evidence.top1, [[0.375, 0.625, 0, 0]])
    np.testing.assert_array_equal(evidence.confidence, [[0.25, 0.5, 0, 0]])


def test_sums_of_directions_count_as_if_all_had_the_mean_number_of_tokens():
    small, large = core(2, [2, 0, 0, 0], p_all=[1, 1, 0, 0]), core(6, [0, 6, 0, 0], p_all=[3, 0, 3, 0])
    # mean of 4 tokens: twice the sums of the one, two thirds of those of the other, and half of both
    np.testing.assert_allclose(Evidence([small, large]).soft, [[2, 1, 1, 0]], rtol=1e-15)
    np.testing.assert_allclose(Evidence([small, large]).routed_tokens, [[2, 2, 0, 0]], rtol=1e-15)


def test_means_over_routed_tokens_are_averaged_over_directions_as_they_are():
    few = with_norms(core(10, [1, 0, 0, 0]), norm=[6, 0, 0, 0], norm_max=[6, 0, 0, 0])
    many = with_norms(core(10, [8, 0, 0, 0]), norm=[16, 0, 0, 0], norm_max=[3, 0, 0, 0])
    np.testing.assert_array_equal(Evidence([few, many]).norm_mean, [[4, 0, 0, 0]])
    np.testing.assert_array_equal(Evidence([few, many]).norm_sum, [[11, 0, 0, 0]])
    np.testing.assert_array_equal(Evidence([few, many]).norm_max, [[4.5, 0, 0, 0]])


def test_top_k_says_which_tokens_are_routed():
    table = core(8, [4, 2, 0, 0], [2, 2, 4, 0])
    table["p_first"][0, 0], table["p_second"][0, 0] = [3, 1, 0, 0], [0.5, 0.5, 1, 0]
    with_norms(table, norm=[12, 8, 4, 0])
    np.testing.assert_array_equal(Evidence([table]).routed, [[0.75, 0.5, 0.5, 0]])
    np.testing.assert_array_equal(Evidence([table], top_k=1).routed, [[0.5, 0.25, 0, 0]])
    np.testing.assert_array_equal(Evidence([table]).soft_topk, [[3.5, 1.5, 1, 0]])
    np.testing.assert_array_equal(Evidence([table], top_k=1).soft_topk, [[3, 1, 0, 0]])
    np.testing.assert_array_equal(Evidence([table]).norm_mean, [[2, 2, 1, 0]])
    np.testing.assert_array_equal(Evidence([table], top_k=1).norm_mean, [[3, 4, 4, 0]])
    np.testing.assert_array_equal(Evidence([table]).routed_tokens, [[6, 4, 4, 0]])
    np.testing.assert_array_equal(Evidence([table], top_k=1).routed_tokens, [[4, 2, 0, 0]])


def test_position_chooses_the_class_of_fields_that_tell_classes_apart():
    table = core(8, [8, 0, 0, 0])
    table["tokens"][END] = 2
    table["first"][END, 0] = [1, 1, 0, 0]
    table["together"] = np.zeros((1, 4, 4), np.int64)
    table["together"][0, 0, 1] = 8
    at_end = Evidence([table], position=END)
    np.testing.assert_array_equal(at_end.top1, [[0.5, 0.5, 0, 0]])
    np.testing.assert_array_equal(at_end.together[0, 0], [0, 8, 0, 0])
    np.testing.assert_array_equal(at_end.routed_tokens, [[8, 0, 0, 0]])


def test_pairs_are_chosen_together_in_either_order():
    table = core(5, [3, 2, 0, 0])
    table["together"] = np.zeros((1, 4, 4), np.int64)
    table["together"][0, 0, 1], table["together"][0, 1, 0], table["together"][0, 2, 3] = 3, 2, 7
    expected = [[0, 5, 0, 0], [5, 0, 0, 0], [0, 0, 0, 7], [0, 0, 7, 0]]
    np.testing.assert_array_equal(Evidence([table]).together, [expected])


id_sets = st.lists(st.sets(st.integers(0, 23)), min_size=4, max_size=4)


@given(st.lists(id_sets, min_size=1, max_size=3))
def test_distinct_and_shared_ids_are_those_of_sets(directions):
    def table(sets):
        has = np.array([[number in ids for number in range(24)] for ids in sets])
        return core(1, [1, 0, 0, 0]) | {"token_ids": np.packbits(has[None], axis=-1, bitorder="little")}

    def shared(sets, mine):
        return sum(len(sets[mine] & ids) for other, ids in enumerate(sets) if other != mine)

    evidence = Evidence([table(sets) for sets in directions])
    distinct = np.mean([[len(ids) for ids in sets] for sets in directions], axis=0)
    both = np.mean([[shared(sets, expert) for expert in range(4)] for sets in directions], axis=0)
    np.testing.assert_allclose(evidence.vocabulary, [distinct], rtol=1e-15)
    np.testing.assert_allclose(evidence.shared_ids, [both], rtol=1e-15)
    assert evidence.vocabulary_size == 24


def test_no_tokens_give_zeros():
    evidence = Evidence([with_norms(empty_table(STACK))])
    names = ("top1", "top2", "routed", "confidence", "mean", "soft", "soft_topk", "routing_mass", "routed_tokens")
    norms = ("norm_mean", "norm_sum", "gate_norm_mean", "gate_norm_sum", "gate_norm_rms", "norm_max", "activation_max")
    for name in names + norms:
        np.testing.assert_array_equal(getattr(evidence, name), np.zeros((1, 4)), err_msg=name)


def test_a_direction_without_tokens_counts_as_zeros():
    evidence = Evidence([core(4, [4, 0, 0, 0], p_all=[2, 0, 0, 0]), empty_table(STACK)])
    np.testing.assert_array_equal(evidence.top1, [[0.5, 0, 0, 0]])
    np.testing.assert_array_equal(evidence.soft, [[0.5, 0, 0, 0]])


def test_results_are_copies():
    table = with_norms(core(1, [1, 0, 0, 0], gate=[1, 0, 0, 0]), norm_max=[2, 0, 0, 0])
    weights = {"weight_norm": np.ones((1, 4))}
    evidence = Evidence([table], weights=weights)
    for name in ("top1", "soft", "norm_max", "weight_norm"):
        before = getattr(evidence, name).copy()
        getattr(evidence, name)[:] = 99
        np.testing.assert_array_equal(getattr(evidence, name), before, err_msg=name)


@pytest.mark.parametrize(
    ("name", "group"),
    [
        ("norm_mean", "norms"),
        ("vocabulary", "vocabulary"),
        ("together", "coselection"),
        ("output_squared", "dimensions"),
        ("gradient_sum", "gradients"),
        ("stable_rank", "weights"),
    ],
)
def test_a_group_that_was_not_collected_is_named(name, group):
    evidence = Evidence([core(1, [1, 0, 0, 0])])
    with pytest.raises(UsageError) as caught:
        getattr(evidence, name)
    assert str(caught.value) == (
        f"`statistics` must hold the group {group} for this, but hold only core. "
        f"Calibrate again with `--collect {group}`."
    )


def test_groups_that_were_collected_are_listed():
    evidence = Evidence([with_norms(core(1, [1, 0, 0, 0]))], weights={"weight_norm": np.ones((1, 4))})
    with pytest.raises(UsageError, match=r"hold only core, norms, weights\. "):
        _ = evidence.together


def test_there_must_be_a_table():
    with pytest.raises(UsageError, match="`tables` must be one or more"):
        Evidence([])
