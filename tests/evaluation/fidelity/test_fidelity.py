"""Fidelity against logits that transformers 4.57.6 computed with and without masks, and against itself."""

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from safetensors.numpy import load_file

from nllb_prune.corpus import ParallelText
from nllb_prune.errors import UsageError
from nllb_prune.evaluation.fidelity import distributions, full_model
from nllb_prune.evaluation.fidelity.fidelity import COLUMNS, MEASURES, Fidelity, fidelity, merged
from nllb_prune.evaluation.fidelity.full_model import FullDirection
from nllb_prune.evaluation.significance.bootstrap import Draws, samples
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import clear_masks, routing_of, set_masks
from nllb_prune.model.source import embedded_text, load_tokenizer

REFERENCE = Path(__file__).parents[2] / "reference"
SOURCE, TARGET = "eng_Latn", "deu_Latn"
PAD, END = 1, 2


class WordTokenizer:
    """Words are `w4` to `w93`, the languages the last two ids of the vocabulary of 96."""

    eos_token_id, unk_token_id = END, 3

    def convert_tokens_to_ids(self, token):
        return {SOURCE: 94, TARGET: 95}[token]

    def __call__(self, texts, **_):
        return SimpleNamespace(input_ids=[[int(word[1:]) for word in text.split()] for text in texts])


@pytest.fixture(scope="module")
def tiny():
    return load_model(REFERENCE / "tiny")


@pytest.fixture(scope="module")
def tensors():
    return load_file(REFERENCE / "float32.safetensors")


@pytest.fixture(scope="module")
def texts(tensors):
    """Sources and references as texts of words, without codes and `</s>`."""
    return tuple(
        [" ".join(f"w{token}" for token in row if token not in (PAD, END, 94, 95)) for row in tensors[f"inputs/{side}"]]
        for side in ("source", "target")
    )


def mask_set(model, kept):
    """One mask for all directions; `kept` is boolean (sparse layers, experts), those of the encoder first."""
    spec, found = routing_of(model).spec, iter(kept)
    tables = {
        stack.name: {"*": tuple(tuple(np.flatnonzero(next(found)).tolist()) for _ in stack.layers)}
        for stack in spec.stacks
    }
    return MaskSet(
        model_name="tiny",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity="global",
        masks=tables,
    )


def log_probabilities(logits):
    logits = logits.astype(np.float64)
    return (
        logits
        - np.log(np.exp(logits - logits.max(-1, keepdims=True)).sum(-1, keepdims=True))
        - logits.max(-1, keepdims=True)
    )


def expected_sentence(full, masked, labels):
    """Sums of one sentence, one position at a time; `labels` follow the language code."""
    sums = dict.fromkeys(COLUMNS, 0.0)
    for position, label in enumerate(labels, start=1):
        p, q = full[position], masked[position]
        sums["tokens"] += 1
        sums["kl"] += sum(np.exp(a) * (a - b) for a, b in zip(p, q, strict=True))
        sums["agreed"] += p.argmax() == q.argmax()
        for suffix, row in (("_full", p), ("", q)):
            sums["loss" + suffix] -= row[label]
            if label == END:
                sums["end_loss" + suffix] -= row[END]
                sums["late" + suffix] += 1 - np.exp(row[END])
            else:
                sums["early" + suffix] += np.exp(row[END])
        sums["ends"] += label == END
    return [sums[name] for name in COLUMNS]


def expected_table(tensors):
    full, masked = (log_probabilities(tensors[f"{case}/logits"]) for case in ("full", "masked"))
    rows = []
    for n, inputs in enumerate(tensors["inputs/target"]):
        words = [int(token) for token in inputs[2:] if token != PAD]
        rows.append(expected_sentence(full[n], masked[n], [*words, END]))
    return np.array(rows)


def test_equals_sums_over_the_logits_of_transformers(tiny, tensors, texts):
    masks = mask_set(tiny, tensors["masks/kept"][0].astype(bool))
    found = fidelity(tiny, WordTokenizer(), *texts, source=SOURCE, target=TARGET, masks=masks)
    expected = expected_table(tensors)
    assert found.statistics == pytest.approx(expected, rel=1e-4, abs=1e-5)
    tokens, ends, loss_full, loss, end_full, end, early_full, early, late_full, late, kl, agreed = expected.sum(0)
    assert found.values() == pytest.approx(
        {
            "loss_change": (loss - loss_full) / tokens,
            "end_loss_change": (end - end_full) / ends,
            "early_change": (early - early_full) / (tokens - ends),
            "late_change": (late - late_full) / ends,
            "kl": kl / tokens,
            "agreement": agreed / tokens,
        },
        rel=1e-4,
        abs=1e-6,
    )
    assert (found.kl, found.agreement) == (found.value("kl"), found.value("agreement"))
    assert found.kl > 0.01  # the masks of the reference change the model
    assert found.agreement < 1


@pytest.mark.parametrize(("positions", "values"), [(13, 96), (26, 500), (4096, 2**20)])
def test_batches_and_chunks_change_nothing(monkeypatch, tiny, tensors, texts, positions, values):
    monkeypatch.setattr(full_model, "BATCH_POSITIONS", positions)
    monkeypatch.setattr(distributions, "TABLE_VALUES", values)
    monkeypatch.setattr(distributions, "LEAST_POSITIONS", 1)
    masks = mask_set(tiny, tensors["masks/kept"][0].astype(bool))
    found = fidelity(tiny, WordTokenizer(), *texts, source=SOURCE, target=TARGET, masks=masks)
    assert found.statistics == pytest.approx(expected_table(tensors), rel=1e-4, abs=1e-5)


def test_sentences_add_up(tiny, tensors, texts):
    masks = mask_set(tiny, tensors["masks/kept"][1].astype(bool))
    tokenizer = WordTokenizer()
    together = fidelity(tiny, tokenizer, *texts, source=SOURCE, target=TARGET, masks=masks)
    alone = merged(
        fidelity(tiny, tokenizer, [one], [other], source=SOURCE, target=TARGET, masks=masks)
        for one, other in zip(*texts, strict=True)
    )
    assert alone.statistics == pytest.approx(together.statistics, rel=1e-4, abs=1e-5)
    assert alone.loss_change == pytest.approx(together.loss_change, rel=1e-4)


def test_all_experts_change_nothing(tiny, texts):
    masks = mask_set(tiny, np.ones((4, 8), bool))
    found = fidelity(tiny, WordTokenizer(), *texts, source=SOURCE, target=TARGET, masks=masks)
    assert (found.loss_change, found.end_loss_change, found.early_change, found.late_change) == (0, 0, 0, 0)
    assert found.kl == pytest.approx(0, abs=1e-6)
    assert found.agreement == 1


def test_an_empty_reference_has_an_end_and_no_word(tiny, tensors):
    masks = mask_set(tiny, tensors["masks/kept"][0].astype(bool))
    found = fidelity(tiny, WordTokenizer(), ["w5"], [""], source=SOURCE, target=TARGET, masks=masks)
    assert (found.statistics[0, 0], found.statistics[0, 1]) == (1, 1)
    assert np.isnan(found.early_change)
    assert found.loss_change == found.end_loss_change != 0
    assert found.to_json()["early_change"] is None


@pytest.fixture(scope="module")
def mini():
    return load_model("mini"), load_tokenizer("mini"), ParallelText.open(embedded_text(), "test").head(12)


@pytest.mark.parametrize(("source", "target"), [(SOURCE, TARGET), (TARGET, SOURCE), ("rus_Cyrl", "zho_Hans")])
def test_one_full_model_measures_many_masks(mini, source, target):
    model, tokenizer, text = mini
    spec = routing_of(model).spec
    lines = text.lines(source), text.lines(target)
    full = FullDirection.of(model, tokenizer, *lines, source=source, target=target)
    assert (full.direction, full.sentences) == ((source, target), 12)
    layers = sum(len(stack.layers) for stack in spec.stacks)
    experts = spec.stacks[0].experts
    everything = mask_set(model, np.ones((layers, experts), bool))
    some = mask_set(model, np.tile(np.arange(experts) < experts // 4, (layers, 1)))
    found = full.measure(some)
    alone = fidelity(model, tokenizer, *lines, source=source, target=target, masks=some)
    assert np.array_equal(found.statistics, alone.statistics)
    assert found.loss_change > 0.1
    assert found.agreement < 0.9
    assert full.measure(everything).kl == pytest.approx(0, abs=1e-6)
    assert np.array_equal(full.measure(some).statistics, found.statistics)


def test_properties_can_be_resampled(tiny, tensors, texts):
    masks = mask_set(tiny, tensors["masks/kept"][0].astype(bool))
    found = fidelity(tiny, WordTokenizer(), *texts, source=SOURCE, target=TARGET, masks=masks)
    drawn = np.random.default_rng(3).choice(5, size=(20, 5))
    for name, measure in MEASURES.items():
        resampled = samples(found.statistics, measure, Draws(20, 3))
        assert resampled.value == getattr(found, name)
        expected = [getattr(Fidelity(found.statistics[rows]), name) for rows in drawn]
        assert resampled.resampled == pytest.approx(np.array(expected))


def test_round_trip_through_json():
    table = np.random.default_rng(0).normal(size=(7, len(COLUMNS)))
    content = json.loads(json.dumps(Fidelity(table).to_json(), allow_nan=False))
    again = Fidelity.from_json(content)
    assert np.array_equal(again.statistics, table)
    assert content["kl"] == again.kl


def test_wrong_use_is_refused(tiny, tensors, texts):
    masks = mask_set(tiny, tensors["masks/kept"][0].astype(bool))
    tokenizer = WordTokenizer()
    with pytest.raises(UsageError, match="`sources` and `references` must have the same number of lines"):
        fidelity(tiny, tokenizer, texts[0], texts[1][:2], source=SOURCE, target=TARGET, masks=masks)
    full = FullDirection.of(tiny, tokenizer, *texts, source=SOURCE, target=TARGET)
    set_masks(tiny, masks, (SOURCE, TARGET))
    try:
        with pytest.raises(UsageError, match="`model` must have all its experts and no masks set"):
            full.measure(masks)
        with pytest.raises(UsageError, match="`model` must have all its experts and no masks set"):
            fidelity(tiny, tokenizer, *texts, source=SOURCE, target=TARGET, masks=masks)
    finally:
        clear_masks(tiny)
    with pytest.raises(UsageError, match=r"shape \(sentences, 12\)"):
        Fidelity(np.zeros((2, 3)))
    content = Fidelity(np.zeros((1, len(COLUMNS)))).to_json()
    with pytest.raises(UsageError, match="`columns` must be tokens"):
        Fidelity.from_json(content | {"columns": ["kl"]})
    with pytest.raises(UsageError, match="`statistics` must be those of a fidelity"):
        Fidelity.from_json(content | {"statistics": [1]})


def test_masks_of_another_model_or_without_the_language_are_refused(mini, tiny, tensors):
    model, tokenizer, text = mini
    lines = (text.head(2).lines(code) for code in (SOURCE, TARGET))
    full = FullDirection.of(model, tokenizer, *lines, source=SOURCE, target=TARGET)
    other = mask_set(tiny, tensors["masks/kept"][0].astype(bool))
    with pytest.raises(UsageError, match="`masks` must belong to the model"):
        full.measure(other)
    spec = routing_of(model).spec
    without = MaskSet(
        model_name="mini",
        fingerprint=spec.fingerprint,
        stacks=spec.stacks,
        top_k=spec.top_k,
        granularity="language",
        masks={stack.name: {"spa_Latn": tuple((0, 1) for _ in stack.layers)} for stack in spec.stacks},
    )
    with pytest.raises(UsageError, match=r"must have a mask \(spa_Latn\), but is eng_Latn"):
        full.measure(without)
