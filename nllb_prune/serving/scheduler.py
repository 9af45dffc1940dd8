"""Which sentences join, and which language sides are brought in for those that cannot: policy without a model.

Sentences whose experts are in memory join first, in the order in which they came. When others wait, the sides of the
group that has waited longest in sum, for each expert that must be brought in, come next (longest wait first, Dykeman,
Ammar and Wong 1986), and do not push out what sentences that could join still need. A sentence that has waited for
`patience` seconds, and twice as long as those that joined lately, is overdue: its sides come next, and until they are
in nobody joins who would stand in their way. The second condition is for times of overload, when everybody waits long:
to take sentences in the order in which they came would then take a swap for nearly each of them.
"""

from __future__ import annotations

from collections import Counter, deque
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
        self.ahead: deque[Side] = deque()
        """Sides to bring in before anybody waits for them, when nobody waits for others."""
        self._groups: dict[tuple[Side, ...], _Group] = {}
        self._running: dict[int, Job] = {}
        self._in_use: Counter[Side] = Counter()
        self._coming: Swap | None = None
        self._usual = 0.0  # seconds that those who joined lately had waited
        self._waiting: dict[int, Job] = {}  # in the order in which they came
        self._split: tuple[list[_Group], list[_Group]] | None = None  # see `_here_and_absent`
        self._stuck = False  # nothing could be brought in, and nothing has changed since

    def __len__(self) -> int:
        """Return how many sentences wait."""
        return len(self._waiting)

    @property
    def coming(self) -> Swap | None:
        """The swap that is under way."""
        return self._coming

    def add(self, job: Job) -> None:
        """Let a sentence wait."""
        if job.sides not in self._groups:
            self._groups[job.sides] = _Group(job.sides)
            self._changed()
        group = self._groups[job.sides]
        self._waiting[job.key] = group.jobs[job.key] = job
        group.arrivals += job.arrived

    def waiting(self) -> list[Job]:
        """Return the sentences that wait, in the order in which they came."""
        return list(self._waiting.values())

    def go_on(self, residency: Residency, jobs: Iterable[Job], *, ahead: Iterable[Side]) -> None:
        """Go on with other sides and slots, while nobody is being translated.

        Args:
            residency: Of the new sides.
            jobs: The sentences that wait, as they need the new sides.
            ahead: What to bring in when nobody waits for others.
        """
        assert not self._running, "those who are being translated need the old sides"
        assert self._coming is None, "what comes belongs to the old sides"
        self.residency, self.ahead = residency, deque(ahead)
        self._groups, self._waiting = {}, {}
        self._changed()
        for job in jobs:
            self.add(job)

    def joinable(self, now: float) -> Iterator[Job]:
        """Yield the sentences that may join, the oldest first; `joined` is told of them when all are chosen."""
        blocked = self._first_overdue(now)
        resident, _ = self._here_and_absent()
        allowed = [group.jobs.values() for group in resident] if blocked is None else self._beside(blocked, resident)
        yield from merge(*allowed, key=lambda job: job.key)

    def _beside(self, blocked: Job, groups: list[_Group]) -> Iterator[Iterable[Job]]:
        """Yield the sentences of each group that stand in nobody's way; older ones than the first overdue never do.

        Of the others, groups are let in one after the other, as long as all of them leave room together.
        """
        staying = {*blocked.sides, *self._in_use}  # an encoder's experts may leave as soon as a sentence has joined
        for group in sorted(groups, key=lambda group: group.oldest().key):
            more = staying.union(group.oldest().staying)
            if self.residency.fits(more):
                staying = more
                yield group.jobs.values()
            else:
                yield [job for job in group.jobs.values() if job.key < blocked.key]

    @property
    def overdue_after(self) -> float:
        """Seconds of waiting after which a sentence is overdue now."""
        return max(self.patience, _TIMES * self._usual)

    def joined(self, jobs: Sequence[Job], now: float) -> None:
        """Take note that sentences are being translated now."""
        sides = dict.fromkeys(side for job in jobs for side in job.sides)
        assert not self.residency.missing(sides), "what joins has its experts"
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
        self.residency.touch(job.staying)
        for side in job.staying:
            if not self._in_use[side]:
                del self._in_use[side]
                self._stuck = False
        return job

    def next_swap(self, now: float) -> Swap | None:
        """Return the swap to start now, if there is one; `swapped` must be told of its end before the next."""
        if self._coming is not None:
            return None
        overdue = self._first_overdue(now)
        if overdue is not None:
            self._coming = self._bring(overdue.sides, keep=self._wanted(before=overdue.key))
        elif not self._stuck:
            self._coming = self._bring_most_wanted(now) or self._bring_ahead()
            self._stuck = self._coming is None
        if self._coming is not None:
            self._changed()
        return self._coming

    def _bring_most_wanted(self, now: float) -> Swap | None:
        keep = self._wanted()
        found = (self._bring(group.sides, keep=keep) for group in self._most_wanted(now))
        return next((swap for swap in found if swap is not None), None)

    def _bring_ahead(self) -> Swap | None:
        while self.ahead and self.residency.resident(self.ahead[0]):
            self.ahead.popleft()
        if not self.ahead:
            return None
        swap = self._bring((self.ahead[0],), keep=self._wanted())
        if swap is not None:
            self.ahead.popleft()  # if it does not come, it does when somebody waits for it
        return swap

    def swapped(self, swap: Swap, arrival: Arrival) -> None:
        """Take note of what came of a swap."""
        assert swap is self._coming, "one swap at a time"
        self._coming = None
        self.residency.arrived(swap, arrival)
        self._changed()

    def waiting_for(self, sides: Iterable[Side]) -> list[Job]:
        """Return the sentences that wait for any of some sides."""
        wanted = set(sides)
        return [job for group in self._groups.values() if wanted & set(group.sides) for job in group.jobs.values()]

    def _bring(self, sides: tuple[Side, ...], *, keep: Iterable[Side] = ()) -> Swap | None:
        return self.residency.swap(sides, staying=[*self._in_use, *keep])

    def _most_wanted(self, now: float) -> Iterator[_Group]:
        """Yield groups whose sides are not in, those first that have waited most for each expert to bring in."""
        _, absent = self._here_and_absent()
        longest = nlargest(_CANDIDATES, absent, key=lambda group: (group.waited(now), -group.oldest().key))
        gain = {group.sides: group.waited(now) / self.residency.missing(group.sides) for group in longest}
        yield from sorted(longest, key=lambda group: (-gain[group.sides], group.oldest().key))

    def _wanted(self, *, before: int | None = None) -> list[Side]:
        """Return the sides, all in, that sentences still wait to join with: all, or those that came before another."""
        here, _ = self._here_and_absent()
        groups = (group for group in here if before is None or group.oldest().key < before)
        return list(dict.fromkeys(side for group in groups for side in group.sides))

    def _first_overdue(self, now: float) -> Job | None:
        """Return the oldest sentence that is overdue and whose sides are not in."""
        late = now - self.overdue_after
        for job in self._waiting.values():
            if job.arrived > late:
                return None
            if not all(map(self.residency.resident, job.sides)):
                return job
        return None

    def _here_and_absent(self) -> tuple[list[_Group], list[_Group]]:
        """Return the groups whose sides are all in, and the others; both are looked up anew only after a change."""
        if self._split is None:
            self._split = [], []
            for group in self._groups.values():
                self._split[not self._resident(group)].append(group)
        return self._split

    def _changed(self) -> None:
        self._split, self._stuck = None, False

    def _resident(self, group: _Group) -> bool:
        return all(map(self.residency.resident, group.sides))

    def _forget(self, job: Job) -> None:
        group = self._groups[job.sides]
        del group.jobs[job.key], self._waiting[job.key]
        group.arrivals -= job.arrived
        if not group.jobs:
            del self._groups[job.sides]
            self._changed()

    def _cancelled(self, key: int) -> Job | None:
        job = self._waiting.get(key)
        if job is not None:
            self._forget(job)
        return job
