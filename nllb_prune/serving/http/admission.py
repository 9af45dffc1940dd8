"""How much work may wait: requests are let in as long as what is in can be done soon enough."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from time import monotonic
from types import TracebackType

from nllb_prune.errors import UsageError

_SHORTEST_RETRY = 1.0
_LONGEST_FORECAST = 300.0
"""Seconds; nobody is told of more, as of a server that stands still."""
_SHORTEST_MEMORY = 5.0
_LEAST_MEASURED = 1.0
"""Seconds of work below which a rate is not believed, so that a first answer out of thin air opens no gates."""


@dataclass(frozen=True, slots=True)
class Refused:
    """A request that was not let in."""

    retry_after: float
    """Seconds after which half of what may wait should be done."""


class Admitted:
    """A request that was let in; as a context manager it is done at the end, or given up if that is an exception.

    Only the first call of `done` or `given_up` counts.
    """

    __slots__ = ("_admission", "size")

    def __init__(self, admission: Admission, size: int) -> None:
        self._admission: Admission | None = admission
        self.size = size

    def done(self) -> None:
        """Tell that it is finished."""
        self._leave(finished=True)

    def given_up(self) -> None:
        """Tell that it was cancelled, or failed: it no longer waits, and its characters count for nothing."""
        self._leave(finished=False)

    def resized(self, size: int) -> None:
        """Tell that it is of another size than was thought."""
        if self._admission is not None:
            self._admission._resized(self.size, size)
            self.size = size

    def _leave(self, *, finished: bool) -> None:
        admission, self._admission = self._admission, None
        if admission is not None:
            admission._leave(self.size, finished=finished)

    def __enter__(self) -> Admitted:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._leave(finished=kind is None)


class Admission:
    """Lets requests in, by how fast those before were finished.

    The rate is that of the characters that were finished while there was work, of late: what lies back `memory` seconds
    of work counts e times less. A server that does many things at once is slower with few, so the rate that it had last
    while it had enough to do counts too, if that is higher. A server without work learns nothing and forgets nothing.

    Args:
        longest_wait: Seconds in which all that was let in should be finished.
        floor: Characters that are enough to do, as they are worked on at once; below, always more is let in.
        memory: Seconds of work; by default `longest_wait`, but no less than 5.
        now: Clock, in seconds.

    Raises:
        UsageError: if a number is not more than 0.
    """

    def __init__(
        self,
        longest_wait: float,
        floor: int,
        *,
        memory: float | None = None,
        now: Callable[[], float] = monotonic,
    ) -> None:
        memory = max(longest_wait, _SHORTEST_MEMORY) if memory is None else memory
        for name, number in (("longest_wait", longest_wait), ("floor", floor), ("memory", memory)):
            if not 0 < number < math.inf:
                raise UsageError(f"`{name}` must be more than 0, but is {number} instead.")
        self._longest_wait, self._floor, self._now = longest_wait, floor, now
        self._outstanding = 0
        self._until = now()
        self._at_work, self._at_full = _Rate(memory), _Rate(memory)
        self._counts = False
        """Whether a request was finished since there is enough to do: only from then on is all of the next one new."""

    @property
    def outstanding(self) -> int:
        """Characters that were let in and are not finished."""
        return self._outstanding

    @property
    def rate(self) -> float:
        """Characters finished a second of work; 0 as long as none were."""
        self._pass()
        return max(self._at_work.per_second, self._at_full.per_second)

    @property
    def expected_wait(self) -> float:
        """Seconds until all is finished that was let in, at most 300; `longest_wait` if no speed is known."""
        rate = self.rate
        if not self._outstanding:
            return 0.0
        return min(self._outstanding / rate if rate > 0 else self._longest_wait, _LONGEST_FORECAST)

    def admit(self, size: int) -> Admitted | Refused:
        """Let a request in, or not.

        Args:
            size: Characters of all its texts; how long it is has no say in whether it comes in.

        Raises:
            UsageError: if it is below 0.
        """
        if size < 0:
            raise UsageError(f"`size` must be 0 or more, but is {size} instead.")
        if self._outstanding >= max(self._floor, self._longest_wait * self.rate):
            return Refused(max(self.expected_wait - self._longest_wait / 2, _SHORTEST_RETRY))
        self._pass()
        return self.enter(size)

    def enter(self, size: int) -> Admitted:
        """Let a part of a request in whose beginning was let in: it comes in whatever else there is."""
        self._pass()
        self._outstanding += size
        return Admitted(self, size)

    def _resized(self, before: int, after: int) -> None:
        self._pass()
        self._outstanding += after - before

    def _leave(self, size: int, *, finished: bool) -> None:
        self._pass()
        if finished:
            self._at_work.characters += size
            self._at_full.characters += size * self._counts
        self._counts |= finished
        self._outstanding -= size
        self._counts &= self._outstanding >= self._floor

    def _pass(self) -> None:
        """Let the time since the last look pass."""
        now = self._now()
        if self._outstanding:
            self._at_work.let_pass(now - self._until)
        if self._counts:
            self._at_full.let_pass(now - self._until)
        self._until = now


@dataclass(slots=True)
class _Rate:
    """Characters over seconds, both the less the longer ago."""

    memory: float
    seconds: float = 0.0
    characters: float = 0.0

    @property
    def per_second(self) -> float:
        return self.characters / max(self.seconds, min(_LEAST_MEASURED, self.memory))

    def let_pass(self, seconds: float) -> None:
        kept = math.exp(-seconds / self.memory)
        self.characters *= kept
        self.seconds = self.seconds * kept + self.memory * (1 - kept)
