"""What a model is, from its configuration and its router rows, without loading it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from nllb_prune.errors import UsageError
from nllb_prune.model.checkpoint import Checkpoint
from nllb_prune.model.families import Family, family_of
from nllb_prune.model.filling import read_tensor
from nllb_prune.model.source import fetch_weights, model_folder, read_config
from nllb_prune.model.spec import Fingerprint, ModelSpec


def load_spec(path_or_id: str | Path) -> ModelSpec:
    """Describe a model without loading it: its configuration and, for the fingerprint, its router rows are read.

    Raises:
        UsageError: if it is dense: there is nothing to prune.
    """
    folder = model_folder(path_or_id)
    config = read_config(folder)
    family = family_of(config)
    spec = require_sparse(family.spec(config), path_or_id)
    routers = router_names(family, spec)
    fetch_weights(path_or_id, folder, lambda name: prefixed(name, family) in routers)
    with Checkpoint(folder, prefix=family.base_prefix) as checkpoint:
        return fingerprinted(family, spec, checkpoint)


def require_sparse(spec: ModelSpec, name: str | Path) -> ModelSpec:
    """Return the spec of a sparse model.

    Raises:
        UsageError: if the model is dense.
    """
    if not spec.stacks:
        raise UsageError(f"`{name}` is a dense model ({spec.family}): without experts there is nothing to prune.")
    return spec


def router_names(family: Family, spec: ModelSpec) -> set[str]:
    """Return the names of the router tensors."""
    paths = [family.sparse_path(stack.name, layer) for stack in spec.stacks for layer in stack.layers]
    return {name for path in paths for name in family.router_tensors(path).values()}


def prefixed(name: str, family: Family) -> str:
    """Return the name of a stored tensor with the prefix that some checkpoints lack."""
    bare = not name.startswith((family.base_prefix, "lm_head."))
    return family.base_prefix + name if bare else name


def fingerprinted(family: Family, spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    """Return the spec with its fingerprint, from the router rows."""
    norms: list[float] = []
    for stack in spec.stacks:
        for layer in stack.layers:
            name = family.router_tensors(family.sparse_path(stack.name, layer))["router_weight"]
            norms += read_tensor(checkpoint, name).float().norm(dim=1).tolist()
    return dataclasses.replace(spec, fingerprint=Fingerprint.of(spec.stacks, norms))
