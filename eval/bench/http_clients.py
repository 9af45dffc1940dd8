"""Clients of a translation server: so many at once, or so many requests a second whether or not it keeps up."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import aiohttp

_PATIENCE = aiohttp.ClientTimeout(120)


@dataclass(frozen=True, slots=True)
class Request:
    """Texts of one direction."""

    texts: tuple[str, ...]
    source: str
    target: str

    @property
    def content(self) -> dict[str, object]:
        """What is sent: a list for several texts."""
        q = self.texts[0] if len(self.texts) == 1 else list(self.texts)
        return {"q": q, "source": self.source, "target": self.target}


@dataclass(frozen=True, slots=True)
class Reply:
    """What came of a request."""

    request: Request
    began: float
    """Seconds since all began."""
    seconds: float
    status: int
    """Of HTTP; 0 if there was no answer."""
    texts: tuple[str, ...] = ()
    retry_after: int | None = None


async def closed_loop(
    url: str, requests: Iterable[Request], *, clients: int, told: Callable[[Reply], None] = lambda _: None
) -> list[Reply]:
    """Send requests from so many clients, each waiting for its answer."""
    waiting, replies, start = iter(requests), list[Reply](), time.monotonic()

    async def client() -> None:
        async with aiohttp.ClientSession(url, timeout=_PATIENCE) as session:
            for request in waiting:
                replies.append(await _sent(session, request, start))
                told(replies[-1])

    await asyncio.gather(*(client() for _ in range(clients)))
    return replies


async def open_loop(url: str, requests: Sequence[Request], *, rate: float) -> list[Reply]:
    """Send so many requests a second, whatever becomes of them."""
    start = time.monotonic()

    async def one(session: aiohttp.ClientSession, number: int, request: Request) -> Reply:
        await asyncio.sleep(number / rate - (time.monotonic() - start))
        return await _sent(session, request, start)

    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(url, timeout=_PATIENCE, connector=connector) as session:
        return await asyncio.gather(*(one(session, n, each) for n, each in enumerate(requests)))


async def _sent(session: aiohttp.ClientSession, request: Request, start: float) -> Reply:
    began = time.monotonic()
    try:
        async with session.post("/translate", json=request.content) as answer:
            content = await answer.json()
    except (aiohttp.ClientError, TimeoutError, ValueError):
        return Reply(request, began - start, time.monotonic() - began, 0)
    seconds, found = time.monotonic() - began, content.get("translatedText", ())
    retry = answer.headers.get("retry-after")
    return Reply(
        request,
        began - start,
        seconds,
        answer.status,
        (found,) if isinstance(found, str) else tuple(found),
        None if retry is None else int(retry),
    )
