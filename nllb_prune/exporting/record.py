"""What an exported checkpoint says of itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nllb_prune.exporting.selection import Selection
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.exporting.vocabulary import TrimmedVocabulary
from nllb_prune.model.pruned import ExpertPruning
from nllb_prune.tokenization import known_languages, language_id


def record_of(
    selection: Selection,
    settings: ExportSettings,
    *,
    model: str,
    revision: str | None,
    kind: str,
    base: ExpertPruning | None,
    tokenizer: Any,
    vocabulary: TrimmedVocabulary | None,
    parts: Mapping[str, tuple[str, ...]] | None,
) -> ExpertPruning:
    """Return the record.

    Args:
        selection: What was kept.
        settings: How it was written.
        model: Name of the model it was taken from.
        revision: Commit of it on the Hub.
        kind: Its `model_type`.
        base: Its own record, if it is a pruned one.
        tokenizer: Its tokenizer.
        vocabulary: What was kept of it, if not all.
        parts: Weight files of each part, where they are apart.
    """
    return ExpertPruning(
        base_model=model if base is None else base.base_model,
        base_revision=revision if base is None else base.base_revision,
        base_type=kind,
        fingerprint=selection.masks.fingerprint,
        kept=selection.kept,
        sources=selection.sources,
        targets=selection.targets,
        directions=selection.listed,
        tokens=_tokens(tokenizer, vocabulary),
        masks=selection.masks.signature,
        plan=_in_short(selection.masks.plan),
        scheme=settings.scheme,
        vocabulary=_pieces(vocabulary, base),
        parts=parts,
    )


def _tokens(tokenizer: Any, vocabulary: TrimmedVocabulary | None) -> dict[str, int]:
    """Return the ids of the languages' tokens, as they are in the checkpoint that is written."""
    tokens = {code: language_id(tokenizer, code) for code in known_languages(tokenizer)}
    if vocabulary is None:
        return tokens
    new = {old: number for number, old in enumerate(vocabulary.rows)}
    return {code: new[old] for code, old in tokens.items() if code in vocabulary.languages}


def _pieces(vocabulary: TrimmedVocabulary | None, base: ExpertPruning | None) -> dict[str, int] | None:
    if vocabulary is None:
        return None if base is None or base.vocabulary is None else dict(base.vocabulary)
    return {"pieces": len(vocabulary.rows), "before": vocabulary.rows_before}


_LONG = ("guard", "layer_search", "measured", "ratio_search", "notes", "statistics", "bytes")


def _in_short(plan: Mapping[str, Any]) -> dict[str, Any]:
    """Return how masks were chosen, without the records that the masks beside them hold."""
    short = {name: value for name, value in plan.items() if name not in _LONG}
    if "statistics" in plan:
        short["statistics"] = plan["statistics"].get("digest")
    if "guard" in plan:
        short["guard"] = "passed" if not plan["guard"]["failed"] else f"failed by {', '.join(plan['guard']['failed'])}"
    return short
