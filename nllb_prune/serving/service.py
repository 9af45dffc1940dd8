"""The thread that an engine runs in: sentences come in from any thread, and their futures tell what became of them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.serving.engine import Engine, Outcome
from nllb_prune.serving.jobs import Job

_POLL = 0.001
"""Seconds between looks at a copy while there is nothing else to do."""

_Message = Sequence[Job] | int | None
"""Sentences to add, the key of one to drop, or the end."""


class Service:
    """Runs an engine until it is closed.

    Args:
        engine: Belongs to the service's thread from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._futures: dict[int, Future[Any]] = {}
        self._open = threading.Lock()
        self._over: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="translation-engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> list[Future[Any]]:
        """Let sentences wait for their turn; a future that is cancelled takes its sentence out.

        Raises:
            UsageError: if the service is closed, or an error has ended it.
        """
        futures: list[Future[Any]] = [Future() for _ in jobs]
        with self._open:
            if self._over is not None:
                raise UsageError(f"The translator must be open to translate, but has ended ({self._over}).")
            self._futures.update(zip((job.key for job in jobs), futures, strict=True))
            self._inbox.put(jobs)
        for job, future in zip(jobs, futures, strict=True):
            future.add_done_callback(lambda future, key=job.key: self._cancelled(future, key))  # type: ignore[misc]
        return futures

    def _cancelled(self, future: Future[Any], key: int) -> None:
        if future.cancelled():
            self._inbox.put(key)

    @property
    def waiting(self) -> int:
        """Sentences that are not finished."""
        return len(self._futures)

    def close(self) -> None:
        """Finish what was submitted, and end."""
        with self._open:
            if self._over is None:
                self._over = UsageError("it was closed")
                self._inbox.put(None)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take():
                for outcome in self.engine.turn(wait=False):
                    self._deliver(outcome)
        except BaseException as error:  # a fault of the engine itself: nobody is left waiting for it
            with self._open:
                self._over = error
            for future in list(self._futures.values()):
                if future.set_running_or_notify_cancel():
                    future.set_exception(_own(error))
            self._futures.clear()
            raise

    def _take(self) -> bool:
        """Take what came in, and wait for it if there is nothing else to do; return whether to go on."""
        while not (self._closing and self.engine.idle):
            try:
                message = self._inbox.get(block=self.engine.idle or self.engine.stalled, timeout=self._timeout)
            except Empty:
                return True
            if message is None:
                self._closing = True
            else:
                self._handle(message)
        return False

    @property
    def _timeout(self) -> float | None:
        """Seconds to wait for what may come in: a copy that is waited for tells nobody when it is made."""
        return None if self.engine.idle else _POLL

    def _handle(self, message: Sequence[Job] | int) -> None:
        if isinstance(message, int):
            self.engine.cancel(message)
            self._futures.pop(message, None)
            return
        for job in message:
            self.engine.add(job)

    def _deliver(self, outcome: Outcome) -> None:
        future = self._futures.pop(outcome.job.key, None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if outcome.error is None:
            future.set_result(outcome.result)
        else:
            future.set_exception(_own(outcome.error))


def _own(error: BaseException) -> BaseException:
    """Return a copy of an error for one caller: raised by many, it would collect all their tracebacks."""
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:  # an error that cannot be made again
        return error
