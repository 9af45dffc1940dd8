import dataclasses
import struct
from itertools import permutations

import numpy as np
import pytest

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.spec import Fingerprint, Stack
from nllb_prune.planning.index_format import masks_from_index
from nllb_prune.report.plots_comparison import comparison_sheet
from nllb_prune.report.plots_masks import by_sharing, mask_name, masks_sheet

STACKS = (Stack("encoder", "source", (1, 3), 8), Stack("decoder", "target", (5,), 16))


def mask_set(keys, granularity="language", seed=0):
    random = np.random.default_rng(seed)
    masks = {
        stack.name: {
            key: tuple(tuple(sorted(random.choice(stack.experts, 4, replace=False).tolist())) for _ in stack.layers)
            for key in keys
        }
        for stack in STACKS
    }
    fingerprint = Fingerprint.of(STACKS, [1.0] * 32)
    return MaskSet(model_name="a_$model$", fingerprint=fingerprint, stacks=STACKS, granularity=granularity, masks=masks)


def drawn(sheet, folder):
    """The texts of the SVG, and the size of the PNG."""
    sheet.save(folder / "a.svg")
    sheet.save(folder / "a.png")
    content = (folder / "a.png").read_bytes()
    assert content[:4] == b"\x89PNG"
    return (folder / "a.svg").read_text(), struct.unpack(">II", content[16:24])


@pytest.mark.parametrize(
    ("keys", "granularity", "says"),
    [
        (["eng_Latn", "deu_Latn", "tir_Ethi"], "language", ["English", "Tigrinya", "by source language", "Jaccard"]),
        (["eng_Latn"], "language", ["English", "by target language", "layer 5: 4 of 16 in use"]),
        (["*"], "global", [">all<", "One mask for all", "12 of 32 experts are in use"]),
        (["eng_Latn-deu_Latn", "deu_Latn-eng_Latn"], "pair", ["eng_Latn → deu_Latn", "by direction"]),
        ([f"{a}-{b}" for a, b in permutations("abcdefghijklmnopqr", 2)], "pair", ["Masks by direction"]),
    ],
    ids=["three", "one", "global", "pair", "306 directions"],
)
def test_masks_are_drawn(tmp_path, keys, granularity, says):
    text, size = drawn(masks_sheet(mask_set(keys, granularity)), tmp_path)
    assert "Experts that a_$model$ keeps" in text
    assert all(each in text for each in says)
    assert max(size) < 12_000


def test_equal_masks_give_equal_bytes(tmp_path):
    for name in ("a.svg", "b.svg", "a.png", "b.png"):
        masks_sheet(mask_set(["eng_Latn", "deu_Latn"])).save(tmp_path / name)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()
    assert (tmp_path / "a.png").read_bytes() == (tmp_path / "b.png").read_bytes()


def test_202_languages_are_drawn_with_their_names(tmp_path, published_index, nllb_moe_stacks):
    fingerprint = Fingerprint.of(nllb_moe_stacks, [1.0])
    masks = masks_from_index(published_index, nllb_moe_stacks, model_name="nllb", fingerprint=fingerprint)
    masks_sheet(masks).save(tmp_path / "a.svg")
    assert (tmp_path / "a.svg").read_text().count(">Luxembourgish<") == 6  # rows twice and columns, in two stacks


def test_experts_stand_by_how_many_keep_them_then_by_who():
    kept = np.array([[0, 1, 1, 0, 0], [0, 0, 1, 0, 1], [1, 0, 1, 0, 0]], dtype=bool)
    assert by_sharing(kept).tolist() == [2, 1, 4, 0, 3]


def test_names():
    assert [mask_name(key) for key in ("eng_Latn", "*", "eng_Latn-deu_Latn")] == [
        "English",
        "all",
        "eng_Latn → deu_Latn",
    ]


def test_what_cannot_be_drawn(tmp_path):
    with pytest.raises(UsageError, match="one mask or more"):
        masks_sheet(mask_set([]))
    many = [f"{a}-{b}" for a, b in permutations([f"l{n}" for n in range(33)], 2)]
    with pytest.raises(UsageError, match="1,000 masks or fewer in a stack to be drawn, but have 1,056 in the encoder"):
        masks_sheet(mask_set(many, "pair"))
    with pytest.raises(UsageError, match=r"must end in .png or .svg"):
        masks_sheet(mask_set(["eng_Latn"])).save(tmp_path / "a.jpg")
    with pytest.raises(UsageError, match="must share 1 to 400 keys"):
        comparison_sheet(mask_set(["eng_Latn"]), mask_set(["deu_Latn"]), names=("a", "b"))


def test_two_sets_are_drawn(tmp_path):
    ours, theirs = mask_set(["eng_Latn", "deu_Latn"]), mask_set(["deu_Latn", "eng_Latn", "fra_Latn"], seed=1)
    theirs = dataclasses.replace(theirs, masks={**theirs.masks, "decoder": {}})
    text, _ = drawn(comparison_sheet(ours, theirs, names=("before", "after")), tmp_path)
    assert all(each in text for each in ("only before", "only after", "English", "German", "Encoder"))
    assert "French" not in text
    assert "Decoder" not in text
