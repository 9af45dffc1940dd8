"""Which sentences join, and which language sides are brought in for those that cannot: policy without a model.

Sentences whose experts are in memory join first, in the order in which they came. When others wait, the sides of the
group that has waited longest in sum, for each expert that must be brought in, come next (longest wait first, Dykeman,
Ammar and Wong 1986), and do not push out what sentences that could join still need. A sentence that has waited for
`patience` seconds, and twice as long as those that joined lately, is overdue: its sides come next, and until they are
in nobody joins who would stand in their way. The second condition is for times of overload, when everybody waits long:
to take sentences in the order in which they came would then take a swap for nearly each of them.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from heapq import merge, nlargest

from nllb_prune.serving.jobs import Job
from nllb_prune.serving.residency import Arrival, Residency, Side, Swap

_CANDIDATES = 64
"""Groups that are looked at for a swap, those with the most waiting in sum."""
_TIMES = 2.0
"""As long as others waited makes overdue."""
_MEMORY = 0.95
"""Weight of the past in what others waited, a sentence."""


@dataclass(slots=True)
class _Group:
    """Sentences that wait for the same sides."""

    sides: tuple[Side, ...]
    jobs: dict[int, Job] = field(default_factory=dict)
    arrivals: float = 0.0
    """Sum over the jobs."""

    def waited(self, now: float) -> float:
        """Return the seconds that its jobs have waited in sum."""
        return len(self.jobs) * now - self.arrivals

    def oldest(self) -> Job:
        return next(iter(self.jobs.values()))


class Scheduler:
    """The sentences that wait, and the sides that the ones being translated need.

    Args:
        residency: The experts that are in memory.
        patience: Seconds after which a sentence is overdue, unless all wait long.
    """

    def __init__(self, residency: Residency, *, patience: float) -> None:
        self.residency, self.patience = residency, patience
        self._groups: dict[tuple[Side, ...], _Group] = {}
        self._running: dict[int, Job] = {}
        self._in_use: Counter[Side] = Counter()
        self._coming: Swap | None = None
        self._usual = 0.0  # seconds that those who joined lately had waited

    def __len__(self) -> int:
        """Return how many sentences wait."""
        return sum(len(group.jobs) for group in self._groups.values())

    @property
    def coming(self) -> Swap | None:
        """The swap that is under way."""
        return self._coming

    def add(self, job: Job) -> None:
        """Let a sentence wait."""
        group = self._groups.setdefault(job.sides, _Group(job.sides))
        group.jobs[job.key] = job
        group.arrivals += job.arrived

    def joinable(self, now: float) -> Iterator[Job]:
        """Yield the sentences that may join, the oldest first; `joined` is told of them when all are chosen."""
        blocked = self._first_overdue(now)
        resident = (group for group in self._groups.values() if self._resident(group))
        yield from merge(*(self._allowed(group, blocked) for group in resident), key=lambda job: job.key)

    def _allowed(self, group: _Group, blocked: Job | None) -> Iterable[Job]:
        """Return the sentences of a group that stand in nobody's way; older ones than the first overdue never do."""
        jobs = group.jobs.values()
        if blocked is None or self.residency.fits([*blocked.sides, *group.sides, *self._in_use]):
            return jobs
        return [job for job in jobs if job.key < blocked.key]

    @property
    def overdue_after(self) -> float:
        """Seconds of waiting after which a sentence is overdue now."""
        return max(self.patience, _TIMES * self._usual)

    def joined(self, jobs: Sequence[Job], now: float) -> None:
        """Take note that sentences are being translated now."""
        sides = dict.fromkeys(side for job in jobs for side in job.sides)
        assert all(map(self.residency.resident, sides)), "what joins has its experts"
        for job in jobs:
            self._forget(job)
            self._running[job.key] = job
            self._usual = _MEMORY * self._usual + (1 - _MEMORY) * (now - job.arrived)
            self._in_use.update(job.staying)
        self.residency.touch(sides)

    def left(self, key: int) -> Job | None:
        """Take note that a sentence is finished or not wanted any more, waiting or not; return it."""
        job = self._running.pop(key, None)
        if job is None:
            return self._cancelled(key)
        self._in_use.subtract(job.staying)
        for side in job.staying:
            if not self._in_use[side]:
                del self._in_use[side]
        return job

    def next_swap(self, now: float) -> Swap | None:
        """Return the swap to start now, if there is one; `swapped` must be told of its end before the next."""
        if self._coming is not None:
            return None
        overdue = self._first_overdue(now)
        if overdue is not None:
            self._coming = self._bring(overdue.sides, keep=self._wanted(before=overdue.key)) or self._bring(
                overdue.sides
            )
        else:
            keep = self._wanted()
            for group in self._most_wanted(now):
                self._coming = self._bring(group.sides, keep=keep)
                if self._coming is not None:
                    break
        return self._coming

    def swapped(self, swap: Swap, arrival: Arrival) -> None:
        """Take note of what came of a swap."""
        assert swap is self._coming, "one swap at a time"
        self._coming = None
        self.residency.arrived(swap, arrival)

    def waiting_for(self, sides: Iterable[Side]) -> list[Job]:
        """Return the sentences that wait for any of some sides."""
        wanted = set(sides)
        return [job for group in self._groups.values() if wanted & set(group.sides) for job in group.jobs.values()]

    def _bring(self, sides: tuple[Side, ...], *, keep: Iterable[Side] = ()) -> Swap | None:
        return self.residency.swap(sides, staying=[*self._in_use, *keep])

    def _most_wanted(self, now: float) -> Iterator[_Group]:
        """Yield groups whose sides are not in, those first that have waited most for each expert to bring in."""
        absent = [group for group in self._groups.values() if not self._resident(group)]
        longest = nlargest(_CANDIDATES, absent, key=lambda group: (group.waited(now), -group.oldest().key))
        gain = {group.sides: group.waited(now) / self.residency.missing(group.sides) for group in longest}
        yield from sorted(longest, key=lambda group: (-gain[group.sides], group.oldest().key))

    def _wanted(self, *, before: int | None = None) -> list[Side]:
        """Return the sides, all in, that sentences still wait to join with: all, or those that came before another."""
        groups = (group for group in self._groups.values() if before is None or group.oldest().key < before)
        return list(dict.fromkeys(side for group in groups if self._resident(group) for side in group.sides))

    def _first_overdue(self, now: float) -> Job | None:
        """Return the oldest sentence that is overdue and whose sides are not in."""
        late = [group.oldest() for group in self._groups.values() if not self._resident(group)]
        late = [job for job in late if now - job.arrived >= self.overdue_after]
        return min(late, key=lambda job: job.key, default=None)

    def _resident(self, group: _Group) -> bool:
        return all(map(self.residency.resident, group.sides))

    def _forget(self, job: Job) -> None:
        group = self._groups[job.sides]
        del group.jobs[job.key]
        group.arrivals -= job.arrived
        if not group.jobs:
            del self._groups[job.sides]

    def _cancelled(self, key: int) -> Job | None:
        for group in self._groups.values():
            if key in group.jobs:
                job = group.jobs[key]
                self._forget(job)
                return job
        return None
