"""The tokenizer in fairseq2: NLLB's own, whose control symbols stand where the model's rows for them are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fairseq2.data.tokenizers.sentencepiece import load_sentencepiece_model
from fairseq2.models.nllb import NllbTokenizer

_PAD = "<pad>@0"
"""Inserts `<pad>` before the first piece, as fairseq2's tokenizer of NLLB does."""


@dataclass(kw_only=True)
class NllbMoeTokenizerConfig:
    """Holds the configuration of the tokenizer of an NLLB mixture of experts."""

    langs: list[str] = field(default_factory=lambda: ["eng_Latn"])
    """The languages that the model knows."""

    default_lang: str = "eng_Latn"
    """The language of texts of which none is given."""

    control_symbols: list[str] = field(default_factory=list)
    """What follows the pieces of the sentencepiece model, in the order of the model's rows: each language as
    `__eng_Latn__`, and what else there is; by default the languages alone, in the order of `langs`."""


def load_nllb_moe_tokenizer(path: Path, config: NllbMoeTokenizerConfig) -> NllbTokenizer:
    """Load a tokenizer from a sentencepiece model."""
    symbols = config.control_symbols or languages_as_symbols(config.langs)
    model = load_sentencepiece_model(path, control_symbols=[*symbols, _PAD])
    return NllbTokenizer(model, set(config.langs), config.default_lang)


def languages_as_symbols(languages: Sequence[str]) -> list[str]:
    """Return the control symbols of languages."""
    return [f"__{language}__" for language in languages]
