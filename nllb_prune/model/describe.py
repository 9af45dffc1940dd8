"""What a model is, from its configuration and its router rows, without loading it."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.model.families import Family, family_of
from nllb_prune.model.filling import read_tensor
from nllb_prune.model.source import fetch_weights, is_local, model_folder, read_config
from nllb_prune.model.spec import Fingerprint, ModelSpec
from nllb_prune.model.weight_files import weight_files
from nllb_prune.weights.checkpoint import Checkpoint


def load_spec(path_or_id: str | Path, *, disk: int | None = None) -> ModelSpec:
    """Describe a model without loading it: its configuration and, for the fingerprint, its router rows are read.

    Args:
        path_or_id: As of `load_model`.
        disk: Of a Hub id: fetch its files one at a time, in so many bytes, and keep none of them.

    Raises:
        UsageError: if it is dense: there is nothing to prune.
    """
    folder = model_folder(path_or_id)
    config = read_config(folder)
    family = family_of(config)
    spec = require_sparse(family.spec(config), path_or_id)
    routers = router_names(family, spec)
    if disk is not None and not is_local(path_or_id):
        return _streamed_spec(path_or_id, family, spec, disk=disk)
    fetch_weights(path_or_id, folder, lambda name: prefixed(name, family) in routers)
    with Checkpoint(folder, prefix=family.base_prefix, original=family.original) as checkpoint:
        return fingerprinted(family, spec, checkpoint)


def _streamed_spec(path_or_id: str | Path, family: Family, spec: ModelSpec, *, disk: int) -> ModelSpec:
    """Return the spec with its fingerprint, from files that come and go."""
    wanted = [family.router_tensors(family.sparse_path(stack.name, n)) for stack in spec.stacks for n in stack.layers]
    names = [each["router_weight"] for each in wanted]
    files = weight_files(path_or_id, wanted=lambda name: name in names, disk=disk)
    norms: dict[str, list[float]] = {}
    for file in files.files:
        with files.opened(file) as tensors:
            norms |= {each.name: row_norms(each.read()) for each in tensors if each.name in names}
    if missing := [name for name in names if name not in norms]:
        raise UsageError(f"`{path_or_id}` must hold `{missing[0]}`, but does not; it is of another model.")
    found = Fingerprint.of(spec.stacks, (norm for name in names for norm in norms[name]))
    return dataclasses.replace(spec, fingerprint=found)


def row_norms(rows: Tensor) -> list[float]:
    """Return the Euclidean norms that a fingerprint is made of."""
    norms: list[float] = rows.float().norm(dim=1).tolist()
    return norms


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
            norms += row_norms(read_tensor(checkpoint, name))
    return dataclasses.replace(spec, fingerprint=Fingerprint.of(spec.stacks, norms))
