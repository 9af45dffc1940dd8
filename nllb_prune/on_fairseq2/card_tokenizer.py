"""The tokenizer of an asset card, called as those of transformers are, with their ids."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from fairseq2.data.tokenizers import Tokenizer
from fairseq2.data.tokenizers.hub import load_tokenizer as load_fairseq2_tokenizer
from fairseq2.error import NotSupportedError

from nllb_prune.errors import UsageError
from nllb_prune.languages import all_languages
from nllb_prune.model import source
from nllb_prune.on_fairseq2.card_reading import asset_card, card_errors, checkpoint_of_card, is_card
from nllb_prune.on_fairseq2.vocabulary import ids_for_fairseq2, listed_for_transformers


class Encoded(NamedTuple):
    """Texts as ids."""

    input_ids: list[list[int]]


class CardTokenizer:
    """What `nllb_prune.tokenization` asks of a tokenizer, done by one of fairseq2 for NLLB."""

    unk_token_id = 3
    eos_token_id = 2

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._encode = tokenizer.create_raw_encoder()
        self._decode = tokenizer.create_decoder()
        self._languages = dict(_languages(tokenizer))

    @property
    def all_special_tokens(self) -> list[str]:
        """The language tokens."""
        return list(self._languages)

    def get_vocab(self) -> dict[str, int]:
        """Return the ids of the language tokens."""
        return dict(self._languages)

    def convert_tokens_to_ids(self, token: str) -> int:
        """Return the id of a language token, or of the unknown token."""
        return self._languages.get(token, self.unk_token_id)

    def __call__(self, texts: Sequence[str], **_how: object) -> Encoded:
        """Return the pieces of texts; nothing in a text stands for a control symbol."""
        return Encoded([listed_for_transformers(self._encode(text)) for text in texts])

    def batch_decode(self, rows: Iterable[Sequence[int]], **_how: object) -> list[str]:
        """Return the texts of rows of ids; the unknown token, which sentencepiece writes as `⁇`, leaves nothing."""
        known = ([number for number in row if number != self.unk_token_id] for row in rows)
        return [self._decode(ids_for_fairseq2(torch.tensor(row, dtype=torch.int64))) if row else "" for row in known]


def load_tokenizer(path_or_id: str | Path) -> Any:
    """Load the tokenizer of a folder as `nllb_prune.load_tokenizer` does, or that of an asset card.

    A card that names none, as of a trimmed vocabulary, may have a folder for a checkpoint that has one.

    Raises:
        UsageError: if the card names none.
    """
    if not is_card(path_or_id):
        return source.load_tokenizer(path_or_id)
    card = asset_card(path_or_id)
    if card.has_field("tokenizer"):
        with card_errors(card.name):
            return CardTokenizer(load_fairseq2_tokenizer(card))
    checkpoint = checkpoint_of_card(card)
    if (checkpoint / "config.json").exists():
        return source.load_tokenizer(checkpoint)
    raise UsageError(f"`{card.name}` must name a tokenizer in its asset card, but names none.")


def _languages(tokenizer: Tokenizer) -> Iterable[tuple[str, int]]:
    for each in all_languages():
        try:
            prefix = tokenizer.create_encoder(lang=each.token, mode="source").prefix_indices
        except NotSupportedError:
            continue
        yield each.token, listed_for_transformers(prefix)[0]
