import json
import random
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sacrebleu.metrics import BLEU, CHRF

from nllb_prune.errors import UsageError
from nllb_prune.evaluation._writing import bleu_tokenizer
from nllb_prune.evaluation.scores import (
    DirectionScores,
    bleu_from_statistics,
    chrf_from_statistics,
    corpus_scores,
    score,
)

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
    chrf, bleu = oracle(hypotheses, references, target)
    assert scores.chrf.value == pytest.approx(chrf, abs=1e-9)
    assert scores.bleu.value == pytest.approx(bleu, abs=1e-9)
    assert chrf_from_statistics(scores.chrf_statistics.sum(0)) == scores.chrf.value
    assert bleu_from_statistics(scores.bleu_statistics.sum(0)) == scores.bleu.value


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
    statistics = score(hypotheses, references, target="deu_Latn").chrf_statistics
    expected = [CHRF(word_order=2).sentence_score(output, [reference]).score for output, reference in lines]
    assert corpus_scores(statistics, "chrf") == pytest.approx(expected, abs=1e-9)


def test_value_of_a_pair_computed_by_hand():
    # BLEU: 4 of 5 words, 3 of 4 bigrams, 2 of 3 trigrams, 1 of 2 4-grams, no brevity penalty.
    scores = score(["the cat sat on it"], ["the cat sat on mats"], target="eng_Latn")
    assert scores.bleu.value == pytest.approx(100 * (4 / 5 * 3 / 4 * 2 / 3 * 1 / 2) ** 0.25)
    assert scores.bleu_statistics.tolist() == [[5, 5, 4, 3, 2, 1, 5, 4, 3, 2]]


def test_statistics_agree_with_what_sacrebleu_publishes():
    hypotheses, references = ["the cat sat .", "a", ""], ["the cat sat on it.", "b", "c d"]
    scores = score(hypotheses, references, target="eng_Latn")
    public = BLEU(tokenize="13a").corpus_score(hypotheses, [references])
    expected = [public.sys_len, public.ref_len, *public.counts, *public.totals]
    assert scores.bleu_statistics.sum(0).tolist() == expected
    assert scores.chrf_statistics.shape == (scores.sentences, 24)


def test_signatures_name_metric_tokenizer_and_version():
    scores = score(["是"], ["是"], target="zho_Hans")
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:yes\|nc:6\|nw:2\|space:no\|version:.+", scores.chrf.signature)
    assert re.fullmatch(r"nrefs:1\|case:mixed\|eff:no\|tok:zh\|smooth:exp\|version:.+", scores.bleu.signature)


def test_round_trip_through_json():
    scores = score(REFERENCES["deu_Latn"], REFERENCES["deu_Latn"][::-1], target="deu_Latn")
    again = DirectionScores.from_json(json.loads(json.dumps(scores.to_json())))
    assert again.to_json() == scores.to_json()
    assert again.statistics("chrf").dtype == again.statistics("bleu").dtype == np.int64


@pytest.mark.parametrize(
    "change", [{"chrf": 3}, {"bleu_statistics": [[1, 2]]}, {"chrf_statistics": [[1], [1, 2]]}, {"bleu": {"value": 1}}]
)
def test_other_content_is_refused(change):
    content = score(["a"], ["a"], target="deu_Latn").to_json() | change
    with pytest.raises(UsageError, match="`scores` must be the scores of a direction"):
        DirectionScores.from_json(content)


@pytest.mark.parametrize(("hypotheses", "references"), [([], []), (["a"], ["a", "b"])])
def test_unaligned_or_no_lines_are_refused(hypotheses, references):
    with pytest.raises(UsageError, match="`hypotheses` and `references` must have the same number of lines"):
        score(hypotheses, references, target="deu_Latn")


def test_unknown_metric_is_refused():
    with pytest.raises(UsageError, match="`metric` must be one of chrf, bleu, but is 'ter' instead"):
        corpus_scores(np.zeros(24), "ter")
