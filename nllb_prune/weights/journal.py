"""`Journal`: which parts of a checkpoint were begun and which of their shards are whole, a line for each."""

from __future__ import annotations

import dataclasses
import json
import os
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.result_files import canonical_json


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """What is handed over at once."""

    part: str
    name: str
    """What its files are called in the end."""
    shards: int


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenShard:
    """A whole shard of a part."""

    part: str
    number: int
    size: int
    """Of the file, in bytes."""
    sha256: str
    tensors: Mapping[str, int]
    """Bytes by name."""


class Journal:
    """A file of JSON lines that only grows; what a killed run left of a line is dropped.

    Args:
        path: Of the file; made with the first line.

    Raises:
        UsageError: if it holds something else.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self.parts: dict[str, Part] = {}
        """In the order in which they were begun."""
        self.shards: dict[tuple[str, int], WrittenShard] = {}
        """By part and number."""
        if path.exists():
            self._load()

    def begin(self, part: Part) -> None:
        """Note that a part is being written."""
        self.parts[part.part] = part
        self._append(dataclasses.asdict(part))

    def add(self, shard: WrittenShard) -> None:
        """Note that a shard is whole."""
        self._append({**dataclasses.asdict(shard), "tensors": dict(shard.tensors)})
        self.shards[shard.part, shard.number] = shard

    def lose(self, key: tuple[str, int]) -> None:
        """Forget a shard whose file is not there any more."""
        del self.shards[key]

    def place(self, part: str) -> int:
        """Return how many parts were begun before one."""
        return list(self.parts).index(part)

    def finished(self, part: str) -> bool:
        """Tell whether all shards of a part are whole."""
        found = self.parts.get(part)
        return found is not None and all((part, number) in self.shards for number in range(found.shards))

    def _load(self) -> None:
        content = self._path.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]
        if whole != content:
            os.truncate(self._path, len(whole))
        try:
            for line in whole.splitlines():
                self._take(json.loads(line))
        except (ValueError, TypeError, KeyError) as error:
            raise UsageError(
                f"`{self._path}` must be the journal of a checkpoint that is being written, but is not ({error!r}); "
                "begin again with `--restart`."
            ) from None

    def _take(self, line: dict[str, Any]) -> None:
        if "sha256" in line:
            shard = WrittenShard(**line)
            self.shards[shard.part, shard.number] = shard
        else:
            part = Part(**line)
            self.parts[part.part] = part

    def _append(self, line: Mapping[str, Any]) -> None:
        with self._lock, self._path.open("ab", buffering=0) as file:
            before = file.tell()
            content = memoryview(canonical_json(line) + b"\n")
            try:
                while content:
                    content = content[file.write(content) :]
            except OSError:
                os.truncate(self._path, before)
                raise
