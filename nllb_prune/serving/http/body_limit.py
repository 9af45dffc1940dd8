"""Requests that are too large, or take too long to arrive, are refused before they are read."""

from __future__ import annotations

import asyncio
from time import monotonic

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nllb_prune.serving.http.problems import Problem


class BodyLimit:
    """Bounds the bodies of requests.

    Args:
        app: That is protected.
        most: Bytes.
        seconds: For all of a body.
    """

    def __init__(self, app: ASGIApp, *, most: int, seconds: float) -> None:
        self._app, self._most, self._seconds = app, most, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on as long as it keeps within the bounds."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        body = _Body(receive, self._most, self._seconds)
        try:
            _check_declared(scope, self._most)
            await self._app(scope, body.receive, send)
        except Problem as problem:
            await problem.response()(scope, receive, send)


class _Body:
    """The body of a request as it arrives."""

    def __init__(self, receive: Receive, most: int, seconds: float) -> None:
        self._receive, self._most, self._seconds = receive, most, seconds
        self._until, self._size, self._whole = monotonic() + seconds, 0, False

    async def receive(self) -> Message:
        """Return what comes next; after the body that is the end of the connection, which may take its time.

        Raises:
            Problem: if it is too much, or too late.
        """
        if self._whole:
            return await self._receive()
        try:
            async with asyncio.timeout(self._until - monotonic()):
                message = await self._receive()
        except TimeoutError:
            raise Problem(408, f"The request must arrive within {self._seconds:g} seconds") from None
        self._size += len(message.get("body", b""))
        self._whole = not message.get("more_body", False)
        if self._size > self._most:
            raise _too_large(self._most)
        return message


def _check_declared(scope: Scope, most: int) -> None:
    for name, value in scope["headers"]:
        if name == b"content-length" and value.isdigit() and int(value) > most:
            raise _too_large(most)


def _too_large(most: int) -> Problem:
    return Problem(413, f"Request body must be at most {most} bytes")
