"""`ExportSettings`: what a pruned checkpoint is to be like; flags, configuration and card come from it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from nllb_prune.errors import UsageError
from nllb_prune.model.scheme import SCHEMES, Scheme

SHARD_BYTES = 5 * 10**9
DTYPES = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "fp32": torch.float32,
    "fp16": torch.float16,
    "bf16": torch.bfloat16,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportSettings:
    """How the experts and the dense part are written."""

    parts: bool = False
    """Whether each language side gets a file of its own, beside the dense part."""
    dtype: torch.dtype | None = None
    """Of all floats; `None` leaves each as it is stored."""
    experts: str | None = None
    """In which the matrices of experts are stored: `int8` or `int4`; `None` for floats."""
    shard_bytes: int = SHARD_BYTES
    """Of a weight file, at most."""

    def __post_init__(self) -> None:
        if self.dtype is not None and self.dtype not in DTYPES.values():
            raise UsageError(f"`dtype` must be one of {', '.join(DTYPES)}, but is {self.dtype} instead.")
        if self.experts is not None and self.experts not in SCHEMES:
            raise UsageError(f"`experts` must be one of {', '.join(SCHEMES)}, but is {self.experts} instead.")
        if self.shard_bytes < 1:
            raise UsageError(f"`shard_bytes` must be 1 or more, but is {self.shard_bytes} instead.")

    @property
    def scheme(self) -> Scheme | None:
        """That of the experts' matrices."""
        return None if self.experts is None else SCHEMES[self.experts]

    @property
    def dtype_name(self) -> str | None:
        """The dtype, as in `bfloat16`."""
        return None if self.dtype is None else str(self.dtype).removeprefix("torch.")

    def to_json(self) -> dict[str, Any]:
        """Return the fields as JSON values."""
        return {
            "parts": self.parts,
            "dtype": self.dtype_name,
            "experts": self.experts,
            "shard_bytes": self.shard_bytes,
        }


USUAL = ExportSettings()
