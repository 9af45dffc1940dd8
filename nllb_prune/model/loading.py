"""A checkpoint, and a mask if wanted, to a model that holds only the experts it needs.

The transformers model is made on the meta device, its sparse layers are replaced by ours, and each parameter is then
read from the shards once, straight into its place: no weight is ever held twice, and no dropped expert is read.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nllb_prune.masks import ExpertMask, MaskSet
from nllb_prune.model.assembly import assemble
from nllb_prune.model.checkpoint import Checkpoint
from nllb_prune.model.describe import fingerprinted, load_spec, prefixed, require_sparse
from nllb_prune.model.facts import ModelFacts, dtype_name, facts_of, identity_of, load_facts, parameter_counts
from nllb_prune.model.families import Family, family_of
from nllb_prune.model.filling import Filler, read_tensor
from nllb_prune.model.routing import ModelRouting, attach_routing, follow_padding
from nllb_prune.model.source import fetch_weights, model_folder, model_name, read_config
from nllb_prune.model.spec import ModelSpec

__all__ = ["ModelFacts", "dtype_name", "facts_of", "load_facts", "load_model", "load_spec", "require_sparse"]


def load_model(
    path_or_id: str | Path,
    *,
    masks: MaskSet | None = None,
    direction: tuple[str, str] | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> nn.Module:
    """Load a model whose sparse layers are ours; with a mask it holds only the experts of a direction.

    Args:
        path_or_id: `mini`, a folder, or a Hub id.
        masks: Which experts to keep. With a direction the others are not even read; without one all are loaded and
            `set_masks` or `routing` choose later.
        direction: Source and target language of the masks.
        dtype: Of the weights; float32 by default on the CPU, as stored elsewhere. Routers stay in float32.
        device: Where to; the CPU by default.

    Returns:
        The module of the transformers class, for inference, with `generate`.

    Raises:
        UsageError: on a missing, unexpected or misshapen tensor, masks of another model, masks of a dense model.
    """
    folder = model_folder(path_or_id)
    config = read_config(folder)
    family = family_of(config)
    device = torch.device(device or "cpu")
    spec = family.spec(config)
    if masks is not None:
        require_sparse(spec, path_or_id)
    kept = None if masks is None or direction is None else masks.direction(*direction)
    _fetch_kept(path_or_id, folder, family, spec, kept)
    with Checkpoint(folder, prefix=family.base_prefix) as checkpoint:
        spec = fingerprinted(family, spec, checkpoint)
        if masks is not None:
            masks.check_model(spec)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else _stored_dtype(family, checkpoint, config)
        model, state = assemble(family, spec, config, kept=kept, dtype=dtype, device=device)
        Filler(family, config, checkpoint, model, state, dtype=dtype, device=device).fill()
    state.spec = spec = dataclasses.replace(spec, parameters=parameter_counts(model, family, spec))
    attach_routing(model, state)
    _finish(model, folder, config, state)
    state.name, state.identity = (
        model_name(path_or_id),
        identity_of(cast(Any, model).get_input_embeddings().weight, spec),
    )
    return model


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


def _stored_dtype(family: Family, checkpoint: Checkpoint, config: Any) -> torch.dtype:
    group = family.tied(config)[0]
    return read_tensor(checkpoint, next((name for name in group if name in checkpoint), group[0])).dtype


def _finish(model: Any, folder: Path, config: Any, state: ModelRouting) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    for name, stack in state.stacks.items():
        follow_padding(model.get_submodule(f"model.{name}"), stack, pad=config.pad_token_id)
    model.eval()
