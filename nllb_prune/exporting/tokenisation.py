"""What trimming a vocabulary does to text: how many sentences are tokenised otherwise, and into how many tokens."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nllb_prune.exporting.raw_tokenizer import TOKENIZER_FILE, encoded, open_tokenizer, read_tokenizer
from nllb_prune.exporting.vocabulary import TrimmedVocabulary


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenisationChange:
    """Tokens of the same sentences before and after; language token and `</s>` are not counted."""

    sentences: int
    changed: int
    """Sentences whose tokens are not the same."""
    tokens_before: int
    tokens_after: int
    unknown_before: int
    """Tokens that are `<unk>`."""
    unknown_after: int

    @property
    def tokens_per_sentence(self) -> tuple[float, float]:
        """Before and after."""
        return self.tokens_before / max(1, self.sentences), self.tokens_after / max(1, self.sentences)

    @property
    def unknown_share(self) -> tuple[float, float]:
        """Of the tokens, before and after."""
        return self.unknown_before / max(1, self.tokens_before), self.unknown_after / max(1, self.tokens_after)


def tokenisation_changes(
    folder: Path, vocabulary: TrimmedVocabulary, texts: Mapping[str, Iterable[str]]
) -> dict[str, TokenisationChange]:
    """Compare the tokenizer of a folder with its trimmed one on texts by language."""
    before = open_tokenizer(read_tokenizer(folder))
    after = open_tokenizer(json.loads(vocabulary.files[TOKENIZER_FILE]))
    return {code: _change(before, after, vocabulary.rows, list(lines)) for code, lines in texts.items()}


def _change(before: Any, after: Any, rows: Sequence[int], lines: Sequence[str]) -> TokenisationChange:
    unknown = [each.token_to_id(each.model.unk_token or "") for each in (before, after)]
    changed, tokens, unknowns = 0, [0, 0], [0, 0]
    for pair in zip(encoded(before, lines), encoded(after, lines), strict=True):
        changed += pair[0] != [rows[each] for each in pair[1]]
        for side, ids in enumerate(pair):
            tokens[side] += len(ids)
            unknowns[side] += ids.count(unknown[side])
    return TokenisationChange(
        sentences=len(lines),
        changed=changed,
        tokens_before=tokens[0],
        tokens_after=tokens[1],
        unknown_before=unknowns[0],
        unknown_after=unknowns[1],
    )
