"""The mode `outputs`: the model's own translations, searched by transformers here, through the decoder once."""

import pytest
import torch

from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.calibration.collectors import Sizes
from nllb_prune.calibration.observer import StatisticsObserver
from nllb_prune.calibration.own_outputs import own_targets
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.calibration.teacher_forced import observe_pairs
from nllb_prune.errors import UsageError
from nllb_prune.generation.translate import length_limit
from nllb_prune.masks import MaskSet
from nllb_prune.model.routing import mask_rows, routing, routing_of
from nllb_prune.tokenization import encode

DIRECTION = ("eng_Latn", "deu_Latn")
GERMAN, END = 95, 2
GROUPS = ("norms", "vocabulary", "coselection", "dimensions")


@torch.inference_mode()
def translated(model, sources, *, beams, masks=None):
    """Translate with transformers' `generate`, one sentence at a time."""
    found = []
    for source in sources:
        search = {} if beams == 1 else {"length_penalty": 1.0, "early_stopping": False}
        with routing(model, masks=masks):
            row = model.generate(
                input_ids=torch.tensor([source]),
                forced_bos_token_id=GERMAN,
                do_sample=False,
                num_beams=beams,
                max_new_tokens=length_limit(len(source)),
                **search,
            )[0].tolist()
        assert row[0] == END  # what the decoder starts with
        found.append(row[1 : row.index(END, 1) + 1] if END in row[1:] else row[1:])
    return found


@pytest.fixture(scope="module")
def sources(tokenizer, text):
    return encode(tokenizer, text.lines("eng_Latn"), "eng_Latn")


@pytest.fixture(scope="module")
def masks(tiny):
    spec = routing_of(tiny).spec
    return MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        granularity="language",
        masks={"encoder": {"eng_Latn": ((0, 3, 5), (1, 2))}, "decoder": {"deu_Latn": ((2, 4, 7), (0, 1, 5, 6))}},
    )


@pytest.mark.parametrize("beams", [1, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_statistics_are_those_of_the_own_translations(tiny, tokenizer, text, sources, masks, tmp_path, beams, masked):
    rows = mask_rows(masks, [DIRECTION]) if masked else None
    targets = translated(tiny, sources, beams=beams, masks=rows)
    assert {target[0] for target in targets} == {GERMAN}
    sizes = Sizes(vocabulary=96, d_model=32, seed=0)
    observer = StatisticsObserver(routing_of(tiny).spec, collect=GROUPS, sizes=sizes)
    observe_pairs(tiny, sources, targets, observer, masks=rows)
    statistics = calibrate(
        tiny,
        tokenizer,
        text,
        [DIRECTION],
        collect=GROUPS,
        mode="outputs",
        beams=beams,
        masks=masks if masked else None,
        folder=tmp_path,
    )
    expected = ExpertStatistics(
        statistics.spec,
        "language",
        {(name, code): observer.tables()[name] for name, code in zip(("encoder", "decoder"), DIRECTION, strict=True)},
        items=statistics.items,
        signature=statistics.signature,
        collect=GROUPS,
    )
    assert statistics.to_bytes() == expected.to_bytes()
    assert statistics.signature["mode"] == ("outputs, greedy" if beams == 1 else "outputs, beam 3")
    assert ("masks" in statistics.signature) == masked


def test_translations_that_end_and_that_are_cut(tiny, sources):
    targets = own_targets(tiny, sources, language=GERMAN, end=END, beams=2)
    limits = [length_limit(len(source)) for source in sources]
    assert {target[-1] == END for target in targets} == {True, False}
    for target, limit in zip(targets, limits, strict=True):
        assert target[0] == GERMAN
        assert END not in target[:-1]
        assert len(target) <= limit
        assert target[-1] == END or len(target) == limit


def test_no_sentence_gives_no_target(tiny):
    assert own_targets(tiny, [], language=GERMAN, end=END) == []


def test_modes_differ_and_do_not_mix(tiny, tokenizer, text, masks, tmp_path):
    made = {
        name: calibrate(tiny, tokenizer, text, [direction], folder=tmp_path / name, **options)
        for name, direction, options in [
            ("references", DIRECTION, {}),
            ("greedy", ("eng_Latn", "fra_Latn"), {"mode": "outputs"}),
            ("beam", ("fra_Latn", "eng_Latn"), {"mode": "outputs", "beams": 2}),
            ("masked", DIRECTION, {"masks": masks}),
        ]
    }
    assert [each.signature["mode"] for each in made.values()] == [
        "references",
        "outputs, greedy",
        "outputs, beam 2",
        "references",
    ]
    for a, b, named in [
        ("references", "greedy", "mode references and outputs, greedy"),
        ("greedy", "beam", "mode outputs, greedy and outputs, beam 2"),
        ("masked", "greedy", "masks [0-9a-f]{12} and None, mode references and"),
    ]:
        with pytest.raises(UsageError, match=named):
            made[a].merge(made[b])


def test_gradients_after_a_search(tiny, tokenizer, text, tmp_path):
    """The search runs without gradients; what it leaves behind must not be in the way of the pass that needs them."""
    statistics = calibrate(tiny, tokenizer, text, [DIRECTION], mode="outputs", collect=["gradients"], folder=tmp_path)
    assert statistics.table("decoder", "deu_Latn")["gradient_squared"].any()
