"""Where the tensors of a safetensors file are: its header says it, the library checks it."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from nllb_prune.weights.stored import StoredTensor

_LENGTH = struct.Struct("<Q")  # of the header, which follows
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "C64": torch.complex64,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U64": torch.uint64,
    "U32": torch.uint32,
    "U16": torch.uint16,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
"""By the names that the format gives them."""


def index_safetensors(path: Path) -> dict[str, StoredTensor]:
    """Return the place of each tensor by name; nothing but the header is read.

    Raises:
        SafetensorError: if the header is too long or no JSON, or if the tensors leave holes, overlap, are of another
            length than their shapes say, or do not end with the file.
        ValueError: if a tensor has a dtype that torch lacks.
    """
    with safe_open(path, framework="numpy"):  # checks all of this; for torch it could not open files beyond the memory
        pass
    with path.open("rb") as file:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        header: dict[str, Any] = json.loads(file.read(length))
    first = _LENGTH.size + length
    return {name: _stored(name, path, entry, first) for name, entry in header.items() if name != "__metadata__"}


def _stored(name: str, path: Path, entry: dict[str, Any], first: int) -> StoredTensor:
    dtype = DTYPES.get(entry["dtype"])
    if dtype is None:
        raise ValueError(f"`{name}` has the dtype {entry['dtype']}, which is not supported")
    offset = first + entry["data_offsets"][0]
    return StoredTensor(name=name, path=path, offset=offset, dtype=dtype, shape=tuple(entry["shape"]))
