"""What a server knows while it runs: its backend once that is ready, and what requests go through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from starlette.requests import Request

from nllb_prune.errors import Unavailable, UsageError
from nllb_prune.evaluation.detectors.identification import LanguageIdentifier
from nllb_prune.serving.http.asked import Asked
from nllb_prune.serving.http.backend import Backend, Description
from nllb_prune.serving.http.deadlines import Deadlines
from nllb_prune.serving.http.desk import Desk
from nllb_prune.serving.http.door import Door
from nllb_prune.serving.http.fields import Fields
from nllb_prune.serving.http.metrics import Metrics
from nllb_prune.serving.http.problems import CLOSING, NOT_READY, Problem, slow
from nllb_prune.serving.http.served import Served
from nllb_prune.serving.http.settings import ServerSettings

log = logging.getLogger("nllb_prune.server")

_SOON = 1.0
"""Seconds after which a client that comes too early may come again, and that requests have to arrive in at the end."""


class ServerState:
    """A server.

    Args:
        settings: Its choices.
        identifier: Tells which language a text is in.

    Raises:
        UsageError: if the file of keys is not right.
    """

    def __init__(self, settings: ServerSettings, identifier: LanguageIdentifier) -> None:
        self.settings, self._identifier = settings, identifier
        self.metrics = Metrics()
        self.desk = Desk(settings, self.metrics)
        self.door = Door(settings, self.metrics)
        self.arrivals = Deadlines(settings.body_seconds, slow)
        """Of the bodies of requests."""
        self.closing = False
        self._served: Served | None = None
        self._reloading = asyncio.Lock()
        self._tasks: set[asyncio.Future[None]] = set()

    def ready(self) -> Served:
        """Return what is served.

        Raises:
            Problem: if nothing is, or not any more.
        """
        if self.closing:
            raise Problem(503, CLOSING, retry_after=_SOON)
        if self._served is None or not self._served.backend.open:
            raise Problem(503, NOT_READY, retry_after=_SOON)
        return self._served

    @property
    def served(self) -> Served | None:
        """What is served, if anything."""
        return self._served

    def enter(self, request: Request, fields: Fields, ask: Callable[[Fields], Asked]) -> Asked:
        """Let a request in, and return what it asks for; the log is told how much, and nothing of the text.

        Raises:
            Problem: if it may not come in, or asks for what there is not.
        """
        client = self.door.enter(request, fields)
        asked = ask(fields)
        self.door.charge(client, len(asked.texts) - 1)
        request.state.about = {
            "source": asked.source or "auto",
            "target": asked.target,
            "texts": len(asked.texts),
            "characters": asked.size,
        }
        return asked

    async def open(self, backend: Backend) -> Description:
        """Serve what a backend offers, and return that."""
        description = await backend.describe()
        served = Served.by(backend, description, self.settings, self._identifier)
        await asyncio.to_thread(served.detector.detect, ["a"])  # it reads its model when it is first asked
        self._served = served
        return description

    async def refresh(self) -> None:
        """Look whether the backend serves something else now, and whether the file of keys was written to."""
        self.door.refresh()
        served = self._served
        if served is not None and served.backend.open:
            self._serve(served.backend, await served.backend.describe())

    async def reload(self) -> Description:
        """Read masks and keys again; if either is not right, nothing changes.

        Raises:
            UsageError: naming what is not.
        """
        served = self.ready()
        async with self._reloading:
            try:
                keys = self.door.read()
                description = await served.backend.reload()
            except (UsageError, OSError):
                self.metrics.reloads.labels("refused").inc()
                raise
            self.door.use(keys)
            self.metrics.reloads.labels("done").inc()
            self._serve(served.backend, description)
            log.info("masks and keys were read again", extra={"masks": description.masks})
            return description

    def reload_soon(self) -> None:
        """Read masks and keys again, and tell the log what came of it."""
        task = asyncio.ensure_future(self._reload_and_tell())
        self._tasks.add(task)  # the loop itself holds tasks weakly
        task.add_done_callback(self._tasks.discard)

    async def _reload_and_tell(self) -> None:
        try:
            await self.reload()
        except Exception as error:
            log.error("nothing was changed", extra={"error": str(error)})

    async def refreshing(self) -> None:
        """Refresh, again and again, until the backend has ended.

        Raises:
            Unavailable: then.
        """
        while self._served is None or self._served.backend.open:
            await asyncio.sleep(self.settings.refresh)
            try:
                await self.refresh()
            except Exception as error:  # what cannot be had now is asked for again
                log.warning("nothing new can be found out", extra={"error": str(error)})
        raise Unavailable("The translator must be open to serve, but a fault has ended it; its log tells more.")

    def begin_closing(self) -> None:
        """Take no more requests, and let those under way finish."""
        self.closing = True
        self.desk.deadlines.end_in(self.settings.drain)
        self.arrivals.end_in(min(_SOON, self.settings.drain))

    async def close(self) -> None:
        """End the backend, after what it is translating."""
        self.closing = True
        if self._served is not None:
            await self._served.backend.close(drain=False)

    def _serve(self, backend: Backend, description: Description) -> None:
        if self._served is None or self._served.description != description:
            self._served = Served.by(backend, description, self.settings, self._identifier)


Opening = Callable[[], Awaitable[Backend]]
"""Makes a backend, which may take long."""
