"""`Manifest`: the size and SHA-256 of every file of a checkpoint, and whether they are still so."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json
from nllb_prune._version import __version__
from nllb_prune.errors import UsageError
from nllb_prune.result_files import canonical_json
from nllb_prune.worklist import Progress

MANIFEST = "manifest.json"
FORMAT = "nllb-prune/checkpoint"
VERSION = 1

_WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".safetensors.index.json", ".bin.index.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """One file."""

    size: int
    """In bytes."""
    sha256: str

    @classmethod
    def of(cls, content: bytes) -> FileEntry:
        """Return the entry of a file with that content."""
        return cls(size=len(content), sha256=hashlib.sha256(content).hexdigest())


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of a checkpoint, and how they were made."""

    settings: Mapping[str, Any]
    """What decided the bytes."""
    files: Mapping[str, FileEntry]
    """By name; all but the manifest."""
    tool: str = __version__
    """The version that wrote them."""

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weight files."""
        return sum(entry.size for name, entry in self.files.items() if name.endswith(".safetensors"))

    def to_bytes(self) -> bytes:
        """Return the content of the file: JSON, a line for each file."""
        content = self._content()
        content["digest"] = hashlib.sha256(canonical_json(content)).hexdigest()
        files = ",\n".join(f"  {_json(name)}: {_json(content['files'][name])}" for name in sorted(self.files))
        rest = "".join(f" {_json(key)}: {_json(content[key])},\n" for key in sorted(content) if key != "files")
        return f'{{\n{rest} "files": {{\n{files}\n }}\n}}\n'.encode()

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """Read the manifest of a folder.

        Raises:
            UsageError: if it has none, or one that is of something else or was changed.
        """
        path = folder / MANIFEST
        content = read_json(path, what="the manifest of an exported checkpoint")
        try:
            return cls._read(content)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(
                f"`{path}` must be the manifest of an exported checkpoint, but is not ({error}); export it again."
            ) from None

    @classmethod
    def _read(cls, content: Any) -> Manifest:
        form, version, digest = (content.pop(key, None) for key in ("format", "version", "digest"))
        if (form, version) != (FORMAT, VERSION):
            raise ValueError(f"it is of format {form} version {version}, not {FORMAT} version {VERSION}")
        files = {name: FileEntry(**entry) for name, entry in content["files"].items()}
        found = cls(settings=content["settings"], files=files, tool=content["tool"])
        if digest != hashlib.sha256(canonical_json(found._content())).hexdigest():
            raise ValueError("it was changed after it was written")
        if outside := [name for name in files if Path(name).name != name]:
            raise ValueError(f"it names {outside[0]}, which is outside the folder")
        return found

    def _content(self) -> dict[str, Any]:
        files = {name: {"size": entry.size, "sha256": entry.sha256} for name, entry in self.files.items()}
        return {
            "format": FORMAT,
            "version": VERSION,
            "tool": self.tool,
            "settings": dict(self.settings),
            "files": files,
        }


def is_checkpoint(folder: Path) -> bool:
    """Tell whether a folder has a manifest of ours, whatever became of its other files."""
    try:
        Manifest.load(folder)
    except (UsageError, OSError):
        return False
    return True


def verify(folder: Path, *, quick: bool = False, progress: Progress | None = None) -> list[str]:
    """Return what of a checkpoint is not as its manifest says, in words; nothing if all is.

    Args:
        folder: Of the checkpoint.
        quick: Compare sizes alone.
        progress: Wraps the loop over files.
    """
    if not (folder / MANIFEST).exists():
        return [f"`{MANIFEST}` is missing"]
    try:
        manifest = Manifest.load(folder)
    except (UsageError, OSError) as error:
        return [str(error).rstrip(".")]
    names = sorted(manifest.files)
    with ThreadPoolExecutor(max_workers=os.cpu_count()) as pool:
        running = {name: pool.submit(_problem, folder / name, manifest.files[name], quick) for name in names}
        found = [running[name].result() for name in (names if progress is None else progress(names))]
    return [*filter(None, found), *_unknown(folder, manifest)]


def _problem(path: Path, entry: FileEntry, quick: bool) -> str | None:
    try:
        size = path.stat().st_size
        if size != entry.size:
            return f"`{path.name}` has {size:,} bytes instead of {entry.size:,}"
        if quick:
            return None
        with path.open("rb", buffering=0) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        return f"`{path.name}` is missing"
    except OSError as error:
        return f"`{path.name}` cannot be read ({error.strerror})"
    return None if digest == entry.sha256 else f"`{path.name}` has other content than when it was written"


def _unknown(folder: Path, manifest: Manifest) -> list[str]:
    """Name the weight files that are there besides: a loader may take them."""
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(_WEIGHTS))
    return [
        f"`{name}` is a weight file that the manifest does not name" for name in names if name not in manifest.files
    ]


def _json(content: Any) -> str:
    return canonical_json(content).decode()
