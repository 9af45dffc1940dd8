"""Where the tensors of a file of `torch.save` are: each storage is a record of a zip archive, not compressed.

The pickle in the archive is read by torch alone, which refuses everything in it that is not a tensor or plain data, and
under its fake mode, which reads no tensor. What torch then says of the place of each storage is compared with the
archive's own directory: torch computes the places of the records as its own writer leaves them, another program may
have packed them in another way.
"""

from __future__ import annotations

import argparse
import pickle
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from nllb_prune.errors import UsageError
from nllb_prune.weights.stored import StoredTensor

_LOCAL_HEADER = struct.Struct("<26xHH")  # lengths of the name and of the extra field that follow it
_OLD_MAGIC = 0x1950A86A20F9469CFC6C.to_bytes(10, "little")  # what files of torch before 1.6 begin with, as a pickle
_PLAIN_CLASSES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace
]  # settings of a training run; holds what it is given and does nothing

Records = dict[int, int]
"""Offset of a storage's first byte in the file -> its bytes."""


def index_zip(path: Path, *, part: str = "") -> dict[str, StoredTensor | None]:
    """Return the place of each tensor by name, or None for one whose values do not follow each other; reads none.

    Args:
        path: A file that `torch.save` wrote.
        part: The entry of its content that holds the tensors by name; by default the content itself does.

    Raises:
        UsageError: if it holds code, or is of a format that can be converted.
        ValueError, RuntimeError, zipfile.BadZipFile: if it is damaged.
    """
    _refuse_bare_pickle(path)
    records = _records(path)
    with FakeTensorMode():
        tensors = load_zip(path, part=part, mmap=False)
        return {name: _stored(name, path, tensor, records) for name, tensor in tensors.items()}


def load_zip(path: Path, *, part: str = "", mmap: bool = True) -> dict[str, Tensor]:
    """Load the tensors of a file by name, memory-mapped; raises as `index_zip` does."""
    with torch.serialization.safe_globals(_PLAIN_CLASSES):
        try:
            content = torch.load(path, map_location="cpu", mmap=mmap, weights_only=True)
        except pickle.UnpicklingError:
            _refuse_code(path)
            raise
    tensors = content.get(part) if part and isinstance(content, dict) else content
    if not isinstance(tensors, dict) or not all(isinstance(tensor, Tensor) for tensor in tensors.values()):
        where = f"`{part}` of it" if part else "it"
        raise ValueError(f"{where} holds something else than tensors by name")
    return tensors


def _refuse_bare_pickle(path: Path) -> None:
    with path.open("rb") as file:
        start = file.read(2 + 2 + len(_OLD_MAGIC))  # protocol; long of ten bytes
    if not start.startswith(b"\x80"):
        return
    if start.endswith(_OLD_MAGIC):
        raise UsageError(
            f"`{path}` must be in torch's zip format, which tells where each tensor is, but is in the older one "
            "instead; load it with torch (`weights_only=True`) and save it again."
        )
    raise UsageError(
        f"`{path}` must be a whole weight file, but is a bare pickle instead: it holds code, not weights, and nothing "
        "of it was run."
    )


def _refuse_code(path: Path) -> None:
    """Raise if it is a class or a function that torch stumbled over."""
    try:
        names = torch.serialization.get_unsafe_globals_in_checkpoint(str(path))
    except Exception:  # a damaged pickle, of which the caller tells
        return
    if names:
        raise UsageError(
            f"`{path}` must be a whole weight file, but holds code, not weights alone: `{sorted(names)[0]}`. Nothing "
            "of it was run; if you trust it, load it with the program that made it and save its tensors alone."
        )


def _records(path: Path) -> Records:
    """Read the places of the storages from the archive's directory."""
    records: Records = {}
    with zipfile.ZipFile(path) as archive, path.open("rb", buffering=0) as file:
        for info in archive.infolist():
            folder, _, name = info.filename.partition("/")
            if name == "byteorder" and archive.read(info) != b"little":
                raise UsageError(
                    f"`{path}` must be little-endian, but is of a big-endian machine instead; load it with torch and "
                    "save it again."
                )
            if not name.startswith("data/"):
                continue
            if info.compress_type != zipfile.ZIP_STORED or info.flag_bits & 1:
                raise UsageError(
                    f"`{path}` must hold its tensors as they are, but holds them compressed or encrypted "
                    f"(`{folder}/{name}`); load it with torch and save it again."
                )
            file.seek(info.header_offset)
            lengths = _LOCAL_HEADER.unpack(file.read(_LOCAL_HEADER.size))
            start = info.header_offset + _LOCAL_HEADER.size + sum(lengths)
            records[start] = max(info.file_size, records.get(start, 0))  # an empty one may start where the next does
    return records


def _stored(name: str, path: Path, tensor: Tensor, records: Records) -> StoredTensor | None:
    if tensor.layout != torch.strided or tensor.is_quantized:
        raise ValueError(f"`{name}` is a sparse or quantised tensor")
    if not tensor.is_contiguous() or tensor.is_conj() or tensor.is_neg():
        return None
    start = _first_byte(path, tensor, records) if tensor.numel() else 0
    return StoredTensor(name=name, path=path, offset=start, dtype=tensor.dtype, shape=tuple(tensor.shape))


def _first_byte(path: Path, tensor: Tensor, records: Records) -> int:
    storage: Any = tensor.untyped_storage()
    before, length = int(tensor.storage_offset()) * tensor.itemsize, tensor.numel() * tensor.itemsize
    start: int | None = storage._checkpoint_offset
    if start is None or start not in records:
        raise UsageError(
            f"`{path}` must be as `torch.save` writes it, but was packed again by another program; load it with torch "
            "and save it again."
        )
    if before + length > records[start]:
        raise ValueError("a tensor is longer than its record")
    return start + before
