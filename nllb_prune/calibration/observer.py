"""Adds up, on the device, what the sparse layers do, kept apart by position class."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from nllb_prune.calibration.statistics import CLASSES, Table
from nllb_prune.model.routing import RoutedTokens
from nllb_prune.model.spec import ModelSpec, Stack

PARTS = {"encoder": ("language", "inner", "end"), "decoder": ("start", "language", "inner", "end")}
"""Classes that do not overlap; a decoder's `text` is `inner` and `end` together."""

_SUMS = ("first", "second", "p_first", "p_second", "p_all", "gate")
_COUNTS = ("first", "second")


class StatisticsObserver:
    """Collects the sums of `ExpertStatistics` for one table of each stack.

    Set `classes[stack]` to the class of every position of the next call, an index into `PARTS`,
    ``(rows, length)``, before making it.
    """

    def __init__(self, spec: ModelSpec, *, device: torch.device | str = "cpu") -> None:
        self._stacks = {stack.name: stack for stack in spec.stacks}
        self.classes: dict[str, Tensor] = {}
        self._sums = {stack.name: _zeros(stack, device) for stack in spec.stacks}
        self._tokens = {s.name: torch.zeros(len(PARTS[s.name]), dtype=torch.int64, device=device) for s in spec.stacks}

    def observe(self, stack: str, layer: int, routed: RoutedTokens) -> None:
        """Add a call of a sparse layer."""
        part = self.classes[stack].flatten()
        part = part if routed.positions is None else part[routed.positions]
        experts = routed.probabilities.shape[1]
        sums = {name: tensor[:, layer] for name, tensor in self._sums[stack].items()}
        probabilities = routed.probabilities.double()
        for rank, (count, mass) in enumerate((("first", "p_first"), ("second", "p_second"))):
            chosen = routed.chosen[:, rank]
            cell = part * experts + chosen
            ranked = probabilities.gather(1, chosen.unsqueeze(1)).squeeze(1)
            _add(sums[count], cell, None)
            _add(sums[mass], cell, ranked)
        sums["p_all"] += torch.zeros_like(sums["p_all"]).index_add_(0, part, probabilities)
        for rank in range(routed.chosen.shape[1]):
            _add(sums["gate"], part * experts + routed.chosen[:, rank], routed.gates[:, rank].double())
        if layer == 0:
            self._tokens[stack] += part.bincount(minlength=len(PARTS[stack]))

    def tables(self) -> dict[str, Table]:
        """Return the sums so far by stack, classes in the order of `CLASSES`."""
        return {name: self._table(name) for name in self._stacks}

    def _table(self, stack: str) -> Table:
        members = _members(stack)
        table: Table = {"tokens": np.stack([self._tokens[stack].cpu().numpy()[m].sum(0) for m in members])}
        for name, tensor in self._sums[stack].items():
            array = tensor.cpu().numpy()
            table[name] = np.stack([array[m].sum(0) for m in members])
        return table


def _zeros(stack: Stack, device: torch.device | str) -> dict[str, Tensor]:
    shape = (len(PARTS[stack.name]), len(stack.layers), stack.experts)
    return {
        name: torch.zeros(shape, dtype=torch.int64 if name in _COUNTS else torch.float64, device=device)
        for name in _SUMS
    }


def _members(stack: str) -> list[list[int]]:
    """Return, for each class of `CLASSES`, the parts it consists of."""
    parts = PARTS[stack]
    consists = {"all": parts, "text": ("inner", "end") if stack == "decoder" else ("inner",)}
    return [[parts.index(part) for part in consists.get(name, (name,))] for name in CLASSES[stack]]


def _add(sums: Tensor, cell: Tensor, weights: Tensor | None) -> None:
    # (parts, experts) += sums of `weights` by cell; bincount adds in the order of the tokens
    sums += cell.bincount(weights, minlength=sums.numel()).view_as(sums)
