"""Where the files of a model are: in the package, in a folder, or on the Hub, where only what is needed is fetched."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json
from nllb_prune.errors import UsageError

EMBEDDED = ("mini", "mini-dense")
_TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model")


_SMALL_FILES = ("*.json", "*.model", "*.txt")
_INDEXES = ("model.safetensors.index.json", "pytorch_model.bin.index.json")
_WHOLE_FILES = ("model.safetensors", "pytorch_model.bin")


def model_folder(path_or_id: str | Path) -> Path:
    """Return the local folder of a model: an embedded one, a folder, or a Hub id, fetched without its weights.

    Raises:
        UsageError: if it is none of them.
    """
    name = str(path_or_id)
    if name in EMBEDDED:
        return _embedded(name)
    folder = Path(path_or_id)
    if (folder / "config.json").exists():
        return folder
    if folder.exists():
        raise UsageError(f"`{folder}` must be a folder with a `config.json`, but has none.")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"`model` must be {', '.join(EMBEDDED)}, a folder or a Hub id (`owner/name`), but is `{name}` instead."
        )
    return _fetch(name, _SMALL_FILES)


def _embedded(name: str) -> Path:
    folder = Path(str(importlib.resources.files("nllb_prune") / "assets" / name))
    if not (folder / "config.json").exists():
        raise UsageError(f"`{name}` must be in the installed package, but is missing; install it again.")
    return folder


def embedded_text() -> Path:
    """Return the folder of the text that ships with `mini`: dev and test lines, FLORES-200 layout."""
    return model_folder("mini") / "text"


def model_name(path_or_id: str | Path) -> str:
    """Return what to call a model in files that travel: an embedded name, a Hub id, or the last part of a path."""
    path = Path(path_or_id)
    return path.resolve().name if path.exists() else str(path_or_id)


def fetch_weights(path_or_id: str | Path, folder: Path, wanted: Callable[[str], bool]) -> None:
    """Fetch from the Hub the weight files with at least one tensor that is wanted; local models have theirs.

    Args:
        path_or_id: As for `model_folder`.
        folder: What it returned.
        wanted: Tells of a tensor's name whether it is going to be read.
    """
    if str(path_or_id) in EMBEDDED or Path(path_or_id).exists():
        return
    hub_id = str(path_or_id)
    for index in _INDEXES:
        if (folder / index).exists():
            files = read_json(folder / index, what="the index of a sharded checkpoint")["weight_map"]
            _fetch(hub_id, sorted({file for name, file in files.items() if wanted(name)}))
            return
    for file in _WHOLE_FILES:
        if (_fetch(hub_id, [file]) / file).exists():
            return


def _fetch(hub_id: str, patterns: Sequence[str]) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(patterns)))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).splitlines()[0][:160]
        raise UsageError(
            f"`{hub_id}` must be a model that the Hub gives out, but could not be fetched ({reason})."
        ) from None


def read_config(folder: Path) -> Any:
    """Read the transformers configuration of a folder."""
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # each line of transformers checks, and complains, in its own way
        reason = str(error).splitlines()[0][:160]
        raise UsageError(
            f"`{folder}/config.json` must be a transformers configuration, but is not ({reason})."
        ) from None


def load_tokenizer(path_or_id: str | Path) -> Any:
    """Load the tokenizer of a model, named as for `load_model`.

    Raises:
        UsageError: if its folder holds none.
    """
    from transformers import AutoTokenizer

    folder = model_folder(path_or_id)
    if not any((folder / name).exists() for name in _TOKENIZER_FILES):  # 5.x would make an empty one up
        raise UsageError(f"`{folder}` must hold a tokenizer ({', '.join(_TOKENIZER_FILES)}), but holds none.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"`{folder}` must hold a whole tokenizer, but it cannot be read ({reason}).") from None
