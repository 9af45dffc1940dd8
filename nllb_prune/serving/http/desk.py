"""The desk: takes requests to the backend, within what may wait, until a deadline, while their clients are there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Coroutine, Sequence
from contextlib import aclosing
from time import monotonic
from typing import Any, TypeVar

from starlette.requests import Request

from nllb_prune.errors import Unavailable, UsageError
from nllb_prune.serving.http.admission import Admission, Admitted
from nllb_prune.serving.http.asked import Asked
from nllb_prune.serving.http.detection import Detected
from nllb_prune.serving.http.markup import Markup
from nllb_prune.serving.http.metrics import Metrics
from nllb_prune.serving.http.pieces import Answered, Pieces
from nllb_prune.serving.http.problems import GONE, LATE, TOO_BUSY, Problem
from nllb_prune.serving.http.served import Served
from nllb_prune.serving.http.settings import ServerSettings
from nllb_prune.serving.texts import TranslatedText

Result = TypeVar("Result")

_FLOOR = 4000
"""Characters that may be under way before anybody is refused: of the sentences that a full batch has."""


class Desk:
    """Takes requests to the backend.

    Args:
        settings: Of the server.
        metrics: That are told.
    """

    def __init__(self, settings: ServerSettings, metrics: Metrics) -> None:
        self._settings, self._metrics = settings, metrics
        self._admission = Admission(settings.longest_wait, floor=_FLOOR)

    async def translate(self, request: Request, served: Served, asked: Asked) -> list[Answered]:
        """Translate all texts of a request.

        Raises:
            Problem: if that cannot be, or not now.
        """
        started = monotonic()
        pieces = await self._pieces(served, asked)
        with self._admit(pieces.size) as admitted:
            found = await self._in_time(_unless_gone(request, _translated(served, pieces)), started)
            admitted.done()
        answers = pieces.answers(found, seconds=monotonic() - started)
        self._note(asked, answers)
        return answers

    async def stream(self, served: Served, asked: Asked) -> AsyncGenerator[str | Answered, None]:
        """Yield the parts of the translation of one text, and at the end the whole.

        Raises:
            Problem: if that cannot be, or not now.
        """
        started = monotonic()
        pieces = await self._pieces(served, asked)
        with self._admit(pieces.size) as admitted:
            whole: list[TranslatedText] = []
            async with aclosing(_parts(served, pieces)) as parts:
                while (part := await self._in_time(anext(parts, None), started)) is not None:
                    if isinstance(part, str):
                        yield part
                    else:
                        whole.append(part)
            admitted.done()
        answers = pieces.answers(whole, seconds=monotonic() - started)
        self._note(asked, answers)
        yield answers[0]

    async def _pieces(self, served: Served, asked: Asked) -> Pieces:
        if asked.source is not None and not asked.html:
            return pieces_of(served, asked)
        return await asyncio.to_thread(
            pieces_of, served, asked
        )  # reading tags and telling languages apart take a while

    def _admit(self, size: int) -> Admitted:
        found = self._admission.admit(size)
        if isinstance(found, Admitted):
            return found
        self._metrics.refused.labels("busy").inc()
        raise Problem(503, TOO_BUSY, retry_after=found.retry_after)

    async def _in_time(self, work: Awaitable[Result], started: float) -> Result:
        """Wait for work, until the deadline of a request that started then."""
        deadline = self._settings.deadline
        try:
            async with asyncio.timeout(started + deadline - monotonic()):
                return await work
        except TimeoutError:
            self._metrics.refused.labels("late").inc()
            raise Problem(503, LATE.format(deadline), retry_after=self._admission.expected_wait) from None
        except Unavailable as error:
            self._metrics.refused.labels("unavailable").inc()
            raise Problem(503, str(error), retry_after=self._admission.expected_wait) from None
        except UsageError as error:  # what changed since the request was checked
            raise Problem(400, str(error)) from None

    def _note(self, asked: Asked, answers: Sequence[Answered]) -> None:
        self._metrics.characters.inc(asked.size)
        self._metrics.translated(answers, full=asked.full)


def pieces_of(served: Served, asked: Asked) -> Pieces:
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
    for source in dict.fromkeys(sources):
        served.offer.check_direction(source, asked.target)
    return Pieces(asked, sources, detected, markups)


async def _translated(served: Served, pieces: Pieces) -> list[TranslatedText]:
    return await served.backend.translate(pieces.ask) if pieces.ask.texts else []


async def _parts(served: Served, pieces: Pieces) -> AsyncGenerator[str | TranslatedText, None]:
    """Yield parts of the one text, then the translations of its pieces; where there are tags, it is one part."""
    if pieces.plain:
        async with aclosing(served.backend.stream(pieces.ask)) as parts:
            async for part in parts:
                yield part
        return
    found = await _translated(served, pieces)
    yield pieces.answers(found, seconds=0.0)[0].text
    for each in found:
        yield each


async def _unless_gone(request: Request, work: Coroutine[Any, Any, Result]) -> Result:
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
