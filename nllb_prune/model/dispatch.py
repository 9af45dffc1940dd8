"""Tokens go to the slots of the experts that they chose, and come back as weighted sums: what all banks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, Protocol

import torch
from torch import Tensor

Tap = Callable[[Tensor, Tensor], Tensor]
"""(outputs sorted by expert ``(choices, d_model)``, their places among the flattened choices) -> the outputs."""


class Used(NamedTuple):
    """The slots that a call runs, how many rows each gets, and the slot of each row, sorted."""

    slots: list[int]
    rows: list[int]
    slot_of_row: Tensor


class Project(Protocol):
    """Multiplies by the experts' first or second matrices and adds their biases."""

    def __call__(self, number: Literal[1, 2], rows: Tensor, used: Used) -> Tensor:
        """Return ``(rows, out)`` of rows ``(rows, in)`` that are sorted by slot."""


def slot_table(expert_ids: Sequence[int], *, experts: int, device: torch.device | str | None) -> Tensor:
    """Return the slot of each expert ``(experts,)``, -1 where it has none."""
    table = torch.full((experts,), -1, dtype=torch.int64, device=device)
    table[list(expert_ids)] = torch.arange(len(expert_ids), dtype=torch.int64, device=device)
    return table


def dispatch(
    tokens: Tensor,
    chosen: Tensor,
    gates: Tensor,
    *,
    slots: int,
    project: Project,
    activation: Callable[[Tensor], Tensor],
    scale: float,
    tap: Tap | None,
) -> Tensor:
    """Run each token through its experts and add their weighted outputs up.

    Tokens are sorted by expert, so that each expert that is chosen at all runs once.

    Args:
        tokens: Inputs ``(tokens, d_model)``.
        chosen: Slots of the experts ``(tokens, top_k)``.
        gates: Combining weights ``(tokens, top_k)``.
        slots: How many there are.
        project: The experts' matrices.
        activation: Between them.
        scale: Factor on every expert's output.
        tap: Sees the outputs before they are scaled and weighted, and returns them.

    Returns:
        ``(tokens, d_model)``
    """
    top_k, slot = chosen.shape[1], chosen.flatten()
    order = slot.argsort(stable=True)  # (tokens * top_k,)
    counts = slot.bincount(minlength=slots).tolist()
    used = Used([n for n, count in enumerate(counts) if count], [count for count in counts if count], slot[order])
    if not used.slots:
        return torch.zeros_like(tokens)
    outputs = project(2, activation(project(1, tokens[order // top_k], used)), used)
    if tap is not None:
        outputs = tap(outputs, order)
    # the order of these roundings is that of transformers 4.57.6, which matters in half precision
    weighted = outputs.mul_(scale)
    weighted = weighted.mul_(gates.flatten()[order].unsqueeze(1))
    # (tokens * top_k, D) by expert -> (tokens, top_k, D) by token
    by_token = torch.empty_like(weighted).index_copy_(0, order, weighted)
    return by_token.view(-1, top_k, tokens.shape[1]).sum(1)
