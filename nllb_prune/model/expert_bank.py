"""The experts of one sparse layer as stacked tensors: slots, and which expert sits in which slot."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from nllb_prune.model.dispatch import Tap, Used, dispatch, slot_table
from nllb_prune.model.linear import large, linear

__all__ = ["ACTIVATIONS", "PARAMETERS", "ExpertBank", "Tap"]

PARAMETERS = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": functional.relu,
    "gelu": functional.gelu,
    "silu": functional.silu,
}


class ExpertBank(nn.Module):
    """Two-matrix experts in S slots; S is E when all are resident, fewer when a model is pruned or its experts paged.

    Args:
        expert_ids: Expert in each slot, ascending.
        experts: Experts E of the layer, resident or not.
        d_model: Width of the model D.
        ffn: Width of an expert F.
        activation: Between the two matrices: `relu`, `gelu` or `silu`.
        slots: Slots S of a bank whose experts come and go, all empty at first, without `expert_ids`; `slot_of` says
            which are there.
    """

    slot_of: Tensor

    def __init__(
        self,
        *,
        expert_ids: Sequence[int],
        experts: int,
        d_model: int,
        ffn: int,
        activation: str = "relu",
        slots: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.expert_ids, self.paged = tuple(expert_ids), slots is not None
        self.slots = slots = len(self.expert_ids) if slots is None else slots
        self.experts = experts
        self.activation = ACTIVATIONS[activation]

        def empty(*shape: int) -> nn.Parameter:
            return nn.Parameter(torch.empty(*shape, dtype=dtype, device=device), requires_grad=False)

        self.fc1_weight = empty(slots, ffn, d_model)
        self.fc1_bias = empty(slots, ffn)
        self.fc2_weight = empty(slots, d_model, ffn)
        self.fc2_bias = empty(slots, d_model)
        slot_of = slot_table(self.expert_ids, experts=experts, device=device)
        self.register_buffer("slot_of", slot_of, persistent=False)
        self._views: dict[int, tuple[int, tuple[Tensor, ...]]] = {}

    def _apply(self, *arguments: Any, **named: Any) -> ExpertBank:
        self._views.clear()  # views of weights that are moved or converted would keep the old ones
        applied: ExpertBank = super()._apply(*arguments, **named)  # type: ignore[no-untyped-call]
        return applied

    def __getstate__(self) -> dict[str, Any]:
        """Leave the views out of copies and files."""
        return self.__dict__ | {"_views": {}}

    @property
    def complete(self) -> bool:
        """Whether every expert is resident, in the slot of its id."""
        return not self.paged and len(self.expert_ids) == self.experts

    @property
    def resident(self) -> Tensor:
        """Which experts are resident ``(experts,)``, boolean."""
        return self.slot_of >= 0

    @property
    def expert_parameters(self) -> int:
        """Parameters of an expert."""
        return sum(parameter[0].numel() for parameter in self.parameters())

    def places(self, parameter: str) -> dict[str, str]:
        """Return the parameters that hold one of an expert, by what their names add to its name in a checkpoint."""
        return {"": parameter}

    def forward(self, tokens: Tensor, chosen: Tensor, gates: Tensor, *, scale: float, tap: Tap | None = None) -> Tensor:
        """Run each token through its experts and add their weighted outputs up.

        Args:
            tokens: Inputs ``(tokens, d_model)``.
            chosen: Expert ids, all resident ``(tokens, top_k)``.
            gates: Combining weights ``(tokens, top_k)``.
            scale: Factor on every expert's output.
            tap: Sees the outputs before they are scaled and weighted, and returns them.

        Returns:
            ``(tokens, d_model)``
        """
        return dispatch(
            tokens,
            chosen if self.complete else self.slot_of[chosen],
            gates,
            slots=self.slots,
            project=self._project,
            activation=self.activation,
            scale=scale,
            tap=tap,
        )

    def _project(self, number: Literal[1, 2], rows: Tensor, used: Used) -> Tensor:
        """Multiply rows ``(rows, in)``, sorted by slot, by their slots' first or second matrices and add the biases."""
        weight, bias = (self.fc1_weight, self.fc1_bias) if number == 1 else (self.fc2_weight, self.fc2_bias)
        parts = torch.split_with_sizes(rows, used.rows)
        if rows.dtype == torch.float32 and not large(weight[0]):
            # many small products: the price is that of the calls, so views are kept and biases added in one go
            matrices = self._transposed(number, weight)
            return torch.cat([part.mm(matrices[slot]) for slot, part in zip(used.slots, parts, strict=True)]).add_(
                bias[used.slot_of_row]
            )
        return torch.cat([linear(part, weight[slot], bias[slot]) for slot, part in zip(used.slots, parts, strict=True)])

    def _transposed(self, number: int, weight: Tensor) -> tuple[Tensor, ...]:
        """Return views ``(in, out)`` of all slots' matrices, made anew when the weights have moved."""
        address, views = self._views.get(number, (0, ()))
        if address != weight.data_ptr():
            views = weight.transpose(1, 2).unbind()
            self._views[number] = (weight.data_ptr(), views)
        return views
