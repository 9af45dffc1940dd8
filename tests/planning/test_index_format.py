import pytest
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.model.spec import Fingerprint, Stack
from nllb_prune.planning.index_format import masks_from_index, masks_to_index

NLLB = (
    Stack("encoder", "source", (3, 7, 11, 15, 19, 23), 128),
    Stack("decoder", "target", (3, 7, 11, 15, 19, 23), 128),
)
SMALL = (Stack("encoder", "source", (1, 3), 4), Stack("decoder", "target", (1, 3), 4))


def imported(content, stacks=SMALL):
    return masks_from_index(content, stacks, model_name="mini", fingerprint=Fingerprint.of(stacks, [1.0]))


def test_numbers_run_over_encoder_layers_then_decoder_layers():
    encoder = [128 * layer + expert for layer in range(6) for expert in (5, 127)]
    decoder = [768 + 128 * layer + expert for layer in range(6) for expert in (0, 1, 2)]
    masks = imported({"eng_Latn": encoder + decoder}, NLLB)
    assert masks.mask("encoder", "eng_Latn", "") == ((5, 127),) * 6
    assert masks.mask("decoder", "", "eng_Latn") == ((0, 1, 2),) * 6
    assert masks.granularity == "language"
    assert masks_to_index(masks) == {"eng_Latn": encoder + decoder}


def test_pair_and_global_indexes():
    numbers = [0, 1, 4, 5, 8, 9, 12, 13]
    pair = imported({"eng-deu": numbers})
    assert pair.direction("eng", "deu") == {"encoder": ((0, 1), (0, 1)), "decoder": ((0, 1), (0, 1))}
    assert masks_to_index(pair) == {"eng-deu": numbers}
    everywhere = imported(numbers)
    assert everywhere.granularity == "global"
    assert masks_to_index(everywhere) == numbers


def test_a_language_of_one_side_only():
    masks = imported({"eng": [0, 1, 4, 5], "deu": [15, 8, 9, 12]})
    assert (masks.sources(), masks.targets()) == (("eng",), ("deu",))
    assert masks_to_index(masks) == {"deu": [8, 9, 12, 15], "eng": [0, 1, 4, 5]}


LAYER = st.sets(st.integers(0, 3), min_size=2)
WHOLE = st.lists(LAYER, min_size=4, max_size=4).map(
    lambda ls: [4 * n + e for n, ids in enumerate(ls) for e in sorted(ids)]
)


@given(st.dictionaries(st.sampled_from(["eng", "deu", "fra"]), WHOLE, min_size=1))
def test_round_trip(index):
    masks = imported(index)
    assert masks_to_index(masks) == index
    assert imported(masks_to_index(masks)) == masks


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("text", "lists of expert numbers"),
        ({}, "lists of expert numbers"),
        ({"eng": "text"}, "0 to 15"),
        ({"eng": [16]}, "0 to 15"),
        ({"eng": [-1]}, "0 to 15"),
        ({"eng": [True, 2]}, "0 to 15"),
        ({"eng": [0, 1, 99]}, "0 to 15, but has 99 instead. Was the index made for another model"),
        ({"eng": [0, 1.0]}, "0 to 15, but has 1.0"),
        ({"eng": []}, "0 to 15, but is empty"),
        ({"eng": {"0": 1}}, "0 to 15, but is something else"),
        ([], "0 to 15, but is empty"),
        ([[0, 1]], "0 to 15"),
        (None, "by language or by direction, or one plain list"),
        ({"eng-deu-fra": [0, 1, 4, 5]}, "`direction` must be like"),
        ({"*": [0, 1, 4, 5], "eng": [0, 1, 4, 5]}, "if and only if they are global"),
        ({"eng": [1, 1]}, "once"),
        ({"eng": [0, 1, 4]}, "2 or more experts a layer"),
        ({"eng": [0, 1, 4, 5], "eng-deu": [0, 1, 4, 5]}, "mixes both"),
    ],
)
def test_refused(content, message):
    with pytest.raises(UsageError, match=message):
        imported(content)


def test_languages_do_not_fit_a_model_keyed_by_direction():
    with pytest.raises(UsageError, match="directions as keys"):
        imported({"eng": [0, 1]}, (Stack("decoder", "direction", (0,), 4),))


def test_the_published_form(published_index, nllb_moe_stacks):
    assert len(published_index) == 202
    assert all(len(numbers) == 6 * 36 + 6 * 12 for numbers in published_index.values())
    masks = imported(published_index, nllb_moe_stacks)
    assert [
        {len(layer) for mask in masks.masks[name].values() for layer in mask} for name in ("encoder", "decoder")
    ] == [
        {36},
        {12},
    ]
    assert masks.kept("eng_Latn", "fra_Latn") == 288
    assert masks_to_index(masks) == published_index


ODD = (Stack("encoder", "source", (0, 2, 4), 5), Stack("decoder", "target", (7,), 16))
SINGLE = (Stack("decoder", "target", (1, 2), 8),)
BY_DIRECTION = (Stack("decoder", "direction", (0, 3), 8),)


@pytest.mark.parametrize("stacks", [ODD, SINGLE, BY_DIRECTION, tuple(reversed(SMALL))], ids=str)
@given(data=st.data())
def test_round_trip_of_any_shape_in_the_three_forms(stacks, data):
    sizes = [stack.experts for stack in stacks for _ in stack.layers]
    first = [sum(sizes[:n]) for n in range(len(sizes))]
    layers = st.tuples(*(st.sets(st.integers(0, size - 1), min_size=2) for size in sizes))
    numbers = layers.map(lambda ids: [start + e for start, each in zip(first, ids, strict=True) for e in sorted(each)])
    keys = [["eng-deu", "deu-eng", "eng-fra"]]
    keys += [["eng", "deu", "fra"]] if stacks is not BY_DIRECTION else []
    by_key = st.one_of(st.dictionaries(st.sampled_from(names), numbers, min_size=1) for names in keys)
    index = data.draw(numbers | by_key)
    shuffled = data.draw(st.permutations(index)) if isinstance(index, list) else dict(reversed(index.items()))
    masks = imported(shuffled, stacks)
    assert masks_to_index(masks) == index
    assert imported(masks_to_index(masks), stacks) == masks


def test_numbers_of_stacks_with_different_numbers_of_experts():
    masks = imported({"eng": [3, 4, 5, 6, 13, 14, 15, 30]}, ODD)
    assert masks.mask("encoder", "eng", "") == ((3, 4), (0, 1), (3, 4))
    assert masks.mask("decoder", "", "eng") == ((0, 15),)
