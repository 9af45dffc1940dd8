"""What becomes of a stored tensor on its way into a pruned checkpoint."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from nllb_prune.model.quantisation import quantised
from nllb_prune.model.scheme import Scheme, stored_tensors
from nllb_prune.weights.stored import StoredTensor
from nllb_prune.weights.writer import OutputTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Conversion:
    """Copies bytes, unless another dtype, fewer bits or fewer rows are wanted."""

    dtype: torch.dtype | None = None
    """Of floats; `None` leaves each as it is."""
    scheme: Scheme | None = None
    """Of the matrices of experts."""
    matrices: Collection[str] = ()
    """Their names."""
    rows: Sequence[int] | None = None
    """Of the embeddings, in their new order."""
    embeddings: Collection[str] = ()
    """Their names."""

    def outputs(self, stored: StoredTensor) -> list[OutputTensor]:
        """Return what is written for a tensor."""
        dtype = self.dtype if self.dtype is not None and stored.dtype.is_floating_point else stored.dtype
        if self.scheme is not None and stored.name in self.matrices:
            return _quantised(stored, self.scheme, dtype)
        if self.rows is not None and stored.name in self.embeddings:
            shape = (len(self.rows), *stored.shape[1:])
            make = partial(_rows, stored, self.rows, dtype)
            return [OutputTensor(name=stored.name, dtype=dtype, shape=shape, content=make)]
        content = stored if dtype == stored.dtype else partial(_converted, stored, dtype)
        return [OutputTensor(name=stored.name, dtype=dtype, shape=stored.shape, content=content)]


def _converted(stored: StoredTensor, dtype: torch.dtype) -> Tensor:
    return stored.read().to(dtype)


def _rows(stored: StoredTensor, rows: Sequence[int], dtype: torch.dtype) -> Tensor:
    return stored.read()[list(rows)].to(dtype)


def _quantised(stored: StoredTensor, scheme: Scheme, dtype: torch.dtype) -> list[OutputTensor]:
    """Return the tensors that a matrix becomes, made from one reading of it."""
    remaining: dict[str, Tensor] = {}

    def part(name: str) -> Tensor:
        if name not in remaining:
            weight = stored.read().to(dtype)  # rounded as a checkpoint of that dtype would be
            parts = quantised(weight, scheme, name=stored.name)
            remaining.update({stored.name + suffix: tensor for suffix, tensor in parts.items()})
        return remaining.pop(name)

    return [
        OutputTensor(name=name, dtype=kind, shape=shape, content=partial(part, name))
        for name, (kind, shape) in stored_tensors(stored.name, stored.shape, scheme).items()
    ]
