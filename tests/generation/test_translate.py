"""Lines come out as they went in: in order, empty ones unchanged, the same in any batch."""

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.generation import translate as module
from nllb_prune.generation.translate import length_limit, translate
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.routing import clear_masks, routing_of, set_masks
from nllb_prune.model.source import load_tokenizer

LINES = [
    "wake me up at five am this week",
    "",
    "play music",
    "olly turn the lights off in the bedroom and then tell me what the weather will be like tomorrow in berlin",
    "   ",
    "stop",
    "play music",
]
DIRECTION = {"source": "eng_Latn", "target": "deu_Latn"}


@pytest.fixture(scope="module")
def model():
    return load_model("mini")


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mini")


@pytest.fixture(scope="module")
def masks():
    spec = load_spec("mini")
    kept = {"encoder": {}, "decoder": {}}
    for n, code in enumerate(("eng_Latn", "deu_Latn", "spa_Latn")):
        for stack in spec.stacks:
            kept[stack.name][code] = tuple(tuple(range(n + layer, 64, 4)) for layer in range(len(stack.layers)))
    return MaskSet(
        model_name="mini", fingerprint=spec.fingerprint, stacks=spec.stacks, granularity="language", masks=kept
    )


@pytest.fixture
def made(monkeypatch, model):
    """The token rows of each `generate`."""
    rows, original = [], model.generate

    def recorded(**options):
        rows.append(original(**options))
        return rows[-1]

    monkeypatch.setattr(model, "generate", recorded)
    return rows


def test_order_and_empty_lines(model, tokenizer):
    outputs = translate(model, tokenizer, LINES, **DIRECTION)
    assert len(outputs) == len(LINES)
    assert [outputs[1], outputs[4]] == ["", "   "]
    assert outputs[2] == outputs[6]
    assert all(outputs[n].strip() == outputs[n] != "" for n in (0, 2, 3, 5))
    assert len({outputs[n] for n in (0, 2, 3, 5)}) == 4


@pytest.mark.parametrize("lines", [[], [""], [" ", ""]])
def test_nothing_to_translate_runs_nothing(model, tokenizer, made, lines):
    assert translate(model, tokenizer, lines, **DIRECTION) == lines
    assert made == []


@pytest.mark.parametrize("positions", [1, 30, 2048])
@pytest.mark.parametrize("masked", [False, True])
def test_alone_and_in_a_batch(model, tokenizer, masks, monkeypatch, positions, masked):
    chosen = {"masks": masks} if masked else {}
    alone = [translate(model, tokenizer, [line], **DIRECTION, **chosen)[0] for line in LINES]
    monkeypatch.setattr(module, "BATCH_POSITIONS", positions)
    assert translate(model, tokenizer, LINES, **DIRECTION, **chosen) == alone
    assert translate(model, tokenizer, LINES[::-1], **DIRECTION, **chosen) == alone[::-1]


def test_a_text_that_does_not_end_has_its_own_limit(model, tokenizer, monkeypatch):
    """However long the others of its batch are."""

    def endless(*, input_ids, max_new_tokens, **_):
        word = tokenizer("play", add_special_tokens=False).input_ids[0]
        return torch.tensor([[2, *[word] * max_new_tokens]] * len(input_ids))

    monkeypatch.setattr(model, "generate", endless)
    together = translate(model, tokenizer, LINES, **DIRECTION)
    assert together == [translate(model, tokenizer, [line], **DIRECTION)[0] for line in LINES]
    words = len(tokenizer("stop", add_special_tokens=False).input_ids)
    assert len(together[5].split()) == length_limit(words + 2)


def test_target_comes_first(model, tokenizer, made):
    translate(model, tokenizer, LINES, source="eng_Latn", target="swh_Latn")
    assert (made[0][:, 0] == 2).all()
    assert (made[0][:, 1] == tokenizer.convert_tokens_to_ids("swh_Latn")).all()


def test_masks_are_those_of_the_pruned_model_and_are_left(model, tokenizer, masks):
    before = translate(model, tokenizer, LINES, **DIRECTION)
    masked = translate(model, tokenizer, LINES, **DIRECTION, masks=masks)
    assert masked != before
    assert all(stack.keep is None for stack in routing_of(model).stacks.values())
    assert translate(model, tokenizer, LINES, **DIRECTION) == before
    pruned = load_model("mini", masks=masks, direction=("eng_Latn", "deu_Latn"))
    assert translate(pruned, tokenizer, LINES, **DIRECTION) == masked
    assert translate(pruned, tokenizer, LINES, **DIRECTION, masks=masks) == masked


def test_masks_that_are_set_count(model, tokenizer, masks):
    expected = translate(model, tokenizer, LINES, **DIRECTION, masks=masks)
    other = translate(model, tokenizer, LINES, source="eng_Latn", target="spa_Latn", masks=masks)
    try:
        set_masks(model, masks, ("eng_Latn", "deu_Latn"))
        assert translate(model, tokenizer, LINES, **DIRECTION) == expected
        assert translate(model, tokenizer, LINES, source="eng_Latn", target="spa_Latn", masks=masks) == other
    finally:
        clear_masks(model)


def test_beams(model, tokenizer):
    lines = [LINES[0], LINES[2]]
    outputs = translate(model, tokenizer, lines, **DIRECTION, beams=3)
    assert outputs == [translate(model, tokenizer, [line], **DIRECTION, beams=3)[0] for line in lines]


def test_languages_that_cannot_be(model, tokenizer, masks):
    with pytest.raises(UsageError, match="one of the model's"):
        translate(model, tokenizer, LINES, source="eng_Latn", target="fra_Latn")
    with pytest.raises(UsageError, match="one of the model's"):
        translate(model, tokenizer, LINES, source="fra_Latn", target="eng_Latn")
    with pytest.raises(UsageError, match="`target` must have a mask"):
        translate(model, tokenizer, LINES, source="eng_Latn", target="tur_Latn", masks=masks)
    pruned = load_model("mini", masks=masks, direction=("eng_Latn", "deu_Latn"))
    with pytest.raises(UsageError, match="must use experts that the pruned model holds"):
        translate(pruned, tokenizer, LINES, source="eng_Latn", target="spa_Latn", masks=masks)
