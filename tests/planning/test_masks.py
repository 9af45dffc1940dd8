import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.masks import LayerChange, MaskSet, applied, mask_array
from nllb_prune.model.spec import Fingerprint, Stack

STACKS = (Stack("encoder", "source", (1, 3), 8), Stack("decoder", "target", (1, 3), 8))
FINGERPRINT = Fingerprint.of(STACKS, [1.0] * 32)
A, B = ((0, 1, 7), (2, 3)), ((4, 5), (0, 6, 7))


def mask_set(granularity="language", masks=None, **fields):
    masks = masks or {"encoder": {"eng": A, "deu": B}, "decoder": {"deu": A, "fra": B}}
    given = {"model_name": "mini", "fingerprint": FINGERPRINT, "stacks": STACKS, **fields}
    return MaskSet(granularity=granularity, masks=masks, **given)


def test_a_direction_takes_the_encoder_by_source_and_the_decoder_by_target():
    masks = mask_set()
    assert masks.direction("eng", "fra") == {"encoder": A, "decoder": B}
    assert masks.mask("decoder", "eng", "deu") == A
    assert (masks.sources(), masks.targets()) == (("deu", "eng"), ("deu", "fra"))
    assert masks.kept("eng", "fra") == 10
    assert masks.kept_fraction("eng", "fra") == masks.mean_kept_fraction() == 10 / 32


def test_pair_and_global_masks():
    pair = mask_set("pair", {"encoder": {"eng-deu": A}, "decoder": {"eng-deu": B}})
    assert pair.direction("eng", "deu") == {"encoder": A, "decoder": B}
    assert (pair.sources(), pair.targets()) == (("eng",), ("deu",))
    everywhere = mask_set("global", {"encoder": {"*": A}, "decoder": {"*": B}})
    assert everywhere.direction("any", "thing") == {"encoder": A, "decoder": B}
    assert everywhere.sources() == ()


def test_a_stack_keyed_by_direction():
    stack = Stack("decoder", "direction", (0, 1), 8)
    masks = mask_set(masks={"decoder": {"eng-deu": A}}, stacks=(stack,))
    assert masks.mask("decoder", "eng", "deu") == A
    assert (masks.sources(), masks.targets()) == (("eng",), ("deu",))


def test_as_array():
    array = mask_set().as_array("encoder", "eng", "fra")
    assert array.dtype == np.bool_
    assert [np.flatnonzero(row).tolist() for row in array] == [[0, 1, 7], [2, 3]]
    np.testing.assert_array_equal(array, mask_array(A, 8))


@pytest.mark.parametrize(
    ("source", "target", "message"),
    [("fra", "deu", r"`source` must have a mask \(deu, eng\), but is fra"), ("eng", "eng", r"`target` .*\(deu, fra\)")],
)
def test_an_unknown_language_lists_the_known_ones(source, target, message):
    with pytest.raises(UsageError, match=message):
        mask_set().direction(source, target)


def test_an_unknown_direction_lists_the_known_ones():
    with pytest.raises(UsageError, match=r"`direction` must have a mask \(eng-deu\), but is deu-eng"):
        mask_set("pair", {"encoder": {"eng-deu": A}, "decoder": {"eng-deu": B}}).direction("deu", "eng")


def test_masks_of_another_model_are_refused(make_spec):
    masks = mask_set(model_name="facebook/nllb-moe-54b")
    masks.check_model(make_spec(STACKS, norm=1.005))
    other = make_spec(STACKS, norm=2.0)
    with pytest.raises(UsageError, match="Plan masks from statistics of this model") as caught:
        masks.check_model(other, name="mini")
    names = ("mini", "facebook/nllb-moe-54b", other.fingerprint.short, FINGERPRINT.short)
    assert all(name in str(caught.value) for name in names)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("masks")


LAYER = st.lists(st.integers(0, 7), min_size=2, max_size=8, unique=True).map(sorted)
MASK = st.lists(LAYER, min_size=2, max_size=2)
BY_KEY = st.dictionaries(st.sampled_from(["eng_Latn", "deu_Latn", "tir_Ethi"]), MASK)
PLAN = st.dictionaries(st.text(max_size=8), st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8))


@settings(max_examples=25, deadline=None)
@given(st.fixed_dictionaries({"encoder": BY_KEY, "decoder": BY_KEY}), PLAN)
def test_file_round_trip(folder, masks, plan):
    path = folder / "masks.json"
    original = mask_set(masks={name: dict(by_key) for name, by_key in masks.items()}, plan=plan)
    original.save(path)
    again = MaskSet.load(path)
    assert again == original
    assert again.to_text().encode() == path.read_bytes()
    assert again.signature == original.signature


def test_the_file_is_compact_and_does_not_depend_on_order():
    masks = mask_set(plan={"counts": {"encoder": (3, 2)}})
    reordered = mask_set(
        masks={"decoder": {"fra": B, "deu": A}, "encoder": {"deu": B, "eng": A}}, plan={"counts": {"encoder": [3, 2]}}
    )
    assert masks == reordered
    assert masks.to_text() == reordered.to_text()
    assert "    [0,1,7],\n    [2,3]\n" in masks.to_text()
    content = json.loads(masks.to_text())
    assert (content["format"], content["version"]) == ("nllb-prune/masks", 1)
    assert content["masks"]["encoder"]["eng"] == [[0, 1, 7], [2, 3]]


def test_the_signature_follows_the_content():
    assert mask_set().signature != mask_set(plan={"seed": 1}).signature
    assert len(mask_set().signature) == 12


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (((0, 8), (0, 1)), "ids 0 to 7, but layer 0"),
        (((0, 1), (-1, 1)), "ids 0 to 7, but layer 1"),
        (((0, 1), (1.0, 2)), "ids 0 to 7"),
        (((1, 0), (0, 1)), "sorted"),
        (((0, 0), (0, 1)), "sorted"),
        (((0, 1), (4,)), "keep 2 or more experts a layer, but layer 1 keeps 1"),
        (((0, 1),), "2 layers, but has 1"),
    ],
)
def test_wrong_masks_are_refused_in_memory_and_in_files(tmp_path, mask, message):
    with pytest.raises(UsageError, match=message):
        mask_set(masks={"encoder": {"eng": mask}, "decoder": {}})
    content = json.loads(mask_set().to_text())
    content["masks"]["encoder"]["eng"] = mask
    (tmp_path / "masks.json").write_text(json.dumps(content))
    with pytest.raises(UsageError, match=message) as caught:
        MaskSet.load(tmp_path / "masks.json")
    assert "masks.json" in str(caught.value)


@pytest.mark.parametrize(
    ("granularity", "masks", "message"),
    [
        ("language", {"encoder": {}}, "of the stacks encoder, decoder"),
        ("language", {"encoder": {"*": A}, "decoder": {}}, "if and only if they are global"),
        ("global", {"encoder": {"eng": A}, "decoder": {}}, "if and only if they are global"),
        ("pair", {"encoder": {"eng": A}, "decoder": {}}, "eng_Latn-deu_Latn"),
        ("layer", None, "language, pair, global"),
    ],
)
def test_wrong_sets_are_refused(granularity, masks, message):
    with pytest.raises(UsageError, match=message):
        mask_set(granularity, masks)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": "other"}, "import it first"),
        ({"version": 2}, "format version 1, but has 2"),
        ({"model": {}}, "lacks something"),
        ({"masks": 3}, "lacks something"),
        ({"masks": {"encoder": {"eng": 3}, "decoder": {}}}, "lacks something"),
    ],
)
def test_wrong_files_are_refused(tmp_path, change, message):
    (tmp_path / "masks.json").write_text(json.dumps({**json.loads(mask_set().to_text()), **change}))
    with pytest.raises(UsageError, match=message):
        MaskSet.load(tmp_path / "masks.json")


def test_an_index_file_is_told_apart(tmp_path):
    (tmp_path / "index.json").write_text('{"eng_Latn": [1, 2]}')
    with pytest.raises(UsageError, match="import it first"):
        MaskSet.load(tmp_path / "index.json")


ROW = MASK.map(lambda mask: tuple(map(tuple, mask)))
LANGUAGES = ("eng", "deu", "fra")
PAIRS = st.tuples(st.sampled_from(LANGUAGES), st.sampled_from(LANGUAGES))
FULL = st.fixed_dictionaries(dict.fromkeys(LANGUAGES, ROW))


@given(FULL, FULL, st.lists(PAIRS, min_size=1))
def test_a_union_keeps_what_any_of_its_directions_keeps_and_nothing_else(encoder, decoder, directions):
    masks = mask_set(masks={"encoder": encoder, "decoder": decoder})
    united = masks.union(directions)
    for stack in STACKS:
        together = np.any([masks.as_array(stack.name, *pair) for pair in directions], axis=0)
        np.testing.assert_array_equal(mask_array(united[stack.name], 8), together)


def test_union_by_hand():
    masks = mask_set()
    assert masks.union([("eng", "deu"), ("deu", "fra")])["encoder"] == ((0, 1, 4, 5, 7), (0, 2, 3, 6, 7))
    assert masks.union([("eng", "fra")]) == masks.direction("eng", "fra")
    with pytest.raises(UsageError, match="one or more"):
        masks.union([])
    with pytest.raises(UsageError, match="`source` must have a mask"):
        masks.union([("eng", "deu"), ("fra", "deu")])


@given(FULL, FULL, PAIRS, PAIRS)
def test_a_difference_applied_to_what_was_there_gives_what_is_wanted(encoder, decoder, before, after):
    masks = mask_set(masks={"encoder": encoder, "decoder": decoder})
    change, back = masks.difference(before, after), masks.difference(after, before)
    for stack in STACKS:
        old, new = masks.mask(stack.name, *before), masks.mask(stack.name, *after)
        assert applied(change[stack.name], old) == new
        for there, again in zip(change[stack.name], back[stack.name], strict=True):
            assert (there.incoming, there.outgoing, there.staying) == (again.outgoing, again.incoming, again.staying)


def test_difference_by_hand():
    masks = mask_set()
    assert masks.difference(("eng", "deu"), ("deu", "deu")) == {
        "encoder": (LayerChange((4, 5), (0, 1, 7), ()), LayerChange((0, 6, 7), (2, 3), ())),
        "decoder": (LayerChange((), (), (0, 1, 7)), LayerChange((), (), (2, 3))),
    }


def test_what_is_there():
    masks = mask_set()
    assert masks.languages() == ("deu", "eng", "fra")
    assert masks.covers("eng", "fra")
    assert not masks.covers("fra", "deu")
    assert masks.key("decoder", "eng", "fra") == "fra"
    pair = mask_set("pair", {"encoder": {"eng-deu": A}, "decoder": {"eng-deu": B}})
    assert pair.covers("eng", "deu")
    assert not pair.covers("deu", "eng")
    everywhere = mask_set("global", {"encoder": {"*": A}, "decoder": {"*": B}})
    assert everywhere.covers("any", "thing")
    assert everywhere.languages() == ()
