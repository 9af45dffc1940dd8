"""Text to token ids in NLLB's form: `[language] words </s>`, whatever the state of the tokenizer."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import numpy as np
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
    return [[first, *ids[: MAX_LENGTH - 2], last] for ids in _pieces(tokenizer, plain)]


def _pieces(tokenizer: Any, texts: Sequence[str]) -> Iterable[list[int]]:
    """Return the ids of each text, in which nothing stands for a control symbol."""
    if not texts:
        return []
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        found: list[list[int]] = tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids
        return found
    # what that call does, without the masks that it makes beside the ids, in two thirds of its time
    backend.encode_special_tokens = True
    backend.no_truncation()
    backend.no_padding()
    return [each.ids for each in backend.encode_batch_fast(texts, add_special_tokens=False)]


def pad(rows: Sequence[Sequence[int]], value: int) -> Tensor:
    """Stack rows of ids, padded on the right, ``(rows, longest)``."""
    lengths = np.fromiter(map(len, rows), np.int64, len(rows))
    table = np.full((len(rows), int(lengths.max())), value)  # (rows, longest)
    given = np.arange(table.shape[1]) < lengths[:, None]
    table[given] = np.fromiter(chain.from_iterable(rows), np.int64, int(lengths.sum()))
    return torch.from_numpy(table)


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
