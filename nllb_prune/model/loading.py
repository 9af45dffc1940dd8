"""A checkpoint, and a mask if wanted, to a model that holds only the experts it needs.

The transformers model is made on the meta device, its sparse layers are replaced by ours, and each parameter is then
read from the shards once, straight into its place: no weight is ever held twice, and no dropped expert is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import MaskSet
from nllb_prune.model.assembly import assemble
from nllb_prune.model.chosen import choose
from nllb_prune.model.describe import load_spec, require_sparse
from nllb_prune.model.facts import ModelFacts, dtype_name, facts_of, identity_of, load_facts, parameter_counts
from nllb_prune.model.families import Family
from nllb_prune.model.filling import Filler, read_tensor
from nllb_prune.model.placement import DeviceMap, Placement, need_accelerate, placement
from nllb_prune.model.pruned import pruning_of
from nllb_prune.model.routing import ModelRouting, attach_routing, follow_padding, routing_of
from nllb_prune.model.source import model_folder, model_name, read_config
from nllb_prune.weights.checkpoint import Checkpoint

__all__ = ["ModelFacts", "dtype_name", "facts_of", "load_facts", "load_model", "load_spec", "require_sparse"]


def load_model(
    path_or_id: str | Path,
    *,
    masks: MaskSet | None = None,
    direction: Direction | None = None,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
    revision: str | None = None,
) -> nn.Module:
    """Load a model whose sparse layers are ours; with a mask it holds only the experts of a direction.

    Args:
        path_or_id: `mini`, a folder, or a Hub id; the whole model, or a pruned checkpoint of `export`.
        masks: Which experts to keep. With a direction the others are not even read; without one all that there are are
            loaded and `set_masks` or `routing` choose later.
        direction: Source and target language of the masks; without masks, of those that a pruned checkpoint carries.
        dtype: Of the weights, or its name; by default float32 on the CPU and as stored elsewhere (`auto`). Routers stay
            in float32.
        device: Where to; the CPU by default. On the meta device nothing but routers is read.
        device_map: Instead of it, where each module goes (`placement.DeviceMap`).
        revision: Branch, tag or commit on the Hub.

    Returns:
        The module of the transformers class, for inference, with `generate`.

    Raises:
        UsageError: on a missing, unexpected or misshapen tensor, masks of another model, masks of a dense model,
            masks of experts that a pruned checkpoint left out.
    """
    chosen, dtype = choose(path_or_id, masks=masks, direction=direction, revision=revision), dtype_of(dtype)
    family, config, pruning = chosen.family, chosen.config, chosen.pruning
    with chosen.opened() as (checkpoint, spec):
        make = partial(assemble, family, spec, config, kept=chosen.kept, scheme=chosen.scheme)
        stored = partial(stored_dtype, family, checkpoint, config)
        place = placement(device, device_map, lambda: _empty(make, stored()))
        dtype = resolved_dtype(dtype, on_cpu=place.on_cpu, stored=stored)
        model, state = make(dtype=dtype, device=place)
        held = None if pruning is None else pruning.kept
        Filler(family, config, checkpoint, model, state, dtype=dtype, device=place, held=held).fill()
        embedding = cast(Any, model).get_input_embeddings().weight
        if embedding.is_meta:
            embedding = checkpoint.tensor(_embedding(family, checkpoint, config))
    state.spec = spec = dataclasses.replace(spec, parameters=parameter_counts(model))
    state.pruning, state.masks = chosen.pruning_in_memory(), chosen.carried_masks()
    attach_routing(model, state)
    finish(model, chosen.folder, config, state)
    state.name, state.identity = model_name(path_or_id), identity_of(embedding.to(dtype), spec, pruning)
    return _spread(model, place) if place.spread else model


def _empty(make: Callable[..., tuple[nn.Module, ModelRouting]], dtype: torch.dtype) -> nn.Module:
    """Return the model on the meta device, in a dtype, to be weighed."""
    return make(dtype=dtype, device=torch.device("meta"))[0].to(dtype)


def _spread(model: nn.Module, place: Placement) -> nn.Module:
    """Let the modules of a model that is on several devices hand their outputs on."""
    routing_of(model).spread = True
    spread: nn.Module = need_accelerate().dispatch_model(model, dict(place.by_path))
    return spread


def in_parts(path_or_id: str | Path) -> bool:
    """Return whether a model is a pruned checkpoint with a file for each language side."""
    pruning = pruning_of(read_config(model_folder(path_or_id)))
    return pruning is not None and pruning.parts is not None


def dtype_of(dtype: torch.dtype | str | None) -> torch.dtype | str | None:
    """Return a dtype by its name, as transformers takes them; `auto` stays.

    Raises:
        UsageError: if it is none of floats.
    """
    if not isinstance(dtype, str) or dtype == "auto":
        return dtype
    found = getattr(torch, dtype.removeprefix("torch."), None)
    if not isinstance(found, torch.dtype) or not found.is_floating_point:
        raise UsageError(f"`dtype` must be auto or like float32, bfloat16 or float16, but is {dtype} instead.")
    return found


def resolved_dtype(dtype: torch.dtype | str | None, *, on_cpu: bool, stored: Callable[[], torch.dtype]) -> torch.dtype:
    """Return the dtype to load in: by default float32 on the CPU and as stored elsewhere; `auto` is as stored."""
    wanted = dtype_of(dtype)
    if wanted is None and on_cpu:
        return torch.float32
    return wanted if isinstance(wanted, torch.dtype) else stored()


def _embedding(family: Family, checkpoint: Checkpoint, config: Any) -> str:
    """Return the name that the embedding is stored under."""
    group = family.tied(config)[0]
    return next((name for name in group if name in checkpoint), group[0])


def stored_dtype(family: Family, checkpoint: Checkpoint, config: Any) -> torch.dtype:
    """Return the dtype of the embedding in a checkpoint."""
    return read_tensor(checkpoint, _embedding(family, checkpoint, config)).dtype


def finish(model: Any, folder: Path, config: Any, state: ModelRouting) -> None:
    """Give a filled model its generation settings, and let its stacks follow padding."""
    from transformers import GenerationConfig

    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    for name, stack in state.stacks.items():
        follow_padding(model.get_submodule(f"model.{name}"), stack, pad=config.pad_token_id)
    model.eval()
