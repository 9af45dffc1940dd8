"""The engine on a machine that is simulated: a runner with a clock of its own and a model of what things cost."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nllb_prune.expert_mask import ExpertMask
from nllb_prune.languages import language_set
from nllb_prune.serving.engine import Engine, Outcome
from nllb_prune.serving.holding import Holding
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.residency import Arrival, Side, Swap, side_name
from nllb_prune.serving.scheduler import Scheduler

from .arrivals import Arrived
from .in_order import InOrder

LAYERS, EXPERTS = 6, 128
KEPT = {"encoder": 36, "decoder": 12}
# Weights of what all languages and what those of a group have in common: about as similar as in the published index.
_COMMON = {"encoder": (2.0, 0.9), "decoder": (1.0, 1.3)}
_GROUPS = 14


@dataclass(frozen=True, slots=True, kw_only=True)
class Costs:
    """What things take; the defaults stand for NLLB-200 54B in bfloat16 on one card, and are not measured."""

    step: float = 0.03
    """Seconds of a step."""
    row: float = 0.0001
    """More for each sentence in flight."""
    encoding: float = 0.02
    """Seconds of letting sentences join."""
    token: float = 0.00002
    """More for each of their tokens."""
    expert: float = 67.1e6
    """Bytes: 2 x 2,048 x 8,192 weights and their biases."""
    bus: float = 25e9
    """Bytes a second from the host."""
    rows: int = 128
    """Sentences in flight, at most."""
    positions: int = 8192
    """Tokens of a batch, padding and all, at most."""

    def copy(self, experts: int) -> float:
        """Return the seconds that experts take to come."""
        return experts * self.expert / self.bus

    def turn(self, longest: int) -> float:
        """Return the most seconds that a turn takes."""
        tokens = max(self.positions, longest)
        return self.step + self.row * self.rows + self.encoding + self.token * tokens


Policy = Scheduler | InOrder


def random_masks(seed: int = 0) -> dict[Side, ExpertMask]:
    """Draw masks of 202 languages in the published shape: 36 experts of each encoder and 12 of each decoder layer."""
    random, codes = np.random.default_rng(seed), language_set("nllb-202").codes
    group = random.integers(0, _GROUPS, size=len(codes))
    masks: dict[Side, list[tuple[int, ...]]] = {(stack, code): [] for stack in KEPT for code in codes}
    for stack, kept in KEPT.items():
        of_all, of_group = _COMMON[stack]
        for _ in range(LAYERS):
            scores = of_all * random.normal(size=EXPERTS) + of_group * random.normal(size=(_GROUPS, EXPERTS))[group]
            scores += random.normal(size=scores.shape)  # (languages, experts)
            best = np.sort(np.argsort(-scores, axis=1)[:, :kept], axis=1)
            for code, ids in zip(codes, best.tolist(), strict=True):
                masks[stack, code].append(tuple(ids))
    return {side: tuple(mask) for side, mask in masks.items()}


class SimulatedRunner:
    """Does what the engine decides in no time, and tells how long it would have taken.

    Args:
        costs: Of everything.
        masks: Given, every join and every step is checked to have its experts in slots.
    """

    def __init__(self, costs: Costs, masks: Mapping[Side, ExpertMask] | None = None) -> None:
        self._costs = costs
        self._needs = None if masks is None else {side: _experts(side, mask) for side, mask in masks.items()}
        self._clock = 0.0
        self._left: dict[int, int] = {}  # steps
        self._jobs: dict[int, Job] = {}
        self._holding = Holding()
        self._swap: tuple[Swap, float] | None = None
        self._slots: dict[tuple[str, int, int], int | None] = {}
        self._there: set[tuple[str, int, int]] = set()  # stack, layer and expert
        self.joined: dict[int, float] = {}
        """When each sentence joined."""
        self.largest = 0
        """Experts of the largest swap."""
        self.busy = 0.0
        """Seconds of steps, times the sentences in flight."""

    def now(self) -> float:
        """Return the seconds since the trace began."""
        return self._clock

    def sleep(self, until: float) -> None:
        """Let time go by."""
        self._clock = max(self._clock, until)

    def choose(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the first that there is room for, as the runner of a model does."""
        chosen: list[Job] = []
        longest = max((job.payload.tokens for job in self._jobs.values()), default=0)
        for job in jobs:
            rows, longest = len(self._jobs) + len(chosen) + 1, max(longest, job.payload.tokens)
            if rows > 1 and (rows > self._costs.rows or rows * longest > self._costs.positions):
                break
            chosen.append(job)
        return chosen if self._holding.over(len(chosen), len(self._jobs)) else []

    def join(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Let sentences join."""
        self._check(side for job in jobs for side in job.sides)
        self.joined.update((job.key, self._clock) for job in jobs)
        self._clock += self._costs.encoding + self._costs.token * sum(job.payload.tokens for job in jobs)
        self._jobs.update((job.key, job) for job in jobs)
        self._left.update((job.key, job.payload.tokens) for job in jobs)
        return []

    def step(self) -> list[Outcome]:
        """Take a step; sentences are finished after as many as they have tokens."""
        self._check(side for job in self._jobs.values() for side in job.staying)
        seconds = self._costs.step + self._costs.row * len(self._jobs)
        self._clock += seconds
        self.busy += seconds * len(self._jobs)
        self._left = {key: steps - 1 for key, steps in self._left.items()}
        return [Outcome(self._forget(key)) for key, steps in list(self._left.items()) if not steps]

    def drop(self, job: Job) -> None:
        """Forget a sentence."""
        self._forget(job.key)

    def _forget(self, key: int) -> Job:
        del self._left[key]
        return self._jobs.pop(key)

    def begin(self, swap: Swap) -> None:
        """Empty the slots of a swap."""
        self._swap = swap, self._clock + self._costs.copy(len(swap.moves))
        self.largest = max(self.largest, len(swap.moves))
        for move in swap.moves:
            assert self._slots.get((move.stack, move.layer, move.slot)) == move.leaves, "slots are as they were left"
            self._slots[move.stack, move.layer, move.slot] = None
            self._there.discard((move.stack, move.layer, -1 if move.leaves is None else move.leaves))

    def ended(self, *, wait: bool) -> Arrival | None:
        """Fill its slots when it is time."""
        assert self._swap is not None, "a swap was begun"
        swap, end = self._swap
        if wait:
            self.sleep(end)
        if self._clock < end:
            return None
        self._swap = None
        self._slots.update(((move.stack, move.layer, move.slot), move.expert) for move in swap.moves)
        self._there.update((move.stack, move.layer, move.expert) for move in swap.moves)
        return Arrival(swap.moves)

    def _check(self, sides: Iterable[Side]) -> None:
        if self._needs is not None:
            for side in set(sides):
                assert self._needs[side] <= self._there, f"{side_name(side)} are there"


def _experts(side: Side, mask: ExpertMask) -> frozenset[tuple[str, int, int]]:
    return frozenset((side[0], layer, expert) for layer, ids in enumerate(mask) for expert in ids)


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What became of a trace; times in seconds since it began."""

    trace: Sequence[Arrived]
    joined: Sequence[float]
    """When each sentence joined."""
    finished: Sequence[float]
    """When each was finished."""
    swaps: int
    moved: int
    """Experts that were copied."""
    largest: int
    """Experts of the largest swap."""
    overdue_after: float | None
    """The longest that a sentence had to wait to be overdue; `None` if the policy knows no such thing."""
    rows: float
    """Sentences in flight, in the mean over time."""


def replay(trace: Sequence[Arrived], policy: Policy, runner: SimulatedRunner) -> Replay:
    """Let the sentences of a trace come, and go on until all are finished."""
    engine = Engine(policy, runner)  # type: ignore[arg-type]
    coming, finished = deque(jobs_of(trace)), [-1.0] * len(trace)
    overdue_after: float | None = None
    while coming or not engine.idle:
        if engine.idle:
            runner.sleep(coming[0].arrived)
        while coming and coming[0].arrived <= runner.now():
            engine.add(coming.popleft())
        before = _state(engine)
        for outcome in engine.turn():
            assert finished[outcome.job.key] < 0, "a sentence is finished once"
            finished[outcome.job.key] = runner.now()
        assert _state(engine) != before, "the engine does not stand still"
        if isinstance(policy, Scheduler):
            overdue_after = max(policy.overdue_after, overdue_after or 0.0)
    assert all(time > 0 for time in finished), "a sentence is not lost"
    return Replay(
        trace=trace,
        joined=[runner.joined[key] for key in range(len(trace))],
        finished=finished,
        swaps=engine.swaps,
        moved=engine.moved,
        largest=runner.largest,
        overdue_after=overdue_after,
        rows=runner.busy / max(runner.now(), 1e-9),
    )


def jobs_of(trace: Sequence[Arrived]) -> list[Job]:
    """Return the jobs of a trace; each needs the experts of its source and its target."""
    return [
        Job(
            key=key,
            joining=(("encoder", each.source),),
            staying=(("decoder", each.target),),
            arrived=each.seconds,
            payload=each,
        )
        for key, each in enumerate(trace)
    ]


def _state(engine: Engine) -> tuple[float, int, int, int, bool]:
    scheduler = engine.scheduler
    return engine.runner.now(), len(scheduler), engine.running, engine.swaps, scheduler.coming is None
