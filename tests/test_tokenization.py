"""`[language] words </s>` on every line of transformers, and batches that depend on the lengths alone."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from nllb_prune.errors import UsageError
from nllb_prune.model.source import embedded_text, load_tokenizer
from nllb_prune.tokenization import MAX_LENGTH, batches_by_length, encode, language_id, pad


@pytest.fixture(scope="module")
def tokenizer():
    return load_tokenizer("mini")


def ids(tokenizer, text, code="eng_Latn"):
    return encode(tokenizer, [text], code)[0]


def test_form(tokenizer):
    (row,) = encode(tokenizer, ["wake me up at nine"], "deu_Latn")
    assert row[0] == tokenizer.convert_tokens_to_ids("deu_Latn") == language_id(tokenizer, "deu_Latn")
    assert row[-1] == tokenizer.eos_token_id == 2
    assert tokenizer.decode(row[1:-1]) == "wake me up at nine"


@pytest.mark.parametrize("file", sorted((embedded_text() / "dev").iterdir()), ids=lambda file: file.stem)
def test_pieces_are_those_of_a_call_of_the_tokenizer(tokenizer, file):
    lines = [line.strip() for line in file.read_text(encoding="utf-8").splitlines()]
    called = tokenizer(lines, add_special_tokens=False, split_special_tokens=True).input_ids
    assert [row[1:-1] for row in encode(tokenizer, lines, file.stem)] == called


def test_truncation_and_padding_that_were_set_do_not_matter():
    tokenizer = load_tokenizer("mini")
    before = encode(tokenizer, ["play music", "wake me up at nine"], "eng_Latn")
    tokenizer.backend_tokenizer.enable_truncation(2)
    tokenizer.backend_tokenizer.enable_padding(length=9)
    assert encode(tokenizer, ["play music", "wake me up at nine"], "eng_Latn") == before


def test_state_of_the_tokenizer_does_not_matter(tokenizer):
    before = ids(tokenizer, "play music")
    tokenizer.src_lang = "swh_Latn"
    assert ids(tokenizer, "play music") == before


def test_aliases_are_the_language(tokenizer):
    assert language_id(tokenizer, "en") == language_id(tokenizer, "eng-latn") == language_id(tokenizer, "eng_Latn")


@pytest.mark.parametrize("text", ["", " ", "\t", "\u3000"])
def test_no_words(tokenizer, text):
    assert ids(tokenizer, text) == [language_id(tokenizer, "eng_Latn"), 2]
    assert encode(tokenizer, [], "eng_Latn") == []


@pytest.mark.parametrize(
    "text", [" play music", "play music ", "  play  music\t", "play\u00a0music", "\u3000play music"]
)
def test_spaces_around_words_do_not_matter(tokenizer, text):
    assert ids(tokenizer, text) == ids(tokenizer, "play music")


@pytest.mark.parametrize("word", ["</s>", "<s>", "<pad>", "<unk>", "<mask>", "deu_Latn", "eng_Latn"])
def test_special_tokens_in_a_text_are_plain_text(tokenizer, word):
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for text in (word, f"play {word} music", f"{word}play"):
        inside = ids(tokenizer, text)[1:-1]
        assert inside
        assert not special & set(inside)


def test_long_lines_are_cut(tokenizer):
    row = ids(tokenizer, "play music " * 400)
    assert len(row) == MAX_LENGTH
    assert row[0] == language_id(tokenizer, "eng_Latn")
    assert row[-1] == 2
    assert row[:11] == ids(tokenizer, "play music " * 5)[:11]


@pytest.mark.parametrize("code", ["fra_Latn", "kor_Hang"])
def test_language_that_the_model_does_not_know(tokenizer, code):
    with pytest.raises(UsageError, match=f"one of the model's, .*deu_Latn.*but is {code} instead"):
        encode(tokenizer, ["bonjour"], code)


@pytest.mark.parametrize("code", ["xyz", "", "eng_Cyrl"])
def test_no_language(tokenizer, code):
    with pytest.raises(UsageError, match="`language` must be a FLORES-200 code"):
        encode(tokenizer, ["bonjour"], code)


def test_pad():
    table = pad([[5, 6, 7], [8], []], 1)
    assert table.tolist() == [[5, 6, 7], [8, 1, 1], [1, 1, 1]]
    assert table.dtype == torch.int64
    assert pad([[3]], -100).tolist() == [[3]]


lengths = st.lists(st.integers(1, 60), max_size=50)


@given(lengths, st.integers(1, 200))
def test_batches_hold_every_index_once(lengths, positions):
    groups = batches_by_length(lengths, positions=positions)
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    assert all(groups)


@given(lengths, st.integers(1, 200))
def test_batches_stay_within_the_positions(lengths, positions):
    for group in batches_by_length(lengths, positions=positions):
        longest = max(lengths[index] for index in group)
        assert longest * len(group) <= positions or len(group) == 1


@given(lengths, st.integers(1, 200))
def test_batches_are_longest_first_and_ties_in_order(lengths, positions):
    order = [index for group in batches_by_length(lengths, positions=positions) for index in group]
    assert order == sorted(order, key=lambda index: (-lengths[index], index))


@given(lengths, st.integers(1, 200))
def test_batches_are_as_full_as_they_can_be(lengths, positions):
    groups = batches_by_length(lengths, positions=positions)
    for group in groups[:-1]:
        assert lengths[group[0]] * (len(group) + 1) > positions
