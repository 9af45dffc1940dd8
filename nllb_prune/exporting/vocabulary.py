"""A smaller vocabulary: the pieces that texts in the kept languages need, and all single characters.

The texts are tokenised exactly as before. Other texts still are tokenised, into more tokens; what is `<unk>` afterwards
was it before.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.exporting.raw_tokenizer import TOKENIZER_FILE, encoded, open_tokenizer, read_tokenizer, token_ids
from nllb_prune.exporting.tokenizer_files import (
    STALE_FILES,
    Renumbering,
    to_bytes,
    trimmed_added_tokens,
    trimmed_config,
    trimmed_special_tokens,
    trimmed_tokenizer,
)
from nllb_prune.exporting.tokenizer_settings import (
    ADDED_TOKENS_FILE,
    CONFIG_FILE,
    GENERATION_FILE,
    SPECIAL_TOKENS_FILE,
    TokenizerSettings,
    moved_ids,
    read_object,
    read_settings,
)
from nllb_prune.exporting.used_pieces import always_kept, used_pieces
from nllb_prune.languages import all_languages, language

_LANGUAGE = re.compile(r"[a-z]{3}_[A-Z][a-z]{3}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrimmedVocabulary:
    """What stays of a vocabulary, and the files of a model that change with it."""

    rows: tuple[int, ...]
    """Old id of each new id, ascending: the rows of the embedding and of the head that stay, in their order."""
    rows_before: int
    """Rows of the embedding before, those without a token among them."""
    languages: tuple[str, ...]
    """Codes of the languages that stay, in the order of their tokens."""
    files: Mapping[str, bytes]
    """Files to write instead of those of the same names, or besides the others."""
    left_out: tuple[str, ...]
    """Files of the folder that must not be copied: they hold the old vocabulary."""
    config: Mapping[str, Any]
    """Fields of `config.json` that change: `vocab_size`, and special token ids that moved (None: its token is gone)."""


def trimmed(folder: Path, texts: Iterable[str], languages: Iterable[str], *, padded_rows: int) -> TrimmedVocabulary:
    """Trim the vocabulary of a model to what texts need.

    Args:
        folder: Holds `tokenizer.json`, `config.json` and the files beside them.
        texts: Lines in the languages that stay; they are read once.
        languages: Codes or other names of the languages whose tokens stay.
        padded_rows: Rows of the embedding, `vocab_size` of the configuration; rows after the last token go.

    Raises:
        UsageError: if the tokenizer cannot be trimmed, lacks a language or has more tokens than the model has rows,
            or if the texts are empty.
    """
    content, settings = read_tokenizer(folder), read_settings(folder)
    tokenizer, old = open_tokenizer(content), token_ids(content)
    if max(old.values()) >= padded_rows:
        raise UsageError(
            f"`{folder / TOKENIZER_FILE}` must have ids below the model's {padded_rows:,} rows, but has "
            f"{max(old.values()):,}; it belongs to another model."
        )
    kept, removed = _languages(content, languages)
    tokens = (_needed(content, settings, _tokens_of(tokenizer, texts)) | kept) - removed
    gone = {old[token] for token in removed}
    named = {each for each in settings.named_ids() - gone if each < padded_rows}
    rows = sorted({old[token] for token in tokens} | named)
    ids = {row: new for new, row in enumerate(rows)}
    change = Renumbering(
        ids=ids,
        tokens={token: ids[old[token]] for token in tokens},
        languages=tuple(sorted(kept, key=old.__getitem__)),
        removed=frozenset(removed),
    )
    return TrimmedVocabulary(
        rows=tuple(rows),
        rows_before=padded_rows,
        languages=tuple(language(token).code for token in change.languages),
        files=_files(folder, content, settings, change),
        left_out=tuple(name for name in STALE_FILES if (folder / name).exists()),
        config={"vocab_size": len(rows), **moved_ids(settings.model, ids)},
    )


def _tokens_of(tokenizer: Any, texts: Iterable[str]) -> set[str]:
    found = {each for ids in encoded(tokenizer, texts) for each in ids}
    if not found:
        raise UsageError("`texts` must hold lines in the languages that stay, but hold no word instead.")
    return {tokenizer.id_to_token(each) for each in found}


def _languages(content: Mapping[str, Any], languages: Iterable[str]) -> tuple[set[str], set[str]]:
    """Return the tokens of languages that stay and that go."""
    added = {token["content"] for token in content["added_tokens"]}
    present = {token for token in added if _LANGUAGE.fullmatch(token)}
    present |= {each.token for each in all_languages()} & set(content["model"]["vocab"])
    kept = {language(name).token for name in languages}
    if not kept:
        raise UsageError("`languages` must name at least one language that stays, but is empty instead.")
    if missing := sorted(kept - present):
        raise UsageError(
            f"`languages` must be of the model's, {', '.join(sorted(present))}, but has {', '.join(missing)} too."
        )
    return kept, present - kept


def _needed(content: Mapping[str, Any], settings: TokenizerSettings, found: set[str]) -> set[str]:
    """Return the tokens that stay, languages apart: of the texts, single characters, and all with a role."""
    model, pieces = content["model"], content["model"]["vocab"]
    special = {token["content"] for token in content["added_tokens"]}
    special |= (settings.named_tokens() | {model.get("unk_token")}) & set(pieces)
    characters = {piece for piece in pieces if always_kept(model, piece)}
    return used_pieces(model, sorted(found - special)) | characters | special


def _files(
    folder: Path, content: Mapping[str, Any], settings: TokenizerSettings, change: Renumbering
) -> dict[str, bytes]:
    tokenizer = trimmed_tokenizer(content, change)
    open_tokenizer(tokenizer)  # what the library does not read back with these ids must not be written
    files: dict[str, Any] = {
        TOKENIZER_FILE: tokenizer,
        CONFIG_FILE: trimmed_config(settings.tokenizer, settings.special_tokens, change),
    }
    if settings.special_tokens:
        files[SPECIAL_TOKENS_FILE] = trimmed_special_tokens(settings.special_tokens, change)
    if added := read_object(folder / ADDED_TOKENS_FILE):
        files[ADDED_TOKENS_FILE] = trimmed_added_tokens(added, change)
    if moved := moved_ids(settings.generation, change.ids):
        files[GENERATION_FILE] = {**settings.generation, **moved}
    return {name: to_bytes(each) for name, each in files.items()}
