"""`TextInFlight`: a text whose sentences have been submitted."""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncGenerator, Iterator, Sequence
from concurrent.futures import Future
from contextlib import suppress
from itertools import chain

from nllb_prune.generation.translate import Translation
from nllb_prune.serving.engine import Outcome
from nllb_prune.serving.runner import generated
from nllb_prune.serving.texts import Prepared, Steps, Texts, TranslatedText, Work, unchanged

Pending = Future[Outcome]
"""The outcome of a sentence, whose result is its hypotheses, best first."""

_TOGETHER = 64
"""Sentences of a stream that are decoded together, at most, where several are finished."""


class TextInFlight:
    """The sentences of a text that wait or are being translated.

    Args:
        prepared: The text.
        futures: Of its pieces; `None` for one that stays as it is.
        texts: Decodes them.
        alternatives: Translations wanted.
    """

    def __init__(
        self, prepared: Prepared, futures: Sequence[Pending | None], *, texts: Texts, alternatives: int
    ) -> None:
        self._prepared, self._futures = prepared, tuple(futures)
        self._texts, self._alternatives = texts, alternatives

    @property
    def pending(self) -> list[Pending]:
        """Of all sentences that there is something to translate in."""
        return [future for future in self._futures if future is not None]

    def cancel(self) -> None:
        """Take out the sentences that are not finished."""
        cancel([self])

    def result(self) -> TranslatedText:
        """Wait for all sentences; when one fails, or the wait is broken off, the others are taken out."""
        [found] = results([self], self._texts)
        return found

    async def result_async(self) -> TranslatedText:
        """Do what `result` does."""
        [found] = await results_async([self], self._texts)
        return found

    def parts(self) -> Iterator[str]:
        """Yield the translation sentence by sentence, in order; whoever stops early takes out the rest."""
        try:
            yield from self._prepared.parts(chain.from_iterable(each.result() for each in self._decoding()))
        finally:
            self.cancel()

    async def parts_async(self) -> AsyncGenerator[str, None]:
        """Do what `parts` does."""
        ready: deque[tuple[Translation, ...]] = deque()
        parts = self._prepared.parts(ready.popleft() for _ in self._futures)
        try:
            for decoding in self._decoding():
                found = await asyncio.wrap_future(decoding)
                ready.extend(found)
                while ready:
                    yield next(parts)
            for part in parts:
                yield part
        finally:
            self.cancel()

    def _decoding(self) -> Iterator[Future[list[tuple[Translation, ...]]]]:
        """Yield, in order, the next sentence, and with it those after it that are finished by now."""
        start = 0
        while start < len(self._futures):
            end = start + 1
            while end < min(len(self._futures), start + _TOGETHER) and _finished(self._futures[end]):
                end += 1
            sentences = range(start, end)
            after = [future for future in self._futures[start:end] if future is not None]
            yield self._texts.in_turns(self._translations(sentences), after=after)
            start = end

    def assembling(self) -> Steps[TranslatedText]:
        """Put the translations of all sentences together, which are finished."""
        translations = yield from self._translations(range(len(self._futures)))
        return self._prepared.assembled(translations, alternatives=self._alternatives, work=self._work())

    def _translations(self, sentences: range) -> Steps[list[tuple[Translation, ...]]]:
        found = []
        for number in sentences:
            found.append(self._translated(number))
            yield
        return found

    def _translated(self, number: int) -> tuple[Translation, ...]:
        future = self._futures[number]
        if future is None:
            return unchanged(self._prepared.segmented.pieces[number].text)
        return self._texts.decoded(future.result().result[: self._alternatives])

    def _work(self) -> Work:
        outcomes = [future.result() for future in self.pending]
        return Work(
            source_tokens=sum(len(ids) for ids in self._prepared.tokens if ids is not None),
            target_tokens=sum(generated(each.result) for each in outcomes),
            waited=max((each.waited for each in outcomes), default=0.0),
            translating=max((each.translating for each in outcomes), default=0.0),
        )


def results(in_flight: Sequence[TextInFlight], texts: Texts) -> list[TranslatedText]:
    """Wait for all sentences of texts; when one fails, or the wait is broken off, the others are taken out."""
    try:
        return _assembled(in_flight, texts).result()
    except BaseException:
        cancel(in_flight)
        raise


async def results_async(in_flight: Sequence[TextInFlight], texts: Texts) -> list[TranslatedText]:
    """Do what `results` does; the event loop is told once, when all is done."""
    try:
        return await asyncio.wrap_future(_assembled(in_flight, texts))
    except BaseException:
        cancel(in_flight)
        raise


async def begun(beginning: Future[list[TextInFlight]], given_up: threading.Event) -> list[TextInFlight]:
    """Wait for texts that a thread submits.

    A task that is cancelled sets `given_up`, waits until the thread is done with them, takes out what it submitted, and
    ends only then, however often it is cancelled.
    """
    loop, over = asyncio.get_running_loop(), asyncio.Event()
    beginning.add_done_callback(lambda _: loop.call_soon_threadsafe(over.set))
    try:
        await over.wait()
    except asyncio.CancelledError:
        given_up.set()
        beginning.cancel()
        while not beginning.done():
            with suppress(asyncio.CancelledError):
                await over.wait()
        if not beginning.cancelled() and beginning.exception() is None:
            cancel(beginning.result())
        raise
    return beginning.result()


def cancel(in_flight: Sequence[TextInFlight]) -> None:
    """Take out the sentences of texts that are not finished."""
    for each in in_flight:
        for future in each.pending:
            future.cancel()


def _assembled(in_flight: Sequence[TextInFlight], texts: Texts) -> Future[list[TranslatedText]]:
    return texts.in_turns(_assembling(in_flight), after=[future for each in in_flight for future in each.pending])


def _assembling(in_flight: Sequence[TextInFlight]) -> Steps[list[TranslatedText]]:
    found = []
    for each in in_flight:
        found.append((yield from each.assembling()))
    return found


def _finished(future: Pending | None) -> bool:
    return future is None or (future.done() and not future.cancelled() and future.exception() is None)
