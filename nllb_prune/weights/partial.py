"""`PartialFolder`: where a checkpoint is before all of it is there, and how it gets its final name."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nllb_prune._files import read_json, write_bytes, write_json
from nllb_prune.errors import UsageError
from nllb_prune.result_files import JSON_RESULTS, header_of, stale_file
from nllb_prune.weights.journal import Journal
from nllb_prune.weights.manifest import is_checkpoint

_SETTINGS, _JOURNAL, _NAMES = "settings.json", "journal.jsonl", "names.json"
_SHARDS, _WHOLE, _REPLACED = "shards", "whole", "replaced"
_OWN = {_SETTINGS, _JOURNAL, _NAMES, _SHARDS, _WHOLE, _REPLACED}
_LOCK = ".lock"
_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}


def partial_path(folder: Path) -> Path:
    """Return where a checkpoint is before it has its name."""
    folder = folder.resolve()  # what a link points at stays on its disk
    return folder.with_name(folder.name + ".partial")


class PartialFolder:
    """`NAME.partial` beside a folder `NAME`: settings, journal and whole shards, of this run and of a killed one.

    `whole/` inside it becomes `NAME` by one rename; what `NAME` was before waits in `replaced/` meanwhile, and comes
    back if the run is killed just there.

    Args:
        folder: The final one.
        settings: What decides the bytes, as JSON values.
        restart: Throw away what a killed run left, and replace a checkpoint of the final name when all is there.

    Raises:
        UsageError: if the final folder is there and may not be replaced, if another run writes it, or if a killed run
            had other settings.
    """

    def __init__(self, folder: Path, *, settings: Mapping[str, Any], restart: bool) -> None:
        self.folder = folder.resolve()  # what a link points at stays on its disk
        self.path = partial_path(self.folder)
        self._restart = restart
        try:
            self.journal = self._begin(settings)
        except OSError as error:
            raise UsageError(
                f"`{self.path}` must be a folder to write to, but cannot be ({error.strerror or error})."
            ) from error

    def shard(self, key: tuple[str, int]) -> Path:
        """Return the path of a shard while the number of all is not known."""
        return self.path / _SHARDS / _shard_name(self.journal, key)

    def require_room(self, needed: int, what: str) -> None:
        """Refuse to begin what the disk has no room for."""
        if (free := shutil.disk_usage(self.path).free) < needed:
            raise self._no_room(needed, what, free=free)

    def refused(self, error: OSError, *, needed: int, what: str) -> UsageError:
        """Return what the system's refusal means; `needed` bytes are still to be written."""
        if error.errno in _NO_ROOM:
            return self._no_room(needed, what, free=shutil.disk_usage(self.path).free, reason=error.strerror)
        return UsageError(f"`{self.path}` must be a folder to write {what} to, but is not ({error.strerror or error}).")

    def publish(self, files: Mapping[str, bytes], shards: Mapping[tuple[str, int], str]) -> None:
        """Give everything its final name; nothing stands there before.

        Args:
            files: Small ones by name.
            shards: Final names.
        """
        self._check_final()
        self._take_back()
        whole = self.path / _WHOLE
        whole.mkdir()
        for name, content in files.items():
            (whole / name).write_bytes(content)
        places = {str(self.shard(key).relative_to(self.path)): name for key, name in shards.items()}
        write_json(self.path / _NAMES, places)
        for place, name in places.items():
            os.rename(self.path / place, whole / name)
        self._exchange(whole)
        shutil.rmtree(self.path, ignore_errors=True)
        self.close()

    def close(self) -> None:
        """Let another run write the folder."""
        self._let_go()

    def _begin(self, settings: Mapping[str, Any]) -> Journal:
        self._check_own()
        if not (self.path / _REPLACED).exists():  # otherwise the final folder may be missing for now
            self._check_final()
        self.path.mkdir(parents=True, exist_ok=True)
        self._let_go = weakref.finalize(self, os.close, self._locked())
        self._recover()
        self._check_final()
        self._settle(settings)
        journal = Journal(self.path / _JOURNAL)
        self._sweep(journal)
        return journal

    def _exchange(self, whole: Path) -> None:
        if not _occupied(self.folder):
            os.rename(whole, self.folder)
            return
        replaced = self.path / _REPLACED
        os.rename(self.folder, replaced)
        try:
            os.rename(whole, self.folder)
        except OSError:
            os.rename(replaced, self.folder)
            raise

    def _check_own(self) -> None:
        """Refuse a folder of that name that is something else: what is in it may be thrown away."""
        if not self.path.exists():
            return
        names = [entry.name for entry in self.path.iterdir()] if self.path.is_dir() else [self.path.name]
        if foreign := sorted(name for name in names if name not in _OWN and not name.startswith(".")):
            raise UsageError(
                f"`{self.path}` must be what a killed run left, but holds {foreign[0]}; choose another name, or move "
                "it away."
            )

    def _check_final(self) -> None:
        """Refuse a final folder that may not be replaced."""
        if self.folder.is_mount():
            raise UsageError(
                f"`{self.folder}` must be a folder that can be renamed, but a file system is mounted on it; name a "
                "folder inside it."
            )
        if not _occupied(self.folder):
            return
        if not self._restart:
            raise UsageError(
                f"`{self.folder}` must not exist yet, but does; choose another folder, or replace it with `--restart`."
            )
        if not is_checkpoint(self.folder):
            raise UsageError(
                f"`{self.folder}` must be a checkpoint that was exported before, to be replaced, but is something else "
                "instead; choose another folder, or move it away."
            )

    def _locked(self) -> int:
        file = os.open(self.path / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            os.close(file)
            raise UsageError(
                f"`{self.path}` must be written by one run at a time, but another one writes it; wait for it, or "
                "choose another folder."
            ) from None
        except OSError:  # a file system without locks
            pass
        return file

    def _recover(self) -> None:
        """Undo what a run did that was killed while it gave the final names."""
        replaced = self.path / _REPLACED
        if replaced.exists() and not _occupied(self.folder):
            os.rename(replaced, self.folder)
        self._take_back()

    def _take_back(self) -> None:
        names, whole = self.path / _NAMES, self.path / _WHOLE
        if names.exists():
            for place, name in read_json(names, what="the final names of shards").items():
                if (whole / name).exists():
                    os.rename(whole / name, self.path / place)
            names.unlink()
        if whole.exists():
            shutil.rmtree(whole)

    def _settle(self, settings: Mapping[str, Any]) -> None:
        """Keep what a killed run left if its settings were these."""
        file = self.path / _SETTINGS
        if self._restart or not file.exists():
            self._clear()
            write_bytes(file, JSON_RESULTS.pack(None, header_of("checkpoint", settings)))
        elif stale := stale_file(file, settings, JSON_RESULTS):
            raise stale.error()
        (self.path / _SHARDS).mkdir(exist_ok=True)

    def _clear(self) -> None:
        for entry in self.path.iterdir():
            if entry.name == _LOCK:
                continue
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            else:
                entry.unlink()

    def _sweep(self, journal: Journal) -> None:
        """Remove halves and what the journal does not know, and forget what is not there as it says."""
        folder = self.path / _SHARDS
        known = {folder / _shard_name(journal, key): key for key in list(journal.shards)}
        for path in folder.iterdir():
            if path not in known:
                path.unlink()
        for path, key in known.items():
            if not path.exists() or path.stat().st_size != journal.shards[key].size:
                journal.lose(key)

    def _no_room(self, needed: int, what: str, *, free: int, reason: str | None = None) -> UsageError:
        missing = f"{needed - free:,} bytes are missing" if needed > free else reason
        return UsageError(
            f"`{self.path}` must be on a disk with room for {needed:,} bytes more ({what}), but {free:,} are free "
            f"({missing}). Make room and run the same again: it continues."
        )


def _shard_name(journal: Journal, key: tuple[str, int]) -> str:
    part, number = key
    return f"{journal.place(part):05}-{number:05}.safetensors"


def _occupied(folder: Path) -> bool:
    """Tell whether a rename onto the path would be refused, or destroy something."""
    return folder.exists() and not (folder.is_dir() and not any(folder.iterdir()))
