"""fairseq2's tokenizer of a card, held against transformers' of the same folder."""

import json
import shutil

import pytest

from nllb_prune import load_tokenizer
from nllb_prune.languages import all_languages
from nllb_prune.model.source import model_folder
from nllb_prune.on_fairseq2.card import SENTENCEPIECE, card_of
from nllb_prune.tokenization import encode, language_id
from tests.exporting.test_vocabulary import nllb_200
from tests.on_fairseq2.sides import EMBEDDED_LANGUAGES, lines

pytestmark = pytest.mark.fairseq2

PLAIN = (
    "a </s> b",
    "__eng_Latn__ hello",
    "hello __deu_Latn__",
    "eng_Latn",
    "<pad><unk><s>",
    "<mask> <MINED_DATA>",
    "  spaces  within   and at the end  ",
    "½ ﬁ Ａ — “quotes” …",
    "日本語 and 🙂 and \u200b",
)


def by_card(folder):
    from fairseq2.assets import AssetCard
    from fairseq2.data.tokenizers.hub import load_tokenizer as load_by_card

    return load_by_card(AssetCard("own", card_of(folder)))


def ids_of(encoder, text):
    from nllb_prune.on_fairseq2.vocabulary import ids_for_transformers

    return ids_for_transformers(encoder(text)).tolist()


@pytest.fixture(scope="module")
def mini_by_name():
    from fairseq2.data.tokenizers.hub import load_tokenizer as load_by_name

    return load_by_name("nllb-prune-mini")


@pytest.mark.parametrize("code", EMBEDDED_LANGUAGES)
def test_ids_are_those_of_transformers(code, mini_by_name, tokenizer):
    texts = [line.strip() for line in lines(code)[:200]]
    assert len(texts) == 200
    encoder = mini_by_name.create_encoder(task="translation", lang=code, mode="source")
    wanted = encode(tokenizer, texts, code)
    assert [ids_of(encoder, text) for text in texts] == wanted
    decode = mini_by_name.create_decoder()
    theirs = tokenizer.batch_decode(wanted, skip_special_tokens=True, clean_up_tokenization_spaces=False)
    known = [number for number, ids in enumerate(wanted) if tokenizer.unk_token_id not in ids]  # told below
    assert len(known) > 190
    assert [decode(encoder(texts[number])) for number in known] == [theirs[number] for number in known]
    assert sum(text == again for text, again in zip(texts, theirs, strict=True)) > 100


def test_an_unknown_token_is_sentencepieces_sign(mini_by_name, tokenizer):
    """transformers leaves it out with the other special tokens."""
    encoder, decode = mini_by_name.create_encoder(lang="eng_Latn"), mini_by_name.create_decoder()
    ids = encode(tokenizer, ["hello 🙂 there"], "eng_Latn")
    assert tokenizer.unk_token_id in ids[0]
    assert decode(encoder("hello 🙂 there")).replace(" ⁇ ", " ").split() == ["hello", "there"]
    assert tokenizer.batch_decode(ids, skip_special_tokens=True)[0].split() == ["hello", "there"]


@pytest.mark.parametrize("text", PLAIN)
def test_text_is_text(text, mini_by_name, tokenizer):
    encoder = mini_by_name.create_encoder(lang="eng_Latn", mode="source")
    ids = ids_of(encoder, text.strip())
    assert ids == encode(tokenizer, [text], "eng_Latn")[0]
    assert not {0, 1, 2, *range(6001, 6012)} & set(ids[1:-1])


@pytest.mark.parametrize("code", EMBEDDED_LANGUAGES)
def test_each_mode_has_its_prefix(code, mini_by_name, tokenizer):
    from nllb_prune.on_fairseq2.vocabulary import ids_for_transformers

    source, target, usual = (mini_by_name.create_encoder(lang=code, mode=mode) for mode in ("source", "target", None))
    language, end = language_id(tokenizer, code), tokenizer.eos_token_id
    assert ids_for_transformers(source.prefix_indices).tolist() == [language]
    assert ids_for_transformers(target.prefix_indices).tolist() == [end, language]
    assert ids_for_transformers(source.suffix_indices).tolist() == [end]
    assert ids_for_transformers(target.suffix_indices).tolist() == [end]
    words = ids_of(mini_by_name.create_raw_encoder(), "hello there")
    assert ids_of(usual, "hello there") == [language, *words, end]
    assert ids_of(target, "hello there") == [end, language, *words, end]


def test_languages_that_it_does_not_know(mini_by_name):
    from fairseq2.error import NotSupportedError

    with pytest.raises(NotSupportedError, match="ace_Latn"):
        mini_by_name.create_encoder(lang="ace_Latn", mode="source")
    usual = mini_by_name.create_encoder(mode="source").prefix_indices.tolist()
    assert usual == mini_by_name.create_encoder(lang="eng_Latn").prefix_indices.tolist()


def test_the_size_is_the_models():
    for name in ("mini", "mini-dense"):
        info = by_card(model_folder(name)).vocab_info
        assert (info.size, info.pad_idx, info.unk_idx, info.bos_idx, info.eos_idx) == (6012, 0, 1, 2, 3)


def resized(folder, rows):
    """Give a folder of a tokenizer what a card needs besides."""
    content = json.loads((model_folder("mini") / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"vocab_size": rows}))
    shutil.copy(model_folder("mini") / SENTENCEPIECE, folder)
    return folder


def test_a_vocabulary_like_that_of_nllb_200(tmp_path):
    """202 languages, then `<mask>` in transformers and three symbols in fairseq, as many rows as these."""
    folder = resized(nllb_200(tmp_path / "nllb"), 6001 + 205)
    theirs, ours = load_tokenizer(folder), by_card(folder)
    assert ours.vocab_info.size == 6001 + 205
    for each in all_languages():
        (own,) = ours.create_encoder(lang=each.token, mode="source").prefix_indices.tolist()
        assert own == language_id(theirs, each.code) >= 6001
    prefixes = {
        mode: ours.create_encoder(lang="deu_Latn", mode=mode).prefix_indices.tolist()
        for mode in ("source_mining", "source_mmt_bt", "source_smt_bt")
    }
    german = language_id(theirs, "deu_Latn")
    assert list(prefixes.values()) == [[german, 6001 + 202 + number] for number in range(3)]
    assert theirs.convert_tokens_to_ids("<mask>") == 6001 + 202


def test_a_vocabulary_with_three_rows_to_spare_and_a_mask_before_the_languages(tmp_path, tokenizer):
    folder = shutil.copytree(model_folder("mini"), tmp_path / "mini", ignore=shutil.ignore_patterns("*.safetensors"))
    ours = by_card(resized(folder, 6015))
    assert ours.vocab_info.size == 6015
    for code in EMBEDDED_LANGUAGES:
        (own,) = ours.create_encoder(lang=code, mode="source").prefix_indices.tolist()
        assert own == language_id(tokenizer, code)
    assert ours.create_encoder(lang="swh_Latn", mode="source_mmt_bt").prefix_indices.tolist() == [6010, 6013]


def test_languages_alone_are_the_symbols_by_default():
    from nllb_prune.on_fairseq2.tokenizer import NllbMoeTokenizerConfig, load_nllb_moe_tokenizer

    config = NllbMoeTokenizerConfig(langs=["deu_Latn", "ace_Latn"], default_lang="ace_Latn")
    ours = load_nllb_moe_tokenizer(model_folder("mini") / SENTENCEPIECE, config)
    assert ours.vocab_info.size == 6003
    prefixes = [ours.create_encoder(lang=code).prefix_indices.tolist() for code in ("deu_Latn", "ace_Latn", None)]
    assert prefixes == [[6001], [6002], [6002]]
