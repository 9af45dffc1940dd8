"""`Translator`: one model that translates between all its languages, each text with its own languages' experts."""

from __future__ import annotations

import asyncio
import itertools
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType

import torch

from nllb_prune.errors import UsageError
from nllb_prune.generation.decode import POSITIONS, ROWS
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import GREEDY, length_limit, text_directions
from nllb_prune.languages import Direction, language
from nllb_prune.masks import MaskSet
from nllb_prune.serving.in_flight import TextInFlight
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.memory import MemoryPlan
from nllb_prune.serving.opening import Opened, open_model
from nllb_prune.serving.runner import Kind, Request
from nllb_prune.serving.service import Service
from nllb_prune.serving.settings import check_texts, checked
from nllb_prune.serving.sides import joining, staying
from nllb_prune.serving.texts import Prepared, Texts, TranslatedText
from nllb_prune.tokenization import language_id

_LONG = 64
"""Tokens from which on a sentence is kept from shorter ones."""


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
        masks: Experts of each language, or their file; by default those that a pruned checkpoint carries, or all that
            there are.
        memory: For weights, caches and workspace together, in bytes or as in `24GB`; what Python and torch take
            themselves is not counted. By default as much as it takes to have all languages' experts in memory.
        pinned: Languages whose experts never leave.
        languages: Serve these alone; by default all that model and masks have.
        longest: Tokens of a sentence; longer ones are cut, at the marks of clauses where there are some.
        beams: The most that a call may ask for.
        rows: Sentences in flight at most.
        positions: Rows times source tokens times beams in flight, at most, short and long sentences apart.
        patience: Seconds after which the experts that a sentence waits for come next.
        dtype: As of `load_model`.
        device: One for all.

    Raises:
        UsageError: as `load_model` does; if the memory is too small for a language, with what it needs.
    """

    def __init__(
        self,
        model: str | Path,
        masks: MaskSet | str | Path | None = None,
        *,
        memory: int | str | None = None,
        pinned: Sequence[str] = (),
        languages: Sequence[str] | None = None,
        longest: int = 256,
        beams: int = 4,
        rows: int = ROWS,
        positions: int = 2 * POSITIONS,
        patience: float = 2.0,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        settings = checked(
            memory=memory,
            pinned=pinned,
            languages=languages,
            longest=longest,
            beams=beams,
            rows=rows,
            positions=positions,
            patience=patience,
        )
        masks = MaskSet.load(masks) if isinstance(masks, str | Path) else masks
        self._opened: Opened = open_model(model, masks, settings, dtype=dtype, device=device)
        self._beams = beams
        self._texts = Texts(self._opened.tokenizer, longest=longest)
        self._keys, self._in_order = itertools.count(), threading.Lock()
        self._submitted = 0
        targets = self._opened.sides.targets
        self._tokens = {code: language_id(self._opened.tokenizer, code) for code in targets}
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
        texts_in_flight = self.submit(texts, source, target, search=search, whole=whole)
        try:
            return [each.result() for each in texts_in_flight]
        finally:
            _cancel(texts_in_flight)

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
        prepared = await asyncio.to_thread(self._prepared, texts, source, target, search, whole=whole)
        texts_in_flight = self._start(prepared, search)
        try:
            return [await each.result_async() for each in texts_in_flight]
        finally:
            _cancel(texts_in_flight)

    def stream(self, text: str, source: str, target: str, *, search: SearchSettings = GREEDY) -> Iterator[str]:
        """Translate a text and return its translation sentence by sentence, as they are finished, in order.

        All that is yielded, put together, is what `translate` returns. Whoever stops early drops the rest.
        """
        [in_flight] = self.submit([text], source, target, search=search)
        return in_flight.parts()

    async def stream_async(
        self, text: str, source: str, target: str, *, search: SearchSettings = GREEDY
    ) -> AsyncIterator[str]:
        """Do what `stream` does."""
        prepared = await asyncio.to_thread(self._prepared, [text], source, target, search, whole=False)
        [in_flight] = self._start(prepared, search)
        async with aclosing(in_flight.parts_async()) as parts:
            async for part in parts:
                yield part

    def submit(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        search: SearchSettings = GREEDY,
        whole: bool = False,
    ) -> list[TextInFlight]:
        """Do what `translate` does, without waiting for what comes of it."""
        return self._start(self._prepared(texts, source, target, search, whole=whole), search)

    def _prepared(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        search: SearchSettings,
        *,
        whole: bool,
    ) -> list[Prepared]:
        """Check what is asked for, cut texts and encode them."""
        check_texts(texts)
        directions = self._directions(len(texts), source, target)
        if search.beams > self._beams:
            raise UsageError(
                f"`beams` must be at most {self._beams}, for which memory was divided, but is {search.beams} instead."
            )
        pairs = zip(texts, directions, strict=True)
        return [self._texts.prepare(text, *direction, whole=whole) for text, direction in pairs]

    def _start(self, prepared: Sequence[Prepared], search: SearchSettings) -> list[TextInFlight]:
        """Let sentences wait for their turns."""
        with self._in_order:
            jobs = [self._job(ids, each, search) for each in prepared for ids in each.tokens if ids is not None]
            futures = iter(self._service.submit(jobs))
            self._submitted += len(jobs)
        return [
            TextInFlight(
                each,
                [None if ids is None else next(futures) for ids in each.tokens],
                decode=self._texts.decode,
                alternatives=search.alternatives,
            )
            for each in prepared
        ]

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
            language=self._tokens[text.target],
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

    def figures(self) -> Figures:
        """Return what has been done so far."""
        opened = self._opened
        return Figures(
            sentences=self._submitted,
            waiting=self._service.waiting,
            in_flight=opened.engine.running,
            swaps=opened.engine.swaps,
            experts_moved=opened.engine.moved,
            bytes_moved=0 if opened.pager is None else opened.pager.bytes_copied,
            resident=tuple(f"{stack}.{key}" for stack, key in opened.engine.resident),
            working_peak=opened.runner.peak,
        )

    def close(self) -> None:
        """Finish what was submitted, and let go of files and threads."""
        self._service.close()
        with self._in_order:
            if self._opened.pager is not None:
                self._opened.pager.close()

    def __enter__(self) -> Translator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _cancel(texts: Sequence[TextInFlight]) -> None:
    """Take out what is not finished when a call is over, because something failed."""
    for each in texts:
        each.cancel()
