import importlib

import numpy as np
import pytest
import torch

from nllb_prune.corpus import ParallelText
from nllb_prune.model.source import embedded_text
from nllb_prune.tokenization import MAX_LENGTH

pytestmark = pytest.mark.fairseq2

DIRECTIONS = [("eng_Latn", "deu_Latn"), ("arb_Arab", "zho_Hans"), ("hin_Deva", "swh_Latn"), ("rus_Cyrl", "tur_Latn")]
PIPELINES = ["fairseq2's pipeline", "fairseq2's pipeline, 2 calls"]
SAME_BATCHES = [
    "ours, tokens of the asset card's tokenizer",
    "our groups, fairseq2's tokens and collating",
    "our tokens and groups, fairseq2's prefetching",
]
AWKWARD = [
    "",
    "  one word ",
    "he wrote </s> and deu_Latn and <pad> here",
    "an unknown sign ᚠ and 😀",
    "\u200bno width",
    "one two three four " * 400,  # cut
    "five " * (MAX_LENGTH - 2),
    "tab\tand  two spaces",
]


@pytest.fixture(scope="module")
def feeding():
    return importlib.import_module("eval.bench.feeding")


@pytest.fixture(scope="module")
def model():
    from nllb_prune.on_fairseq2.loading import load_model

    return load_model("mini")


@pytest.fixture(scope="module")
def feedings(feeding, model):
    return feeding.Feedings(ParallelText.open(embedded_text(), split="dev"), model)


@pytest.fixture(scope="module")
def some(feeding, model):
    return feeding.Feedings(ParallelText.open(embedded_text(), split="dev").head(120), model)


@pytest.fixture(scope="module")
def awkward(feeding, model):
    text = {code: lambda: tuple(AWKWARD) for code in ("eng_Latn", "deu_Latn")}
    return feeding.Feedings(ParallelText(text), model)


def fed(feedings, name, directions):
    return [(each.place, each.batch) for each in feedings.named[name](directions)]


def sentences(batches):
    """Every pair as (place, source, what the decoder reads, what it is to predict), without padding, sorted."""
    return sorted(
        (place, tuple(source[source != 1].tolist()), tuple(read[read != 1].tolist()), tuple(label[label >= 0].tolist()))
        for place, batch in batches
        for source, read, label in zip(*batch, strict=True)
    )


def assert_same(ours, others):
    assert [place for place, _ in ours] == [place for place, _ in others]
    for (_, one), (_, other) in zip(ours, others, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("name", [*PIPELINES, "fairseq2's pipeline, directions prefetched"])
def test_its_pipeline_feeds_each_sentence_once_with_our_tokens(feedings, name):
    ours = sentences(fed(feedings, "ours", DIRECTIONS))
    assert len(ours) == len(DIRECTIONS) * len(feedings.text.lines("eng_Latn"))
    assert sentences(fed(feedings, name, DIRECTIONS)) == ours


@pytest.mark.parametrize("name", SAME_BATCHES)
def test_our_groups_are_the_same_batches_whoever_makes_them(feedings, name):
    assert_same(fed(feedings, "ours", DIRECTIONS), fed(feedings, name, DIRECTIONS))


@pytest.mark.parametrize("name", [*PIPELINES, *SAME_BATCHES])
def test_lines_that_are_empty_or_long_or_look_like_control_symbols(awkward, name):
    ours = sentences(fed(awkward, "ours", DIRECTIONS[:1]))
    assert max(len(source) for _, source, _, _ in ours) == MAX_LENGTH
    assert sentences(fed(awkward, name, DIRECTIONS[:1])) == ours


@pytest.mark.parametrize("name", PIPELINES)
def test_its_batches_are_the_same_every_time(feedings, name):
    first = fed(feedings, name, DIRECTIONS[:2])
    for _ in range(3):
        assert_same(first, fed(feedings, name, DIRECTIONS[:2]))


def test_its_batches_stay_within_the_positions(feeding, feedings):
    for _, batch in fed(feedings, PIPELINES[0], DIRECTIONS):
        assert max(batch.source.numel(), batch.labels.numel()) <= feeding.BATCH_POSITIONS


@pytest.mark.parametrize("name", SAME_BATCHES[-2:])
def test_statistics_of_our_groups_are_the_same_bytes(feeding, some, name):
    [ours] = feeding.observe(some, some.named["ours"], DIRECTIONS[:1])
    [theirs] = feeding.observe(some, some.named[name], DIRECTIONS[:1])
    for stack, table in ours.tables().items():
        for field, array in table.items():
            np.testing.assert_array_equal(theirs.tables()[stack][field], array, err_msg=field)


def test_counts_of_its_pipeline_are_ours_but_for_near_ties(feeding, some):
    ours = feeding.observe(some, some.named["ours"], DIRECTIONS)
    theirs = feeding.observe(some, some.named[PIPELINES[0]], DIRECTIONS)
    for one, other in zip(ours, theirs, strict=True):
        for stack, table in one.tables().items():
            found = other.tables()[stack]
            np.testing.assert_array_equal(found["tokens"], table["tokens"])
            for field in ("first", "second", "rank"):
                np.testing.assert_array_equal(found[field].sum(-1), table[field].sum(-1))
                assert np.abs(found[field] - table[field]).max() <= 3
                assert (found[field] != table[field]).mean() < 0.02
