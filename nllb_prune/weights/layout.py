"""Which weight files a folder holds, and what the tensors in them are called in the family."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from nllb_prune._files import read_json
from nllb_prune.errors import UsageError

WEIGHT_FILES = (
    "model.safetensors.index.json",
    "model.safetensors",
    "pytorch_model.bin.index.json",
    "pytorch_model.bin",
)
"""Of the Hugging Face layout, in the order in which they are looked for."""
INDEX_END = ".index.json"


class Layout(Protocol):
    """The weight files of a checkpoint; a name as stored is not always the family's."""

    @property
    def files(self) -> tuple[str, ...]:
        """Names of the files, in order."""

    @property
    def part(self) -> str:
        """Entry of a file's content that holds the tensors; empty for the content itself."""

    @property
    def weight_map(self) -> Mapping[str, str] | None:
        """Name as stored -> file, where an index tells."""

    def names(self, file: str, stored: Collection[str]) -> dict[str, str]:
        """Return the family's name -> the name as stored, of what is stored in a file; ignored tensors are left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubLayout:
    """The Hugging Face layout: one file, or an index and shards; names may lack the prefix of a model with a head."""

    files: tuple[str, ...]
    prefix: str
    weight_map: Mapping[str, str] | None = None
    part: str = ""

    def names(self, file: str, stored: Collection[str]) -> dict[str, str]:
        """Put the prefix before names if no tensor of the checkpoint has it."""
        bare = not any(name.startswith(self.prefix) for name in self.weight_map or stored)
        return {self.prefix + name if bare and not name.startswith("lm_head.") else name: name for name in stored}


def hub_layout(folder: Path, file: str, prefix: str) -> HubLayout:
    """Return the layout that begins with one of `WEIGHT_FILES`; only an index must be in the folder.

    Raises:
        UsageError: if the index is damaged.
    """
    if not file.endswith(INDEX_END):
        return HubLayout(files=(file,), prefix=prefix)
    weight_map = read_weight_map(folder / file)
    return HubLayout(files=tuple(sorted(set(weight_map.values()))), prefix=prefix, weight_map=weight_map)


def read_weight_map(path: Path) -> dict[str, str]:
    """Read the file of each tensor from an index, by name as stored.

    Raises:
        UsageError: if the index is damaged.
    """
    index: Any = read_json(path, what="the index of a sharded checkpoint")
    files = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(files, dict) or not all(isinstance(file, str) for file in files.values()):
        raise UsageError(f"`{path}` must name the file of each tensor in `weight_map`, but does not; fetch it again.")
    outside = next((file for file in files.values() if Path(file).name != file), None)
    if outside is not None:
        raise UsageError(f"`{path}` must name files of its own folder, but names `{outside}`; fetch it again.")
    return files
