"""The thread that an engine runs in: sentences come in from any thread, and their futures tell what became of them."""

from __future__ import annotations

import copy
import threading
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from enum import Enum, auto
from queue import Empty, SimpleQueue

from nllb_prune.errors import Unavailable
from nllb_prune.serving.engine import Change, Engine, Outcome
from nllb_prune.serving.jobs import Job

_POLL = 0.001
"""Seconds between looks at a copy while there is nothing else to do."""


class _End(Enum):
    """How to end."""

    DRAIN = auto()
    """When all is finished."""
    NOW = auto()


_Message = Sequence[Job] | int | Change | _End
"""Sentences to add, the key of one to drop, other sides, or the end."""


class Service:
    """Runs an engine until it is closed.

    Args:
        engine: Belongs to the service's thread from now on.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._inbox: SimpleQueue[_Message] = SimpleQueue()
        self._futures: dict[int, Future[Outcome]] = {}
        self._change: Change | None = None
        self._lock = threading.Lock()
        self._over: BaseException | None = None
        self._closing = False
        self._thread = threading.Thread(target=self._run, name="translation-engine", daemon=True)
        self._thread.start()

    def submit(self, jobs: Sequence[Job]) -> list[Future[Outcome]]:
        """Let sentences wait for their turn; a future that is cancelled takes its sentence out.

        Raises:
            Unavailable: if the service is closed, or an error has ended it.
        """
        futures: list[Future[Outcome]] = [Future() for _ in jobs]
        with self._lock:
            self.check_open()
            self._futures.update(zip((job.key for job in jobs), futures, strict=True))
            self._inbox.put(jobs)
        for job, future in zip(jobs, futures, strict=True):
            future.add_done_callback(lambda future, key=job.key: self._cancelled(future, key))  # type: ignore[misc]
        return futures

    def _cancelled(self, future: Future[Outcome], key: int) -> None:
        if future.cancelled():
            self._inbox.put(key)

    def change(self, change: Change) -> None:
        """Go on with other sides as soon as those in flight are finished; one change at a time.

        Raises:
            Unavailable: as `submit` does.
        """
        with self._lock:
            self.check_open()
            self._change = change
            self._inbox.put(change)

    @property
    def waiting(self) -> int:
        """Sentences that are not finished."""
        return len(self._futures)

    @property
    def open(self) -> bool:
        """Whether sentences may come in."""
        return self._over is None

    def check_open(self) -> None:
        """Refuse what comes too late.

        Raises:
            Unavailable: if the service is closed, or an error has ended it.
        """
        if self._over is not None:
            raise Unavailable(f"The translator must be open to translate, but has ended ({self._over}).")

    def close(self, *, drain: bool = True) -> None:
        """End; what was submitted is finished, or given up if it is not to `drain`."""
        with self._lock:
            if self._over is None:
                self._over = Unavailable("it was closed")
            self._inbox.put(_End.DRAIN if drain else _End.NOW)
        self._thread.join()

    def _run(self) -> None:
        try:
            while self._take():
                for outcome in self.engine.turn(wait=False):
                    self._deliver(outcome)
        except BaseException as error:  # a fault of the engine itself: nobody is left waiting for it
            with self._lock:
                self._over = error
            self._give_up(error)
            raise

    def _take(self) -> bool:
        """Take what came in, and wait for it if there is nothing else to do; return whether to go on."""
        if self._closing:
            self.engine.finish()
        while not (self._closing and self.engine.idle):
            try:
                message = self._inbox.get(block=self.engine.idle or self.engine.stalled, timeout=self._timeout)
            except Empty:
                return True
            if message is _End.NOW:
                for key in self._futures:
                    self.engine.cancel(key)
                self._give_up(Unavailable("The translator must be open until all is translated, but was closed."))
                return False
            self._handle(message)
        return False

    @property
    def _timeout(self) -> float | None:
        """Seconds to wait for what may come in: a copy that is waited for tells nobody when it is made."""
        return None if self.engine.idle else _POLL

    def _handle(self, message: _Message) -> None:
        match message:
            case _End():
                self._closing = True
            case int():
                self.engine.cancel(message)
                self._futures.pop(message, None)
            case Change():
                self.engine.change(message)
            case _:
                for job in message:
                    self.engine.add(job)

    def _deliver(self, outcome: Outcome) -> None:
        future = self._futures.pop(outcome.job.key, None)
        if future is None or not future.set_running_or_notify_cancel():
            return
        if outcome.error is None:
            future.set_result(outcome)
        else:
            future.set_exception(_own(outcome.error))

    def _give_up(self, error: BaseException) -> None:
        """Tell all who wait that nothing comes any more."""
        for future in list(self._futures.values()):
            if future.set_running_or_notify_cancel():
                future.set_exception(_own(error))
        self._futures.clear()
        if self._change is not None:
            with suppress(InvalidStateError):  # made, or called off
                self._change.done.set_exception(_own(error))


def _own(error: BaseException) -> BaseException:
    """Return a copy of an error for one caller: raised by many, it would collect all their tracebacks."""
    try:
        return copy.copy(error).with_traceback(None)
    except Exception:  # an error that cannot be made again
        return error
