"""Each measure by hand."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sacrebleu.metrics import CHRF

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors import THRESHOLDS, Detector, Outputs, flags
from nllb_prune.evaluation.detectors.detached import Detached
from nllb_prune.evaluation.detectors.identification import Identified, Py3LangId
from nllb_prune.evaluation.detectors.length import NORMS, Long, Short
from nllb_prune.evaluation.detectors.off_target import OffTarget
from nllb_prune.evaluation.detectors.plain import Copy, Empty
from nllb_prune.evaluation.detectors.repetition import Oscillation, Repetition
from nllb_prune.evaluation.detectors.script import Script
from nllb_prune.evaluation.detectors.search import Unfinished, Unlikely
from nllb_prune.languages import all_languages


def value(measure, output, source="x", *, target="deu_Latn", source_language="eng_Latn", **other):
    others = {name: [text] for name, text in other.items()}
    outputs = Outputs(source=source_language, target=target, sources=[source], outputs=[output], **others)
    return measure.values(outputs)[0]


# repetition


@pytest.mark.parametrize(
    ("output", "source", "expected"),
    [
        ("a b c d a b c d a b c d", "one two three four", 2),  # 3 - 1
        ("a b c d a b c d", "one two three four", 1),
        ("a b c d a b c d a b c d", "w x y z w x y z w x y z", 0),
        ("a a a a a", "one two", 2),
        ("a b c d", "w x y z w x y z w x y z", -2),
        ("", "", 0),
    ],
)
def test_oscillation(output, source, expected):
    assert value(Oscillation(), output, source) == expected


def test_oscillation_counts_characters_where_words_are_not_spaced():
    assert value(Oscillation(), "打开灯光打开灯光打开灯光", "turn on", target="zho_Hans") == 3
    assert value(Oscillation(), "打开灯光打开灯光打开灯光", "turn on", target="deu_Latn") == 0


@pytest.mark.parametrize(
    ("output", "source", "expected"),
    [
        ("a b a b", "one two three", 1 / 3),
        ("a b c a b c", "one two three", 2 / 5),
        ("a b c a b c", "w x y w x y", 0),
        ("a b c", "w x y w x y", -2 / 5),
        ("a b c d", "one two three four", 0),
        ("a", "b", 0),
    ],
)
def test_repetition(output, source, expected):
    assert value(Repetition(), output, source) == pytest.approx(expected)


WORDS = st.lists(
    st.sampled_from(["".join(pair) for pair in zip("abcdefgh", "ijklmnop", strict=True)]), min_size=2, unique=True
)


@given(WORDS)
def test_a_sentence_of_two_words_or_more_said_twice_is_flagged(words):
    outputs = Outputs(
        source="eng_Latn", target="deu_Latn", sources=["one two three four"], outputs=[" ".join(words + words)]
    )
    detector = Detector(Repetition(), THRESHOLDS["repetition"])
    assert flags(detector, detector.values(outputs)).all()
    assert Oscillation().values(outputs)[0] < THRESHOLDS["oscillation"]


# length


@pytest.mark.parametrize(
    ("output", "reference", "long"),
    [("a" * 25, "b" * 10, 2.0), ("aa aa a", "b b b b b", 1.0), ("", "b" * 10, 1 / 3), ("a" * 5, " ", None)],
)
def test_lengths_by_the_reference_ignore_white_space(output, reference, long):
    expected = np.nan if long is None else long
    assert value(Long(), output, references=reference) == pytest.approx(expected, nan_ok=True)
    assert value(Short(), output, references=reference) == pytest.approx(1 / expected, nan_ok=True)


def test_lengths_without_a_reference_are_normed_by_script():
    expected = 20 * NORMS["Hans"] / NORMS["Latn"] + 5
    assert value(Long(), "字" * 10, "s" * 20, target="zho_Hans") == pytest.approx(15 / expected)
    assert value(Short(), "字" * 10, "s" * 20, target="zho_Hans") == pytest.approx(expected / 15)
    assert value(Long(), "a" * 20, "s" * 20) == 1
    assert np.isnan(value(Long(), "ᱟ", "s", target="sat_Olck"))  # a script without a norm


# languages and scripts


def test_off_target_is_the_probability_of_all_other_groups():
    measure = OffTarget(identifier=Py3LangId(), languages=("eng_Latn", "deu_Latn", "spa_Latn"))
    assert value(measure, "weck mich morgen um sieben uhr") < 0.1
    assert value(measure, "despiértame mañana a las siete") > 0.9
    assert np.isnan(value(measure, "12:30"))
    assert np.isnan(value(measure, "bon dia", target="kea_Latn"))  # unknown, not wrong


class Thirds:
    """Gives the same probability to each of three languages."""

    name = signature = "thirds"

    def known(self, languages):
        return tuple(languages)

    def identify(self, texts, languages):
        return Identified(tuple(languages), np.full((len(texts), len(tuple(languages))), 1 / len(tuple(languages))))


def test_languages_of_a_group_count_together():
    languages = ("arb_Arab", "ary_Arab", "eng_Latn")
    measure = OffTarget(identifier=Thirds(), languages=languages)
    assert value(measure, "a", target="ary_Arab") == pytest.approx(1 / 3)
    assert value(measure, "a", target="eng_Latn") == pytest.approx(2 / 3)
    only = OffTarget(identifier=Thirds(), languages=languages[:2])
    assert np.isnan(value(only, "a", target="ary_Arab"))  # nothing to tell it from


def test_off_target_of_references_and_its_signature():
    measure = OffTarget(identifier=Py3LangId(), languages=("eng_Latn", "deu_Latn"))
    texts = ["guten morgen", "good morning"]
    values = measure.text_values(texts, "deu_Latn")
    assert values[0] < 0.5 < values[1]
    assert measure.settings["lid"].startswith("py3langid-")
    others = OffTarget(identifier=Py3LangId(), languages=("eng_Latn", "spa_Latn"))
    assert measure.settings["languages"] != others.settings["languages"]
    again = OffTarget(identifier=Py3LangId(), languages=("deu_Latn", "eng_Latn"))
    assert measure.settings == again.settings


@pytest.mark.parametrize(
    ("target", "output", "expected"),
    [
        ("rus_Cyrl", "привет", 0),
        ("rus_Cyrl", "hello", 1),
        ("rus_Cyrl", "включи youtube", 7 / 13),
        ("rus_Cyrl", "да, 12!", 0),
        ("rus_Cyrl", "5 µ", None),  # a letter of no script
        ("deu_Latn", "12:30 ?!", None),
        ("deu_Latn", "", None),
        ("jpn_Jpan", "東京タワーへ行きます", 0),
        ("jpn_Jpan", "ラーメン", 0),  # the long sound mark is of no single script
        ("kor_Hang", "大韓民國 만세", 0),
        ("zho_Hans", "今天天气很好", 0),
        ("zho_Hant", "今天天气很好", 0),  # one Unicode script
        ("zho_Hans", "ひらがな", 1),
        ("hin_Deva", "नमस्ते", 0),
        ("arb_Arab", "مرحبا", 0),
        ("deu_Latn", "größe", 0),
    ],
)
def test_script(target, output, expected):
    assert value(Script(), output, target=target) == pytest.approx(
        np.nan if expected is None else expected, nan_ok=True
    )


def test_every_language_has_a_script():
    for each in all_languages():
        assert np.isnan(value(Script(), "12", target=each.code))
    with pytest.raises(UsageError, match="has the script 'Xxxx' instead"):
        value(Script(), "a", target="deu_Xxxx")


# copies and empty outputs


@pytest.mark.parametrize(
    ("output", "source", "reference", "expected"),
    [
        ("play  music", "Play music", "spiel musik", 1),
        ("spiel musik", "play music", "spiel musik", 0),
        ("berlin", "Berlin", "berlin", 0),  # the reference is the same too
        ("12:30", "12:30", "halb eins", None),
        ("", "play", "spiel", 0),
    ],
)
def test_copy(output, source, reference, expected):
    found = value(Copy(), output, source, references=reference)
    assert found == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


def test_copy_without_a_reference():
    assert value(Copy(), "berlin", "Berlin") == 1


@pytest.mark.parametrize(
    ("output", "source", "expected"),
    [("", "play", 1), (" . ?", "play", 1), ("7", "seven", 0), ("a", "play", 0), ("", " ?", None)],
)
def test_empty(output, source, expected):
    assert value(Empty(), output, source) == pytest.approx(np.nan if expected is None else expected, nan_ok=True)


# detached outputs


def test_detached_is_far_from_the_reference_and_from_the_full_output():
    def distance(output, other):
        return 100 - CHRF(word_order=0).sentence_score(output, [other]).score

    output, reference, full = "stell den wecker", "weck mich um neun", "stelle einen wecker"
    alone = value(Detached(), output, references=reference)
    both = value(Detached(), output, references=reference, full_outputs=full)
    assert alone == pytest.approx(distance(output, reference), abs=1e-6)
    assert both == pytest.approx(distance(output, full), abs=1e-6)
    assert both < alone
    assert value(Detached(), output, references="", full_outputs=full) == pytest.approx(both)
    assert np.isnan(value(Detached(), output, references=" "))


# what the search knew


def test_unlikely_and_unfinished():
    outputs = Outputs(
        source="eng_Latn",
        target="deu_Latn",
        sources=["a", "b", "c"],
        outputs=["a", "b", "c"],
        mean_log_probabilities=np.array([-0.5, -2.5, np.nan]),
        ended=np.array([True, False, True]),
    )
    np.testing.assert_array_equal(Unlikely().values(outputs), [0.5, 2.5, np.nan])
    np.testing.assert_array_equal(Unfinished().values(outputs), [0, 1, 0])
