"""Requests that are too large, or take too long to arrive, are refused before they are read."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nllb_prune.serving.http.deadlines import Deadlines
from nllb_prune.serving.http.problems import Problem

_DRAINED = 1.0  # seconds


class BodyLimit:
    """Bounds the bodies of requests.

    Args:
        app: That is protected.
        most: Bytes.
        deadlines: Of all of a body.
    """

    def __init__(self, app: ASGIApp, *, most: int, deadlines: Deadlines) -> None:
        self._app, self._most, self._deadlines = app, most, deadlines

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on as long as it keeps within the bounds."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._most, self._deadlines)
        try:
            await _check_declared(scope, body)
            await self._app(scope, body.receive, send)
        except Problem as problem:
            await problem.response()(scope, receive, send)


class _Body:
    """The body of a request as it arrives."""

    def __init__(self, receive: Receive, most: int, deadlines: Deadlines) -> None:
        self._receive, self.most, self._deadlines = receive, most, deadlines
        self._began, self._size, self._whole = monotonic(), 0, False

    async def receive(self) -> Message:
        """Return what comes next; after the body that is the end of the connection, which may take its time.

        Raises:
            Problem: if it is too much, or too late.
        """
        if self._whole:
            return await self._receive()
        async with self._deadlines.of(self._began):
            message = await self._receive()
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)  # or the client has gone
        if self._size > self.most:
            await self.drained()
            raise _too_large(self.most)
        return message

    async def drained(self) -> None:
        """Read on for a moment, and forget it: a client that is still sending does not look at the answer."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_DRAINED):
                while not self._whole:
                    self._whole = not (await self._receive()).get("more_body", False)


async def _check_declared(scope: Scope, body: _Body) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > body.most:
            await body.drained()
            raise _too_large(body.most)


def _too_large(most: int) -> Problem:
    return Problem(413, f"Request body must be at most {most} bytes")
