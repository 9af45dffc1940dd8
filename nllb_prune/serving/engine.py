"""The engine: turn after turn it lets sentences join, starts and ends swaps, and takes a step.

It knows neither tensors nor threads. A runner does what is decided, on a model or in a simulation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from nllb_prune.errors import Unavailable, UsageError
from nllb_prune.serving.jobs import Job
from nllb_prune.serving.residency import Arrival, Residency, Side, Swap
from nllb_prune.serving.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a sentence: a result, or an error."""

    job: Job
    result: Any = None
    error: BaseException | None = None
    waited: float = 0.0
    """Seconds from its arrival until it joined, or was given up."""
    translating: float = 0.0
    """Seconds from then until it was finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """Other sides to go on with, when nobody is being translated any more."""

    residency: Residency
    """Of the new sides; it takes over the experts that are in the slots."""
    ahead: tuple[Side, ...]
    """To bring in before anybody waits for them."""
    begin: Callable[[], None]
    """Is called when it is time: from then on `place` and the runner follow the new sides."""
    done: Future[None] = field(default_factory=Future)
    """Is finished when the change is made; cancelled before, it calls the change off."""


class Runner(Protocol):
    """Does what the engine decides. Keys are those of jobs."""

    def now(self) -> float:
        """Return the time in seconds."""

    def choose(self, jobs: Iterable[Job]) -> list[Job]:
        """Return the first of some sentences that there is room for and that are worth to join now, in order."""

    def join(self, jobs: Sequence[Job]) -> list[Outcome]:
        """Let sentences join; return the outcomes that there are already."""

    def step(self) -> list[Outcome]:
        """Take a step with all that have joined; return the outcomes that there are now."""

    def drop(self, job: Job) -> None:
        """Forget a sentence that has joined."""

    def begin(self, swap: Swap) -> None:
        """Start a swap: its experts leave now, the others come in while steps are taken."""

    def ended(self, *, wait: bool) -> Arrival | None:
        """Return what came of the swap that was begun; `None` while it goes on, unless it is to be waited for."""


class Engine:
    """Sentences in, outcomes out.

    Args:
        scheduler: Decides.
        runner: Does.
        place: Gives a sentence the sides that it needs now; raises `UsageError` if there are none for it.
    """

    def __init__(self, scheduler: Scheduler, runner: Runner, *, place: Callable[[Job], Job] = lambda job: job) -> None:
        self.scheduler, self.runner, self._place = scheduler, runner, place
        self.swaps = 0
        """Begun so far."""
        self.moved = 0
        """Experts that were copied, or were to be."""
        self.resident: tuple[Side, ...] = ()
        """Sides that are in, as of the last swap; other threads may read it."""
        self._running: dict[int, float] = {}  # and when they joined
        self._refused: list[Outcome] = []
        self._change: Change | None = None
        self._publish()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        scheduler = self.scheduler
        return not (
            self._running or len(scheduler) or scheduler.coming or scheduler.ahead or self._refused or self._change
        )

    @property
    def stalled(self) -> bool:
        """Whether there is nothing to do before a swap is over or something comes in."""
        return not self._running and self.scheduler.coming is not None

    @property
    def running(self) -> int:
        """Sentences that are being translated."""
        return len(self._running)

    def add(self, job: Job) -> None:
        """Let a sentence wait for its turn; one that there are no sides for comes out of the next turn."""
        for placed in self._placed([job]):
            self.scheduler.add(placed)

    def change(self, change: Change) -> None:
        """Go on with other sides: until those in flight are finished nobody joins and nothing is brought in."""
        self._change = change

    def finish(self) -> None:
        """Bring in no more than what sentences wait for."""
        self.scheduler.ahead.clear()

    def cancel(self, key: int) -> None:
        """Drop a sentence that nobody waits for any more."""
        job = self.scheduler.left(key)
        if job is not None and key in self._running:
            del self._running[key]
            self.runner.drop(job)

    def turn(self, *, wait: bool = True) -> list[Outcome]:
        """Do what can be done now, and return what came of it.

        Args:
            wait: For the end of a swap when it is `stalled`; otherwise it returns at once.
        """
        outcomes, self._refused = self._refused, []
        outcomes += self._end_swap(wait=False)
        if self._change is None:
            outcomes += self._join()
            self._begin_swap()
        elif not self._running and self.scheduler.coming is None:
            self._go_on(self._change)
        if self._running:
            outcomes += self._finished(self.runner.step())
        elif wait and self.stalled and not outcomes:
            outcomes += self._end_swap(wait=True)
        return outcomes

    def _join(self) -> list[Outcome]:
        now = self.runner.now()
        jobs = self.runner.choose(self.scheduler.joinable(now))
        if not jobs:
            return []
        self.scheduler.joined(jobs, now)
        self._running.update((job.key, now) for job in jobs)
        return self._finished(self.runner.join(jobs))

    def _finished(self, outcomes: list[Outcome]) -> list[Outcome]:
        return [self._timed(outcome) for outcome in outcomes]

    def _timed(self, outcome: Outcome) -> Outcome:
        """Take note that a sentence is finished, and of how long it took."""
        job = outcome.job
        self.scheduler.left(job.key)
        joined = self._running.pop(job.key)
        return replace(outcome, waited=joined - job.arrived, translating=self.runner.now() - joined)

    def _go_on(self, change: Change) -> None:
        """Make a change, unless it was called off."""
        self._change = None
        if not change.done.set_running_or_notify_cancel():
            return
        change.residency.take_over(self.scheduler.residency)
        change.begin()
        self.scheduler.go_on(change.residency, self._placed(self.scheduler.waiting()), ahead=change.ahead)
        self._publish()
        change.done.set_result(None)

    def _placed(self, jobs: Iterable[Job]) -> list[Job]:
        """Return sentences with the sides that they need now; those that there are none for are refused."""
        placed: list[Job] = []
        for job in jobs:
            try:
                placed.append(self._place(job))
            except UsageError as error:
                self._refused.append(Outcome(job, error=error, waited=self.runner.now() - job.arrived))
        return placed

    def _begin_swap(self) -> None:
        swap = self.scheduler.next_swap(self.runner.now())
        if swap is not None:
            self.swaps += 1
            self.moved += len(swap.moves)
            self._publish()
            self.runner.begin(swap)

    def _end_swap(self, *, wait: bool) -> list[Outcome]:
        swap = self.scheduler.coming
        if swap is None:
            return []
        arrival = self.runner.ended(wait=wait)
        if arrival is None:
            return []
        self.scheduler.swapped(swap, arrival)
        self._publish()
        return [] if arrival.error is None else self._failed(swap, arrival.error)

    def _publish(self) -> None:
        residency = self.scheduler.residency
        self.resident = tuple(side for side in residency.sides if residency.resident(side))

    def _failed(self, swap: Swap, error: Exception) -> list[Outcome]:
        """Give up the sentences that wait for what did not come."""
        failed = self.scheduler.waiting_for(side for side in swap.sides if not self.scheduler.residency.resident(side))
        for job in failed:
            self.scheduler.left(job.key)
        told = Unavailable(str(error)) if isinstance(error, UsageError | OSError) else error
        return [Outcome(job, error=told, waited=self.runner.now() - job.arrived) for job in failed]
