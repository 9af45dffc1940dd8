"""A connection that asks for something soon, and says so in few words."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

_PATIENCE = 30.0
"""Seconds in which the headers of the first request must be there; uvicorn itself sees to the pauses after it."""


class Connection(H11Protocol):
    """A connection of uvicorn's that bounds headers in size, by its configuration, and in time."""

    def connection_made(self, transport: Any) -> None:
        """Begin to wait for a request."""
        super().connection_made(transport)
        self._waiting: asyncio.TimerHandle = self.loop.call_later(_PATIENCE, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait no more."""
        self._waiting.cancel()
        super().connection_lost(exc)

    def _give_up(self) -> None:
        cycle: Any = self.cycle  # nothing before the first request
        if cycle is None and not self.transport.is_closing():
            self.transport.close()
