"""`ShardFiles`: writes the files of a checkpoint one after the other, and hashes them in other threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from itertools import islice

from nllb_prune.weights.copying import write_tensors
from nllb_prune.weights.following_hash import FollowingHash
from nllb_prune.weights.journal import WrittenShard
from nllb_prune.weights.partial import PartialFolder
from nllb_prune.weights.shards import OutputTensor, Shard

_HASHERS = max(2, min(4, os.cpu_count() or 1))
"""Files that are hashed at once: one core hashes more slowly than another copies."""
_LINE = 1 << 20  # bytes of a line of the journal, about


class ShardFiles:
    """The shards in a partial folder; each gets its name and its line in the journal when it is whole and hashed."""

    def __init__(self, partial: PartialFolder) -> None:
        self._partial = partial
        self._hashing = ThreadPoolExecutor(max_workers=_HASHERS)
        self._running: list[Future[None]] = []

    def write(self, key: tuple[str, int], shard: Shard, turns: Iterator[OutputTensor]) -> None:
        """Write one file, of the next of some tensors; its hash, its name and its line follow.

        Raises:
            UsageError: if a tensor cannot be read, or what followed upon another file went wrong.
            OSError: if the file cannot be written; nothing of it is left.
        """
        self.wait(running=_HASHERS - 1)
        beside, following = self._partial.shard(key).with_suffix(".tmp"), FollowingHash()
        try:
            with beside.open("wb", buffering=0) as file:
                self._running.append(self._hashing.submit(self._complete, key, shard, following))
                write_tensors(file.fileno(), shard.header, islice(turns, len(shard.tensors)), following.grown)
        except BaseException:
            following.end(whole=False)
            wait(self._running)  # its bytes are not free before nobody reads them
            beside.unlink(missing_ok=True)
            raise
        following.end(whole=True)

    def wait(self, *, running: int) -> None:
        """Wait until no more than so many files are being hashed, and pass on what went wrong with the others."""
        while len(self._running) > running:
            try:
                self._running.pop(0).result()
            except OSError as error:
                raise self._partial.refused(error, needed=_LINE, what="the journal") from error

    def close(self) -> None:
        """Wait for all hashes, and let the threads go."""
        self._hashing.shutdown()

    def _complete(self, key: tuple[str, int], shard: Shard, following: FollowingHash) -> None:
        path = self._partial.shard(key)
        beside = path.with_suffix(".tmp")
        if (sha256 := following.digest(beside)) is None:
            return
        os.replace(beside, path)
        part, number = key
        line = WrittenShard(part=part, number=number, size=shard.nbytes, sha256=sha256, tensors=shard.sizes())
        self._partial.journal.add(line)
