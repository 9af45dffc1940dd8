"""Until when requests are worked on: each for so many seconds, and none beyond the end of the server."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from time import monotonic

from nllb_prune.serving.http.problems import CLOSING, Problem


class Deadlines:
    """The deadlines of requests.

    Args:
        seconds: That a request has.
        late: What its client is told when they are over, given them.
    """

    def __init__(self, seconds: float, late: Callable[[float], Problem]) -> None:
        self.seconds, self._late = seconds, late
        self._end = math.inf
        self._under_way: set[asyncio.Timeout] = set()

    @asynccontextmanager
    async def of(self, started: float) -> AsyncIterator[None]:
        """Break off what is inside at the deadline of a request that started then.

        Raises:
            Problem: if that comes.
        """
        try:
            async with asyncio.timeout(min(started + self.seconds, self._end) - monotonic()) as timeout:
                self._under_way.add(timeout)
                try:
                    yield
                finally:
                    self._under_way.discard(timeout)
        except TimeoutError:
            closing = self._end <= started + self.seconds
            raise (Problem(503, CLOSING, retry_after=1.0) if closing else self._late(self.seconds)) from None

    def end_in(self, seconds: float) -> None:
        """Give everything up that is not finished so many seconds from now."""
        self._end = monotonic() + seconds
        when = asyncio.get_running_loop().time() + seconds
        for timeout in self._under_way:
            if (before := timeout.when()) is not None and before > when:
                timeout.reschedule(when)
