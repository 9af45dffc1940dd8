"""A checkpoint, and a mask if wanted, to a model that holds only the experts it needs.

The transformers model is made on the meta device, its sparse layers are replaced by ours, and each parameter is then
read from the shards once, straight into its place: no weight is ever held twice, and no dropped expert is read.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from nllb_prune.errors import UsageError
from nllb_prune.masks import ExpertMask, MaskSet
from nllb_prune.model.checkpoint import Checkpoint
from nllb_prune.model.expert_bank import ExpertBank
from nllb_prune.model.families import Family, family_of
from nllb_prune.model.routing import ModelRouting, StackRouting, attach_routing, follow_padding, routing_of
from nllb_prune.model.source import fetch_weights, model_folder, model_name, read_config
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.model.spec import Fingerprint, ModelSpec, ParameterCounts


def load_spec(path_or_id: str | Path) -> ModelSpec:
    """Describe a model without loading it: its configuration and, for the fingerprint, its router rows are read.

    Raises:
        UsageError: if it is dense: there is nothing to prune.
    """
    folder = model_folder(path_or_id)
    config = read_config(folder)
    family = family_of(config)
    spec = require_sparse(family.spec(config), path_or_id)
    routers = _router_names(family, spec)
    fetch_weights(path_or_id, folder, lambda name: _prefixed(name, family) in routers)
    with Checkpoint(folder, prefix=family.base_prefix) as checkpoint:
        return _fingerprinted(family, spec, checkpoint)


def _router_names(family: Family, spec: ModelSpec) -> set[str]:
    paths = [family.sparse_path(stack.name, layer) for stack in spec.stacks for layer in stack.layers]
    return {name for path in paths for name in family.router_tensors(path).values()}


def _dropped_names(family: Family, spec: ModelSpec, kept: Mapping[str, ExpertMask]) -> set[str]:
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
    dropped = _dropped_names(family, spec, kept) if kept is not None and fits else set()
    fetch_weights(path_or_id, folder, lambda name: _prefixed(name, family) not in dropped)


def _prefixed(name: str, family: Family) -> str:
    bare = not name.startswith((family.base_prefix, "lm_head."))
    return family.base_prefix + name if bare else name


def require_sparse(spec: ModelSpec, name: str | Path) -> ModelSpec:
    """Return the spec of a sparse model.

    Raises:
        UsageError: if the model is dense.
    """
    if not spec.stacks:
        raise UsageError(f"`{name}` is a dense model ({spec.family}): without experts there is nothing to prune.")
    return spec


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
        spec = _fingerprinted(family, spec, checkpoint)
        if masks is not None:
            masks.check_model(spec)
        if dtype is None:
            dtype = torch.float32 if device.type == "cpu" else _stored_dtype(family, checkpoint, config)
        model, state = _assemble(family, spec, config, kept=kept, dtype=dtype, device=device)
        _Filler(family, config, checkpoint, model, state, dtype=dtype, device=device).fill()
    state.spec = spec = dataclasses.replace(spec, parameters=_parameter_counts(model, family, spec))
    attach_routing(model, state)
    _finish(model, folder, config, state)
    state.name, state.identity = model_name(path_or_id), _identity(cast(Any, model).get_input_embeddings().weight, spec)
    return model


@dataclasses.dataclass(frozen=True, slots=True)
class ModelFacts:
    """What results of a full model depend on and what they are compared by, without its weights."""

    name: str
    identity: str
    dtype: str
    spec: ModelSpec
    """With fingerprint and parameter counts."""


def facts_of(model: nn.Module) -> ModelFacts:
    """Describe a loaded model.

    Raises:
        UsageError: if it is pruned or has masks set.
    """
    state = routing_of(model)
    if state.resident is not None or any(stack.keep is not None for stack in state.stacks.values()):
        raise UsageError("`model` must be the full one, but is pruned or has masks set; give them as configurations.")
    return ModelFacts(state.name, state.identity, dtype_name(model), state.spec)


def load_facts(
    path_or_id: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> ModelFacts:
    """Describe what `load_model` would load, reading only routers and the embedding."""
    folder = model_folder(path_or_id)
    config = read_config(folder)
    family = family_of(config)
    spec, meta = family.spec(config), torch.device("meta")
    first = family.tied(config)[0]
    wanted = _router_names(family, spec) | set(first)
    fetch_weights(path_or_id, folder, lambda name: _prefixed(name, family) in wanted)
    with Checkpoint(folder, prefix=family.base_prefix) as checkpoint:
        spec = _fingerprinted(family, spec, checkpoint)
        stored = _read(checkpoint, next((name for name in first if name in checkpoint), first[0]))
        if dtype is None:
            dtype = torch.float32 if torch.device(device or "cpu").type == "cpu" else stored.dtype
        model, _ = _assemble(family, spec, config, kept=None, dtype=dtype, device=meta)
        identity = _identity(stored.to(dtype), spec)
    spec = dataclasses.replace(spec, parameters=_parameter_counts(model, family, spec))
    return ModelFacts(model_name(path_or_id), identity, str(dtype).removeprefix("torch."), spec)


def _parameter_counts(model: nn.Module, family: Family, spec: ModelSpec) -> ParameterCounts:
    dense = sum(parameter.numel() for parameter in model.parameters())
    router, expert = 0, {}
    for stack in spec.stacks:
        for layer in stack.layers:
            sparse = model.get_submodule(family.sparse_path(stack.name, layer))
            assert isinstance(sparse, SparseFfn)
            sizes = [sum(p.numel() for p in part.parameters()) for part in (sparse, sparse.bank)]
            dense, router = dense - sizes[0], router + sizes[0] - sizes[1]
            expert[stack.name] = sizes[1] // len(sparse.bank.expert_ids)
    return ParameterCounts(dense=dense, router=router, expert=expert)


def _identity(embedding: Tensor, spec: ModelSpec) -> str:
    """Hash the fingerprint and a thousand values spread over the embedding."""
    embedding = embedding.flatten()
    sample = embedding[:: max(1, embedding.numel() // 1024)].float().cpu()
    fingerprint = spec.fingerprint.short if spec.fingerprint is not None else ""
    return hashlib.sha256(fingerprint.encode() + sample.numpy().tobytes()).hexdigest()[:16]


def dtype_name(model: nn.Module) -> str:
    """Return the dtype of a model's weights, routers apart, as in `float32`."""
    return str(next(model.parameters()).dtype).removeprefix("torch.")


def _stored_dtype(family: Family, checkpoint: Checkpoint, config: Any) -> torch.dtype:
    group = family.tied(config)[0]
    return _read(checkpoint, next((name for name in group if name in checkpoint), group[0])).dtype


def _fingerprinted(family: Family, spec: ModelSpec, checkpoint: Checkpoint) -> ModelSpec:
    norms: list[float] = []
    for stack in spec.stacks:
        for layer in stack.layers:
            name = family.router_tensors(family.sparse_path(stack.name, layer))["router_weight"]
            norms += _read(checkpoint, name).float().norm(dim=1).tolist()
    return dataclasses.replace(spec, fingerprint=Fingerprint.of(spec.stacks, norms))


def _read(checkpoint: Checkpoint, name: str) -> Tensor:
    if name not in checkpoint:
        raise UsageError(f"The checkpoint must hold `{name}`, but does not; it is incomplete or of another model.")
    return checkpoint.tensor(name)


def _assemble(
    family: Family,
    spec: ModelSpec,
    config: Any,
    *,
    kept: Mapping[str, ExpertMask] | None,
    dtype: torch.dtype,
    device: torch.device,
) -> tuple[nn.Module, ModelRouting]:
    """Make the model on the meta device and put our sparse layers, with memory but no values, into it."""
    from transformers import AutoModelForSeq2SeqLM

    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    state = ModelRouting(spec, resident=None if kept is None else dict(kept))
    for stack in spec.stacks:
        routing = state.stacks[stack.name] = StackRouting(stack.name)
        shape = family.expert_shape(config, stack.name)
        for number, layer in enumerate(stack.layers):
            bank = ExpertBank(
                expert_ids=range(stack.experts) if kept is None else kept[stack.name][number],
                experts=stack.experts,
                d_model=shape.d_model,
                ffn=shape.ffn,
                activation=spec.activation,
                dtype=dtype,
                device=device,
            )
            sparse = SparseFfn(
                layer=number,
                bank=bank,
                d_model=shape.d_model,
                top_k=spec.top_k,
                output_scale=spec.output_scale,
                renormalise=spec.renormalise,
                router_bias=spec.router_bias,
                routing=routing,
                wrap_output=family.wrap_output,
                device=device,
            )
            model.set_submodule(family.sparse_path(stack.name, layer), sparse)
    return model, state


class _Filler:
    """Reads each parameter of an assembled model into its place and accounts for every tensor of the checkpoint."""

    def __init__(
        self,
        family: Family,
        config: Any,
        checkpoint: Checkpoint,
        model: nn.Module,
        state: ModelRouting,
        *,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.family, self.checkpoint, self.model, self.state = family, checkpoint, model, state
        self.dtype, self.device = dtype, device
        self.groups = family.tied(config)
        self.used: set[str] = set()

    def fill(self) -> None:
        """Fill experts, routers, dense parameters and buffers.

        Raises:
            UsageError: if a tensor is missing, unexpected or of another shape.
        """
        sparse: set[str] = set()
        for stack in self.state.spec.stacks:
            for layer in stack.layers:
                path = self.family.sparse_path(stack.name, layer)
                self._fill_sparse(path, stack.experts)
                sparse.update(name for name, _ in self.model.named_parameters() if name.startswith(path + "."))
        self._fill_dense(sparse)
        self._fill_buffers()
        self._refuse_unexpected()

    def _fill_sparse(self, path: str, experts: int) -> None:
        layer = self.model.get_submodule(path)
        assert isinstance(layer, SparseFfn)
        for parameter, name in self.family.router_tensors(path).items():
            place = getattr(layer, parameter)
            if place is not None:
                # rounded as the other weights are, then held in float32: what transformers' routers do
                self._copy(name, place, through=self.dtype)
        for slot, expert in enumerate(layer.bank.expert_ids):
            for parameter, name in self.family.expert_tensors(path, expert).items():
                self._copy(name, getattr(layer.bank, parameter)[slot])
        for expert in range(experts):
            self.used.update(self.family.expert_tensors(path, expert).values())  # dropped ones are not unexpected

    def _copy(self, name: str, place: Tensor, *, through: torch.dtype | None = None) -> None:
        tensor = self._take(name, place.shape)
        place.copy_(tensor if through is None else tensor.to(through))

    def _take(self, name: str, shape: torch.Size) -> Tensor:
        tensor = _read(self.checkpoint, name)
        if tensor.shape != shape:
            raise UsageError(f"`{name}` must have the shape {tuple(shape)}, but has {tuple(tensor.shape)} instead.")
        self.used.add(name)
        return tensor

    def _fill_dense(self, sparse: set[str]) -> None:
        tied = {name: group for group in self.groups for name in group}
        shared: dict[tuple[str, ...], nn.Parameter] = {}
        for name, parameter in list(self.model.named_parameters(remove_duplicate=False)):
            if name in sparse:
                continue
            group = tied.get(name, (name,))
            if group not in shared:
                stored = next((member for member in group if member in self.checkpoint), group[0])
                tensor = self._take(stored, parameter.shape).to(device=self.device, dtype=self.dtype, copy=True)
                shared[group] = nn.Parameter(tensor, requires_grad=False)
                self.used.update(group)
            owner, _, leaf = name.rpartition(".")
            self.model.get_submodule(owner)._parameters[leaf] = shared[group]

    def _fill_buffers(self) -> None:
        """Compute the buffers that no checkpoint holds: tables of positions."""
        for module in self.model.modules():
            for leaf, buffer in list(module._buffers.items()):
                if buffer is None or not buffer.is_meta:
                    continue
                table = cast(Any, module).get_embedding(*buffer.shape, module.padding_idx)
                module._buffers[leaf] = table.to(device=self.device, dtype=self.dtype)

    def _refuse_unexpected(self) -> None:
        unexpected = [n for n in self.checkpoint if n not in self.used and not n.endswith(self.family.ignored)]
        if unexpected:
            raise UsageError(
                f"The checkpoint must hold only tensors of a {self.family.model_type} model, but holds "
                f"{len(unexpected)} others, first `{sorted(unexpected)[0]}`."
            )


def _finish(model: Any, folder: Path, config: Any, state: ModelRouting) -> None:
    from transformers import GenerationConfig

    if (folder / "generation_config.json").exists():
        model.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
    for name, stack in state.stacks.items():
        follow_padding(model.get_submodule(f"model.{name}"), stack, pad=config.pad_token_id)
    model.eval()
