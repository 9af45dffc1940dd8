"""A checkpoint, and a mask if wanted, to a model that holds only the experts it needs.

The transformers model is made on the meta device, its sparse layers are replaced by ours, and each parameter is then
read from the shards once, straight into its place: no weight is ever held twice, and no dropped expert is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal, cast

import torch
from torch import nn

from nllb_prune.errors import UsageError
from nllb_prune.languages import Direction
from nllb_prune.masks import ExpertMask, MaskSet
from nllb_prune.model.assembly import assemble
from nllb_prune.model.describe import fingerprinted, load_spec, prefixed, require_sparse
from nllb_prune.model.facts import ModelFacts, dtype_name, facts_of, identity_of, load_facts, parameter_counts
from nllb_prune.model.families import Family, family_of
from nllb_prune.model.filling import Filler, read_tensor
from nllb_prune.model.placement import DeviceMap, Placement, need_accelerate, placement
from nllb_prune.model.pruned import ExpertPruning, pruning_of
from nllb_prune.model.routing import ModelRouting, attach_routing, follow_padding, routing_of
from nllb_prune.model.source import fetch_weights, model_folder, model_name, read_config
from nllb_prune.model.spec import ModelSpec
from nllb_prune.weights.checkpoint import Checkpoint

__all__ = ["ModelFacts", "dtype_name", "facts_of", "load_facts", "load_model", "load_spec", "require_sparse"]

MASKS_FILE = "masks.json"
"""The masks that a pruned checkpoint was made from."""


def load_model(
    path_or_id: str | Path,
    *,
    masks: MaskSet | None = None,
    direction: Direction | None = None,
    dtype: torch.dtype | Literal["auto"] | None = None,
    device: torch.device | str | None = None,
    device_map: DeviceMap | None = None,
) -> nn.Module:
    """Load a model whose sparse layers are ours; with a mask it holds only the experts of a direction.

    Args:
        path_or_id: `mini`, a folder, or a Hub id; the whole model, or a pruned checkpoint of `export`.
        masks: Which experts to keep. With a direction the others are not even read; without one all that there are are
            loaded and `set_masks` or `routing` choose later.
        direction: Source and target language of the masks; without masks, of those that a pruned checkpoint carries.
        dtype: Of the weights; by default float32 on the CPU and as stored elsewhere (`auto`). Routers stay in float32.
        device: Where to; the CPU by default. On the meta device nothing but routers is read.
        device_map: Instead of it, where each module goes (`placement.DeviceMap`).

    Returns:
        The module of the transformers class, for inference, with `generate`.

    Raises:
        UsageError: on a missing, unexpected or misshapen tensor, masks of another model, masks of a dense model,
            masks of experts that a pruned checkpoint left out.
    """
    folder = model_folder(path_or_id)
    config = read_config(folder)
    family, pruning = family_of(config), pruning_of(config)
    spec = family.spec(config)
    if masks is not None:
        require_sparse(spec, path_or_id)
    files = None
    if masks is None and direction is not None:
        masks = own_masks(folder)
        files = None if pruning is None else pruning.files_of(spec.stacks, *direction)
    scheme = None if pruning is None else pruning.scheme
    kept = _kept(spec, pruning, None if masks is None or direction is None else masks.direction(*direction))
    _fetch_kept(path_or_id, folder, family, spec, kept)
    with Checkpoint(folder, prefix=family.base_prefix, original=family.original, files=files) as checkpoint:
        spec = fingerprinted(family, spec, checkpoint)
        if masks is not None:
            masks.check_model(spec)
        stored = _stored_dtype(family, checkpoint, config)
        make = partial(assemble, family, spec, config, kept=kept, scheme=scheme)
        place = placement(device, device_map, partial(_empty, make, stored))
        if dtype is None or dtype == "auto":
            dtype = stored if dtype == "auto" or not place.on_cpu else torch.float32
        model, state = make(dtype=dtype, device=place)
        Filler(family, config, checkpoint, model, state, dtype=dtype, device=place).fill()
        embedding = cast(Any, model).get_input_embeddings().weight
        if embedding.is_meta:
            embedding = checkpoint.tensor(_embedding(family, checkpoint, config))
    state.spec = spec = dataclasses.replace(spec, parameters=parameter_counts(model, family, spec))
    state.pruning = pruning
    attach_routing(model, state)
    _finish(model, folder, config, state)
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


def own_masks(folder: Path) -> MaskSet:
    """Return the masks that a pruned checkpoint carries.

    Raises:
        UsageError: if it carries none, as a whole model does.
    """
    if not (folder / MASKS_FILE).exists():
        raise UsageError(f"`direction` must come with masks where `{folder}` carries none, but comes without.")
    return MaskSet.load(folder / MASKS_FILE)


def _kept(
    spec: ModelSpec, pruning: ExpertPruning | None, kept: Mapping[str, ExpertMask] | None
) -> Mapping[str, ExpertMask] | None:
    """Return the experts to load: of a pruned checkpoint no more than it holds."""
    if pruning is None:
        return kept
    if kept is not None:
        pruning.check_holds(kept, spec.stacks)
    return pruning.kept if kept is None else kept


def dropped_names(family: Family, spec: ModelSpec, kept: Mapping[str, ExpertMask]) -> set[str]:
    """Return the names of the tensors of experts that are not kept."""
    names: set[str] = set()
    for stack in spec.stacks:
        for layer, mask in zip(stack.layers, kept[stack.name], strict=True):
            path = family.sparse_path(stack.name, layer)
            for expert in set(range(stack.experts)) - set(mask):
                names.update(family.expert_tensors(path, expert).values())
    return names


def _fetch_kept(
    path_or_id: str | Path, folder: Path, family: Family, spec: ModelSpec, kept: Mapping[str, ExpertMask] | None
) -> None:
    fits = kept is not None and all(len(kept.get(stack.name, ())) == len(stack.layers) for stack in spec.stacks)
    dropped = dropped_names(family, spec, kept) if kept is not None and fits else set()
    fetch_weights(path_or_id, folder, lambda name: prefixed(name, family) not in dropped)


def _embedding(family: Family, checkpoint: Checkpoint, config: Any) -> str:
    """Return the name that the embedding is stored under."""
    group = family.tied(config)[0]
    return next((name for name in group if name in checkpoint), group[0])


def _stored_dtype(family: Family, checkpoint: Checkpoint, config: Any) -> torch.dtype:
    return read_tensor(checkpoint, _embedding(family, checkpoint, config)).dtype


def _finish(model: Any, folder: Path, config: Any, state: ModelRouting) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    for name, stack in state.stacks.items():
        follow_padding(model.get_submodule(f"model.{name}"), stack, pad=config.pad_token_id)
    model.eval()
