"""`TextInFlight`: a text whose sentences have been submitted."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterator, Sequence
from concurrent.futures import Future

from nllb_prune.generation.search import Hypothesis
from nllb_prune.generation.translate import Translation
from nllb_prune.serving.engine import Outcome
from nllb_prune.serving.runner import generated
from nllb_prune.serving.texts import Prepared, TranslatedText, Work, unchanged

Pending = Future[Outcome]
"""The outcome of a sentence, whose result is its hypotheses, best first."""


class TextInFlight:
    """The sentences of a text that wait or are being translated.

    Args:
        prepared: The text.
        futures: Of its pieces; `None` for one that stays as it is.
        decode: Makes translations of hypotheses.
        alternatives: Translations wanted.
    """

    def __init__(
        self,
        prepared: Prepared,
        futures: Sequence[Pending | None],
        *,
        decode: Callable[[Sequence[Hypothesis]], tuple[Translation, ...]],
        alternatives: int,
    ) -> None:
        self._prepared, self._futures = prepared, tuple(futures)
        self._decode, self._alternatives = decode, alternatives

    def cancel(self) -> None:
        """Take out the sentences that are not finished."""
        for future in self._futures:
            if future is not None:
                future.cancel()

    def result(self) -> TranslatedText:
        """Wait for all sentences; when one fails, or the wait is broken off, the others are taken out."""
        try:
            found = [None if future is None else future.result() for future in self._futures]
        except BaseException:
            self.cancel()
            raise
        return self._assembled(found)

    async def result_async(self) -> TranslatedText:
        """Do what `result` does."""
        try:
            found = [None if future is None else await _awaited(future) for future in self._futures]
        except BaseException:
            self.cancel()
            raise
        return self._assembled(found)

    def parts(self) -> Iterator[str]:
        """Yield the translation sentence by sentence, in order; whoever stops early takes out the rest."""
        try:
            yield from self._prepared.parts(
                self._translations(number, None if future is None else future.result())
                for number, future in enumerate(self._futures)
            )
        finally:
            self.cancel()

    async def parts_async(self) -> AsyncGenerator[str, None]:
        """Do what `parts` does."""
        ready: deque[tuple[Translation, ...]] = deque()
        parts = self._prepared.parts(ready.popleft() for _ in self._futures)
        try:
            for number, future in enumerate(self._futures):
                found = None if future is None else await _awaited(future)
                ready.append(self._translations(number, found))
                yield next(parts)
            for part in parts:
                yield part
        finally:
            self.cancel()

    def _assembled(self, found: Sequence[Outcome | None]) -> TranslatedText:
        sentences = [self._translations(number, each) for number, each in enumerate(found)]
        return self._prepared.assembled(sentences, alternatives=self._alternatives, work=self._work(found))

    def _work(self, found: Sequence[Outcome | None]) -> Work:
        outcomes = [each for each in found if each is not None]
        return Work(
            source_tokens=sum(len(ids) for ids in self._prepared.tokens if ids is not None),
            target_tokens=sum(generated(each.result) for each in outcomes),
            waited=max((each.waited for each in outcomes), default=0.0),
            translating=max((each.translating for each in outcomes), default=0.0),
        )

    def _translations(self, number: int, found: Outcome | None) -> tuple[Translation, ...]:
        if found is None:
            return unchanged(self._prepared.segmented.pieces[number].text)
        return self._decode(found.result[: self._alternatives])


async def _awaited(future: Pending) -> Outcome:
    return await asyncio.wrap_future(future)
