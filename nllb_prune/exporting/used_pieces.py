"""The pieces that byte-pair encoding needs to tokenise given texts exactly as before."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from itertools import pairwise
from typing import Any

from nllb_prune.errors import UsageError

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")

Ranks = Mapping[tuple[str, str], int]
"""Merges by the pair that they join; the lowest rank is merged first."""


def merge_pair(merge: str | list[str]) -> tuple[str, str]:
    """Return the two pieces of a merge, written as `"a b"` or as `["a", "b"]`."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right


def used_pieces(model: Mapping[str, Any], tokens: Iterable[str]) -> set[str]:
    """Return the pieces from which tokens are merged, themselves and all in between.

    A token is merged inside its own borders only, and there in the order of the ranks, so merging its characters alone
    takes the same steps as in any text it comes from. With all pieces of these steps kept, the merge of lowest rank
    that applies to the text is kept at each step, and at the end none applies: the text is tokenised as before,
    whatever other merges are gone.

    Args:
        model: That of a `tokenizer.json`, with `vocab` and `merges`.
        tokens: All pieces that a tokenised text consists of.

    Raises:
        UsageError: if the merges do not lead to a token, so that it cannot have come from a text.
    """
    ranks = {merge_pair(merge): rank for rank, merge in enumerate(model["merges"])}
    whole_words = model.get("ignore_merges", False)  # a word that is a piece needs no merge then
    used: set[str] = set()
    for token in tokens:
        steps = merging_steps(token, ranks)
        if token not in steps and len(token) > 1 and not whole_words and not is_byte(model, token):
            raise UsageError(f"`tokenizer.json` must build its pieces from its merges, but `{token}` cannot be built.")
        used.update(steps, (token,))
    return used


def merging_steps(token: str, ranks: Ranks) -> list[str]:
    """Return the pieces that come up while the characters of a token are merged, in order."""
    parts, steps = list(token), []
    while pairs := [(ranks[pair], place) for place, pair in enumerate(pairwise(parts)) if pair in ranks]:
        _, place = min(pairs)
        parts[place : place + 2] = ["".join(parts[place : place + 2])]
        steps.append(parts[place])
    return steps


def is_byte(model: Mapping[str, Any], piece: str) -> bool:
    """Tell whether a piece stands for a byte of a character that has no piece."""
    return bool(model.get("byte_fallback")) and _BYTE.fullmatch(piece) is not None


def always_kept(model: Mapping[str, Any], piece: str) -> bool:
    """Tell whether a piece stays even if no text has it: characters and bytes, of which any text can be made."""
    return len(piece) == 1 or is_byte(model, piece)
