"""What the collectors of all groups have in common: the calls they are told of, and how sums are added to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from torch import Tensor

from nllb_prune.calibration.tables import Table
from nllb_prune.model.routing import RoutedTokens
from nllb_prune.model.spec import Stack

PARTS = {"encoder": ("language", "inner", "end"), "decoder": ("start", "language", "inner", "end")}
"""Position classes that do not overlap; a decoder's `text` is `inner` and `end` together."""


@dataclass(frozen=True, slots=True)
class Call:
    """What one sparse layer did with the tokens of one call."""

    layer: int
    routed: RoutedTokens
    parts: Tensor
    """Index into `PARTS` of each token ``(tokens,)``."""
    ids: Tensor
    """What each position read ``(tokens,)``."""

    @property
    def experts(self) -> int:
        """Experts of the layer."""
        return self.routed.probabilities.shape[1]

    def cells(self, chosen: Tensor) -> Tensor:
        """Return part x experts + expert, for one expert a token ``(tokens,)``."""
        return self.parts * self.experts + chosen


class Collector(Protocol):
    """Adds up one group for one stack."""

    wants_outputs: bool

    def observe(self, call: Call) -> None:
        """Take note of a call."""

    def observe_outputs(self, call: Call, values: Tensor, order: Tensor) -> Tensor:
        """Take note of the experts' outputs and return them; as `Observer.observe_outputs`."""

    def table(self) -> Table:
        """Return the sums so far; arrays by position class have the axis `PARTS` in its place."""

    def state(self) -> dict[str, Tensor]:
        """Return the tensors that tell how far it is, which `restore` takes."""

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from a state of such a collector."""


def by_part(stack: Stack) -> tuple[int, int, int]:
    """Return the shape of sums by position class, layer and expert."""
    return len(PARTS[stack.name]), len(stack.layers), stack.experts


def as_numpy(tensor: Tensor) -> np.ndarray:
    """Return an array in main memory."""
    return tensor.cpu().numpy()


def refill(tensors: Mapping[str, Tensor], state: Mapping[str, Tensor]) -> None:
    """Copy a state into the tensors it was taken from, or those of another collector like it."""
    for name, tensor in tensors.items():
        tensor.copy_(state[name])


def add_by_cell(sums: Tensor, cell: Tensor, weights: Tensor | None) -> None:
    """Add weights, or ones, to the sums of their cells."""
    # (parts, experts) += sums of `weights` by cell; bincount adds in the order of the tokens
    sums += cell.bincount(weights, minlength=sums.numel()).view_as(sums)
