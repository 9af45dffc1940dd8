"""A checkpoint to a model with so many slots for its experts, which come and go while it runs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.masks import MaskSet
from nllb_prune.model.assembly import assemble
from nllb_prune.model.chosen import MASKS_FILE, own_masks
from nllb_prune.model.decoding_sizes import DecodingSizes
from nllb_prune.model.describe import fingerprinted, prefixed, require_sparse, router_names
from nllb_prune.model.expert_store import ExpertId, ExpertStore, FileStore, MemoryStore
from nllb_prune.model.facts import identity_of, parameter_counts
from nllb_prune.model.families import Family, family_of
from nllb_prune.model.families.seq2seq import table_rows
from nllb_prune.model.filling import Filler
from nllb_prune.model.loading import finish, resolved_dtype, stored_dtype
from nllb_prune.model.pager import Layer, Pager, places_of
from nllb_prune.model.placement import Placement
from nllb_prune.model.pruned import ExpertPruning, pruning_of
from nllb_prune.model.quantised_bank import Bank, expanded_numbers
from nllb_prune.model.routing import ModelRouting, attach_routing
from nllb_prune.model.source import fetch_weights, model_folder, model_name, read_config
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.model.spec import ModelSpec
from nllb_prune.weights.checkpoint import Checkpoint
from nllb_prune.weights.stored import StoredTensor


@dataclass(frozen=True, slots=True, kw_only=True)
class Weighed:
    """A model that is not loaded: what it is, and what it takes in memory in a dtype."""

    spec: ModelSpec
    pruning: ExpertPruning | None
    sizes: DecodingSizes | None
    """`None` of a family that does not run as blocks."""
    masks: MaskSet | None
    """Those that a pruned checkpoint carries."""
    dtype: torch.dtype
    fixed: int
    """Bytes of all but experts: dense weights, routers, tables of positions."""
    expert: Mapping[str, int]
    """Bytes of an expert, by stack."""
    expanded: int
    """Numbers of the matrices of quantised experts that are floats at once, at most."""


def weigh(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    positions: int = 0,
) -> Weighed:
    """Describe a model; only its routers are read. Arguments are those of `load_model`, but for `positions`.

    Args:
        path_or_id: The model.
        dtype: Of its weights.
        device: Where they go.
        positions: That tables of positions will be made to hold, if more than they do.
    """
    folder = model_folder(path_or_id)
    config, place = read_config(folder), torch.device(device or "cpu")
    family = family_of(config)
    spec = family.spec(config)
    pruning = pruning_of(config, spec)
    routers = router_names(family, spec) | set(family.tied(config)[0])
    fetch_weights(path_or_id, folder, lambda name: prefixed(name, family) in routers)
    with Checkpoint(folder, prefix=family.base_prefix, original=family.original) as checkpoint:
        spec = fingerprinted(family, spec, checkpoint)
        dtype = resolved_dtype(
            dtype, on_cpu=place.type == "cpu", stored=partial(stored_dtype, family, checkpoint, config)
        )
    scheme = None if pruning is None else pruning.scheme
    ones = {stack.name: [1] * len(stack.layers) for stack in spec.stacks}
    meta = torch.device("meta")
    model, state = assemble(family, spec, config, kept=None, dtype=dtype, device=meta, scheme=scheme, slots=ones)
    state.spec = spec
    banks = banks_of(model, family, state)
    carries = pruning is not None and (folder / MASKS_FILE).exists()
    return Weighed(
        spec=spec,
        pruning=pruning,
        sizes=None if family.decoding_sizes is None else family.decoding_sizes(config),
        masks=own_masks(folder) if carries else None,
        dtype=dtype,
        fixed=_fixed(model, banks, dtype) + _longer_tables(model, config, positions) * dtype.itemsize,
        expert={stack: sum(p.nbytes for p in bank.parameters()) for (stack, _), bank in banks.items()},
        expanded=0 if scheme is None else max(expanded_numbers(bank, on=place.type) for bank in banks.values()),
    )


@dataclass(frozen=True, slots=True)
class PagedModel:
    """A model whose slots are empty at first, and what fills them."""

    model: nn.Module
    """To be run through its blocks, and only within experts that are in."""
    pager: Pager


def load_paged(
    path_or_id: str | Path,
    *,
    kept: Mapping[str, ExpertMask],
    slots: Mapping[str, Sequence[int]],
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
) -> PagedModel:
    """Load all but the experts of a model.

    Args:
        path_or_id: As of `load_model`.
        kept: Experts that may be brought in, by stack and sparse layer, until the store is told to `hold` others.
        slots: Of each sparse layer by stack.
        dtype: As of `load_model`.
        device: One for all. On a CUDA device the experts wait in page-locked memory of the host, elsewhere in the files
            of the checkpoint.

    Raises:
        UsageError: as `load_model` does.
    """
    folder = model_folder(path_or_id)
    config, place = read_config(folder), torch.device(device or "cpu")
    family = family_of(config)
    spec = require_sparse(family.spec(config), path_or_id)
    pruning = pruning_of(config, spec)
    if pruning is not None:
        pruning.check_holds(kept, spec.stacks)
    fetch_weights(path_or_id, folder, lambda name: True)
    with Checkpoint(folder, prefix=family.base_prefix, original=family.original) as checkpoint:
        spec = fingerprinted(family, spec, checkpoint)
        dtype = resolved_dtype(
            dtype, on_cpu=place.type == "cpu", stored=partial(stored_dtype, family, checkpoint, config)
        )
        scheme = None if pruning is None else pruning.scheme
        model, state = assemble(family, spec, config, kept=kept, dtype=dtype, device=place, scheme=scheme, slots=slots)
        held = None if pruning is None else pruning.kept
        Filler(family, config, checkpoint, model, state, dtype=dtype, device=Placement.on(place), held=held).fill()
        banks = banks_of(model, family, state)
        store: ExpertStore = FileStore(_stored_experts(family, checkpoint, banks, state, kept, held=held))
    if place.type == "cuda":
        store = MemoryStore(store, {layer: places_of(bank)[0] for layer, bank in banks.items()}, pinned=True)
    store.hold(expert_ids(kept))
    state.spec = dataclasses.replace(spec, parameters=parameter_counts(model))
    state.pruning, state.name = pruning, model_name(path_or_id)
    attach_routing(model, state)
    finish(model, folder, config, state)
    state.identity = identity_of(cast(Any, model).get_input_embeddings().weight, spec, pruning)
    return PagedModel(model, Pager(banks, store))


def _fixed(model: nn.Module, banks: Mapping[Layer, Bank], dtype: torch.dtype) -> int:
    """Return the bytes of all but experts, of a model on the meta device."""
    experts = {id(parameter) for bank in banks.values() for parameter in bank.parameters()}
    routers = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, SparseFfn)
        for parameter in module.parameters(recurse=False)
    }
    tables = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    dense = [parameter for parameter in model.parameters() if id(parameter) not in experts | routers]
    float32 = sum(p.nbytes for p in model.parameters() if id(p) in routers)
    return float32 + sum(tensor.numel() for tensor in [*dense, *tables]) * dtype.itemsize


def _longer_tables(model: nn.Module, config: Any, positions: int) -> int:
    """Return how many numbers tables of positions grow by when they are made to hold so many."""
    tables = [buffer for buffer in model.buffers() if buffer.is_floating_point() and buffer.ndim == 2]
    return sum(
        (table_rows(positions, pad=config.pad_token_id) - len(table)) * table.shape[1]
        for table in tables
        if positions + config.pad_token_id + 1 > len(table)
    )


def banks_of(model: nn.Module, family: Family, state: ModelRouting) -> dict[Layer, Bank]:
    """Return the banks of a model by stack and number of the sparse layer."""
    banks: dict[Layer, Bank] = {}
    for stack in state.spec.stacks:
        for number, layer in enumerate(stack.layers):
            sparse = model.get_submodule(family.sparse_path(stack.name, layer))
            assert isinstance(sparse, SparseFfn)
            banks[stack.name, number] = sparse.bank
    return banks


def _stored_experts(
    family: Family,
    checkpoint: Checkpoint,
    banks: Mapping[Layer, Bank],
    state: ModelRouting,
    kept: Mapping[str, ExpertMask],
    *,
    held: Mapping[str, ExpertMask] | None,
) -> dict[ExpertId, dict[str, StoredTensor]]:
    """Return where each tensor of an expert is, by parameter of the bank; of those that are kept, all must be right."""
    found: dict[ExpertId, dict[str, StoredTensor]] = {}
    for stack in state.spec.stacks:
        for number, layer in enumerate(stack.layers):
            path, bank = family.sparse_path(stack.name, layer), banks[stack.name, number]
            wanted = set(kept[stack.name][number])
            for expert in range(stack.experts) if held is None else held[stack.name][number]:
                with nullcontext() if expert in wanted else suppress(UsageError):  # the store refuses it if asked for
                    names = family.expert_tensors(path, expert)
                    found[stack.name, number, expert] = dict(_places(names, bank, checkpoint))
    return found


def _places(names: Mapping[str, str], bank: Bank, checkpoint: Checkpoint) -> Iterator[tuple[str, StoredTensor]]:
    for parameter, name in names.items():
        for suffix, place in bank.places(parameter).items():
            if name + suffix not in checkpoint:
                raise UsageError(
                    f"The checkpoint must hold `{name + suffix}`, but does not; it is incomplete or of another model."
                )
            stored, wanted = checkpoint.stored(name + suffix), tuple(bank.get_parameter(place).shape[1:])
            if stored.shape != wanted:
                raise UsageError(f"`{stored.name}` must have the shape {wanted}, but has {stored.shape} instead.")
            held = bank.get_parameter(place).dtype
            if stored.dtype.is_floating_point != held.is_floating_point:
                raise UsageError(
                    f"`{stored.name}` must be of {held}, or convert to it, but is of {stored.dtype} instead."
                )
            yield place, stored


def expert_ids(kept: Mapping[str, ExpertMask]) -> list[ExpertId]:
    """Return the experts of masks of stacks."""
    return [(stack, layer, expert) for stack, mask in kept.items() for layer, ids in enumerate(mask) for expert in ids]
