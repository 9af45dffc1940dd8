"""Parts of a long sentence: short enough, whole together, cut where it hurts least."""

import time

import pytest
import regex
from hypothesis import given, settings
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.long_sentences import shortened
from nllb_prune.model.source import load_tokenizer
from nllb_prune.segmentation import Piece, Segmented, segment
from nllb_prune.tokenization import encode


def characters(texts):
    return list(map(len, texts))


def texts(segmented):
    return [piece.text for piece in segmented.pieces]


def again(segmented):
    return "".join(piece.before + piece.text for piece in segmented.pieces) + segmented.after


def parts(text, longest, length=characters):
    return texts(shortened(segment(text, "eng_Latn"), longest=longest, length=length))


@pytest.fixture(scope="module")
def tokens():
    tokenizer = load_tokenizer("mini")
    return lambda texts: [len(ids) for ids in encode(tokenizer, texts, "eng_Latn")]


@pytest.mark.parametrize(
    ("text", "longest", "expected"),
    [
        ("short", 5, ["short"]),
        ("one two, three four five", 20, ["one two,", "three four five"]),
        ("it is so. and now, we go on here", 25, ["it is so. and now,", "we go on here"]),
        ("i like that. you, too, do so", 20, ["i like that.", "you, too, do so"]),
        ("how are you? i am, so to say, well", 25, ["how are you?", "i am, so to say, well"]),
        ("rates of 3,14 and 2,71 to 12:30", 24, ["rates of 3,14 and", "2,71 to 12:30"]),
        ("they came—he and she—too", 20, ["they came—", "he and she—too"]),
        ("今天天气很好、我们去公园玩", 10, ["今天天气很好、", "我们去公园玩"]),
        ("اليوم جميل، نذهب الآن", 15, ["اليوم جميل،", "نذهب الآن"]),
        ("ཀཁ་གང་ཅཆ་ཇཉ", 9, ["ཀཁ་གང་", "ཅཆ་ཇཉ"]),
        ("abcdefgh", 4, ["abc", "de", "fgh"]),
        ("🇩🇪🇫🇷🇮🇹🇪🇸", 6, ["🇩🇪🇫🇷", "🇮🇹🇪🇸"]),
        ("👩‍👩‍👧👩‍👩‍👧", 5, ["👩‍👩‍👧", "👩‍👩‍👧"]),
    ],
)
def test_places(text, longest, expected):
    assert parts(text, longest) == expected


def test_white_space_stays_where_it_was():
    segmented = shortened(segment(" ab  cd\tef.\n", "eng_Latn"), longest=5, length=characters)
    assert segmented == Segmented((Piece("ab", " "), Piece("cd", "  "), Piece("ef.", "\t")), "\n")


def test_a_character_stays_whatever_its_length():
    assert parts("abc", 1, length=lambda texts: [2 + len(text) for text in texts]) == ["a", "b", "c"]


@pytest.mark.parametrize("longest", [0, -1])
def test_longest_must_be_positive(longest):
    with pytest.raises(UsageError, match="`longest` must be at least 1"):
        parts("abc", longest)


@settings(max_examples=300, deadline=None)
@given(
    text=st.text(
        st.one_of(st.sampled_from(" \n,.;:—、。🇩🇪é\u0301\u200d👩ก"), st.characters(exclude_categories=())), max_size=80
    ),
    longest=st.integers(1, 30),
)
def test_nothing_is_lost(text, longest):
    segmented = shortened(segment(text, "eng_Latn"), longest=longest, length=characters)
    assert again(segmented) == text
    assert all(0 < len(part) <= longest and part == part.strip() for part in texts(segmented))


@settings(max_examples=200, deadline=None)
@given(
    text=st.text(st.sampled_from("ab🇩🇪\u0301\u200d👩क्षीกำ한ᄀ"), min_size=1, max_size=60), longest=st.integers(8, 20)
)
def test_a_cluster_is_cut_only_if_it_is_too_long(text, longest):
    clusters = regex.findall(r"\X", text)
    if max(map(len, clusters)) <= longest:
        ends = {sum(map(len, clusters[:count])) for count in range(len(clusters) + 1)}
        found = parts(text, longest)
        assert {sum(map(len, found[:count])) for count in range(len(found) + 1)} <= ends


@pytest.mark.parametrize("longest", [4, 10, 40, 510])
def test_with_a_tokenizer(tokens, longest):
    text = "play some music, wake me up at nine; what is the weather like " * 20 + "unbelievablylongword" * 20
    segmented = shortened(segment(text, "eng_Latn"), longest=longest, length=tokens)
    assert again(segmented) == text
    assert max(tokens(texts(segmented))) <= longest
    whole = sum(tokens([text])) if longest < 510 else 512
    assert len(segmented.pieces) <= 4 * whole / (longest - 2) + 1


def test_few_calls_of_the_tokenizer(tokens):
    calls = []

    def counted(texts):
        calls.append(len(texts))
        return tokens(texts)

    text = ("play some music, " * 200).strip() + "\n"
    shortened(segment(text * 10, "eng_Latn"), longest=50, length=counted)
    assert calls[0] == 1  # equal sentences are counted once
    assert len(calls) < 8


@pytest.mark.parametrize("repeated", ["a", "word ", "你", "one, ", "🇩🇪", "🇩🇪\u0301", "\u0301", "क्", "\u200d", "—"])
def test_time_is_near_linear(repeated):
    """A quadratic way would take minutes."""
    text = (repeated * (200_000 // len(repeated))).strip()
    began = time.perf_counter()
    assert again(shortened(segment(text, "eng_Latn"), longest=500, length=characters)) == text
    assert time.perf_counter() - began < 5
