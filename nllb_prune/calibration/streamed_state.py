"""How far a streamed calibration is, as a file: states and sums of the chunk that is on its way."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nllb_prune._version import __version__
from nllb_prune.errors import UsageError
from nllb_prune.result_files import canonical_json
from nllb_prune.weights.stored import StoredTensor

_FORMAT, _VERSION = "nllb-prune/streamed", 1


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamedState:
    """A chunk after so many steps."""

    digest: str
    """Of what the run was started with."""
    items: tuple[str, ...]
    """Directions that it was planned for."""
    chunk: int
    steps: int
    """That are done."""
    tensors: Mapping[str, Tensor]


def save_state(path: Path, state: StreamedState) -> None:
    """Write beside the path and rename onto it, tensor by tensor: they are too many to be copied first.

    Raises:
        UsageError: if the system refuses: a full disk, a place one may not write to.
    """
    beside = path.with_name(f".{path.name}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with beside.open("wb") as file:
            file.write(canonical_json(_header(state)) + b"\n")
            for tensor in state.tensors.values():
                file.write(memoryview(_bytes(tensor)))
        os.replace(beside, path)
    except OSError as error:
        with suppress(OSError):
            beside.unlink(missing_ok=True)
        raise UsageError(
            f"`{path}` must be a place to write to what a killed run goes on from, but is not "
            f"({error.strerror or error})."
        ) from error


def load_state(path: Path) -> StreamedState | None:
    """Read a state; `None` if there is none, or one that cannot be gone on from."""
    try:
        with path.open("rb") as file:
            line = file.readline()
        header = json.loads(line)
        if (header["format"], header["version"]) != (_FORMAT, _VERSION):
            return None
        return StreamedState(
            digest=header["digest"],
            items=tuple(header["items"]),
            chunk=header["chunk"],
            steps=header["steps"],
            tensors=_tensors(path, header["tensors"], offset=len(line)),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError, UsageError):
        return None


def _header(state: StreamedState) -> dict[str, Any]:
    return {
        "format": _FORMAT,
        "version": _VERSION,
        "tool": __version__,
        "digest": state.digest,
        "items": list(state.items),
        "chunk": state.chunk,
        "steps": state.steps,
        "tensors": [
            [name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)]
            for name, tensor in state.tensors.items()
        ],
    }


def _bytes(tensor: Tensor) -> Any:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()


def _tensors(path: Path, table: list[list[Any]], *, offset: int) -> dict[str, Tensor]:
    tensors = {}
    for name, dtype, shape in table:
        stored = StoredTensor(name=name, path=path, offset=offset, dtype=getattr(torch, dtype), shape=tuple(shape))
        tensors[name] = stored.read()
        offset += stored.nbytes
    return tensors
