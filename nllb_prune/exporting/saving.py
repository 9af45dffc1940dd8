"""A pruned model in memory back to a folder: what `save_pretrained` does."""

from __future__ import annotations

import copy
import os
from collections.abc import Collection, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from nllb_prune.exporting.settings import SHARD_BYTES
from nllb_prune.model.chosen import MASKS_FILE
from nllb_prune.model.families import FAMILIES, Family
from nllb_prune.model.pruned import FIELD
from nllb_prune.model.routing import routing_of
from nllb_prune.model.scheme import SCALE_DTYPE
from nllb_prune.planning.memory import parse_memory
from nllb_prune.weights.manifest import MANIFEST
from nllb_prune.weights.writer import CheckpointWriter, OutputTensor

_BESIDE = ".saving"


def save(model: Any, folder: Path, *, max_shard_size: int | str = SHARD_BYTES) -> None:
    """Write the weights and the configuration of a model from a pruned checkpoint, under the names it was loaded by.

    Args:
        model: From `load_model` or `from_pretrained`.
        folder: To write to; what else is in it, as a tokenizer, stays.
        max_shard_size: Of a weight file, in bytes or as in `5GB`.

    Raises:
        UsageError: if the disk is full, or the size is none.
    """
    shard_bytes = max_shard_size if isinstance(max_shard_size, int) else parse_memory(max_shard_size)
    beside = folder / _BESIDE
    with CheckpointWriter(beside, settings={}, shard_bytes=shard_bytes, restart=True) as writer:
        writer.write(
            "model",
            [
                OutputTensor(name=name, dtype=tensor.dtype, shape=tuple(tensor.shape), content=partial(_on_cpu, tensor))
                for name, tensor in sorted(named_tensors(model))
            ],
        )
        manifest = writer.finish(_small_files(model))
    _move(beside, folder, {*manifest.files, MANIFEST})


def _small_files(model: Any) -> dict[str, bytes]:
    """Return the configurations, and the masks where the model carries them."""
    state = routing_of(model)
    assert state.pruning is not None
    config = copy.deepcopy(model.config)
    setattr(config, FIELD, replace(state.pruning, parts=None).to_json())
    found = {
        "config.json": config.to_json_string().encode(),
        "generation_config.json": model.generation_config.to_json_string().encode(),
    }
    return found if state.masks is None else {**found, MASKS_FILE: state.masks.to_text().encode()}


def _move(beside: Path, folder: Path, names: Collection[str]) -> None:
    """Give files their names, weights first, and then remove the weights that were there before."""
    for name in sorted(names, key=lambda name: (not name.endswith(".safetensors"), name)):
        os.replace(beside / name, folder / name)
    for path in [*folder.glob("*.safetensors"), *folder.glob("*.safetensors.index.json")]:
        if path.name not in names:
            path.unlink()
    beside.rmdir()


def named_tensors(model: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of a loaded model under the names of its checkpoint, tied ones once."""
    state = routing_of(model)
    family, paths = FAMILIES[state.spec.family], []
    for stack in state.spec.stacks:
        for layer in stack.layers:
            path = family.sparse_path(stack.name, layer)
            paths.append(f"{path}.")
            yield from _of_layer(family, path, model.get_submodule(path))
    for name, parameter in model.named_parameters():
        if not name.startswith(tuple(paths)):
            yield name, parameter


def _of_layer(family: Family, path: str, layer: Any) -> Iterator[tuple[str, Tensor]]:
    for parameter, name in family.router_tensors(path).items():
        if getattr(layer, parameter) is not None:
            yield name, getattr(layer, parameter)
    for slot, expert in enumerate(layer.bank.expert_ids):
        for parameter, name in family.expert_tensors(path, expert).items():
            for suffix, held in layer.bank.places(parameter).items():
                tensor = getattr(layer.bank, held)[slot]
                yield name + suffix, tensor.to(SCALE_DTYPE) if suffix == "_scale" else tensor


def _on_cpu(tensor: Tensor) -> Tensor:
    return tensor.detach().cpu().contiguous()
