"""What results of a model depend on, with or without its weights."""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nllb_prune.errors import UsageError
from nllb_prune.model.assembly import assemble
from nllb_prune.model.describe import fingerprinted, prefixed, router_names
from nllb_prune.model.families import family_of
from nllb_prune.model.filling import read_tensor
from nllb_prune.model.pruned import ExpertPruning, pruning_of
from nllb_prune.model.routing import routing_of
from nllb_prune.model.source import fetch_weights, model_folder, model_name, read_config
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.model.spec import ModelSpec, ParameterCounts
from nllb_prune.result_files import canonical_json
from nllb_prune.weights.checkpoint import Checkpoint


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFacts:
    """What results of a model depend on and what they are compared by, without its weights."""

    name: str
    identity: str
    dtype: str
    spec: ModelSpec
    """With fingerprint and parameter counts."""
    backend: str | None = None
    """As of `ModelRouting`."""


def facts_of(model: nn.Module) -> ModelFacts:
    """Describe a loaded model.

    Raises:
        UsageError: if it holds less than its checkpoint or has masks set.
    """
    state = routing_of(model)
    whole = state.resident == (None if state.pruning is None else dict(state.pruning.kept))
    if not whole or any(stack.keep is not None for stack in state.stacks.values()):
        raise UsageError("`model` must be the full one, but is pruned or has masks set; give them as configurations.")
    return ModelFacts(state.name, state.identity, dtype_name(model), state.spec, state.backend)


def load_facts(
    path_or_id: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> ModelFacts:
    """Describe what `load_model` would load, reading only routers and the embedding."""
    folder = model_folder(path_or_id)
    config = read_config(folder)
    family = family_of(config)
    spec, meta = family.spec(config), torch.device("meta")
    pruning = pruning_of(config, spec)
    first = family.tied(config)[0]
    wanted = router_names(family, spec) | set(first)
    fetch_weights(path_or_id, folder, lambda name: prefixed(name, family) in wanted)
    with Checkpoint(folder, prefix=family.base_prefix, original=family.original) as checkpoint:
        spec = fingerprinted(family, spec, checkpoint)
        stored = read_tensor(checkpoint, next((name for name in first if name in checkpoint), first[0]))
        if dtype is None:
            dtype = torch.float32 if torch.device(device or "cpu").type == "cpu" else stored.dtype
        kept = None if pruning is None else pruning.kept
        scheme = None if pruning is None else pruning.scheme
        model, _ = assemble(family, spec, config, kept=kept, dtype=dtype, device=meta, scheme=scheme)
        identity = identity_of(stored.to(dtype), spec, pruning)
    spec = dataclasses.replace(spec, parameters=parameter_counts(model))
    return ModelFacts(model_name(path_or_id), identity, str(dtype).removeprefix("torch."), spec)


def parameter_counts(model: nn.Module) -> ParameterCounts:
    """Count the parameters of an assembled model."""
    dense = sum(parameter.numel() for parameter in model.parameters())
    router, expert = 0, {}
    for sparse in sparse_layers(model):
        sizes = [sum(p.numel() for p in part.parameters()) for part in (sparse, sparse.bank)]
        dense, router = dense - sizes[0], router + sizes[0] - sizes[1]
        expert[sparse.routing.stack] = sparse.bank.expert_parameters
    return ParameterCounts(dense=dense, router=router, expert=expert)


def sparse_layers(model: nn.Module) -> list[SparseFfn]:
    """Return the sparse layers of a model, those of the encoder first, in order."""
    return [module for module in model.modules() if isinstance(module, SparseFfn)]


def identity_of(
    embedding: Tensor, spec: ModelSpec, pruning: ExpertPruning | None = None, *, more: Mapping[str, Any] | None = None
) -> str:
    """Hash what tells a model from others.

    Args:
        embedding: A thousand values spread over it are hashed; these alone will do.
        spec: Its fingerprint and its rules of routing are.
        pruning: What a pruned checkpoint says of itself is.
        more: What else it depends on.
    """
    embedding = embedding.flatten()
    sample = embedding[:: max(1, embedding.numel() // 1024)].float().cpu()
    fingerprint = spec.fingerprint.short if spec.fingerprint is not None else ""
    rules = [spec.top_k, spec.output_scale, spec.score_function, spec.renormalise, spec.activation]
    settings = [rules, None if pruning is None else pruning.to_json(), None if more is None else dict(more)]
    return hashlib.sha256(fingerprint.encode() + sample.numpy().tobytes() + canonical_json(settings)).hexdigest()[:16]


def dtype_name(model: nn.Module) -> str:
    """Return the dtype of a model's weights, routers apart, as in `float32`."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")
