"""The experts of one sparse layer in 8 or 4 bits: a matrix becomes floats when it runs, and only for that long."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from nllb_prune.model.dispatch import Tap, Used, dispatch, slot_table
from nllb_prune.model.expert_bank import ACTIVATIONS, ExpertBank
from nllb_prune.model.linear import linear
from nllb_prune.model.quantisation import expand, quantised
from nllb_prune.model.scheme import Scheme, stored_tensors

# Weights that are floats at once. On a CPU 4 MB in float32, which stay in its caches: an expert's matrix of 2048 x 8192
# in 8 bits times 8 rows took 16 to 25 ms so, and 72 as a whole.
_BLOCK = {"cpu": 1 << 20}
_BLOCK_ELSEWHERE = 1 << 24


class QuantisedExpertBank(nn.Module):
    """Does what `ExpertBank` does with its own parameters dequantised.

    Matrices are held as they are stored, one parameter a tensor: `fc1_weight` and `fc1_weight_scale`, or
    `fc1_weight_packed`, `fc1_weight_scale` and `fc1_weight_shape`. Whole numbers stay what they are when the module is
    converted to another dtype; scales and biases follow it.

    Args:
        expert_ids: Expert in each slot, ascending.
        experts: Experts E of the layer, resident or not.
        d_model: Width of the model D.
        ffn: Width of an expert F.
        scheme: How the matrices are stored.
        activation: Between the two matrices: `relu`, `gelu` or `silu`.
        slots: As of `ExpertBank`.
        dtype: Of scales, biases, and the matrices when they run.
    """

    slot_of: Tensor

    def __init__(
        self,
        *,
        expert_ids: Sequence[int],
        experts: int,
        d_model: int,
        ffn: int,
        scheme: Scheme,
        activation: str = "relu",
        slots: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__()
        self.expert_ids, self.paged = tuple(expert_ids), slots is not None
        self.slots = len(self.expert_ids) if slots is None else slots
        self.experts = experts
        self.scheme = scheme
        self.activation = ACTIVATIONS[activation]
        self._shapes = {"fc1_weight": (ffn, d_model), "fc2_weight": (d_model, ffn)}

        def empty(shape: Sequence[int], kind: torch.dtype | None) -> nn.Parameter:
            values = torch.empty(self.slots, *shape, dtype=kind, device=device)
            return nn.Parameter(values, requires_grad=False)

        self._places: dict[str, dict[str, str]] = {}
        for matrix, shape in self._shapes.items():
            tensors = stored_tensors(matrix, shape, scheme)
            self._places[matrix] = {name.removeprefix(matrix): name for name in tensors}
            for name, (stored, size) in tensors.items():
                self.register_parameter(name, empty(size, dtype if stored.is_floating_point else stored))
        self.fc1_bias = empty((ffn,), dtype)
        self.fc2_bias = empty((d_model,), dtype)
        slot_of = slot_table(self.expert_ids, experts=experts, device=device)
        self.register_buffer("slot_of", slot_of, persistent=False)

    @classmethod
    def of(cls, bank: ExpertBank, scheme: Scheme) -> QuantisedExpertBank:
        """Quantise the experts of a bank, one matrix at a time."""
        _, ffn, d_model = bank.fc1_weight.shape
        made = cls(
            expert_ids=bank.expert_ids,
            experts=bank.experts,
            d_model=d_model,
            ffn=ffn,
            scheme=scheme,
            dtype=bank.fc1_bias.dtype,
            device=bank.fc1_bias.device,
        )
        made.activation = bank.activation
        for slot, expert in enumerate(bank.expert_ids):
            for matrix in made._shapes:
                weight = getattr(bank, matrix)[slot]
                made.fill(slot, matrix, quantised(weight, scheme, name=f"{matrix} of expert {expert}"))
        made.fc1_bias.copy_(bank.fc1_bias)
        made.fc2_bias.copy_(bank.fc2_bias)
        return made

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
        """Parameters of an expert, however they are stored."""
        biases = self.fc1_bias.shape[1] + self.fc2_bias.shape[1]
        return biases + sum(height * width for height, width in self._shapes.values())

    def places(self, parameter: str) -> dict[str, str]:
        """Return the parameters that hold one of an expert, by what their names add to its name in a checkpoint."""
        return self._places.get(parameter, {"": parameter})

    def fill(self, slot: int, parameter: str, parts: Mapping[str, Tensor]) -> None:
        """Put the tensors of a parameter of an expert, as `quantised` returns them, into its slot."""
        for suffix, name in self.places(parameter).items():
            self.get_parameter(name)[slot].copy_(parts[suffix])

    def matrices(self, parameter: str, slots: Sequence[int]) -> Tensor:
        """Return `fc1_weight` or `fc2_weight` of some slots as floats ``(slots, out, in)``."""
        return self._expand(parameter, list(slots), slice(None))

    def forward(self, tokens: Tensor, chosen: Tensor, gates: Tensor, *, scale: float, tap: Tap | None = None) -> Tensor:
        """Run each token through its experts and add their weighted outputs up, as `ExpertBank` does."""
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
        matrix, bias = f"fc{number}_weight", self.get_parameter(f"fc{number}_bias")
        height, width = self._shapes[matrix]
        block = _BLOCK.get(rows.device.type, _BLOCK_ELSEWHERE)
        parts = torch.split_with_sizes(rows, used.rows)
        if height * width <= block:
            matrices = self._several(matrix, used.slots, block // (height * width))
            products = zip(parts, matrices, used.slots, strict=True)
            return torch.cat([linear(part, weight, bias[slot]) for part, weight, slot in products])
        step = max(1, block // width)
        product = rows.new_empty(len(rows), height)
        for part, target, slot in zip(parts, product.split_with_sizes(used.rows), used.slots, strict=True):
            for first in range(0, height, step):
                some = slice(first, first + step)
                target[:, some] = linear(part, self._expand(matrix, slot, some), bias[slot, some])
        return product

    def _several(self, matrix: str, slots: Sequence[int], each: int) -> Iterator[Tensor]:
        """Yield the matrices ``(out, in)`` of slots, made so many at a time: for small ones the price is the calls'."""
        for first in range(0, len(slots), each):
            yield from self.matrices(matrix, slots[first : first + each]).unbind()

    def _expand(self, matrix: str, slots: int | list[int], rows: slice) -> Tensor:
        """Return some rows of the matrices of one slot ``(rows, in)``, or of several ``(slots, rows, in)``."""
        places = self._places[matrix]
        numbers, scale = self.get_parameter(places[self.scheme.suffix]), self.get_parameter(places["_scale"])
        return expand(
            numbers[slots][..., rows, :],
            scale[slots][..., rows, :],
            scheme=self.scheme,
            columns=self._shapes[matrix][1],
            dtype=scale.dtype,
        )


Bank = ExpertBank | QuantisedExpertBank
"""What holds the experts of a sparse layer."""


def expanded_numbers(bank: Bank, *, on: str) -> int:
    """Return how many numbers of a bank's matrices are floats at once, at most, on a kind of device."""
    if isinstance(bank, ExpertBank):
        return 0
    block = _BLOCK.get(on, _BLOCK_ELSEWHERE)
    return min(block, bank.experts * bank.fc1_bias.shape[1] * bank.fc2_bias.shape[1])
