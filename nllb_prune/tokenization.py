"""Text to token ids in NLLB's form: `[language] words </s>`, whatever the state of the tokenizer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.languages import all_languages, language

MAX_LENGTH = 512  # positions, language code and `</s>` included; longer lines are cut, as in NLLB's training


def language_id(tokenizer: Any, code: str) -> int:
    """Return the id of a language's token.

    Raises:
        UsageError: if the tokenizer does not know the language.
    """
    token = language(code).token
    identifier: int = tokenizer.convert_tokens_to_ids(token)
    if identifier is None or identifier == tokenizer.unk_token_id:
        known = [t for t in tokenizer.all_special_tokens if len(t) == 8 and t[3] == "_"]
        raise UsageError(f"`language` must be one of the model's, {', '.join(known)}, but is {code} instead.")
    return identifier


def known_languages(tokenizer: Any) -> tuple[str, ...]:
    """Return the languages whose tokens a tokenizer has, in the order of their codes."""
    vocabulary = set(tokenizer.get_vocab())
    return tuple(each.code for each in all_languages() if each.token in vocabulary)


def encode(tokenizer: Any, texts: Sequence[str], code: str) -> list[list[int]]:
    """Return the ids of each text: language token, words, `</s>`; `</s>` or a code inside a text is plain text."""
    first, last = language_id(tokenizer, code), tokenizer.eos_token_id
    plain = [text.strip() for text in texts]  # 5.x makes a token of a space at the end, 4.57 does not
    words = tokenizer(plain, add_special_tokens=False, split_special_tokens=True).input_ids if plain else []
    return [[first, *ids[: MAX_LENGTH - 2], last] for ids in words]


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Stack rows of ids, padded on the right, ``(rows, longest)``."""
    table = torch.full((len(rows), max(map(len, rows))), value, dtype=torch.int64)
    for number, row in enumerate(rows):
        table[number, : len(row)] = torch.tensor(row)
    return table


def batches_by_length(lengths: Sequence[int], *, positions: int) -> list[list[int]]:
    """Group indices of similar length so that each padded batch has at most `positions` positions.

    The grouping depends on the lengths alone, longest first, ties in order: equal input, equal batches.
    """
    groups: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda n: (-lengths[n], n)):
        if groups and lengths[groups[-1][0]] * (len(groups[-1]) + 1) <= positions:
            groups[-1].append(index)
        else:
            groups.append([index])
    return groups
