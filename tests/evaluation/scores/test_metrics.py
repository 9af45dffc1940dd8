import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores.metrics import (
    COLUMNS,
    MetricScore,
    check_aligned,
    corpus_scores,
    score,
    scores_from_json,
    scores_to_json,
    sentence_chrf,
    sentence_chrf_of,
)
from nllb_prune.evaluation.scores.writing import bleu_tokenizer

REFERENCES = {
    "deu_Latn": ["Weck mich bitte um neun Uhr (morgens).", "Spiele das Lied noch einmal!", "Licht an", "Ja."],
    "zho_Hans": ["请在早上九点叫醒我。", "再播放一次这首歌", "开灯 please", "是"],
    "jpn_Jpan": ["九時に起こしてください。", "もう一度その歌を再生して", "電気をつけて", "はい"],
    "tha_Thai": ["ปลุกฉันตอนเก้าโมงเช้า", "เล่นเพลงนั้นอีกครั้ง", "เปิดไฟ", "ใช่"],
    "mya_Mymr": ["မနက် ၉ နာရီမှာ နှိုးပါ", "အဲဒီသီချင်းကို ထပ်ဖွင့်ပါ", "မီးဖွင့်", "ဟုတ်ကဲ့"],
    "hin_Deva": ["मुझे सुबह नौ बजे जगाओ", "वह गाना फिर से बजाओ", "बत्ती जलाओ", "हाँ।"],
    "arb_Arab": ["أيقظني في التاسعة صباحا", "شغل الأغنية مرة أخرى", "أشعل الضوء", "نعم"],
}


def damaged(lines, generator):
    """Drop, repeat and swap characters and words; some lines become empty."""
    return ["" if generator.random() < 0.15 else _damage(line, generator) for line in lines]


def _damage(line, generator):
    words = [word for word in line.split() for _ in range(generator.choice([0, 1, 1, 1, 2]))]
    if generator.random() < 0.3:
        generator.shuffle(words)
    return " ".join(word[: generator.randint(1, len(word))] if generator.random() < 0.3 else word for word in words)


def oracle(hypotheses, references, target):
    chrf = CHRF(word_order=2).corpus_score(hypotheses, [references])
    bleu = BLEU(tokenize=bleu_tokenizer(target)).corpus_score(hypotheses, [references])
    return chrf.score, bleu.score


def assert_equal_to_oracle(hypotheses, references, target):
    scores = score(hypotheses, references, target=target)
    assert list(scores) == ["chrf", "bleu"]
    for found, expected in zip(scores.values(), oracle(hypotheses, references, target), strict=True):
        assert found.value == pytest.approx(expected, abs=1e-9)
    for metric, found in scores.items():
        assert corpus_scores(found.statistics.sum(0), metric) == found.value


@pytest.mark.parametrize("target", REFERENCES)
@pytest.mark.parametrize("seed", range(6))
def test_equals_sacrebleu_on_damaged_text(target, seed):
    generator = random.Random(f"{target} {seed}")
    references = [generator.choice(REFERENCES[target]) for _ in range(generator.choice([1, 2, 30]))]
    assert_equal_to_oracle(damaged(references, generator), references, target)


@pytest.mark.parametrize("target", REFERENCES)
@pytest.mark.parametrize(
    "change", [lambda line: line, lambda line: "", lambda line: "q", lambda line: line * 3, lambda line: line[:2]]
)
def test_equals_sacrebleu_at_the_extremes(target, change):
    references = REFERENCES[target]
    assert_equal_to_oracle([change(line) for line in references], references, target)


LINES = st.lists(
    st.tuples(st.text("ab c.,的ไ", max_size=15), st.text("ab c.,的ไ", max_size=15)), min_size=1, max_size=6
)


@settings(max_examples=150, deadline=None)
@given(LINES, st.sampled_from(sorted(REFERENCES)))
def test_equals_sacrebleu_on_random_text(lines, target):
    hypotheses, references = ([line[side] for line in lines] for side in (0, 1))
    assert_equal_to_oracle(hypotheses, references, target)


@settings(max_examples=50, deadline=None)
@given(LINES)
def test_rows_of_one_sentence_give_its_sentence_score(lines):
    hypotheses, references = ([line[side] for line in lines] for side in (0, 1))
    statistics = score(hypotheses, references, target="deu_Latn")["chrf"].statistics
    expected = [CHRF(word_order=2).sentence_score(output, [reference]).score for output, reference in lines]
    assert corpus_scores(statistics, "chrf") == pytest.approx(expected, abs=1e-9)


@settings(max_examples=100, deadline=None)
@given(LINES)
def test_sentence_chrf_equals_sacrebleu(lines):
    hypotheses, references = ([line[side] for line in lines] for side in (0, 1))
    expected = [CHRF(word_order=0).sentence_score(output, [reference]).score for output, reference in lines]
    assert sentence_chrf(hypotheses, references) == pytest.approx(expected, abs=1e-9)
    found = score(hypotheses, references, target="deu_Latn")["chrf"]
    assert sentence_chrf_of(found) == pytest.approx(expected, abs=1e-9)


def test_sentence_chrf_by_hand():
    # Characters: 2 of 3 and 2 of 2, bigrams 1 of 2 and 1 of 1, trigrams are in one text only and do not count.
    precision, recall = (2 / 3 + 1 / 2) / 2, 1.0
    expected = 100 * 5 * precision * recall / (4 * precision + recall)
    assert sentence_chrf(["abc", "", "x"], ["ab", "a", ""]) == pytest.approx([expected, 0, 0])


def test_value_of_a_pair_computed_by_hand():
    # BLEU: 4 of 5 words, 3 of 4 bigrams, 2 of 3 trigrams, 1 of 2 4-grams, no brevity penalty.
    scores = score(["the cat sat on it"], ["the cat sat on mats"], target="eng_Latn")
    assert scores["bleu"].value == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert scores["bleu"].statistics.tolist() == [[5, 5, 4, 3, 2, 1, 5, 4, 3, 2]]


def test_statistics_agree_with_what_sacrebleu_publishes():
    hypotheses, references = ["the cat sat .", "a", ""], ["the cat sat on it.", "b", "c d"]
    scores = score(hypotheses, references, target="eng_Latn")
    public = BLEU(tokenize="13a").corpus_score(hypotheses, [references])
    expected = [public.sys_len, public.ref_len, *public.counts, *public.totals]
    assert scores["bleu"].statistics.sum(0).tolist() == expected
    assert {metric: found.statistics.shape for metric, found in scores.items()} == {"chrf": (3, 24), "bleu": (3, 10)}


def test_signatures_name_metric_tokenizer_and_version():
    scores = score(["是"], ["是"], target="zho_Hans")
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:yes\|nc:6\|nw:2\|space:no\|version:.+", scores["chrf"].signature)
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:no\|tok:zh\|smooth:exp\|version:.+", scores["bleu"].signature)


def test_another_tokenizer_may_be_asked_for():
    hypotheses, references = ["the cat's hat."], ["a cat's hat."]
    found = score(hypotheses, references, target="eng_Latn", tokenizer="char")["bleu"]
    assert found.value == pytest.approx(BLEU(tokenize="char").corpus_score(hypotheses, [references]).score)
    assert "|tok:char|" in found.signature
    with pytest.raises(UsageError, match=r"`tokenizer` must be one of 13a, .*but is 'flores200' instead"):
        score(hypotheses, references, target="eng_Latn", tokenizer="flores200")


def test_round_trip_through_json():
    scores = score(REFERENCES["deu_Latn"], REFERENCES["deu_Latn"][::-1], target="deu_Latn")
    again = scores_from_json(json.loads(json.dumps(scores_to_json(scores))))
    assert list(again) == list(scores)
    for metric, found in again.items():
        assert (found.value, found.signature) == (scores[metric].value, scores[metric].signature)
        assert found.statistics.dtype == np.int64
        assert np.array_equal(found.statistics, scores[metric].statistics)


def test_json_is_smaller_than_the_numbers_as_text():
    generator = random.Random(0)
    references = [generator.choice(REFERENCES["deu_Latn"]) for _ in range(200)]
    scores = score(damaged(references, generator), references, target="deu_Latn")
    as_text = sum(len(json.dumps(found.statistics.tolist())) for found in scores.values())
    assert len(json.dumps(scores_to_json(scores))) < as_text / 2


def one_score():
    return score(["a b"], ["a c"], target="deu_Latn")["bleu"].to_json()


@pytest.mark.parametrize(
    "change",
    [
        {"statistics": [[1, 2]]},
        {"statistics": None},
        {"value": None},
        {"statistics": {"shape": [1, 10], "dtype": "int32", "packed": "AAAA"}},
        {"statistics": {"shape": [1, 10], "dtype": "int32", "packed": "not base64"}},
        {"statistics": {"shape": [2, 10], "dtype": "int32", "packed": one_score()["statistics"]["packed"]}},
        {"statistics": {"shape": [10], "dtype": "int32", "packed": one_score()["statistics"]["packed"]}},
        {"statistics": {"shape": [5, 2], "dtype": "int32", "packed": one_score()["statistics"]["packed"]}},
        {"statistics": {"shape": [1, 5], "dtype": "float64", "packed": one_score()["statistics"]["packed"]}},
    ],
)
def test_other_content_is_refused(change):
    with pytest.raises(UsageError, match="`score` must be a value, signature and statistics, but cannot be read"):
        MetricScore.from_json(one_score() | change)


def test_other_metrics_are_refused():
    with pytest.raises(UsageError, match="`scores` must be of chrf, bleu, spbleu, but are of bleu, ter instead"):
        scores_from_json({"bleu": one_score(), "ter": one_score()})
    with pytest.raises(UsageError, match="but are of nothing instead"):
        scores_from_json({})
    with pytest.raises(UsageError, match="`chrf` must have 24 columns, but has 10 instead"):
        scores_from_json({"chrf": one_score()})


def test_statistics_cannot_be_changed():
    found = score(["a b"], ["a c"], target="deu_Latn")["bleu"]
    for statistics in (found.statistics, MetricScore.from_json(found.to_json()).statistics):
        with pytest.raises(ValueError, match="read-only"):
            statistics[0, 0] = 1


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], ["a", "b"])])
def test_unaligned_or_no_lines_are_refused(hypotheses, references):
    with pytest.raises(UsageError, match="`hypotheses` and `references` must have the same number of lines"):
        score(hypotheses, references, target="deu_Latn")


def test_texts_are_named_that_do_not_match():
    with pytest.raises(UsageError, match=r"`one` and `two` must have the same number of lines, .* 1 and 2 instead"):
        check_aligned(one=["a"], two=["a", "b"])


def test_unknown_metric_is_refused():
    with pytest.raises(UsageError, match="`metric` must be one of chrf, bleu, spbleu, but is 'ter' instead"):
        corpus_scores(np.zeros(24), "ter")


def test_sentence_chrf_of_another_metric_is_refused():
    with pytest.raises(UsageError, match=f"`scored` must be chrF[+][+], but has {COLUMNS['bleu']} columns instead"):
        sentence_chrf_of(score(["a"], ["a"], target="deu_Latn")["bleu"])
