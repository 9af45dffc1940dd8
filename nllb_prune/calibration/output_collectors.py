"""Collectors of what the experts put out: each adds up one group of fields of one stack, on the device."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from nllb_prune.calibration.calls import Call, add_by_cell, as_numpy, by_part, refill
from nllb_prune.calibration.tables import Table
from nllb_prune.model.spec import Stack


class _Outputs:
    """What collectors have in common that look at outputs alone."""

    wants_outputs = True

    def observe(self, call: Call) -> None:
        return


class Norms(_Outputs):
    """Norms of the outputs."""

    def __init__(self, stack: Stack, device: torch.device | str) -> None:
        shape = by_part(stack)
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
            add_by_cell(self.sums[name][:, call.layer], cells, each)
        for name, each in zip(_NORM_MAXIMA, (norm, values.abs().amax(dim=1).double()), strict=True):
            largest = self.largest[name][:, call.layer]
            largest.copy_(largest.flatten().scatter_reduce(0, cells, each, "amax").view_as(largest))
        return values

    def table(self) -> Table:
        """Return the sums and maxima so far."""
        return {name: as_numpy(tensor) for name, tensor in (self.sums | self.largest).items()}

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return self.sums | self.largest

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from other sums."""
        refill(self.state(), state)


_NORM_SUMS = ("norm", "gate_norm", "gate_norm_squared")
_NORM_MAXIMA = ("norm_max", "activation_max")


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
        return {"output_sum": as_numpy(self.moments.sums), "output_squared": as_numpy(self.moments.squares)}

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return self.moments.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from other sums."""
        refill(self.moments.state(), state)


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
        return {"gradient_sum": as_numpy(self.moments.sums), "gradient_squared": as_numpy(self.moments.squares)}

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return self.moments.state()

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on from other sums."""
        refill(self.moments.state(), state)


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

    def state(self) -> dict[str, Tensor]:
        """Return the sums so far."""
        return {"sums": self.sums, "squares": self.squares}
