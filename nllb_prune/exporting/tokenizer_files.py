"""The files of a tokenizer after some of its tokens are gone and the others have moved up.

The files are edited as JSON and never saved by transformers: what 5.x saves, 4.57 cannot load. Whatever is not about
ids or languages stays as it is.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nllb_prune.exporting.tokenizer_settings import token_name
from nllb_prune.exporting.used_pieces import merge_pair

STALE_FILES = ("sentencepiece.bpe.model", "vocab.json", "merges.txt")
"""The vocabulary in other forms. They are left out: both lines of transformers read `tokenizer.json` alone, and slow
tokenizers number a sentencepiece model's pieces by a rule of their own that a trimmed vocabulary does not follow."""
_DEFAULT_SOURCE = "eng_Latn"  # what transformers takes when a tokenizer names none
_LISTED, _LISTED_BY_5 = "additional_special_tokens", "extra_special_tokens"


@dataclass(frozen=True, slots=True, kw_only=True)
class Renumbering:
    """Where the tokens of a vocabulary are after trimming."""

    ids: Mapping[int, int]
    """New ids by old ones."""
    tokens: Mapping[str, int]
    """New ids by token."""
    languages: tuple[str, ...]
    """Tokens of the languages that stay, in the order of their ids."""
    removed: frozenset[str]
    """Tokens of the languages that go."""

    def instead(self, token: str) -> str:
        """Return a token that stays: itself or, for a language that goes, the first that stays."""
        return self.languages[0] if token in self.removed else token


def to_bytes(content: Any) -> bytes:
    """Write JSON as transformers and the tokenizers library do, keys in their order."""
    return (json.dumps(content, ensure_ascii=False, indent=2) + "\n").encode("utf-8")


def trimmed_tokenizer(content: Mapping[str, Any], change: Renumbering) -> dict[str, Any]:
    """Return the new `tokenizer.json`."""
    model = content["model"]
    vocabulary = {piece: change.ids[old] for piece, old in model["vocab"].items() if piece in change.tokens}
    added = [token for token in content["added_tokens"] if token["content"] in change.tokens]
    result = {
        **content,
        "added_tokens": [{**token, "id": change.ids[token["id"]]} for token in added],
        "model": {
            **model,
            "vocab": vocabulary,
            # All that still can: one more than the texts need costs nothing and serves texts not seen.
            "merges": [merge for merge in model["merges"] if _can_merge(merge_pair(merge), vocabulary)],
        },
    }
    if content.get("post_processor"):
        result["post_processor"] = _post_processor(content["post_processor"], change)
    if content.get("padding"):
        result["padding"] = {**content["padding"], "pad_id": change.ids[content["padding"]["pad_id"]]}
    return result


def _can_merge(pair: tuple[str, str], vocabulary: Mapping[str, int]) -> bool:
    left, right = pair
    return left in vocabulary and right in vocabulary and left + right in vocabulary


def _post_processor(content: Mapping[str, Any], change: Renumbering) -> dict[str, Any]:
    """Move the ids that it carries; it names one language, the source, which may be gone."""
    result = dict(content)
    if "processors" in content:
        result["processors"] = [_post_processor(each, change) for each in content["processors"]]
    for side in ("sep", "cls"):
        if side in content:
            result[side] = [content[side][0], change.tokens[content[side][0]]]
    for template in ("single", "pair"):
        if template in content:
            result[template] = [_template_part(part, change) for part in content[template]]
    if "special_tokens" in content:
        specials = [_template_token(token, change) for token in content["special_tokens"].values()]
        result["special_tokens"] = {token["id"]: token for token in specials}
    return result


def _template_part(part: Mapping[str, Any], change: Renumbering) -> dict[str, Any]:
    return {
        kind: {**value, "id": change.instead(value["id"])} if kind == "SpecialToken" else value
        for kind, value in part.items()
    }


def _template_token(token: Mapping[str, Any], change: Renumbering) -> dict[str, Any]:
    names = [change.instead(name) for name in token["tokens"]]
    return {"id": change.instead(token["id"]), "ids": [change.tokens[name] for name in names], "tokens": names}


def trimmed_config(
    content: Mapping[str, Any], special_tokens: Mapping[str, Any], change: Renumbering
) -> dict[str, Any]:
    """Return the new `tokenizer_config.json`.

    It lists the languages even if the old one did not: without a list both lines of transformers add tokens for all
    202 of NLLB, with ids that the embedding has no rows for. The list is in the form that both lines read.
    """
    extra = content.get(_LISTED_BY_5)
    result = {key: value for key, value in content.items() if key != _LISTED_BY_5 or not isinstance(extra, list)}
    listed = content.get(_LISTED) or (isinstance(extra, list) and extra) or special_tokens.get(_LISTED) or []
    languages = change.removed.union(change.languages)
    result[_LISTED] = [*change.languages, *(token for token in listed if token_name(token) not in languages)]
    if "added_tokens_decoder" in content:
        decoder = {int(old): token for old, token in content["added_tokens_decoder"].items()}
        result["added_tokens_decoder"] = {str(change.ids[old]): decoder[old] for old in decoder if old in change.ids}
    if (content.get("src_lang") or _DEFAULT_SOURCE) not in change.tokens:
        result["src_lang"] = change.languages[0]
    if content.get("tgt_lang") and content["tgt_lang"] not in change.tokens:
        result["tgt_lang"] = None
    return result


def trimmed_special_tokens(content: Mapping[str, Any], change: Renumbering) -> dict[str, Any]:
    """Return the new `special_tokens_map.json`."""
    lists = {key: content[key] for key in (_LISTED, _LISTED_BY_5) if isinstance(content.get(key), list)}
    staying = {
        key: [token for token in tokens if token_name(token) not in change.removed] for key, tokens in lists.items()
    }
    return {**content, **staying}


def trimmed_added_tokens(content: Mapping[str, int], change: Renumbering) -> dict[str, int]:
    """Return the new `added_tokens.json`."""
    return {token: change.ids[old] for token, old in content.items() if old in change.ids}
