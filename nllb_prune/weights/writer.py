"""`CheckpointWriter`: tensors to safetensors files of a checkpoint, a few megabytes in memory at a time."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.weights.final_files import INDEX, WHOLE_MODEL, check_files, content_of, file_names, index
from nllb_prune.weights.journal import Part
from nllb_prune.weights.manifest import MANIFEST, FileEntry, Manifest
from nllb_prune.weights.partial import PartialFolder
from nllb_prune.weights.shard_files import ShardFiles
from nllb_prune.weights.shards import OutputTensor, Shard, split_shards
from nllb_prune.worklist import Progress

__all__ = ["CheckpointWriter", "OutputTensor"]

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")
_LINE = 1 << 20  # bytes of a line of the journal, about


class CheckpointWriter:
    """Writes a checkpoint beside its folder, in `NAME.partial`, part by part; continues what a killed run began.

    A part is what is handed over at once. It is split, in order, into files of at most `shard_bytes`; the files of all
    parts of one name are numbered together in the end, as transformers does: `model-00001-of-00007.safetensors`, or
    `model.safetensors` if there is one.

    Args:
        folder: Where the checkpoint is to be.
        settings: What decides the bytes, as JSON values; a killed run is continued only with equal ones.
        shard_bytes: Of a weight file at most, unless a single tensor is larger.
        sources: What tells the files that are read from others of their names, as JSON values; the manifest leaves it
            out, as it says nothing of the bytes that are written.
        restart: Throw away what a killed run left, and replace a checkpoint that is there, by the last rename.

    Raises:
        UsageError: if the folder is there and may not be replaced, if another run writes it, or if a killed run had
            other settings.
    """

    def __init__(
        self,
        folder: Path,
        *,
        settings: Mapping[str, Any],
        shard_bytes: int,
        sources: Any = None,
        restart: bool = False,
    ) -> None:
        if shard_bytes < 1:
            raise UsageError(f"`shard_bytes` must be 1 or more, but is {shard_bytes} instead.")
        self._shard_bytes = shard_bytes
        self._settings = {**settings, "shard_bytes": shard_bytes}
        self._partial = PartialFolder(folder, settings={**self._settings, "sources": sources}, restart=restart)
        self._journal = self._partial.journal
        self._files = ShardFiles(self._partial)
        self._written: set[str] = set()
        self._part_of = {
            (self._journal.parts[part].name, tensor): part
            for (part, _), shard in self._journal.shards.items()
            for tensor in shard.tensors
        }

    def finished(self, part: str) -> bool:
        """Tell whether all of a part is there, from this or a killed run."""
        return part in self._written or self._journal.finished(part)

    def parts(self) -> dict[str, tuple[str, ...]]:
        """Return the final names of the files of each name, as they are with the parts that were written so far."""
        names: dict[str, tuple[str, ...]] = {part.name: () for part in self._journal.parts.values()}
        for key, file in file_names(self._journal).items():
            names[self._journal.parts[key[0]].name] += (file,)
        return names

    def write(
        self,
        part: str,
        tensors: Sequence[OutputTensor],
        *,
        name: str | None = None,
        progress: Progress | None = None,
    ) -> None:
        """Write the files of a part that are not there yet; afterwards its sources may go.

        Args:
            part: What tells it from others.
            tensors: In their order; none are needed.
            name: Of its files, if they are not to be counted among those of the model.
            progress: Wraps the loop over tensors.

        Raises:
            UsageError: on two tensors of one name in files of one name, on a source that cannot be read, or on a disk
                without room: what is whole stays, and the same again continues.
        """
        self._check_names(part, tensors, name or WHOLE_MODEL)
        shards = split_shards(tensors, self._shard_bytes)
        try:
            self._begin(Part(part=part, name=name or WHOLE_MODEL, shards=len(shards)))
            missing = [number for number, shard in enumerate(shards) if not self._is_whole(part, number, shard)]
            self._write_shards(part, {number: shards[number] for number in missing}, progress)
        except BaseException:
            self.close()
            raise
        self._written.add(part)

    def finish(self, files: Mapping[str, bytes | Path]) -> Manifest:
        """Write the small files, the index and the manifest, and give all of it the final name.

        Args:
            files: By name; those that are paths are copied.

        Raises:
            UsageError: if nothing, or not all of a part, was written, or as `write` does.
        """
        try:
            return self._finish(files)
        finally:
            self.close()

    def close(self) -> None:
        """End without finishing; what is whole stays for another run."""
        self._files.close()
        self._partial.close()

    def __enter__(self) -> CheckpointWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_names(self, part: str, tensors: Sequence[OutputTensor], name: str) -> None:
        if not _NAME.fullmatch(name):
            raise UsageError(
                f"`name` must be letters, digits and `._+-`, and begin with a letter or digit, but is {name!r} instead."
            )
        if part in self._written:
            raise UsageError(f"`part` must be new, but {part} was written before.")
        here: set[str] = set()
        for tensor in tensors:
            other = part if tensor.name in here else self._part_of.get((name, tensor.name), part)
            if tensor.name in here or other != part:
                raise UsageError(f"`{tensor.name}` must be written once, but is in {other} and again in {part}.")
            here.add(tensor.name)
        self._part_of |= {(name, tensor): part for tensor in here}

    def _begin(self, part: Part) -> None:
        known = self._journal.parts.get(part.part)
        if known is None:
            try:
                self._journal.begin(part)
            except OSError as error:
                raise self._partial.refused(error, needed=_LINE, what="the journal") from error
        elif known != part:
            raise self._changed(part.part)

    def _is_whole(self, part: str, number: int, shard: Shard) -> bool:
        written = self._journal.shards.get((part, number))
        if written is not None and written.tensors != shard.sizes():
            raise self._changed(part)
        return written is not None

    def _changed(self, part: str) -> UsageError:
        return UsageError(
            f"`{part}` must have the tensors that it had when a killed run wrote some of them, but has others; begin "
            "again with `--restart`."
        )

    def _write_shards(self, part: str, shards: Mapping[int, Shard], progress: Progress | None) -> None:
        if not shards:
            return
        needed = sum(shard.nbytes for shard in shards.values())
        self._partial.require_room(needed, part)
        tensors = [tensor for shard in shards.values() for tensor in shard.tensors]
        turns = iter(tensors if progress is None else progress(tensors))
        for number, shard in shards.items():
            try:
                self._files.write((part, number), shard, turns)
            except OSError as error:
                raise self._partial.refused(error, needed=needed, what=part) from error
            needed -= shard.nbytes
        next(turns, None)

    def _finish(self, files: Mapping[str, bytes | Path]) -> Manifest:
        self._files.wait(running=0)
        self._check_complete()
        names = file_names(self._journal)
        contents = {name: content_of(content) for name, content in files.items()}
        if list(names.values()) != [f"{WHOLE_MODEL}.safetensors"]:
            contents[INDEX] = index(self._journal, names)
        check_files([*names.values(), *contents, MANIFEST])
        manifest = Manifest(settings=self._settings, files=self._entries(names, contents))
        contents[MANIFEST] = manifest.to_bytes()
        try:
            self._partial.publish(contents, names)
        except OSError as error:
            needed = sum(map(len, contents.values()))
            raise self._partial.refused(error, needed=needed, what="small files") from error
        return manifest

    def _check_complete(self) -> None:
        if not self._journal.shards:
            raise UsageError("`tensors` must be written before a checkpoint is finished, but none were.")
        for part in self._journal.parts:
            if not self._journal.finished(part):
                raise UsageError(f"`{part}` must be whole before a checkpoint is finished, but is not; write it first.")

    def _entries(self, names: Mapping[tuple[str, int], str], contents: Mapping[str, bytes]) -> dict[str, FileEntry]:
        shards = {file: self._journal.shards[key] for key, file in names.items()}
        entries = {file: FileEntry(size=shard.size, sha256=shard.sha256) for file, shard in shards.items()}
        return entries | {name: FileEntry.of(content) for name, content in contents.items()}
