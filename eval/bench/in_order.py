"""Policies to compare with: first come first served, and one direction at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from nllb_prune.serving.jobs import Job
from nllb_prune.serving.residency import Arrival, Residency, Side, Swap


class InOrder:
    """Serves sentences in the order in which they came; the experts of the next that has none come first.

    Args:
        residency: The experts that are in memory.
        alone: Serve one direction until none of it is left, then that of the sentence that came first, as a program
            does that translates with one pruned model after the other. Experts of others stay while there is room.
    """

    def __init__(self, residency: Residency, *, alone: bool = False) -> None:
        self.residency, self._alone = residency, alone
        self._waiting: dict[int, Job] = {}
        self._running: dict[int, Job] = {}
        self._direction: tuple[Side, ...] | None = None
        self.coming: Swap | None = None
        """The swap that is under way."""
        self.ahead: Sequence[Side] = ()
        """Sides to bring in before anybody waits for them: none."""

    def __len__(self) -> int:
        """Return how many sentences wait."""
        return len(self._waiting)

    def add(self, job: Job) -> None:
        """Let a sentence wait."""
        self._waiting[job.key] = job

    def joinable(self, now: float) -> Iterator[Job]:
        """Yield the sentences that may join: up to the first whose experts are not there."""
        self._turn_to_next()
        for job in self._queue():
            if not self._resident(job):
                return
            yield job

    def joined(self, jobs: Sequence[Job], now: float) -> None:
        """Take note that sentences are being translated now."""
        for job in jobs:
            self._running[job.key] = self._waiting.pop(job.key)
        self.residency.touch(dict.fromkeys(side for job in jobs for side in job.sides))

    def left(self, key: int) -> Job | None:
        """Take note that a sentence is finished or not wanted any more."""
        return self._running.pop(key, None) or self._waiting.pop(key, None)

    def next_swap(self, now: float) -> Swap | None:
        """Return the swap for the first sentence that needs one, unless it would be in the way of those before it."""
        if self.coming is not None:
            return None
        staying = [side for job in self._running.values() for side in job.staying]
        for job in self._queue():
            if not self._resident(job):
                self.coming = self.residency.swap(job.sides, staying=dict.fromkeys(staying))
                break
            staying += job.sides
        return self.coming

    def swapped(self, swap: Swap, arrival: Arrival) -> None:
        """Take note of what came of a swap."""
        self.coming = None
        self.residency.arrived(swap, arrival)

    def waiting_for(self, sides: Iterable[Side]) -> list[Job]:
        """Return the sentences that wait for any of some sides."""
        wanted = set(sides)
        return [job for job in self._waiting.values() if wanted & set(job.sides)]

    def _queue(self) -> Iterator[Job]:
        """Yield the sentences whose turn it is."""
        return (job for job in self._waiting.values() if not self._alone or job.sides == self._direction)

    def _turn_to_next(self) -> None:
        if self._alone and self._waiting and not self._running and next(self._queue(), None) is None:
            self._direction = next(iter(self._waiting.values())).sides

    def _resident(self, job: Job) -> bool:
        return all(map(self.residency.resident, job.sides))
