"""Lines come out as they went in: in order, empty ones unchanged, the same in any batch."""

import dataclasses
import warnings
from itertools import chain

import pytest
import torch

from nllb_prune.errors import UsageError
from nllb_prune.generation import translate as module
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import Translation, length_limit, translate, translations
from nllb_prune.masks import MaskSet
from nllb_prune.model.blocks import blocks_of
from nllb_prune.model.families import FAMILIES
from nllb_prune.model.loading import load_model, load_spec
from nllb_prune.model.routing import clear_masks, routing_of, set_masks

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
def masks():
    spec = load_spec("mini")
    kept = {"encoder": {}, "decoder": {}}
    for n, code in enumerate(("eng_Latn", "deu_Latn", "spa_Latn")):
        for stack in spec.stacks:
            kept[stack.name][code] = tuple(tuple(range(n + layer, 64, 4)) for layer in range(len(stack.layers)))
    return MaskSet(
        model_name="mini", fingerprint=spec.fingerprint, stacks=spec.stacks, granularity="language", masks=kept
    )


class Watched:
    """Blocks that take note of the target tokens they are given; some parts may be replaced."""

    def __init__(self, blocks, **parts):
        self.blocks, self.read = blocks, []
        self.__dict__.update(parts)

    def __getattr__(self, name):
        return getattr(self.blocks, name)

    def embed_target(self, ids, positions):
        self.read.append(ids)
        return self.blocks.embed_target(ids, positions)


@pytest.fixture
def watch(monkeypatch, model):
    """Let translations run on watched blocks; takes the parts to be replaced."""

    def start(**parts):
        watched = Watched(blocks_of(model), **parts)
        monkeypatch.setattr(module, "blocks_of", lambda _: watched)
        return watched

    return start


@pytest.fixture
def without_blocks(monkeypatch):
    """A family that transformers decodes."""
    family = dataclasses.replace(FAMILIES["nllb-moe"], blocks=None)
    return lambda: monkeypatch.setitem(FAMILIES, "nllb-moe", family)


def always(token):
    """Logits of a model that says nothing else."""
    row = torch.zeros(6012).index_fill(0, torch.tensor(token), 30.0)
    return lambda states: row.repeat(*states.shape[:-1], 1)


def texts(found):
    return [[translation.text for translation in each] for each in found]


def test_order_and_empty_lines(model, tokenizer):
    outputs = translate(model, tokenizer, LINES, **DIRECTION)
    assert len(outputs) == len(LINES)
    assert [outputs[1], outputs[4]] == ["", "   "]
    assert outputs[2] == outputs[6]
    assert all(outputs[n].strip() == outputs[n] != "" for n in (0, 2, 3, 5))
    assert len({outputs[n] for n in (0, 2, 3, 5)}) == 4


@pytest.mark.parametrize("lines", [[], [""], [" ", ""]])
def test_nothing_to_translate_runs_nothing(model, tokenizer, watch, lines):
    watched = watch()
    assert translate(model, tokenizer, lines, **DIRECTION) == lines
    assert watched.read == []


@pytest.mark.parametrize("batch", [{"positions": 1}, {"positions": 30}, {"rows": 2}, {"positions": 2048}])
@pytest.mark.parametrize("masked", [False, True])
def test_alone_and_in_a_batch(model, tokenizer, masks, batch, masked):
    chosen = {"masks": masks} if masked else {}
    alone = [[translate(model, tokenizer, [line], **DIRECTION, **chosen)[0]] for line in LINES]
    assert texts(translations(model, tokenizer, LINES, **DIRECTION, **chosen, **batch)) == alone
    assert texts(translations(model, tokenizer, LINES[::-1], **DIRECTION, **chosen, **batch)) == alone[::-1]


def test_a_text_that_does_not_end_has_its_own_limit(model, tokenizer, watch):
    """However long the others of its batch are."""
    watch(logits=always(tokenizer("play", add_special_tokens=False).input_ids[0]))
    together = translations(model, tokenizer, LINES, **DIRECTION)
    assert texts(together) == [[translate(model, tokenizer, [line], **DIRECTION)[0]] for line in LINES]
    for line, (found,) in zip(LINES, together, strict=True):
        words = len(tokenizer(line.strip(), add_special_tokens=False).input_ids)
        assert found.ended == (words == 0)
        assert len(found.text.split()) == (length_limit(words + 2) - 1 if words else 0)  # the language is generated too


def test_target_comes_first(model, tokenizer, watch):
    watched = watch()
    translate(model, tokenizer, LINES, source="eng_Latn", target="swh_Latn")
    swahili = tokenizer.convert_tokens_to_ids("swh_Latn")
    assert watched.read[0].tolist() == [[2, swahili]] * 5
    assert not any((ids == swahili).any() for ids in watched.read[1:])


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


# several languages in one call

MIXED = [
    ("wake me up at five am this week", "eng_Latn", "deu_Latn"),
    ("weck mich diese woche um fünf uhr", "deu_Latn", "spa_Latn"),
    ("", "deu_Latn", "eng_Latn"),
    ("pon música", "spa_Latn", "eng_Latn"),
    ("olly turn the lights off in the bedroom", "eng_Latn", "spa_Latn"),
    ("apaga las luces del dormitorio y dime qué tiempo hará mañana en berlín", "spa_Latn", "deu_Latn"),
    ("stop", "eng_Latn", "deu_Latn"),
]


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("beams", [1, 3])
def test_languages_together_as_one_call_for_each(model, tokenizer, masks, masked, beams):
    options = {"masks": masks if masked else None, "beams": beams}
    lines, sources, targets = (list(column) for column in zip(*MIXED, strict=True))
    apart = {}
    for source, target in dict.fromkeys(zip(sources, targets, strict=True)):
        here = [line for line, *direction in MIXED if direction == [source, target]]
        outputs = translate(model, tokenizer, here, source=source, target=target, **options)
        apart |= {(line, source, target): output for line, output in zip(here, outputs, strict=True)}
    assert translate(model, tokenizer, lines, source=sources, target=targets, **options) == [
        apart[row] for row in MIXED
    ]
    assert len(set(apart.values())) == len(MIXED)


def test_one_source_and_a_target_for_each(model, tokenizer):
    targets = ["deu_Latn", "spa_Latn", "swh_Latn"]
    found = translate(model, tokenizer, [LINES[0]] * 3, source="eng_Latn", target=targets)
    assert found == [translate(model, tokenizer, LINES[:1], source="eng_Latn", target=code)[0] for code in targets]
    assert len(set(found)) == 3


@pytest.mark.parametrize("side", ["source", "target"])
@pytest.mark.parametrize("codes", [[], ["deu_Latn"], ["deu_Latn"] * 8])
def test_as_many_languages_as_texts(model, tokenizer, side, codes):
    with pytest.raises(
        UsageError, match=f"`{side}` must be one language, or one a text, 7, but there are {len(codes)}"
    ):
        translate(model, tokenizer, LINES, **(DIRECTION | {side: codes}))


def test_one_language_that_cannot_be_among_others(model, tokenizer, masks):
    targets = ["deu_Latn", "tur_Latn"]
    with pytest.raises(UsageError, match="`target` must have a mask"):
        translate(model, tokenizer, LINES[:1] * 2, source="eng_Latn", target=targets, masks=masks)


# alternatives


def test_alternatives(model, tokenizer):
    search = SearchSettings(beams=4, alternatives=3)
    found = translations(model, tokenizer, LINES, **DIRECTION, search=search)
    assert [each[0].text for each in found] == translate(model, tokenizer, LINES, **DIRECTION, beams=4)
    for line, each in zip(LINES, found, strict=True):
        assert len(each) == 3
        assert [one.score for one in each] == sorted((one.score for one in each), reverse=True)
        if line.strip():
            assert len({one.log_probability for one in each}) == 3
            for one in each:
                assert one.log_probability < one.mean_log_probability < 0
                assert one.log_probability < one.score < 0
        else:
            assert each == [Translation(line, 0.0, 0.0, 0.0, True)] * 3


@pytest.mark.parametrize("lines", [LINES, []])
def test_more_alternatives_than_beams(model, tokenizer, lines):
    with pytest.raises(UsageError, match="but is 5 of 4 instead; search with more beams") as raised:
        translations(model, tokenizer, lines, **DIRECTION, search=SearchSettings(beams=4, alternatives=5))
    assert "\n" not in str(raised.value)


def test_length_penalty(model, tokenizer):
    options = {"beams": 4, "alternatives": 4}
    short, long = (
        translations(model, tokenizer, LINES, **DIRECTION, search=SearchSettings(**options, length_penalty=penalty))
        for penalty in (-3.0, 3.0)
    )
    lengths = [
        sum(round(e[0].log_probability / e[0].mean_log_probability) for e in f if e[0].score) for f in (short, long)
    ]
    assert lengths[0] < lengths[1]


# long texts


def test_texts_that_are_cut_are_told_once(model, tokenizer, watch):
    watch(logits=always(2))
    lines, targets = [" ".join(["play music"] * 400), "stop"] * 2, ["deu_Latn"] * 3 + ["spa_Latn"]
    with pytest.warns(UserWarning, match="2 of 4 texts reach 512 tokens and are cut there") as warned:
        translations(model, tokenizer, lines, source="eng_Latn", target=targets)
    assert len(warned) == 1
    assert warned[0].filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        translate(model, tokenizer, LINES, **DIRECTION)


# through transformers


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_a_family_without_blocks(model, tokenizer, masks, without_blocks, beams, masked):
    lines, sources, targets = (list(column) for column in zip(*MIXED, strict=True))
    options = {
        "source": sources,
        "target": targets,
        "masks": masks if masked else None,
        "search": SearchSettings(beams=beams, alternatives=min(beams, 2)),
    }
    ours = translations(model, tokenizer, lines, **options)
    without_blocks()
    assert blocks_of(model) is None
    theirs = translations(model, tokenizer, lines, **options, positions=60)
    assert texts(theirs) == texts(ours)
    for mine, other in zip(chain(*ours), chain(*theirs), strict=True):
        assert other.ended == mine.ended
        for name in ("log_probability", "mean_log_probability", "score"):
            assert getattr(other, name) == pytest.approx(getattr(mine, name), abs=1e-3), name


def test_masks_that_are_set_count_without_blocks(model, tokenizer, masks, without_blocks):
    expected = translate(model, tokenizer, LINES, **DIRECTION, masks=masks)
    without_blocks()
    try:
        set_masks(model, masks, ("eng_Latn", "deu_Latn"))
        assert translate(model, tokenizer, LINES, **DIRECTION) == expected
    finally:
        clear_masks(model)


# refused


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
