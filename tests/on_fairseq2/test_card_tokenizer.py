"""The tokenizer of a card as `nllb_prune.tokenization` asks for it."""

import pytest

from nllb_prune.errors import UsageError
from nllb_prune.on_fairseq2.card import card_of, card_text
from nllb_prune.tokenization import encode, known_languages, language_id
from tests.on_fairseq2.sides import EMBEDDED_LANGUAGES, lines

pytestmark = pytest.mark.fairseq2


@pytest.fixture(scope="module")
def of_card():
    from nllb_prune.on_fairseq2.card_tokenizer import CardTokenizer, load_tokenizer

    found = load_tokenizer("nllb-prune-mini")
    assert isinstance(found, CardTokenizer)
    return found


def test_it_encodes_as_that_of_transformers(of_card, tokenizer):
    for code in EMBEDDED_LANGUAGES:
        texts = [*lines(code, "test")[:50], "", " a </s> __eng_Latn__ ", "word " * 600]
        ours = encode(of_card, texts, code)
        assert ours == encode(tokenizer, texts, code)
        assert len(ours[-1]) == 512
    assert encode(of_card, [], "eng_Latn") == []


def test_it_knows_the_same_languages(of_card, tokenizer):
    assert known_languages(of_card) == known_languages(tokenizer) == EMBEDDED_LANGUAGES
    for code in EMBEDDED_LANGUAGES:
        assert language_id(of_card, code) == language_id(tokenizer, code)
    messages = []
    for each in (of_card, tokenizer):
        with pytest.raises(UsageError, match=r"of the model's, .*but is ace_Latn instead") as error:
            language_id(each, "ace_Latn")
        messages.append({word.strip(",") for word in str(error.value).split()})
    assert messages[0] == messages[1]


def test_it_decodes_the_same(of_card, tokenizer):
    rows = [ids for code in EMBEDDED_LANGUAGES for ids in encode(tokenizer, lines(code)[:50], code)]
    rows = [*rows, *(ids[1:-1] for ids in rows[::7]), [], [3], [5, 3, 9], [6001], [0, 1, 2]]
    theirs = tokenizer.batch_decode(rows, skip_special_tokens=True)
    ours = of_card.batch_decode(rows, skip_special_tokens=True)
    assert [text.strip() for text in ours] == [text.strip() for text in theirs]


def test_a_card_without_tokenizer(tmp_path, exports):
    """It has its folder's; one of a file has none."""
    from nllb_prune.on_fairseq2.card_tokenizer import load_tokenizer

    path = tmp_path / "card.yaml"
    path.write_text(card_text(card_of(exports(trimmed=True), name="small")))
    small = load_tokenizer(path)
    assert small("wake me up").input_ids == load_tokenizer(exports(trimmed=True))("wake me up").input_ids
    (tmp_path / "small.pt").touch()
    path.write_text(card_text(card_of(exports(trimmed=True), name="small") | {"checkpoint": "small.pt"}))
    with pytest.raises(UsageError, match="`small` must name a tokenizer in its asset card, but names none"):
        load_tokenizer(path)


def test_a_folder_has_that_of_transformers(exports, tokenizer):
    from nllb_prune.on_fairseq2.card_tokenizer import load_tokenizer

    assert type(load_tokenizer("mini")) is type(tokenizer)
    assert type(load_tokenizer(exports())) is type(tokenizer)
