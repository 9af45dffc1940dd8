"""The runner of a model: decoding loops, a pager, and the memory that both may take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from nllb_prune.generation.footprint import Footprint, Held, Rows
from nllb_prune.generation.loop import DecodingLoop, Sentence
from nllb_prune.generation.search import Hypothesis, SearchSettings
from nllb_prune.languages import Direction
from nllb_prune.model.blocks import Blocks
from nllb_prune.model.pager import Copying, Pager
from nllb_prune.serving.engine import Outcome
from nllb_prune.serving.holding import Holding
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.residency import Arrival, Side, Swap


@dataclass(frozen=True, slots=True)
class Kind:
    """Sentences of one kind share a loop."""

    search: SearchSettings
    """With as many alternatives as beams: how many are wanted changes nothing in a search."""
    long: bool
    """Short ones are kept from those that would make all rows as long as themselves."""


@dataclass(frozen=True, slots=True)
class Request:
    """What a job of a model carries."""

    sentence: Sentence
    """Without experts: it is given those of its sides when it joins."""
    kind: Kind
    direction: Direction
    full: bool = False
    """Whether it uses all experts, not those that are kept for its direction."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Room:
    """How many sentences may be in flight."""

    rows: int
    """Sentences, at most."""
    positions: int
    """Rows times the longest source times beams, at most, for more than one row of a kind."""
    working: int | None
    """Bytes of caches and workspace; `None` for no bound."""


class ModelRunner:
    """Runs what the engine decides on a model.

    Args:
        blocks: The model.
        pager: Its experts; `None` if it has none.
        device: Of the model.
        room: For sentences in flight.
        footprint: Number of beams -> what they take.
        keep: Sides -> experts they allow, as in `Sentence`.
    """

    def __init__(
        self,
        blocks: Blocks,
        pager: Pager | None,
        *,
        device: torch.device,
        room: Room,
        footprint: Callable[[int], Footprint],
        keep: Callable[[Sequence[Side]], Mapping[str, Tensor]],
    ) -> None:
        self._blocks, self._pager, self._device, self._room = blocks, pager, device, room
        self._footprint, self._keep = footprint, keep
        self._footprints: dict[int, Footprint] = {}
        self._loops: dict[Kind, DecodingLoop] = {}
        self._jobs: dict[int, Job] = {}
        self._copying: Copying | None = None
        self._holding = Holding()
        self.steps = 0
        """Taken so far."""
        self.rows = 0
        """Of all steps, added up."""
        self.source_tokens = 0
        """Of the sentences that are finished."""
        self.target_tokens = 0
        """Of their best translations."""
        self.peak = 0
        """The most bytes that caches and workspace were allowed to take at once."""

    def now(self) -> float:
        """Return the time of a clock that only runs forward."""
        return time.monotonic()

    def choose(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the first sentences that there is room for, if they are worth to make the others wait for."""
        chosen: list[Job] = []
        joining: dict[Kind, Rows] = {}
        for job in jobs:
            kind = _request(job).kind
            more = {**joining, kind: _with_job(joining.get(kind, Rows()), job)}
            if not self._fits(more):
                break
            chosen.append(job)
            joining = more
        return chosen if self._holding.over(len(chosen), len(self._jobs)) else []

    def _fits(self, joining: Mapping[Kind, Rows]) -> bool:
        """Return whether rows may join; one alone always may, memory was divided for it."""
        rows = len(self._jobs) + sum(each.count for each in joining.values())
        if rows == 1:
            return True
        if rows > self._room.rows or not all(self._short(kind, each) for kind, each in joining.items()):
            return False
        return self._room.working is None or self._bytes(joining) <= self._room.working

    def _short(self, kind: Kind, joining: Rows) -> bool:
        rows = joining + self._in_flight(kind)
        return rows.count == 1 or rows.count * rows.source * kind.search.beams <= self._room.positions

    def _in_flight(self, kind: Kind) -> Rows:
        loop = self._loops.get(kind)
        return Rows() if loop is None else loop.in_flight

    def _bytes(self, joining: Mapping[Kind, Rows]) -> int:
        """Return what all loops take at most when rows join: all caches, and the largest workspace."""
        caches, workspaces = 0, [0]
        for kind in {**self._loops, **joining}:
            beams, coming, here = kind.search.beams, joining.get(kind, Rows()), self._in_flight(kind)
            if beams not in self._footprints:
                self._footprints[beams] = self._footprint(beams)
            footprint = self._footprints[beams]
            held = self._loops[kind].held if kind in self._loops else Held()
            caches += footprint.cache(here, coming, held)
            workspaces.append(footprint.workspace(here, coming))
        return caches + max(workspaces)

    def join(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Let sentences join the loops of their kinds."""
        outcomes: list[Outcome] = []
        by_kind: dict[Kind, list[Job]] = {}
        for job in jobs:
            by_kind.setdefault(_request(job).kind, []).append(job)
        self.peak = max(self.peak, self._bytes({kind: _rows(each) for kind, each in by_kind.items()}))
        for kind, each in by_kind.items():
            if kind not in self._loops:
                self._loops[kind] = DecodingLoop(self._blocks, kind.search, device=self._device)
            self._jobs.update({job.key: job for job in each})
            loop = self._loops[kind]
            found = self._outcomes(partial(loop.add, list(map(self._sentence, each))), each)
            if any(outcome.error is not None for outcome in found):
                loop.cancel([job.key for job in each])  # whatever of them came in
            outcomes += found
        return outcomes

    def _sentence(self, job: Job) -> Sentence:
        return replace(_request(job).sentence, keep=self._keep(job.sides))

    def step(self) -> list[Outcome]:
        """Take a step in each loop; one that has nothing left is let go."""
        outcomes: list[Outcome] = []
        for kind, loop in list(self._loops.items()):
            here = (job for job in self._jobs.values() if _request(job).kind == kind)  # looked for on errors alone
            self.steps, self.rows = self.steps + 1, self.rows + len(loop)
            found = self._outcomes(loop.step, here)
            broken = any(outcome.error is not None for outcome in found)  # in no state that can be trusted
            if broken or not len(loop):
                del self._loops[kind]
            outcomes += found
        return outcomes

    def _outcomes(self, run: Callable[[], Mapping[object, list[Hypothesis]]], jobs: Iterable[Job]) -> list[Outcome]:
        """Run a part of decoding; its errors are those of the sentences that were in it."""
        try:
            found = run()
        except Exception as error:
            return [Outcome(self._jobs.pop(job.key), error=error) for job in list(jobs)]
        return [self._finished(self._jobs.pop(key), hypotheses) for key, hypotheses in found.items()]  # type: ignore[call-overload]

    def _finished(self, job: Job, hypotheses: list[Hypothesis]) -> Outcome:
        self.source_tokens += len(_request(job).sentence.source)
        self.target_tokens += generated(hypotheses)
        return Outcome(job, hypotheses)

    def drop(self, job: Job) -> None:
        """Forget a sentence that is in flight."""
        del self._jobs[job.key]
        self._loops[_request(job).kind].cancel([job.key])

    def begin(self, swap: Swap) -> None:
        """Start to copy experts into slots."""
        assert self._pager is not None, "who has no experts swaps none"
        self._copying = self._pager.begin(swap.moves)

    def ended(self, *, wait: bool) -> Arrival | None:
        """Return what came of the copies."""
        copying, pager = self._copying, self._pager
        assert copying is not None, "a swap was begun"
        assert pager is not None, "by this runner"
        if not wait and not pager.done(copying):
            return None
        self._copying = None
        try:
            pager.finish(copying)
        except Exception as error:  # whatever it is, those who wait for these experts are told
            return Arrival(tuple(copying.copied), error)
        return Arrival(tuple(copying.copied))


def generated(hypotheses: Sequence[Hypothesis]) -> int:
    """Return the tokens of the best translation of a sentence, `</s>` counted."""
    return len(hypotheses[0].tokens) + hypotheses[0].ended


def _request(job: Job) -> Request:
    request: Request = job.payload
    return request


def _with_job(rows: Rows, job: Job) -> Rows:
    sentence = _request(job).sentence
    return rows.with_one(len(sentence.source), sentence.limit)


def _rows(jobs: Iterable[Job]) -> Rows:
    rows = Rows()
    for job in jobs:
        rows = _with_job(rows, job)
    return rows
