import pytest

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Fingerprint, Stack
from nllb_prune.planning.union import check_same_model, global_union

STACKS = (Stack("encoder", "source", (1,), 8), Stack("decoder", "target", (1,), 8))


def mask_set(granularity, encoder, decoder, *, norm=1.0, stacks=STACKS):
    fingerprint = Fingerprint.of(stacks, [norm] * 16)
    masks = {"encoder": encoder, "decoder": decoder}
    return MaskSet(
        model_name=f"model-{norm}", fingerprint=fingerprint, stacks=stacks, granularity=granularity, masks=masks
    )


LANGUAGES = mask_set("language", {"eng": ((0, 1),), "deu": ((2, 3),)}, {"eng": ((4, 5),), "deu": ((6, 7),)})
PAIRS = mask_set("pair", {"eng-fra": ((0, 7),)}, {"eng-fra": ((0, 1),)})
EVERYWHERE = mask_set("global", {"*": ((1, 5),)}, {"*": ((1, 5),)})


def test_the_union_of_directions_is_one_mask_for_all():
    masks = global_union([LANGUAGES], [("eng", "deu"), ("deu", "deu")])
    assert masks.granularity == "global"
    assert masks.masks == {"encoder": {"*": ((0, 1, 2, 3),)}, "decoder": {"*": ((6, 7),)}}
    assert masks.direction("any", "thing") == LANGUAGES.union([("eng", "deu"), ("deu", "deu")])
    (origin,) = masks.plan["union"]
    assert origin["signature"] == LANGUAGES.signature
    assert origin["keys"] == {"encoder": ["deu", "eng"], "decoder": ["deu"]}


def test_each_direction_comes_from_the_parts_that_have_it():
    masks = global_union([LANGUAGES, PAIRS], [("eng", "deu"), ("eng", "fra")])
    assert masks.masks == {"encoder": {"*": ((0, 1, 7),)}, "decoder": {"*": ((0, 1, 6, 7),)}}
    both = global_union([LANGUAGES, EVERYWHERE], [("eng", "deu")])
    assert both.masks["encoder"]["*"] == ((0, 1, 5),)
    unused = global_union([LANGUAGES, PAIRS], [("eng", "deu")])
    assert len(unused.plan["union"]) == 1


def test_wrong_parts_are_refused():
    with pytest.raises(UsageError, match="one or more sets of masks"):
        global_union([], [("eng", "deu")])
    with pytest.raises(UsageError, match="one direction or more"):
        global_union([LANGUAGES], [])
    with pytest.raises(UsageError, match="fra-eng has none"):
        global_union([LANGUAGES, PAIRS], [("eng", "deu"), ("fra", "eng")])


def test_masks_of_different_models_are_refused():
    for other in (
        mask_set("global", {"*": ((1, 5),)}, {"*": ((1, 5),)}, norm=2.0),
        mask_set(
            "global", {"*": ((1, 5),)}, {"*": ((1, 5),)}, stacks=(*STACKS[:1], Stack("decoder", "target", (2,), 8))
        ),
    ):
        with pytest.raises(UsageError, match=r"must be masks of the model model-1.0 \(fingerprint .*, but is of"):
            global_union([LANGUAGES, other], [("eng", "deu")])
    check_same_model(LANGUAGES, PAIRS)
