"""`Scheme`: in how many bits the matrices of experts are stored, and as which tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from nllb_prune.errors import UsageError
from nllb_prune.model.packing import words

SCALE_DTYPE = torch.bfloat16
"""Of stored scales: the range of float32, and exact in a model of float32 or bfloat16.

Float16 holds scales from 8e-6 on exactly; a smaller one, rounded, changes a weight by 4e-6 at most.
"""

_VERSION = 1
_BITS = (4, 8)
_SUFFIXES = ("_packed", "_scale", "_shape")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheme:
    """How the weights of a matrix are stored."""

    name: str
    bits: int
    """8, or 4, which are packed."""
    group: int | None = None
    """Columns that share a scale, fewer in a last group; `None`: those of a whole row."""

    def __post_init__(self) -> None:
        if type(self.bits) is not int or self.bits not in _BITS:
            raise UsageError(f"`bits` must be 4 or 8, but is {self.bits!r} instead.")
        if self.group is not None and (type(self.group) is not int or self.group < 1):
            raise UsageError(f"`group` must be a number of columns from 1, or none, but is {self.group!r} instead.")

    @property
    def suffix(self) -> str:
        """What a tensor's name is followed by where the numbers are."""
        return "_packed" if self.packed else ""

    @property
    def packed(self) -> bool:
        """Whether eight numbers share an int32."""
        return self.bits == 4

    def groups(self, columns: int) -> int:
        """Return how many scales a row has."""
        return 1 if self.group is None else -(-columns // self.group)

    def to_json(self) -> dict[str, Any]:
        """Return it in the words of compressed-tensors: `weights` are its `QuantizationArgs`."""
        weights: dict[str, Any] = {"num_bits": self.bits, "type": "int", "symmetric": True, "dynamic": False}
        if self.group is None:
            weights |= {"strategy": "channel"}
        else:
            weights |= {"strategy": "group", "group_size": self.group}
        layout = "pack-quantized" if self.packed else "int-quantized"
        return {"version": _VERSION, "name": self.name, "format": layout, "weights": weights}

    @classmethod
    def from_json(cls, content: Any) -> Scheme:
        """Rebuild what `to_json` returned.

        Raises:
            UsageError: if it is of another version, or says something that no scheme here says.
        """
        if not isinstance(content, dict) or not isinstance(content.get("weights"), dict):
            raise UsageError(
                f"The quantisation of experts must be an object with `weights`, but is {content!r} instead."
            )
        if content.get("version") != _VERSION:
            raise UsageError(
                f"The quantisation of experts must have version {_VERSION}, but has {content.get('version')!r} "
                "instead; use the version of nllb-prune that wrote it."
            )
        weights = content["weights"]
        scheme = cls(name=content.get("name", ""), bits=weights.get("num_bits"), group=weights.get("group_size"))
        if scheme.to_json() != content:
            raise UsageError(
                f"The quantisation of experts must be as {scheme.to_json()}, but is {content} instead; "
                "export the model again."
            )
        return scheme


SCHEMES: dict[str, Scheme] = {
    scheme.name: scheme for scheme in (Scheme(name="int8", bits=8), Scheme(name="int4", bits=4, group=64))
}
"""By name; int4 takes 4.25 bits a weight, int8 8.01 at 2048 columns."""


def unsuffixed(name: str) -> str:
    """Return the name of the matrix that a stored tensor stands for, its own if that is what it is."""
    return next((name.removesuffix(end) for end in _SUFFIXES if name.endswith(end)), name)


def stored_tensors(name: str, shape: Sequence[int], scheme: Scheme) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Return the dtype and the shape of each tensor that stands for the matrix `name`, by name.

    Raises:
        UsageError: if it is no matrix.
    """
    if len(shape) != 2:
        raise UsageError(
            f"`{name}` must have two dimensions to be quantised, but has the shape {tuple(shape)} instead."
        )
    rows, columns = shape
    if not scheme.packed:
        return {name: (torch.int8, (rows, columns)), f"{name}_scale": (SCALE_DTYPE, (rows, scheme.groups(columns)))}
    return {
        f"{name}_packed": (torch.int32, (rows, words(columns))),
        f"{name}_scale": (SCALE_DTYPE, (rows, scheme.groups(columns))),
        f"{name}_shape": (torch.int64, (2,)),
    }
