"""The desk: takes requests to the backend, within what may wait, until a deadline, while their clients are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Sequence
from contextlib import aclosing, asynccontextmanager
from time import monotonic
from typing import TypeVar

from starlette.requests import Request

from nllb_prune.errors import Unavailable, UsageError
from nllb_prune.serving.http.admission import Admission, Admitted
from nllb_prune.serving.http.asked import Asked
from nllb_prune.serving.http.deadlines import Deadlines
from nllb_prune.serving.http.detection import Detected
from nllb_prune.serving.http.markup import Markup
from nllb_prune.serving.http.metrics import Metrics
from nllb_prune.serving.http.pieces import Answered, Pieces
from nllb_prune.serving.http.problems import GONE, TOO_BUSY, Problem, late
from nllb_prune.serving.http.served import Served
from nllb_prune.serving.http.settings import ServerSettings
from nllb_prune.serving.texts import TranslatedText

Result = TypeVar("Result")

Part = str | TranslatedText

_FULL_BATCH = 8000
"""What the sentences of a full batch cost: so much may be under way before anybody is refused."""


class Desk:
    """Takes requests to the backend.

    A request that costs more than a full batch goes there in portions, one after the other, so that it leaves room for
    others beside it.

    Args:
        settings: Of the server.
        metrics: That are told.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._metrics = metrics
        self._admission = Admission(settings.longest_wait, floor=_FULL_BATCH)
        self.deadlines = Deadlines(settings.deadline, late)

    async def translate(self, request: Request, served: Served, asked: Asked) -> list[Answered]:
        """Translate all texts of a request.

        Raises:
            Problem: if that cannot be, or not now.
        """
        started = monotonic()
        with self._admit(asked) as admitted:
            async with self._bounds(started):
                pieces, found = await unless_gone(request, self._found(served, asked, admitted))
        answers = pieces.answers(found, seconds=monotonic() - started)
        self._note(asked, answers)
        return answers

    async def stream(self, served: Served, asked: Asked) -> AsyncGenerator[str | Answered, None]:
        """Yield the parts of the translation of one text, and at the end the whole.

        Raises:
            Problem: if that cannot be, or not now.
        """
        started = monotonic()
        with self._admit(asked) as admitted:
            async with self._bounds(started):
                pieces = await _pieces(served, asked)
            whole: list[TranslatedText] = []
            async with aclosing(self._parts(served, pieces, admitted)) as parts:
                while (part := await self._next(parts, started)) is not None:
                    if isinstance(part, str):
                        yield part
                    else:
                        whole.append(part)
        answers = pieces.answers(whole, seconds=monotonic() - started)
        self._note(asked, answers)
        yield answers[0]

    async def _next(self, parts: AsyncGenerator[Part, None], started: float) -> Part | None:
        async with self._bounds(started):
            return await anext(parts, None)

    async def _found(self, served: Served, asked: Asked, admitted: Admitted) -> tuple[Pieces, list[TranslatedText]]:
        pieces = await _pieces(served, asked)
        return pieces, await self._translated(served, pieces, admitted)

    async def _translated(self, served: Served, pieces: Pieces, admitted: Admitted) -> list[TranslatedText]:
        """Translate portion by portion; the first is the one that was admitted."""
        found: list[TranslatedText] = []
        for number, (ask, cost) in enumerate(pieces.portions(_FULL_BATCH)):
            if number:
                admitted = self._admission.enter(cost)
            else:
                admitted.resized(cost)
            with admitted:
                found += await served.backend.translate(ask)
        return found

    async def _parts(self, served: Served, pieces: Pieces, admitted: Admitted) -> AsyncGenerator[Part, None]:
        """Yield parts of the one text, then translations of its pieces; where there are tags, it is one part."""
        if pieces.plain:
            async with aclosing(served.backend.stream(pieces.ask)) as parts:
                async for part in parts:
                    yield part
            return
        found = await self._translated(served, pieces, admitted)
        yield pieces.answers(found, seconds=0.0)[0].text
        for each in found:
            yield each

    def _admit(self, asked: Asked) -> Admitted:
        found = self._admission.admit(min(asked.cost, _FULL_BATCH))
        if isinstance(found, Admitted):
            return found
        self._metrics.refused.labels("busy").inc()
        raise Problem(503, TOO_BUSY, retry_after=min(found.retry_after, self.deadlines.seconds))

    @asynccontextmanager
    async def _bounds(self, started: float) -> AsyncIterator[None]:
        """Keep a request that started then within its deadline, and say what its errors mean."""
        try:
            async with self.deadlines.of(started):
                yield
        except Unavailable as error:
            self._metrics.refused.labels("unavailable").inc()
            raise Problem(503, str(error), retry_after=1.0) from None
        except UsageError as error:  # what changed since the request was checked
            raise Problem(400, str(error)) from None
        except Problem as problem:
            if problem.status == 503:
                self._metrics.refused.labels("late").inc()
            raise

    def _note(self, asked: Asked, answers: Sequence[Answered]) -> None:
        self._metrics.characters.inc(asked.size)
        self._metrics.translated(answers, full=asked.full)


async def _pieces(served: Served, asked: Asked) -> Pieces:
    if asked.source is not None and not asked.html:
        return _pieces_of(served, asked)
    return await asyncio.to_thread(_pieces_of, served, asked)  # tags and languages take a while to tell


def _pieces_of(served: Served, asked: Asked) -> Pieces:
    """Return what of a request is to be translated.

    Raises:
        Problem: if a direction is not served.
    """
    markups = [Markup.of(text) for text in asked.texts] if asked.html else [None] * len(asked.texts)
    detected: list[Detected] = []
    if asked.source is None:
        read = [
            text if markup is None else " ".join(markup.texts)
            for text, markup in zip(asked.texts, markups, strict=True)
        ]
        detected = [each[0] for each in served.detector.detect(read)]
    sources = [each.code for each in detected] or [asked.source or ""] * len(asked.texts)
    pieces = Pieces(asked, sources, detected, markups)
    for source in dict.fromkeys(pieces.ask.sources):  # what needs no translation needs no direction
        served.offer.check_direction(source, asked.target)
    return pieces


async def unless_gone(request: Request, work: Awaitable[Result]) -> Result:
    """Do some work, and give it up when the client goes.

    Raises:
        Problem: if it went.
    """
    working, gone = asyncio.ensure_future(work), asyncio.ensure_future(_gone(request))
    try:
        await asyncio.wait({working, gone}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise Problem(GONE, "The client has gone")
    finally:
        for task in (working, gone):
            task.cancel()
        await asyncio.gather(working, gone, return_exceptions=True)


async def _gone(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
