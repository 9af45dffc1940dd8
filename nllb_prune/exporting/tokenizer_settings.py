"""The small JSON files beside a tokenizer, and what they say of its tokens: which have a role, and by what id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json
from nllb_prune.errors import UsageError

CONFIG_FILE = "tokenizer_config.json"
SPECIAL_TOKENS_FILE = "special_tokens_map.json"
ADDED_TOKENS_FILE = "added_tokens.json"
MODEL_FILE = "config.json"
GENERATION_FILE = "generation_config.json"


@dataclass(frozen=True, slots=True)
class TokenizerSettings:
    """The files of a folder that name tokens; empty where there is no such file."""

    tokenizer: dict[str, Any]
    special_tokens: dict[str, Any]
    model: dict[str, Any]
    generation: dict[str, Any]

    def named_tokens(self) -> set[str]:
        """Return the tokens with a role, such as `</s>`."""
        roles = [(key, value) for part in (self.tokenizer, self.special_tokens) for key, value in part.items()]
        names = (token_name(value) for key, value in roles if key.endswith("_token"))
        return {name for name in names if name is not None}

    def named_ids(self) -> set[int]:
        """Return the ids with a role in the model."""
        fields = [value for part in (self.model, self.generation) for value in _id_fields(part).values()]
        return {each for value in fields for each in (value if isinstance(value, list) else [value])}


def read_settings(folder: Path) -> TokenizerSettings:
    """Read the files of a folder that name tokens."""
    names = (CONFIG_FILE, SPECIAL_TOKENS_FILE, MODEL_FILE, GENERATION_FILE)
    return TokenizerSettings(*(read_object(folder / name) for name in names))


def read_object(path: Path) -> dict[str, Any]:
    """Read an object of settings; empty if there is no such file.

    Raises:
        UsageError: if the file holds something else.
    """
    content = read_json(path, what="an object of settings") if path.exists() else {}
    if not isinstance(content, dict):
        raise UsageError(f"`{path}` must be an object of settings, but is a {type(content).__name__} instead.")
    return content


def token_name(token: Any) -> str | None:
    """Return the text of a token that a configuration names, as it is or with how it is matched."""
    name = token.get("content") if isinstance(token, dict) else token
    return name if isinstance(name, str) else None


def moved_ids(settings: Mapping[str, Any], ids: Mapping[int, int]) -> dict[str, Any]:
    """Return the fields that hold ids of tokens and change, with the new ids; None for a token that is gone.

    Args:
        settings: Of a model or of its generation.
        ids: New ids by old ones.
    """
    fields = _id_fields(settings)
    moved = {
        key: [ids[each] for each in value if each in ids] if isinstance(value, list) else ids.get(value)
        for key, value in fields.items()
    }
    return {key: value for key, value in moved.items() if value != fields[key]}


def _id_fields(settings: Mapping[str, Any]) -> dict[str, int | list[int]]:
    return {key: value for key, value in settings.items() if key.endswith("_token_id") and _holds_ids(value)}


def _holds_ids(value: Any) -> bool:
    several = value if isinstance(value, list) else [value]
    return all(isinstance(each, int) and each >= 0 for each in several)  # some models write -1 for none
