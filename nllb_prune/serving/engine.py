"""The engine: turn after turn it lets sentences join, starts and ends swaps, and takes a step.

It knows neither tensors nor threads. A runner does what is decided, on a model or in a simulation.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from nllb_prune.serving.jobs import Job
from nllb_prune.serving.residency import Arrival, Side, Swap
from nllb_prune.serving.scheduler import Scheduler


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a sentence: a result, or an error."""

    job: Job
    result: Any = None
    error: BaseException | None = None


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
    """

    def __init__(self, scheduler: Scheduler, runner: Runner) -> None:
        self.scheduler, self.runner = scheduler, runner
        self.swaps = 0
        """Begun so far."""
        self.moved = 0
        """Experts that were copied, or were to be."""
        self.resident: tuple[Side, ...] = ()
        """Sides that are in, as of the last swap; other threads may read it."""
        self._running: set[int] = set()
        self._publish()

    @property
    def idle(self) -> bool:
        """Whether there is nothing to do."""
        return not (self._running or len(self.scheduler) or self.scheduler.coming)

    @property
    def stalled(self) -> bool:
        """Whether there is nothing to do before a swap is over or something comes in."""
        return not self._running and self.scheduler.coming is not None

    @property
    def running(self) -> int:
        """Sentences that are being translated."""
        return len(self._running)

    def add(self, job: Job) -> None:
        """Let a sentence wait for its turn."""
        self.scheduler.add(job)

    def cancel(self, key: int) -> None:
        """Drop a sentence that nobody waits for any more."""
        job = self.scheduler.left(key)
        if job is not None and key in self._running:
            self._running.remove(key)
            self.runner.drop(job)

    def turn(self, *, wait: bool = True) -> list[Outcome]:
        """Do what can be done now, and return what came of it.

        Args:
            wait: For the end of a swap when it is `stalled`; otherwise it returns at once.
        """
        outcomes = self._end_swap(wait=False)
        outcomes += self._join()
        self._begin_swap()
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
        self._running.update(job.key for job in jobs)
        return self._finished(self.runner.join(jobs))

    def _finished(self, outcomes: list[Outcome]) -> list[Outcome]:
        for outcome in outcomes:
            self.scheduler.left(outcome.job.key)
            self._running.remove(outcome.job.key)
        return outcomes

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
        return [Outcome(job, error=error) for job in failed]
