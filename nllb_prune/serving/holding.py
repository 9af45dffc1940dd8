"""When sentences that may join do: a few at a time cost those in flight more than they gain."""

from __future__ import annotations

TURNS = 8
"""That nobody is held back longer than."""


class Holding:
    """Holds sentences back until there are enough.

    A join stops those in flight for about a step: the encoder and a pass of the decoder, over few rows. So those that
    could join are let in when they have lost as many steps together as the others would lose.
    """

    def __init__(self) -> None:
        self._lost = self._turns = 0

    def over(self, coming: int, in_flight: int) -> bool:
        """Return whether so many may join now; to be asked once a turn."""
        self._lost, self._turns = (self._lost + coming, self._turns + 1) if coming else (0, 0)
        if self._lost < in_flight and self._turns < TURNS:
            return False
        self._lost = self._turns = 0
        return True
