"""`Translator`: one model that translates between all its languages, each text with its own languages' experts."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from nllb_prune.errors import UsageError
from nllb_prune.generation.decode import POSITIONS, ROWS
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import GREEDY, Translation, length_limit, text_directions
from nllb_prune.languages import Direction, language
from nllb_prune.masks import MaskSet
from nllb_prune.planning.memory import parse_memory
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.memory import MemoryPlan
from nllb_prune.serving.opening import Opened, Settings, open_model
from nllb_prune.serving.runner import Kind, Request
from nllb_prune.serving.service import Service, results
from nllb_prune.serving.sides import joining, staying
from nllb_prune.serving.texts import Prepared, Texts, TranslatedText, unchanged
from nllb_prune.tokenization import MAX_LENGTH, language_id

_LONG = 64
"""Tokens from which on a sentence is kept from shorter ones."""
_SHORTEST = 8

_Sentences = list["Future[Any] | None"]
"""The futures of a text's sentences; `None` for one that stays as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What a translator has done so far, and what it is doing."""

    sentences: int
    """Finished and not."""
    waiting: int
    """Submitted and not finished."""
    in_flight: int
    """Of these, those that are being translated."""
    swaps: int
    experts_moved: int
    bytes_moved: int
    resident: tuple[str, ...]
    """Stack and language of the sides whose experts are all in memory, as in `decoder.deu_Latn`."""
    working_peak: int
    """The most bytes that were set aside for caches and workspace at once."""


class Translator:
    """Translates texts of any languages at once, from any thread, within a memory.

    Sentences share batches whatever their languages, each within the experts of its own direction, and come and go
    between steps. If memory is too small for the experts of all languages, those that were used least recently leave
    for those that are wanted next; a sentence waits for its experts no longer than `patience`, the rest of the
    sentences that stand in their way, and the copy.

    Args:
        model: As of `load_model`.
        masks: Experts of each language; by default those that a pruned checkpoint carries, or all that there are.
        memory: For weights, caches and workspace together, in bytes or as in `24GB`; what Python and torch take
            themselves is not counted. By default as much as it takes to have all languages' experts in memory.
        pinned: Languages whose experts never leave.
        languages: Serve these alone; by default all that model and masks have.
        longest: Tokens of a sentence; longer ones are cut, at the marks of clauses where there are some.
        beams: The most that a call may ask for.
        rows: Sentences in flight at most.
        positions: Rows times source tokens times beams in flight, at most, short and long sentences apart.
        patience: Seconds after which the experts that a sentence waits for come next.
        linger: Seconds that a sentence waits for others to join with it.
        dtype: As of `load_model`.
        device: One for all.

    Raises:
        UsageError: as `load_model` does; if the memory is too small for a language, with what it needs.
    """

    def __init__(
        self,
        model: str | Path,
        masks: MaskSet | None = None,
        *,
        memory: int | str | None = None,
        pinned: Sequence[str] = (),
        languages: Sequence[str] | None = None,
        longest: int = 256,
        beams: int = 4,
        rows: int = ROWS,
        positions: int = 2 * POSITIONS,
        patience: float = 2.0,
        linger: float = 0.02,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        _check(longest=longest, beams=beams, rows=rows, positions=positions)
        settings = Settings(
            memory=parse_memory(memory) if isinstance(memory, str) else memory,
            pinned=tuple(pinned),
            languages=None if languages is None else tuple(languages),
            longest=longest,
            beams=beams,
            rows=rows,
            positions=positions,
            patience=patience,
            linger=linger,
        )
        self._opened: Opened = open_model(model, masks, settings, dtype=dtype, device=device)
        self._beams = beams
        self._texts = Texts(self._opened.tokenizer, longest=longest)
        self._keys, self._in_order = itertools.count(), threading.Lock()
        self._submitted = 0
        self._service = Service(self._opened.engine)

    @property
    def plan(self) -> MemoryPlan:
        """How the memory is divided."""
        return self._opened.plan

    @property
    def directions(self) -> tuple[Direction, ...]:
        """All that are served."""
        return self._opened.sides.directions

    def translate(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        search: SearchSettings = GREEDY,
        whole: bool = False,
    ) -> list[TranslatedText]:
        """Translate texts, in their order.

        Args:
            texts: Of any length; sentences are translated each on its own, and white space between them stays.
            source: Language of the texts, or of each, under any of its names.
            target: Language to translate into, or of each.
            search: Greedy or beam search, and how many alternatives.
            whole: Takes each text as one sentence.

        Raises:
            UsageError: on a direction that is not served, more beams than the memory was divided for, experts that
                cannot be read, or a translator that is closed.
        """
        prepared, submitted = self._submit(texts, source, target, search, whole=whole)
        found = iter(results(future for each in submitted for future in each if future is not None))
        return self._assembled(prepared, submitted, found, search)

    async def translate_async(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        search: SearchSettings = GREEDY,
        whole: bool = False,
    ) -> list[TranslatedText]:
        """Do what `translate` does; when the task is cancelled, so are its sentences."""
        prepared, submitted = await asyncio.to_thread(self._submit, texts, source, target, search, whole=whole)
        waiting = [asyncio.wrap_future(future) for each in submitted for future in each if future is not None]
        try:
            found = iter([await future for future in waiting])
        except BaseException:
            for future in waiting:
                future.cancel()
            raise
        return await asyncio.to_thread(self._assembled, prepared, submitted, found, search)

    def stream(self, text: str, source: str, target: str, *, search: SearchSettings = GREEDY) -> Iterator[str]:
        """Translate a text and yield its translation sentence by sentence, as they are finished, in order.

        All that is yielded, put together, is what `translate` returns. Whoever stops early drops the rest.
        """
        [prepared], [futures] = self._submit([text], source, target, search, whole=False)
        try:
            yield from prepared.parts(self._sentence(prepared, n, future) for n, future in enumerate(futures))
        finally:
            for future in futures:
                if future is not None:
                    future.cancel()

    async def stream_async(
        self, text: str, source: str, target: str, *, search: SearchSettings = GREEDY
    ) -> AsyncIterator[str]:
        """Do what `stream` does."""
        iterator = self.stream(text, source, target, search=search)
        try:
            while (part := await asyncio.to_thread(next, iterator, None)) is not None:
                yield part
        finally:
            await asyncio.to_thread(iterator.close)  # type: ignore[attr-defined]

    def _submit(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        search: SearchSettings,
        *,
        whole: bool,
    ) -> tuple[list[Prepared], list[_Sentences]]:
        """Cut and encode texts, and let their sentences wait for their turns."""
        directions = self._directions(len(texts), source, target)
        if search.beams > self._beams:
            raise UsageError(
                f"`beams` must be at most {self._beams}, for which memory was divided, but is {search.beams} instead."
            )
        prepared = [
            self._texts.prepare(text, *direction, whole=whole)
            for text, direction in zip(texts, directions, strict=True)
        ]
        with self._in_order:
            jobs = [self._job(ids, each, search) for each in prepared for ids in each.tokens if ids is not None]
            futures = iter(self._service.submit(jobs))
            self._submitted += len(jobs)
        return prepared, [[None if ids is None else next(futures) for ids in each.tokens] for each in prepared]

    def _directions(self, count: int, source: str | Sequence[str], target: str | Sequence[str]) -> list[Direction]:
        """Return the direction of each text, all of which are served."""
        named = text_directions(count, source, target)
        codes = {each: (language(each[0]).code, language(each[1]).code) for each in dict.fromkeys(named)}
        for direction in codes.values():
            self._opened.sides.check(*direction)
        return [codes[each] for each in named]

    def _job(self, ids: Sequence[int], text: Prepared, search: SearchSettings) -> Job:
        opened, sides = self._opened, self._opened.sides.of(text.source, text.target)
        key = next(self._keys)
        sentence = Sentence(
            key=key,
            source=ids,
            language=language_id(opened.tokenizer, text.target),
            limit=length_limit(len(ids)),
            keep=opened.sides.keep(sides, opened.device),
        )
        return Job(
            key=key,
            joining=joining(sides),
            staying=staying(sides),
            arrived=opened.runner.now(),
            payload=Request(sentence, Kind(replace(search, alternatives=search.beams), len(ids) > _LONG)),
        )

    def _sentence(self, prepared: Prepared, number: int, future: Future[Any] | None) -> tuple[Translation, ...]:
        if future is None:
            return unchanged(prepared.segmented.pieces[number].text)
        return self._texts.decode(future.result())

    def _assembled(
        self,
        prepared: Sequence[Prepared],
        submitted: Sequence[_Sentences],
        found: Iterator[Any],
        search: SearchSettings,
    ) -> list[TranslatedText]:
        """Put texts together, given the hypotheses of all sentences that were submitted."""
        texts = []
        for each, futures in zip(prepared, submitted, strict=True):
            sentences = [
                unchanged(piece.text) if future is None else self._texts.decode(next(found)[: search.alternatives])
                for piece, future in zip(each.segmented.pieces, futures, strict=True)
            ]
            texts.append(each.assembled(sentences, alternatives=search.alternatives))
        return texts

    def figures(self) -> Figures:
        """Return what has been done so far."""
        opened = self._opened
        resident = (side for side in opened.sides.masks if opened.residency.resident(side))
        return Figures(
            sentences=self._submitted,
            waiting=self._service.waiting,
            in_flight=opened.engine.running,
            swaps=opened.engine.swaps,
            experts_moved=opened.engine.moved,
            bytes_moved=0 if opened.pager is None else opened.pager.bytes_copied,
            resident=tuple(f"{stack}.{key}" for stack, key in resident),
            working_peak=opened.runner.peak,
        )

    def close(self) -> None:
        """Finish what was submitted, and let go of the model."""
        self._service.close()
        if self._opened.pager is not None:
            self._opened.pager.close()

    def __enter__(self) -> Translator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _check(*, longest: int, **numbers: int) -> None:
    if not _SHORTEST <= longest <= MAX_LENGTH:
        raise UsageError(f"`longest` must be from {_SHORTEST} to {MAX_LENGTH} tokens, but is {longest} instead.")
    for name, number in numbers.items():
        if number < 1:
            raise UsageError(f"`{name}` must be 1 or more, but is {number} instead.")
