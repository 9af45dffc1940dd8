import pytest
from sacrebleu.metrics import BLEU

from nllb_prune.errors import UsageError
from nllb_prune.evaluation._writing import bleu_tokenizer, units


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
def test_tokenizer_suits_the_script_and_needs_no_download(language, tokenizer):
    assert bleu_tokenizer(language) == tokenizer
    assert tokenizer in BLEU.TOKENIZERS


def test_units_are_words_or_characters():
    assert units("guten  Morgen", "deu_Latn") == ["guten", "Morgen"]
    assert units("早上 好", "zho_Hans") == ["早", "上", "好"]


@pytest.mark.parametrize("language", ["zh", "deu", "", "zho_hans", "deu_Latn\n"])
def test_code_without_script_is_refused(language):
    with pytest.raises(UsageError, match=r"`language` must be a code with its script.*instead"):
        bleu_tokenizer(language)
