"""A server that listens: its socket, its signals, and the thread that loads the model meanwhile."""

from __future__ import annotations

import asyncio
import errno
import gc
import math
import signal
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

import uvicorn
from fastapi import FastAPI

from nllb_prune.errors import UsageError
from nllb_prune.evaluation.detectors.identification import LanguageIdentifier
from nllb_prune.serving.http.app import make_app
from nllb_prune.serving.http.backend import Backend
from nllb_prune.serving.http.connection import Connection
from nllb_prune.serving.http.settings import ServerSettings
from nllb_prune.serving.http.state import ServerState, log

_WAITING = 1024  # connections that the system holds until they are taken
_CONNECTIONS = 4096  # at once, and what they ask for; more are refused by the connection itself
_IDLE = 75  # seconds of a connection between requests: longer than proxies keep theirs, which would use a closed one
_HEADERS = 65_536  # bytes of a request line and headers
_SWITCH = 0.0005
"""Seconds after which the thread of the model lets others run, who have little to do; a tenth of Python's own. Under
five times too many requests, refusals took 2 ms in the middle and 15 at 90 %, against 6 and 126
(`python -m eval.bench.http_load overload --seconds 10`)."""

Result = TypeVar("Result")


def serve(
    make_backend: Callable[[], Backend],
    settings: ServerSettings,
    *,
    host: str = "127.0.0.1",
    port: int = 5000,
    proxies: Sequence[str] = (),
    identifier: LanguageIdentifier | None = None,
) -> None:
    """Serve until SIGTERM or SIGINT, which let requests under way finish; SIGHUP reads masks and keys again.

    Args:
        make_backend: Loads what translates; called once the server listens.
        settings: Limits and choices.
        host: Address to listen on; others than this machine reach it only if it is not a loopback one.
        port: 0 for any that is free.
        proxies: Addresses of proxies, which are believed what client they speak for (`X-Forwarded-For`).
        identifier: Of the language of texts.

    Raises:
        UsageError: if the address cannot be had, or what `make_backend` raises.
    """
    failures: list[BaseException] = []
    listening = _listening(host, port)

    async def opening() -> Backend:
        state: ServerState = app.state.server
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, state.reload_soon)
        return await in_daemon(lambda: _settled(make_backend()))

    def failed(error: BaseException) -> None:
        failures.append(error)
        server.should_exit = True

    app = make_app(opening, settings, identifier=identifier, failed=failed)
    server = Ending(configured(app, drain=settings.drain, proxies=proxies), app.state.server)
    usual = sys.getswitchinterval()
    # Before it listens, so that none of them ends it half-way; uvicorn raises SIGTERM again when it has ended.
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGTERM, signal.SIGHUP)}
    try:
        sys.setswitchinterval(_SWITCH)
        log.info("listening", extra={"url": _url(listening)})
        server.run(sockets=[listening])
    finally:
        sys.setswitchinterval(usual)
        for number, handler in before.items():
            signal.signal(number, handler)
        listening.close()
    if failures:
        raise failures[0]


def configured(app: FastAPI, *, drain: float, port: int = 0, proxies: Sequence[str] = ()) -> uvicorn.Config:
    """Return how uvicorn is to serve the application."""
    return uvicorn.Config(
        app,
        port=port,
        http=Connection,
        log_config=None,
        access_log=False,
        server_header=False,
        backlog=_WAITING,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=_IDLE,
        h11_max_incomplete_event_size=_HEADERS,
        proxy_headers=bool(proxies),
        forwarded_allow_ips=list(proxies),
        timeout_graceful_shutdown=math.ceil(drain) + 1,  # by then requests have been given up
    )


class Ending(uvicorn.Server):
    """A server that tells its application when it begins to end."""

    def __init__(self, config: uvicorn.Config, state: ServerState) -> None:
        super().__init__(config)
        self._state = state

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """End, after what is under way."""
        self._state.begin_closing()
        await super().shutdown(sockets)


def _listening(host: str, port: int) -> socket.socket:
    if not 0 <= port < 1 << 16:  # a larger one would be taken for another
        raise UsageError(f"`port` must be from 0 to 65535, but is {port} instead.")
    try:
        [(family, kind, protocol, _, address), *_] = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(_WAITING)
    except (OSError, UnicodeError) as error:
        taken = isinstance(error, OSError) and error.errno == errno.EADDRINUSE
        advice = "give another `--port`" if taken else "give an address of this machine"
        raise UsageError(f"`{host}:{port}` must be free to listen on, but is not ({error}); {advice}.") from None
    return listening


def _url(listening: socket.socket) -> str:
    host, port = listening.getsockname()[:2]
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


def _settled(backend: Backend) -> Backend:
    """Keep what is loaded for good out of garbage collections, each of which would stop everything for .4 s."""
    gc.collect()
    gc.freeze()
    return backend


async def in_daemon(work: Callable[[], Result]) -> Result:
    """Do work in a thread that a process which ends does not wait for."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def run() -> None:
        try:
            result = work()
        except BaseException as error:
            _tell(loop, done, lambda error=error: done.set_exception(error))  # type: ignore[misc]
        else:
            _tell(loop, done, lambda: done.set_result(result))

    threading.Thread(target=run, name="opening", daemon=True).start()
    return await done


def _tell(loop: asyncio.AbstractEventLoop, done: asyncio.Future[Result], tell: Callable[[], None]) -> None:
    if not loop.is_closed():
        loop.call_soon_threadsafe(lambda: None if done.done() else tell())
