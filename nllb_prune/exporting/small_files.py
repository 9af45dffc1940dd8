"""The files of a pruned checkpoint beside its weights: configuration, tokenizer, masks, card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json
from nllb_prune.exporting.selection import Selection
from nllb_prune.exporting.settings import ExportSettings
from nllb_prune.exporting.vocabulary import TrimmedVocabulary
from nllb_prune.model.chosen import MASKS_FILE
from nllb_prune.model.families import PRUNED_PREFIX
from nllb_prune.model.pruned import FIELD, ExpertPruning
from nllb_prune.model.registration import model_classes

_COPIED = (
    "LICENSE",
    "LICENSE.md",
    "LICENSE.txt",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "sentencepiece.bpe.model",
)


def small_files(
    folder: Path,
    selection: Selection,
    pruning: ExpertPruning,
    settings: ExportSettings,
    vocabulary: TrimmedVocabulary | None,
    *,
    card: str,
) -> dict[str, bytes]:
    """Return the files by name.

    Args:
        folder: Of the base model.
        selection: What was kept.
        pruning: What the checkpoint says of itself.
        settings: How it was written.
        vocabulary: Of a trimmed tokenizer; `None` copies the base model's.
        card: Markdown.
    """
    changed: Mapping[str, Any] = {} if vocabulary is None else vocabulary.config
    config = pruned_config(read_json(folder / "config.json", what="a configuration"), pruning, settings, changed)
    found = {"config.json": _json(config), MASKS_FILE: selection.masks.to_text().encode()}
    left_out = () if vocabulary is None else vocabulary.left_out
    copied = [name for name in _COPIED if name not in left_out and (folder / name).is_file()]
    found |= {name: (folder / name).read_bytes() for name in copied}
    if vocabulary is not None:
        found |= {name: content for name, content in vocabulary.files.items() if name != "config.json"}
    return {**found, "README.md": card.encode()}


def pruned_config(
    original: Mapping[str, Any], pruning: ExpertPruning, settings: ExportSettings, changed: Mapping[str, Any]
) -> dict[str, Any]:
    """Return the content of `config.json`: every original field, and what was done.

    Only the type and the name of the class differ, and what a trimmed vocabulary or another dtype changes.
    """
    loads = model_classes()[pruning.base_type].__name__
    content = {**original, "model_type": PRUNED_PREFIX + pruning.base_type, "architectures": [loads]}
    if settings.dtype_name is not None:
        content |= {
            name: settings.dtype_name for name in ("dtype", "torch_dtype") if name in original or name == "dtype"
        }
    content |= changed
    return {**content, FIELD: pruning.to_json()}


def _json(content: Mapping[str, Any]) -> bytes:
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode()
