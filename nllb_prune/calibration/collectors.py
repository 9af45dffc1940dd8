"""Collectors: each adds up one group of fields of one stack, on the device, from what the sparse layers tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from nllb_prune.calibration.tables import SAMPLES, Table
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


class _Routing:
    """What collectors have in common that do not look at outputs."""

    wants_outputs = False

    def observe_outputs(self, call: Call, values: Tensor, order: Tensor) -> Tensor:
        return values


class _Outputs:
    """What collectors have in common that look at outputs alone."""

    wants_outputs = True

    def observe(self, call: Call) -> None:
        return


class Core(_Routing):
    """Tokens, ranks, probabilities and combining weights."""

    def __init__(self, stack: Stack, device: torch.device | str) -> None:
        shape = _by_part(stack)
        self.tokens = torch.zeros(shape[0], dtype=torch.int64, device=device)
        self.counts = {name: torch.zeros(shape, dtype=torch.int64, device=device) for name in _CORE_COUNTS}
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name in _CORE_SUMS}

    def observe(self, call: Call) -> None:
        """Add a call."""
        routed, layer = call.routed, call.layer
        probabilities = routed.probabilities.double()
        for rank, name in enumerate(("first", "second")[: routed.chosen.shape[1]]):
            chosen = routed.chosen[:, rank]
            cells = call.cells(chosen)
            _add(self.counts[name][:, layer], cells, None)
            _add(self.sums[f"p_{name}"][:, layer], cells, probabilities.gather(1, chosen.unsqueeze(1)).squeeze(1))
        for rank in range(routed.chosen.shape[1]):
            _add(self.sums["gate"][:, layer], call.cells(routed.chosen[:, rank]), routed.gates[:, rank].double())
        self._add_all_experts(call, probabilities)
        if layer == 0:
            self.tokens += call.parts.bincount(minlength=len(self.tokens))

    def _add_all_experts(self, call: Call, probabilities: Tensor) -> None:
        """Add the probability and the rank of every expert."""
        parts, experts = len(self.tokens), call.experts
        member = torch.nn.functional.one_hot(call.parts, parts).double().T  # (parts, tokens)
        self.sums["p_all"][:, call.layer] += member @ probabilities
        best_last = ascending(call.routed.probabilities)  # (tokens, experts)
        place = torch.arange(experts, device=best_last.device)
        cells = (call.parts.unsqueeze(1) * experts + place) * experts + best_last
        counts = cells.flatten().bincount(minlength=parts * experts * experts).view(parts, experts, experts)
        self.counts["rank"][:, call.layer] += (counts * (experts - place).unsqueeze(1)).sum(1)

    def table(self) -> Table:
        """Return the sums so far."""
        return {"tokens": _numpy(self.tokens)} | {n: _numpy(t) for n, t in (self.counts | self.sums).items()}


def ascending(probabilities: Tensor) -> Tensor:
    """Return the experts of each token by probability ``(tokens, experts)``, the best last; equal ones: lowest id last.

    Probability and id are sorted as one whole number: numpy does that thirty times faster than torch sorts floats.
    """
    ids = torch.arange(probabilities.shape[1] - 1, -1, -1, device=probabilities.device)
    # floats that are not negative order as their bits do
    keys = (probabilities.float().view(torch.int32).long() << _ID_BITS) | ids
    ordered = torch.from_numpy(np.sort(keys.numpy(), axis=1)) if keys.device.type == "cpu" else keys.sort(dim=1).values
    return probabilities.shape[1] - 1 - (ordered & ((1 << _ID_BITS) - 1))


_ID_BITS = 16
_CORE_COUNTS = ("first", "second", "rank")
_CORE_SUMS = ("p_first", "p_second", "p_all", "gate")


class Norms(_Outputs):
    """Norms of the outputs."""

    def __init__(self, stack: Stack, device: torch.device | str) -> None:
        shape = _by_part(stack)
        self.sums = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name in _NORM_SUMS}
        self.largest = {name: torch.zeros(shape, dtype=torch.float64, device=device) for name in _NORM_MAXIMA}

    @torch.no_grad()
    def observe_outputs(self, call: Call, values: Tensor, order: Tensor) -> Tensor:
        """Add a call."""
        top_k = call.routed.chosen.shape[1]
        cells = (call.parts.repeat_interleave(top_k) * call.experts + call.routed.chosen.flatten())[order]
        norm = torch.linalg.vector_norm(values, dim=1, dtype=torch.float32).double()
        weighted = norm * call.routed.gates.flatten()[order].double()
        for name, each in zip(_NORM_SUMS, (norm, weighted, weighted.square()), strict=True):
            _add(self.sums[name][:, call.layer], cells, each)
        for name, each in zip(_NORM_MAXIMA, (norm, values.abs().amax(dim=1).double()), strict=True):
            largest = self.largest[name][:, call.layer]
            largest.copy_(largest.flatten().scatter_reduce(0, cells, each, "amax").view_as(largest))
        return values

    def table(self) -> Table:
        """Return the sums and maxima so far."""
        return {name: _numpy(tensor) for name, tensor in (self.sums | self.largest).items()}


_NORM_SUMS = ("norm", "gate_norm", "gate_norm_squared")
_NORM_MAXIMA = ("norm_max", "activation_max")


class Vocabulary(_Routing):
    """Which token ids were routed to each expert."""

    def __init__(self, stack: Stack, device: torch.device | str, *, vocabulary: int) -> None:
        self.seen = torch.zeros(len(stack.layers), stack.experts, vocabulary, dtype=torch.bool, device=device)

    def observe(self, call: Call) -> None:
        """Add a call."""
        for chosen in call.routed.chosen.unbind(1):
            self.seen[call.layer, chosen, call.ids] = True

    def table(self) -> Table:
        """Return a bit for each id, the lowest id of a byte in its lowest bit."""
        return {"token_ids": np.packbits(_numpy(self.seen), axis=-1, bitorder="little")}


class CoSelection(_Routing):
    """Which two experts are chosen together."""

    def __init__(self, stack: Stack, device: torch.device | str) -> None:
        shape = (len(stack.layers), stack.experts, stack.experts)
        self.together = torch.zeros(shape, dtype=torch.int64, device=device)

    def observe(self, call: Call) -> None:
        """Add a call; where one expert runs for a token, none are chosen together."""
        if call.routed.chosen.shape[1] < 2:
            return
        pair = call.routed.chosen[:, 0] * call.experts + call.routed.chosen[:, 1]
        _add(self.together[call.layer], pair, None)

    def table(self) -> Table:
        """Return the counts so far."""
        return {"together": _numpy(self.together)}


class Dimensions(_Outputs):
    """Sums and squares of each dimension of the outputs."""

    def __init__(self, stack: Stack, device: torch.device | str, *, d_model: int) -> None:
        self.moments = _Moments(stack, device, d_model)

    def observe_outputs(self, call: Call, values: Tensor, order: Tensor) -> Tensor:
        """Add a call."""
        self.moments.add(call.layer, call.routed.chosen.flatten()[order], values)
        return values

    def table(self) -> Table:
        """Return the sums so far."""
        return {"output_sum": _numpy(self.moments.sums), "output_squared": _numpy(self.moments.squares)}


class Gradients(_Outputs):
    """Sums and squares of each dimension of the loss's gradient at the outputs; the caller goes backward."""

    def __init__(self, stack: Stack, device: torch.device | str, *, d_model: int) -> None:
        self.moments = _Moments(stack, device, d_model)

    def observe_outputs(self, call: Call, values: Tensor, order: Tensor) -> Tensor:
        """Add the gradient of a call when it comes."""
        expert = call.routed.chosen.flatten()[order]
        watched = values if values.requires_grad else values.requires_grad_()
        watched.register_hook(lambda gradient: self.moments.add(call.layer, expert, gradient))  # type: ignore[no-untyped-call]
        return watched.clone()  # what follows is computed in place

    def table(self) -> Table:
        """Return the sums so far."""
        return {"gradient_sum": _numpy(self.moments.sums), "gradient_squared": _numpy(self.moments.squares)}


class _Moments:
    """Sums and squares by layer, expert and dimension."""

    def __init__(self, stack: Stack, device: torch.device | str, d_model: int) -> None:
        shape = (len(stack.layers), stack.experts, d_model)
        self.sums = torch.zeros(shape, dtype=torch.float64, device=device)
        self.squares = torch.zeros(shape, dtype=torch.float64, device=device)

    def add(self, layer: int, expert: Tensor, rows: Tensor) -> None:
        """Add rows ``(rows, d_model)`` to their experts."""
        exact = rows.detach().double()
        self.sums[layer].index_add_(0, expert, exact)
        self.squares[layer].index_add_(0, expert, exact.square())


class Reservoir(_Routing):
    """Inputs of every layer at the tokens of lowest random priority."""

    def __init__(self, stack: Stack, device: torch.device | str, *, d_model: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.priorities = torch.empty(0, dtype=torch.int64)
        self.classes = torch.empty(0, dtype=torch.int64, device=device)
        self.inputs = [torch.empty(0, d_model, device=device) for _ in stack.layers]
        self.chosen = self.priorities

    def observe(self, call: Call) -> None:
        """Draw which tokens of a call to keep, at its first layer, and keep their inputs."""
        if call.layer == 0:
            drawn = torch.randint(2**62, (len(call.parts),), generator=self.generator)
            priorities = torch.cat([self.priorities, drawn])
            self.chosen = priorities.argsort(stable=True)[:SAMPLES]
            self.priorities = priorities[self.chosen]
            self.classes = torch.cat([self.classes, call.parts])[self.chosen.to(call.parts.device)]
        before = self.inputs[call.layer]
        self.inputs[call.layer] = torch.cat([before, call.routed.inputs.float()])[self.chosen.to(before.device)]

    def table(self) -> Table:
        """Return the sample so far, its classes as indices of `PARTS`."""
        return {
            "sample_priority": _numpy(self.priorities),
            "sample_class": _numpy(self.classes),
            "sample_inputs": _numpy(torch.stack(self.inputs, dim=1)),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """What collectors must know beside the stack."""

    vocabulary: int
    """Token ids."""
    d_model: int
    seed: int
    """Of the sample of `reservoir`."""


COLLECTORS: dict[str, Callable[[Stack, torch.device | str, Sizes], Collector]] = {
    "core": lambda stack, device, _: Core(stack, device),
    "norms": lambda stack, device, _: Norms(stack, device),
    "vocabulary": lambda stack, device, sizes: Vocabulary(stack, device, vocabulary=sizes.vocabulary),
    "coselection": lambda stack, device, _: CoSelection(stack, device),
    "dimensions": lambda stack, device, sizes: Dimensions(stack, device, d_model=sizes.d_model),
    "gradients": lambda stack, device, sizes: Gradients(stack, device, d_model=sizes.d_model),
    "reservoir": lambda stack, device, sizes: Reservoir(stack, device, d_model=sizes.d_model, seed=sizes.seed),
}
"""How each group is collected; `weights` needs no text."""


def _by_part(stack: Stack) -> tuple[int, int, int]:
    return len(PARTS[stack.name]), len(stack.layers), stack.experts


def _numpy(tensor: Tensor) -> np.ndarray:
    return tensor.cpu().numpy()


def _add(sums: Tensor, cell: Tensor, weights: Tensor | None) -> None:
    # (parts, experts) += sums of `weights` by cell; bincount adds in the order of the tokens
    sums += cell.bincount(weights, minlength=sums.numel()).view_as(sums)
