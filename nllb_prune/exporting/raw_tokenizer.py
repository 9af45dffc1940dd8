"""`tokenizer.json` as the tokenizers library reads it: text to ids without what a line of transformers adds."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json
from nllb_prune.errors import UsageError

TOKENIZER_FILE = "tokenizer.json"
_LINES = 1024  # tokenised at once, by all threads of the library


def read_tokenizer(folder: Path) -> dict[str, Any]:
    """Read the `tokenizer.json` of a folder.

    Raises:
        UsageError: if there is none, or if it is not of the kind that can be trimmed.
    """
    path = folder / TOKENIZER_FILE
    if not path.exists():
        raise UsageError(
            f"`{folder}` must hold a `{TOKENIZER_FILE}` for its vocabulary to be trimmed, but holds none; fetch it, or "
            "let transformers 4.57 make one: `AutoTokenizer.from_pretrained(...).save_pretrained(...)`."
        )
    content = read_json(path, what="a tokenizer")
    model = content.get("model") if isinstance(content, dict) else None
    kind = model.get("type", "BPE" if "merges" in model else "unknown") if isinstance(model, dict) else "unknown"
    if not isinstance(content, dict) or not isinstance(model, dict) or kind != "BPE":
        raise UsageError(f"`{path}` must be a BPE tokenizer for its vocabulary to be trimmed, but is {kind} instead.")
    for setting in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(setting):
            raise UsageError(
                f"`model.{setting}` of `{path}` must be null for its vocabulary to be trimmed, but is "
                f"{model[setting]!r} instead."
            )
    content.setdefault("added_tokens", [])
    return content


def open_tokenizer(content: Mapping[str, Any]) -> Any:
    """Return a tokenizer of the library; names of special tokens inside a text are plain text to it.

    Raises:
        UsageError: if the library cannot read it, or gives its tokens other ids than the file says.
    """
    from tokenizers import Tokenizer

    try:
        tokenizer = Tokenizer.from_str(json.dumps(content))
    except Exception as error:  # the library raises nothing more specific
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"`{TOKENIZER_FILE}` must be a whole tokenizer, but cannot be read ({reason}).") from None
    if tokenizer.get_vocab(with_added_tokens=True) != token_ids(content):
        raise UsageError(
            f"`{TOKENIZER_FILE}` must number its added tokens on from its pieces, as the tokenizers library does, but "
            "does not; the model would get other ids than the file says."
        )
    tokenizer.encode_special_tokens = True
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def token_ids(content: Mapping[str, Any]) -> dict[str, int]:
    """Return the ids of all tokens of a `tokenizer.json`, pieces and added ones."""
    added = {token["content"]: token["id"] for token in content["added_tokens"]}
    return {**content["model"]["vocab"], **added}


def encoded(tokenizer: Any, texts: Iterable[str]) -> Iterator[list[int]]:
    """Yield the ids of each text, without language token and `</s>`, in order."""
    stripped = (text.strip() for text in texts)
    while lines := list(islice(stripped, _LINES)):
        for encoding in tokenizer.encode_batch_fast(lines, add_special_tokens=False):
            yield encoding.ids
