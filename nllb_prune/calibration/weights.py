"""What can be said of experts from their weights alone."""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nllb_prune.calibration.tables import Table
from nllb_prune.model.expert_bank import PARAMETERS, ExpertBank
from nllb_prune.model.routing import routing_of
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.model.streamed_bank import StreamedBank

_COLUMNS = 1 << 20  # of all experts' flattened weights at a time: 0.5 GB in float32 for 128 experts
_STREAMED_COLUMNS = 1 << 18
_MATRICES = ("fc1_weight", "fc2_weight")


def weight_tables(model: nn.Module) -> dict[str, Table]:
    """Return the fields of the group `weights` by stack; values are rounded to five digits.

    The stable rank of an expert is the mean of those of its matrices.
    """
    layers: dict[str, list[dict[str, Tensor]]] = {stack.name: [] for stack in routing_of(model).spec.stacks}
    for module in model.modules():
        if isinstance(module, SparseFfn):
            layers[module.routing.stack].append(_layer(module))
    return {
        stack: {name: _rounded(torch.stack([each[name] for each in found])) for name in found[0]}
        for stack, found in layers.items()
    }


class _Experts(Protocol):
    """The weights of a layer's experts."""

    columns: int
    """How many of the flattened weights of all experts may be in memory."""

    def sizes(self) -> dict[str, int]:
        """Return the weights of an expert by parameter."""

    def values(self, parameter: str, first: int, last: int) -> Tensor:
        """Return flattened weights of all experts ``(experts, last - first)``."""

    def matrix(self, parameter: str, number: int) -> Tensor:
        """Return the matrix of one expert."""


class _Held:
    """Experts that are in memory."""

    def __init__(self, bank: ExpertBank) -> None:
        self.bank, self.columns = bank, _COLUMNS

    def sizes(self) -> dict[str, int]:
        return {name: getattr(self.bank, name)[0].numel() for name in PARAMETERS}

    def values(self, parameter: str, first: int, last: int) -> Tensor:
        flat: Tensor = getattr(self.bank, parameter).flatten(1)
        return flat[:, first:last]

    def matrix(self, parameter: str, number: int) -> Tensor:
        matrix: Tensor = getattr(self.bank, parameter)[number]
        return matrix


class _Read:
    """Experts that are read for it, twice: a part of all of them, and each alone."""

    def __init__(self, bank: StreamedBank) -> None:
        self.bank, self.columns = bank, _STREAMED_COLUMNS

    def sizes(self) -> dict[str, int]:
        tensors = self.bank.tensors[self.bank.expert_ids[0]]
        return {name: math.prod(self.bank.weights.shape(tensors[name])) for name in PARAMETERS}

    def values(self, parameter: str, first: int, last: int) -> Tensor:
        weights = self.bank.weights
        rows = [weights.values(names[parameter], first, last) for names in self.bank.tensors.values()]
        return torch.stack(rows).to(device=weights.device, dtype=weights.dtype)

    def matrix(self, parameter: str, number: int) -> Tensor:
        return self.bank.weights.tensor(self.bank.tensors[self.bank.expert_ids[number]][parameter])


@torch.no_grad()
def _layer(sparse: SparseFfn) -> dict[str, Tensor]:
    experts = _experts(sparse.bank)
    products = _products(experts)  # (experts, experts)
    norm = products.diagonal().sqrt()
    cosines = products / (norm[:, None] * norm[None, :]).clamp_min(1e-30)
    return {
        "weight_norm": norm,
        "weight_similarity": cosines.sum(1) - cosines.diagonal(),
        "router_norm": sparse.router_weight.double().norm(dim=1),
        "stable_rank": _stable_ranks(experts, len(norm)),
    }


def _experts(bank: nn.Module) -> _Experts:
    if isinstance(bank, StreamedBank):
        return _Read(bank)
    assert isinstance(bank, ExpertBank), "only pruned checkpoints have others, and they are not calibrated"
    return _Held(bank)


def _products(experts: _Experts) -> Tensor:
    """Return the inner products of the experts' weights, a block of columns at a time."""
    total: Tensor | None = None
    for name, size in experts.sizes().items():
        for first in range(0, size, experts.columns):
            rows = experts.values(name, first, min(size, first + experts.columns)).float()
            product = (rows @ rows.T).double()
            total = product if total is None else total + product
    assert total is not None, "experts have weights"
    return total


def _stable_ranks(experts: _Experts, count: int) -> Tensor:
    ranks = [torch.stack([_stable_rank(experts.matrix(name, n)) for n in range(count)]) for name in _MATRICES]
    return torch.stack(ranks).mean(0)


def _stable_rank(matrix: Tensor) -> Tensor:
    """Return the sum of the squared singular values over the largest one squared."""
    narrow = matrix.float() if matrix.shape[0] <= matrix.shape[1] else matrix.float().T
    values = torch.linalg.eigvalsh(functional.linear(narrow, narrow))  # ascending
    rank: Tensor = values.sum() / values[-1].clamp_min(1e-30)
    return rank.double()


def _rounded(values: Tensor) -> np.ndarray:
    """Return five significant digits, so that machines agree."""
    array = values.double().cpu().numpy()
    return np.array([float(f"{value:.5g}") for value in array.flat]).reshape(array.shape)
