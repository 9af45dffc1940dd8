"""The vocabulary of a checkpoint for some languages, and what it does to text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nllb_prune.corpus import ParallelText
from nllb_prune.exporting.selection import Selection
from nllb_prune.exporting.tokenisation import TokenisationChange, tokenisation_changes
from nllb_prune.exporting.vocabulary import TrimmedVocabulary, trimmed
from nllb_prune.tokenization import known_languages

_REPORTED = 500  # lines of each language


def trimmed_for(folder: Path, tokenizer: Any, selection: Selection, text: ParallelText, rows: int) -> TrimmedVocabulary:
    """Trim a vocabulary of so many rows to what text in the languages of a selection needs."""
    spoken = sorted({*selection.sources, *selection.targets}) or list(known_languages(tokenizer))
    lines = (line for code in spoken for line in text.lines(code))
    return trimmed(folder, lines, spoken, padded_rows=rows)


def changes_of(
    folder: Path, tokenizer: Any, vocabulary: TrimmedVocabulary | None, text: ParallelText | None
) -> dict[str, TokenisationChange]:
    """Return what becomes of the first lines of each language that the model knows."""
    if vocabulary is None or text is None:
        return {}
    known = [code for code in known_languages(tokenizer) if code in text.languages]
    return tokenisation_changes(folder, vocabulary, {code: text.lines(code)[:_REPORTED] for code in known})
