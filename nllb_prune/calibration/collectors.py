"""Collectors of the routing: each adds up one group of fields of one stack, on the device; and the list of all."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from nllb_prune.calibration.calls import PARTS, Call, Collector, add_by_cell, as_numpy, by_part, refill
from nllb_prune.calibration.output_collectors import Dimensions, Gradients, Norms
from nllb_prune.calibration.tables import SAMPLES, Table
from nllb_prune.model.spec import Stack

__all__ = ["COLLECTORS", "PARTS", "Call", "Collector", "Core", "Sizes"]


class _Routing:
    """What collectors have in common that do not look at outputs."""

    wants_outputs = False

    def observe_outputs(self, call: Call, values: Tensor, order: Tensor) -> Tensor:
        return values


class Core(_Routing):
    """Tokens, ranks, probabilities and combining weights."""

    def __init__(self, stack: Stack, device: torch.device | str) -> None:
        shape = by_part(stack)
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
            add_by_cell(self.counts[name][:, layer], cells, None)
            add_by_cell(
                self.sums[f"p_{name}"][:, layer], cells, probabilities.gather(1, chosen.unsqueeze(1)).squeeze(1)
            )
        for rank in range(routed.chosen.shape[1]):
            add_by_cell(self.sums["gate"][:, layer], call.cells(routed.chosen[:, rank]), routed.gates[:, rank].double())
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
        return {"tokens": as_numpy(self.tokens)} | {n: as_numpy(t) for n, t in (self.counts | self.sums).items()}

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return {"tokens": self.tokens, **self.counts, **self.sums}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from other sums."""
        refill(self.state(), state)


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
        return {"token_ids": np.packbits(as_numpy(self.seen), axis=-1, bitorder="little")}

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return {"seen": self.seen}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from other sums."""
        refill(self.state(), state)


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
        add_by_cell(self.together[call.layer], pair, None)

    def table(self) -> Table:
        """Return the counts so far."""
        return {"together": as_numpy(self.together)}

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return {"together": self.together}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from other sums."""
        refill(self.state(), state)


class Reservoir(_Routing):
    """Inputs of every layer at the tokens of lowest random priority.

    Each layer draws anew, from the same seed: they keep the same tokens, whether batches pass layer by layer or each
    passes all layers.
    """

    def __init__(self, stack: Stack, device: torch.device | str, *, d_model: int, seed: int) -> None:
        self.layers = [_Sample(device, d_model=d_model, seed=seed) for _ in stack.layers]

    def observe(self, call: Call) -> None:
        """Draw which tokens of a call to keep, and keep their inputs."""
        self.layers[call.layer].draw(call.parts, call.routed.inputs.float())

    def table(self) -> Table:
        """Return the sample so far, its classes as indices of `PARTS`."""
        return {
            "sample_priority": as_numpy(self.layers[0].priorities),
            "sample_class": as_numpy(self.layers[0].classes),
            "sample_inputs": as_numpy(torch.stack([sample.inputs for sample in self.layers], dim=1)),
        }

    def state(self) -> dict[str, Tensor]:
        """Return the samples so far, and what is drawn next."""
        states = (sample.state() for sample in self.layers)
        return {f"{layer}/{name}": tensor for layer, each in enumerate(states) for name, tensor in each.items()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from other samples."""
        for layer, sample in enumerate(self.layers):
            sample.restore({name: state[f"{layer}/{name}"] for name in sample.state()})


class _Sample:
    """The inputs of one layer."""

    def __init__(self, device: torch.device | str, *, d_model: int, seed: int) -> None:
        self.generator = torch.Generator().manual_seed(seed)
        self.priorities = torch.empty(0, dtype=torch.int64)
        self.classes = torch.empty(0, dtype=torch.int64, device=device)
        self.inputs = torch.empty(0, d_model, device=device)

    def draw(self, parts: Tensor, inputs: Tensor) -> None:
        """Keep those of lowest priority among what is kept and new tokens."""
        drawn = torch.randint(2**62, (len(parts),), generator=self.generator)
        priorities = torch.cat([self.priorities, drawn])
        lowest = priorities.argsort(stable=True)[:SAMPLES]
        self.priorities, here = priorities[lowest], lowest.to(parts.device)
        self.classes = torch.cat([self.classes, parts])[here]
        self.inputs = torch.cat([self.inputs, inputs])[here]

    def state(self) -> dict[str, Tensor]:
        """Return all of it."""
        kept = {"priorities": self.priorities, "classes": self.classes, "inputs": self.inputs}
        return kept | {"generator": self.generator.get_state()}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Become another."""
        device = self.inputs.device
        self.priorities = state["priorities"]
        self.classes, self.inputs = state["classes"].to(device), state["inputs"].to(device)
        self.generator.set_state(state["generator"])


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
