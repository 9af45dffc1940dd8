"""A product of few rows with a large matrix, by the faster library for it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

# torch gives float32 products on a CPU to MKL, which reads a large matrix at a third of the memory's rate when there
# are few rows. oneDNN, which torch carries too, took .43 of MKL's time at 8 rows, .68 at 32 and .75 at 64 for an expert
# of 1024 x 4096 (2 cores, AMD Zen 4); for small matrices its compilation for each number of rows costs more than it
# saves.
_LARGE = 1 << 20  # elements
_ONEDNN = torch._C._has_mkldnn and hasattr(torch.ops.mkldnn, "_linear_pointwise")


def large(weight: Tensor) -> bool:
    """Return whether a matrix is so large that reading it is the price of a product with few rows."""
    return weight.numel() >= _LARGE


def linear(rows: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Return `rows @ weight.T + bias` as `functional.linear` does, up to the order of summation."""
    on_cpu = rows.dtype == torch.float32 and rows.device.type == "cpu"
    if on_cpu and large(weight) and _ONEDNN and not rows.requires_grad:
        product: Tensor = torch.ops.mkldnn._linear_pointwise(rows, weight, bias, "none", [], "")
        return product
    return functional.linear(rows, weight, bias)
