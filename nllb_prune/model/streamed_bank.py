"""The experts of one sparse layer, read one at a time when tokens are routed to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nllb_prune.model.expert_bank import ACTIVATIONS, Tap
from nllb_prune.model.linear import linear
from nllb_prune.model.streamed_weights import StreamedWeights

_ROWS = 4096
"""That go through an expert at a time: between its matrices each is as wide as a feed-forward layer."""


class StreamedBank(nn.Module):
    """Two-matrix experts of which one is in memory at a time; its contract is that of `ExpertBank`.

    Args:
        tensors: Names of the tensors of each expert that there is, by parameter of `ExpertBank`.
        experts: Experts E of the layer, there or not.
        activation: Between the two matrices.
        weights: Where they are read from.
    """

    def __init__(
        self,
        *,
        tensors: Mapping[int, Mapping[str, str]],
        experts: int,
        activation: str,
        weights: StreamedWeights,
    ) -> None:
        super().__init__()
        self.expert_ids, self.experts = tuple(tensors), experts
        self.tensors, self.weights = tensors, weights
        self.activation = ACTIVATIONS[activation]
        self.experts_read = 0
        """So far, one that was read twice counting twice."""
        self._deferred: list[StreamedCall] | None = None

    @property
    def complete(self) -> bool:
        """Whether every expert can be read."""
        return len(self.expert_ids) == self.experts

    @property
    def resident(self) -> Tensor:
        """Which experts can be read ``(experts,)``, boolean."""
        there = torch.zeros(self.experts, dtype=torch.bool, device=self.weights.device)
        there[list(self.expert_ids)] = True
        return there

    @property
    def stored_bytes(self) -> int:
        """What an expert takes in its file."""
        return self.weights.stored_bytes(self.tensors[self.expert_ids[0]])

    def forward(self, tokens: Tensor, chosen: Tensor, gates: Tensor, *, scale: float, tap: Tap | None = None) -> Tensor:
        """Run each token through its experts and add their weighted outputs up; see `ExpertBank.forward`.

        The tap is told of one expert after the other. Inside `deferred` the sum is zeros, and comes later.
        """
        call = StreamedCall(tokens, chosen, gates, scale, tap)
        if self._deferred is not None:
            self._deferred.append(call)
            return torch.zeros_like(tokens)
        return self.run([call])[0]

    @contextmanager
    def deferred(self) -> Iterator[list[StreamedCall]]:
        """Take note of calls instead of running them; `run` runs them together, so that each expert is read once."""
        calls: list[StreamedCall] = []
        self._deferred = calls
        try:
            yield calls
        finally:
            self._deferred = None

    def run(self, calls: Sequence[StreamedCall]) -> list[Tensor]:
        """Run calls together and return the sum of each ``(tokens, d_model)``."""
        dispatched = [_Dispatched(call, self.experts) for call in calls]
        for expert in sorted({expert for each in dispatched for expert in each.used}):
            self._run_expert(expert, [each for each in dispatched if expert in each.used])
        return [each.output for each in dispatched]

    def _run_expert(self, expert: int, calls: Sequence[_Dispatched]) -> None:
        matrices = self.weights.tensors(self.tensors[expert])
        self.experts_read += 1
        for group in _grouped(calls, expert):
            parts = [each.inputs(expert) for each in group]
            hidden = self.activation(linear(torch.cat(parts), matrices["fc1_weight"], matrices["fc1_bias"]))
            outputs = linear(hidden, matrices["fc2_weight"], matrices["fc2_bias"])
            for each, part in zip(group, torch.split_with_sizes(outputs, [len(part) for part in parts]), strict=True):
                each.add(expert, part)


@dataclass(frozen=True, slots=True)
class StreamedCall:
    """The arguments of `StreamedBank.forward`."""

    tokens: Tensor
    chosen: Tensor
    gates: Tensor
    scale: float
    tap: Tap | None


class _Dispatched:
    """The choices of a call, sorted by expert."""

    def __init__(self, call: StreamedCall, experts: int) -> None:
        self.call, self.output = call, torch.zeros_like(call.tokens)
        flat = call.chosen.flatten()
        order, counts = flat.argsort(stable=True), flat.bincount(minlength=experts).tolist()
        self.used = {
            expert: choices for expert, choices in enumerate(torch.split_with_sizes(order, counts)) if len(choices)
        }  # places among the flattened choices, by expert

    def inputs(self, expert: int) -> Tensor:
        """Return what an expert is given ``(choices, d_model)``."""
        return self.call.tokens[self.used[expert] // self.call.chosen.shape[1]]

    def add(self, expert: int, outputs: Tensor) -> None:
        """Add what an expert made of it."""
        call, choices = self.call, self.used[expert]
        if call.tap is not None:
            outputs = call.tap(outputs, choices)
        # rounded in the order of `ExpertBank`; a sum of two is the same in either order
        weighted = (outputs * call.scale).mul_(call.gates.flatten()[choices].unsqueeze(1))
        self.output.index_add_(0, choices // call.chosen.shape[1], weighted)


def _grouped(calls: Sequence[_Dispatched], expert: int) -> list[list[_Dispatched]]:
    """Put calls together as long as an expert has not too many rows; one that has more goes alone."""
    groups: list[list[_Dispatched]] = []
    rows = 0
    for each in calls:
        rows += len(each.used[expert])
        if not groups or rows > _ROWS:
            groups.append([])
            rows = len(each.used[expert])
        groups[-1].append(each)
    return groups
