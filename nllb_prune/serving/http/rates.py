"""How often a client may come: a bucket of tokens each, that refills at a rate."""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from itertools import islice
from time import monotonic

from nllb_prune.errors import UsageError

_MINUTE = 60.0
_ROUNDING = 1e-6
"""Seconds that a client may be too early, as a clock's numbers are rounded."""
_LOOKED_AT = 8


class Rates:
    """Bucket of each client, of which only the time is kept when it is full again: one that is full is forgotten.

    Args:
        per_minute: Tokens that flow into a bucket, unless `take` says otherwise.
        burst: Tokens that a full bucket has; those of a minute by default.
        clients: Most buckets that are kept, however many come; then those of longest ago are forgotten, the fullest of
            them first.
        now: Clock, in seconds.

    Raises:
        UsageError: if a number is less than 1.
    """

    def __init__(
        self,
        per_minute: int,
        burst: int | None = None,
        now: Callable[[], float] = monotonic,
        *,
        clients: int = 100_000,
    ) -> None:
        for name, number in (("per_minute", per_minute), ("burst", burst), ("clients", clients)):
            if number is not None and number < 1:
                raise UsageError(f"`{name}` must be 1 or more, but is {number} instead.")
        self._per_minute, self._burst, self._now, self._most = per_minute, burst, now, clients
        self._full: OrderedDict[str, float] = OrderedDict()
        """When the bucket of each is full, in the order in which they took last."""

    def __len__(self) -> int:
        return len(self._full)

    def take(self, who: str, cost: float = 1, per_minute: int | None = None) -> float:
        """Take tokens; what costs more than a bucket holds needs a full one, and is owed.

        So in any time no more comes through than a burst and what flows in meanwhile, and what the last call costs
        beyond a burst, for which the client waits afterwards.

        Args:
            who: The client.
            cost: Tokens.
            per_minute: This client's own rate.

        Returns:
            0 if they are taken; else nothing is, and it is the seconds after which they could be.

        Raises:
            UsageError: if the rate is less than 1, or the cost is below 0.
        """
        rate = self._per_minute if per_minute is None else per_minute
        if rate < 1 or not 0 <= cost < math.inf:
            raise UsageError(f"`per_minute` must be 1 or more and `cost` 0 or more, but are {rate} and {cost} instead.")
        now, of_token = self._now(), _MINUTE / rate
        burst = rate if self._burst is None else self._burst
        full = max(now, self._full.get(who, now))
        wait = full - now - (burst - min(cost, burst)) * of_token
        if wait > _ROUNDING:
            return wait
        self._keep(who, full + cost * of_token, now)
        return 0.0

    def _keep(self, who: str, full: float, now: float) -> None:
        self._full[who] = full
        self._full.move_to_end(who)
        for oldest in list(islice(self._full, 2)):
            if self._full[oldest] <= now:
                del self._full[oldest]
        if len(self._full) > self._most:
            del self._full[min(islice(self._full, _LOOKED_AT), key=self._full.__getitem__)]
