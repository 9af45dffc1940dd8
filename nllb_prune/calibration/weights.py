"""What can be said of experts from their weights alone."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from nllb_prune.calibration.tables import Table
from nllb_prune.model.expert_bank import PARAMETERS, ExpertBank
from nllb_prune.model.routing import routing_of
from nllb_prune.model.sparse_ffn import SparseFfn

_COLUMNS = 1 << 20  # of all experts' flattened weights at a time: 0.5 GB in float32 for 128 experts


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


@torch.no_grad()
def _layer(sparse: SparseFfn) -> dict[str, Tensor]:
    flat = [getattr(sparse.bank, name).flatten(1) for name in PARAMETERS]  # each (experts, weights)
    products = _products(flat)  # (experts, experts)
    norm = products.diagonal().sqrt()
    cosines = products / (norm[:, None] * norm[None, :]).clamp_min(1e-30)
    return {
        "weight_norm": norm,
        "weight_similarity": cosines.sum(1) - cosines.diagonal(),
        "router_norm": sparse.router_weight.double().norm(dim=1),
        "stable_rank": _stable_ranks(sparse.bank),
    }


def _products(parts: list[Tensor]) -> Tensor:
    """Return the inner products of the rows over all parts, a block of columns at a time."""
    total = torch.zeros(len(parts[0]), len(parts[0]), dtype=torch.float64, device=parts[0].device)
    for part in parts:
        for first in range(0, part.shape[1], _COLUMNS):
            rows = part[:, first : first + _COLUMNS].float()
            total += (rows @ rows.T).double()
    return total


def _stable_ranks(bank: ExpertBank) -> Tensor:
    ranks = [torch.stack([_stable_rank(m) for m in weight]) for weight in (bank.fc1_weight, bank.fc2_weight)]
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
