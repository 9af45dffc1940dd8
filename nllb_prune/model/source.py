"""Where the files of a model are: in the package, in a folder, or on the Hub, where only what is needed is fetched."""

from __future__ import annotations

import importlib.resources
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.model.hub_download import fetch_files
from nllb_prune.weights.layout import INDEX_END, WEIGHT_FILES, read_weight_map
from nllb_prune.weights.original_layout import ORIGINAL_END

EMBEDDED = ("mini", "mini-dense")
_TOKENIZER_FILES = ("tokenizer.json", "sentencepiece.bpe.model")
_SMALL_FILES = ("*.json", "*.model", "*.txt")
_LIKE_ORIGINAL = (
    "; put those of the same model on the Hub beside the original checkpoint: `config.json`, `generation_config.json`, "
    "and all that the tokenizer has"
)


def model_folder(path_or_id: str | Path, *, revision: str | None = None) -> Path:
    """Return the local folder of a model: an embedded one, a folder, or a Hub id, fetched without its weights.

    Args:
        path_or_id: One of these.
        revision: Branch, tag or commit on the Hub; the main branch by default.

    Raises:
        UsageError: if it is none of them, or a local one is to have a revision.
    """
    if revision is not None and is_local(path_or_id):
        raise UsageError(f"`revision` must be of a model on the Hub, but `{path_or_id}` is on this machine.")
    name = str(path_or_id)
    if name in EMBEDDED:
        return _embedded(name)
    folder = Path(path_or_id)
    if (folder / "config.json").exists():
        return folder
    if folder.exists():
        raise UsageError(f"`{folder}` must be a folder with a `config.json`, but has none{_advice(folder)}.")
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise UsageError(
            f"`model` must be {', '.join(EMBEDDED)}, a folder or a Hub id (`owner/name`), but is `{name}` instead."
        )
    return fetch_files(name, _SMALL_FILES, revision=revision)


def _advice(folder: Path) -> str:
    return _LIKE_ORIGINAL if any(folder.glob(f"*{ORIGINAL_END}")) else ""


def is_local(path_or_id: str | Path) -> bool:
    """Return whether a model is on this machine: an embedded one, or in a folder."""
    return str(path_or_id) in EMBEDDED or Path(path_or_id).exists()


def _embedded(name: str) -> Path:
    folder = Path(str(importlib.resources.files("nllb_prune") / "assets" / name))
    if not (folder / "config.json").exists():
        raise UsageError(f"`{name}` must be in the installed package, but is missing; install it again.")
    return folder


def embedded_text() -> Path:
    """Return the folder of the text that ships with `mini`: dev and test lines, FLORES-200 layout."""
    return model_folder("mini") / "text"


def embedded_masks() -> Path:
    """Return the masks that ship with `mini`: a quarter of its experts for each language."""
    return _embedded("mini").parent / "mini-masks.json"


def model_name(path_or_id: str | Path) -> str:
    """Return what to call a model in files that travel: an embedded name, a Hub id, or the last part of a path."""
    path = Path(path_or_id)
    return path.resolve().name if path.exists() else str(path_or_id)


def fetch_weights(
    path_or_id: str | Path,
    folder: Path,
    wanted: Callable[[str], bool],
    *,
    files: Sequence[str] | None = None,
) -> None:
    """Fetch from the Hub the weight files with at least one tensor that is wanted; local models have theirs.

    Args:
        path_or_id: As for `model_folder`.
        folder: What it returned.
        wanted: Tells of a tensor's name whether it is going to be read.
        files: These files instead, whatever is in them.
    """
    if is_local(path_or_id):
        return
    hub_id, revision = str(path_or_id), folder.name  # the cache calls the folder of a snapshot by its commit
    if files is not None:
        fetch_files(hub_id, files, revision=revision)
        return
    for file in WEIGHT_FILES:
        if file.endswith(INDEX_END) and (folder / file).exists():
            weight_map = read_weight_map(folder / file)
            shards = {shard for name, shard in weight_map.items() if wanted(name)}
            fetch_files(hub_id, sorted(shards), revision=revision)
            return
    for file in WEIGHT_FILES:
        if not file.endswith(INDEX_END) and (fetch_files(hub_id, [file], revision=revision) / file).exists():
            return


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
        names = ", ".join(_TOKENIZER_FILES)
        raise UsageError(f"`{folder}` must hold a tokenizer ({names}), but holds none{_advice(folder)}.")
    try:
        return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the tokenizers library raises nothing more specific
        reason = " ".join(str(error).split())[:160]
        raise UsageError(f"`{folder}` must hold a whole tokenizer, but it cannot be read ({reason}).") from None
