"""Every request has a name, is counted, and leaves one line in the log, which says nothing of its text."""

from __future__ import annotations

import asyncio
import logging
import re
from time import monotonic
from typing import Any
from uuid import uuid4

from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from nllb_prune.serving.http.metrics import Metrics
from nllb_prune.serving.http.problems import CLOSING, FAULT, GONE, Problem

log = logging.getLogger("nllb_prune.server.requests")

_NAME = re.compile(r"[\w.:-]{1,64}", re.ASCII)
_HEADER = b"x-request-id"
_OTHER = "other"  # routes that there are not: counted as one, whatever they are called


class Records:
    """Names, counts and logs requests; what goes wrong inside becomes an answer that tells nothing of the inside.

    Args:
        app: That requests go to.
        metrics: That are told.
    """

    def __init__(self, app: ASGIApp, *, metrics: Metrics) -> None:
        self._app, self._metrics = app, metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = _Record(scope, send)
        scope.setdefault("state", {})["request"] = record.name
        with self._metrics.under_way.track_inprogress():
            try:
                await self._app(scope, receive, record.send)
            except Exception:
                problem = fault(Request(scope))
                if record.status is None:
                    await problem.response()(scope, receive, record.send)
            except asyncio.CancelledError:  # the server ends, and has waited long enough
                if record.status is None:
                    await Problem(503, CLOSING, retry_after=1.0).response()(scope, receive, record.send)
            finally:
                self._note(scope, record)

    def _note(self, scope: Scope, record: _Record) -> None:
        status = record.status or GONE
        route = _route(scope)
        self._metrics.requests.labels(route, str(status)).inc()
        self._metrics.seconds.labels(route).observe(record.seconds)
        about = scope.get("state", {}).get("about", {})
        fields: dict[str, Any] = {"request": record.name, "method": scope["method"], "route": route, "status": status}
        log.info("request", extra={**fields, "milliseconds": round(1000 * record.seconds, 1), **about})


def fault(request: Request) -> Problem:
    """Log the error that is being handled, and return what its client is told."""
    log.exception("a request failed", extra={"request": request.state.request})
    return Problem(500, FAULT.format(request.state.request))


class _Record:
    """A request under way."""

    def __init__(self, scope: Scope, send: Send) -> None:
        self._send, self._started = send, monotonic()
        self.name = _name(scope)
        self.status: int | None = None

    @property
    def seconds(self) -> float:
        return monotonic() - self._started

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            message = {**message, "headers": [*message.get("headers", ()), (_HEADER, self.name.encode())]}
        await self._send(message)


def _name(scope: Scope) -> str:
    """Return the name that a client or a proxy gave a request, if it is a decent one, or a new one."""
    for name, value in scope["headers"]:
        given = value.decode("latin-1")
        if name == _HEADER and _NAME.fullmatch(given):
            return str(given)
    return uuid4().hex


def _route(scope: Scope) -> str:
    path = getattr(scope.get("route"), "path", None)
    return path if isinstance(path, str) and path else _OTHER
