"""What the files of a checkpoint are called in the end, and the index that says which holds a tensor."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from nllb_prune.errors import UsageError
from nllb_prune.weights.journal import Journal

INDEX = "model.safetensors.index.json"
WHOLE_MODEL = "model"


def file_names(journal: Journal) -> dict[tuple[str, int], str]:
    """Return the final name of each shard, in the order of parts: numbered among those of one name."""
    keys: dict[str, list[tuple[str, int]]] = {}
    for part in journal.parts.values():
        keys.setdefault(part.name, []).extend((part.part, number) for number in range(part.shards))
    return {
        key: f"{name}.safetensors" if len(of_name) == 1 else f"{name}-{place:05}-of-{len(of_name):05}.safetensors"
        for name, of_name in keys.items()
        for place, key in enumerate(of_name, start=1)
    }


def index(journal: Journal, names: Mapping[tuple[str, int], str]) -> bytes:
    """Return the index as transformers reads it; a tensor that files of several names hold is in the first."""
    weight_map: dict[str, str] = {}
    size = 0
    for key, file in names.items():
        for name, count in journal.shards[key].tensors.items():
            if name not in weight_map:
                weight_map[name] = file
                size += count
    content = {"metadata": {"total_size": size}, "weight_map": weight_map}
    return (json.dumps(content, ensure_ascii=False, sort_keys=True, indent=2) + "\n").encode()


def content_of(content: bytes | Path) -> bytes:
    """Return the content of a small file, read from a path.

    Raises:
        UsageError: if it cannot be.
    """
    if isinstance(content, bytes):
        return content
    try:
        return content.read_bytes()
    except OSError as error:
        raise UsageError(f"`{content}` must be a file to copy, but cannot be read ({error.strerror}).") from None


def check_files(names: Sequence[str]) -> None:
    """Refuse names with folders in them, hidden ones and two of one kind."""
    for number, name in enumerate(names):
        if Path(name).name != name or name.startswith("."):
            raise UsageError(f"`files` must have plain names, without a folder, but one is {name!r} instead.")
        if name in names[:number]:
            raise UsageError(f"`{name}` must be one file of the checkpoint, but is the name of two.")
