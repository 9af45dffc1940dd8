"""`Translator`: one model that translates between all its languages, each text with its own languages' experts."""

from __future__ import annotations

import itertools
import threading
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import aclosing
from dataclasses import replace
from pathlib import Path
from types import TracebackType

import torch

from nllb_prune.errors import Unavailable, UsageError
from nllb_prune.generation.decode import POSITIONS, ROWS
from nllb_prune.generation.loop import Sentence
from nllb_prune.generation.search import SearchSettings
from nllb_prune.generation.translate import GREEDY, length_limit, text_directions
from nllb_prune.languages import Direction, language
from nllb_prune.masks import MaskSet
from nllb_prune.model.routing import routing_of
from nllb_prune.model.spec import ModelSpec
from nllb_prune.serving.figures import Figures
from nllb_prune.serving.in_flight import TextInFlight, begun, results, results_async
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.memory import MemoryPlan
from nllb_prune.serving.opening import Opened, open_model
from nllb_prune.serving.reloading import Reloader
from nllb_prune.serving.residency import Side
from nllb_prune.serving.runner import Kind, Request
from nllb_prune.serving.service import Service
from nllb_prune.serving.settings import check_texts, checked
from nllb_prune.serving.sides import LanguageSide, LanguageSides
from nllb_prune.serving.texts import Prepared, Texts, TranslatedText
from nllb_prune.tokenization import language_id

_LONG = 64
"""Tokens from which on a sentence is kept from shorter ones."""
_PREPARING = 4
"""Asynchronous calls whose texts are cut and encoded at once."""


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
        full: Whether a call may ask for all experts; there is memory for all of them then.
        dtype: As of `load_model`.
        device: One for all.

    Raises:
        UsageError: as `load_model` does; if the memory is too small for a language, with what it needs; on `full` of a
            pruned checkpoint that lacks experts.
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
        full: bool = False,
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
            full=full,
        )
        masks = None if masks is None else _read(masks)
        self._opened: Opened = open_model(model, masks, settings, dtype=dtype, device=device)
        self._tokens = {code: language_id(self._opened.tokenizer, code) for code in self._opened.known}
        self._texts = Texts(self._opened.tokenizer, self._tokens, longest=longest)
        self._keys, self._in_order = itertools.count(), threading.Lock()
        self._submitted = 0
        self._preparing = ThreadPoolExecutor(_PREPARING, thread_name_prefix="preparing")
        self._service = Service(self._opened.engine)
        self._reloader = Reloader(self._opened, self._service)

    @property
    def name(self) -> str:
        """What the model is called."""
        return routing_of(self._opened.model).name

    @property
    def spec(self) -> ModelSpec:
        """The model's description."""
        return routing_of(self._opened.model).spec

    @property
    def beams(self) -> int:
        """The most that a call may ask for."""
        return self._opened.settings.beams

    @property
    def plan(self) -> MemoryPlan:
        """How the memory is divided."""
        return self._opened.serving.now.plan

    @property
    def masks(self) -> MaskSet | None:
        """Those in use now; `None` if every direction uses all experts that there are."""
        return self._opened.serving.now.masks

    @property
    def directions(self) -> tuple[Direction, ...]:
        """All that are served."""
        return self._opened.serving.now.sides.directions

    @property
    def offers_full(self) -> bool:
        """Whether a call may ask for all experts; without masks that is what it is given anyway."""
        return self._opened.serving.now.sides.offers_full

    @property
    def open(self) -> bool:
        """Whether it can translate: until it is closed, or a fault has ended it."""
        return self._service.open

    def sides(self) -> tuple[LanguageSide, ...]:
        """Return what is kept, of all stacks and languages, and all experts where they are offered beside it."""
        sides = self._opened.serving.now.sides
        return self._shown(sides, sides.masks)

    def sides_of(self, source: str, target: str, *, full: bool = False) -> tuple[LanguageSide, ...]:
        """Return what a direction uses, the encoder's first.

        Raises:
            UsageError: if it is not served.
        """
        sides, direction = self._opened.serving.now.sides, (language(source).code, language(target).code)
        sides.check(*direction, full=full)
        return self._shown(sides, sides.of(*direction, full=full))

    def _shown(self, sides: LanguageSides, wanted: Iterable[Side]) -> tuple[LanguageSide, ...]:
        expert, resident = self._opened.weighed.expert, frozenset(self._opened.engine.resident)
        return tuple(sides.shown(side, expert=expert, resident=resident) for side in wanted)

    def translate(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        search: SearchSettings = GREEDY,
        whole: bool = False,
        full: bool = False,
    ) -> list[TranslatedText]:
        """Translate texts, in their order.

        Args:
            texts: Of any length; sentences are translated each on its own, and white space between them stays.
            source: Language of the texts, or of each, under any of its names.
            target: Language to translate into, or of each.
            search: Greedy or beam search, and how many alternatives.
            whole: Takes each text as one sentence.
            full: Uses all experts, not those that are kept for the direction.

        Raises:
            UsageError: on a direction that is not served, more beams than the memory was divided for, or `full` where
                it is not offered.
            Unavailable: if experts cannot be read, or the translator is closed.
        """
        return results(self.submit(texts, source, target, search=search, whole=whole, full=full), self._texts)

    async def translate_async(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        search: SearchSettings = GREEDY,
        whole: bool = False,
        full: bool = False,
    ) -> list[TranslatedText]:
        """Do what `translate` does; when the task is cancelled, so are its sentences."""
        in_flight = await self.submit_async(texts, source, target, search=search, whole=whole, full=full)
        return await results_async(in_flight, self._texts)

    def stream(
        self, text: str, source: str, target: str, *, search: SearchSettings = GREEDY, full: bool = False
    ) -> Iterator[str]:
        """Translate a text and return its translation sentence by sentence, as they are finished, in order.

        All that is yielded, put together, is what `translate` returns. Whoever stops early drops the rest.
        """
        [in_flight] = self.submit([text], source, target, search=search, full=full)
        return in_flight.parts()

    async def stream_async(
        self, text: str, source: str, target: str, *, search: SearchSettings = GREEDY, full: bool = False
    ) -> AsyncIterator[str]:
        """Do what `stream` does."""
        [in_flight] = await self.submit_async([text], source, target, search=search, full=full)
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
        full: bool = False,
    ) -> list[TextInFlight]:
        """Do what `translate` does, without waiting for what comes of it."""
        return self._begin(texts, source, target, search, whole=whole, full=full, look=self._service.check_open)

    async def submit_async(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        *,
        search: SearchSettings = GREEDY,
        whole: bool = False,
        full: bool = False,
    ) -> list[TextInFlight]:
        """Do what `submit` does, in a thread of the translator's own.

        A task that is cancelled ends when the thread has let go of its texts, after the one at hand, and nothing of
        them waits to be translated.
        """
        given_up = threading.Event()

        def look() -> None:
            if given_up.is_set():
                raise CancelledError
            self._service.check_open()

        def begin() -> list[TextInFlight]:
            return self._begin(texts, source, target, search, whole=whole, full=full, look=look)

        return await begun(self._in_thread(begin), given_up)

    def _in_thread(self, begin: Callable[[], list[TextInFlight]]) -> Future[list[TextInFlight]]:
        self._service.check_open()
        try:
            return self._preparing.submit(begin)
        except RuntimeError:
            raise Unavailable("The translator must be open to translate, but is being closed.") from None

    def _begin(
        self,
        texts: Sequence[str],
        source: str | Sequence[str],
        target: str | Sequence[str],
        search: SearchSettings,
        *,
        whole: bool,
        full: bool,
        look: Callable[[], None],
    ) -> list[TextInFlight]:
        """Check what is asked for, cut texts, encode them, and let their sentences wait for their turns."""
        look()
        check_texts(texts)
        directions = self._directions(len(texts), source, target, full=full)
        if search.beams > self.beams:
            raise UsageError(
                f"`beams` must be at most {self.beams}, for which memory was divided, but is {search.beams} instead."
            )
        prepared = self._texts.prepare(texts, directions, whole=whole, look=look)
        return self._start(prepared, search, full=full)

    def _start(self, prepared: Sequence[Prepared], search: SearchSettings, *, full: bool) -> list[TextInFlight]:
        """Let sentences wait for their turns."""
        texts = [(each, ids) for each in prepared for ids in each.tokens if ids is not None]
        with self._in_order:
            jobs = [self._job(ids, each, search, full=full) for each, ids in texts]
            futures = iter(self._service.submit(jobs))
            self._submitted += len(jobs)
        return [
            TextInFlight(
                each,
                [None if ids is None else next(futures) for ids in each.tokens],
                texts=self._texts,
                alternatives=search.alternatives,
            )
            for each in prepared
        ]

    def _directions(
        self, count: int, source: str | Sequence[str], target: str | Sequence[str], *, full: bool
    ) -> list[Direction]:
        """Return the direction of each text, all of which are served."""
        named = text_directions(count, source, target)
        codes = {each: (language(each[0]).code, language(each[1]).code) for each in dict.fromkeys(named)}
        sides = self._opened.serving.now.sides
        for direction in codes.values():
            sides.check(*direction, full=full)
        return [codes[each] for each in named]

    def _job(self, ids: Sequence[int], text: Prepared, search: SearchSettings, *, full: bool) -> Job:
        key = next(self._keys)
        limit = length_limit(len(ids))
        request = Request(
            Sentence(key=key, source=ids, language=self._tokens[text.target], limit=limit),
            Kind(replace(search, alternatives=search.beams), len(ids) > _LONG),
            direction=(text.source, text.target),
            full=full,
        )
        return Job(key=key, arrived=self._opened.runner.now(), payload=request)

    def reload(self, masks: MaskSet | str | Path) -> None:
        """Translate within other masks from now on, whatever is being translated.

        Who is in flight finishes within the old ones; who waits does so for the new ones, and fails if they do not
        cover its direction. Experts that are in memory stay there; the others come in afterwards, as they do at the
        start. A reload waits for another one.

        Args:
            masks: Of this model, or their file.

        Raises:
            UsageError: if they are not right, with what is wrong: of another model, without a language that is pinned
                or given as `languages`, with more experts than memory was divided for, or ones that the checkpoint
                lacks. Nothing has changed then.
            Unavailable: if the translator is closed.
        """
        self._reloader.reload(_read(masks))

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
            steps=opened.runner.steps,
            rows=opened.runner.rows,
            source_tokens=opened.runner.source_tokens,
            target_tokens=opened.runner.target_tokens,
        )

    def close(self, *, drain: bool = True) -> None:
        """Finish what was submitted, or give it up if it is not to `drain`; let go of files and threads.

        What asynchronous calls have begun to prepare is finished, or given up, as well.
        """
        if drain:
            self._preparing.shutdown()
        self._service.close(drain=drain)
        self._preparing.shutdown()
        with self._reloader.alone:
            if self._opened.pager is not None:
                self._opened.pager.close(finish=drain)

    def __enter__(self) -> Translator:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _read(masks: MaskSet | str | Path) -> MaskSet:
    return masks if isinstance(masks, MaskSet) else MaskSet.load(masks)
