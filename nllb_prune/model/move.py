"""`Move`: an expert that is to be copied into a slot of its layer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Move:
    """An expert to be copied into a slot."""

    stack: str
    layer: int
    """Number of the sparse layer in its stack."""
    slot: int
    expert: int
    leaves: int | None = None
    """Expert that is in the slot until then."""
