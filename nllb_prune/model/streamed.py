"""A checkpoint to a model that runs without being in memory.

The transformers module is made on the meta device and stays there but for norms, routers and tables of positions. Its
blocks read a layer when it runs, of a sparse layer one expert after the other, and let them go.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nllb_prune.errors import UsageError
from nllb_prune.model.assembly import assemble
from nllb_prune.model.blocks import carried_blocks, carry_blocks
from nllb_prune.model.describe import fingerprinted
from nllb_prune.model.expected import ExpectedTensors, expected_tensors
from nllb_prune.model.facts import identity_of, parameter_counts
from nllb_prune.model.families import Family, family_of
from nllb_prune.model.pruned import ExpertPruning, pruning_of
from nllb_prune.model.routing import attach_routing
from nllb_prune.model.source import fetch_weights, model_folder, model_name, read_config
from nllb_prune.model.spec import ModelSpec, Stack
from nllb_prune.model.streamed_bank import StreamedBank
from nllb_prune.model.streamed_head import StreamedHead, shape_only
from nllb_prune.model.streamed_layers import StreamedBlocks, StreamedLayer
from nllb_prune.model.streamed_weights import StreamedWeights
from nllb_prune.weights.checkpoint import Checkpoint

_HEAD = "lm_head"
_SAMPLE = 1024


def load_streamed(
    path_or_id: str | Path,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    memory: int = 0,
) -> nn.Module:
    """Make a model whose weights are read while it runs: a layer, an expert, a slice of the head at a time.

    It goes where one of `load_model` goes that is run through its blocks: `calibrate`, `translations`, `HeldOut`,
    `routing`, `set_masks`; a call of the module itself is refused. Experts that no token is routed to are not read.

    Args:
        path_or_id: As of `load_model`.
        dtype: Of the weights in memory, as of `load_model`.
        device: Where the model runs; the CPU by default.
        memory: Bytes of weights that may stay in memory for the next call; each call reads all it needs without.

    Raises:
        UsageError: on a missing, unexpected or misshapen tensor, and quantised experts.
    """
    folder = model_folder(path_or_id)
    config = read_config(folder)
    family = family_of(config)
    pruning = pruning_of(config, family.spec(config))
    _check_floats(pruning)
    fetch_weights(path_or_id, folder, lambda name: True)
    checkpoint = Checkpoint(folder, prefix=family.base_prefix, original=family.original)
    spec = fingerprinted(family, family.spec(config), checkpoint)
    kept = None if pruning is None else pruning.kept
    expected = expected_tensors(family, config, spec, kept)
    _check(expected, checkpoint, family)
    embedding = next(name for name in expected.tied[0] if name in checkpoint)
    device = torch.device(device or "cpu")
    if dtype is None:
        dtype = torch.float32 if device.type == "cpu" else checkpoint.stored(embedding).dtype
    weights = StreamedWeights(checkpoint, dtype=dtype, device=device, memory=memory)
    model, state = assemble(family, spec, config, kept=kept, dtype=dtype, device=torch.device("meta"))
    state.spec = dataclasses.replace(spec, parameters=parameter_counts(model))
    state.pruning, state.name = pruning, model_name(path_or_id)
    state.identity = identity_of(_sample(weights, embedding), spec, pruning)
    attach_routing(model, state)
    _carry(model, _Assembly(family, model, expected, weights).blocks(state.spec))
    return model.eval()


def _carry(model: nn.Module, blocks: StreamedBlocks) -> None:
    """Let blocks run in the place of the module, which is not to be called any more."""
    carry_blocks(model, blocks)
    for module in (model, model.get_submodule("model.encoder"), model.get_submodule("model.decoder")):
        module.register_forward_pre_hook(_refuse)


def streamed_blocks(model: nn.Module) -> StreamedBlocks | None:
    """Return the blocks of a model from `load_streamed`; `None` of another."""
    blocks = carried_blocks(model)
    return blocks if isinstance(blocks, StreamedBlocks) else None


def _refuse(module: nn.Module, arguments: tuple[object, ...]) -> None:
    raise UsageError(
        "`model` must be in memory to be called, but is streamed; use `translations`, `calibrate` or its blocks, or "
        "load it with `load_model`."
    )


def _check_floats(pruning: ExpertPruning | None) -> None:
    if pruning is not None and pruning.scheme is not None:
        raise UsageError(
            f"`model` must have experts stored as floats to be streamed, but has them in {pruning.scheme.name} "
            "instead; load it with `load_model`."
        )


def _check(expected: ExpectedTensors, checkpoint: Checkpoint, family: Family) -> None:
    """Refuse a checkpoint that would fail on the way."""
    if missing := expected.missing(set(checkpoint)):
        raise UsageError(
            f"The checkpoint must hold `{missing[0]}`, but does not; it is incomplete or of another model."
        )
    if unexpected := sorted(name for name in checkpoint if not expected.known(name)):
        raise UsageError(
            f"The checkpoint must hold only tensors of a {family.model_type} model, but holds {len(unexpected)} "
            f"others, first `{unexpected[0]}`."
        )
    for name in checkpoint:
        wanted = expected.shape(name)
        if wanted is not None and (found := checkpoint.stored(name).shape) != wanted:
            raise UsageError(f"`{name}` must have the shape {wanted}, but has {found} instead.")


def _sample(weights: StreamedWeights, embedding: str) -> Tensor:
    """Read the values of the embedding that tell a model from others: those that `identity_of` takes of the whole."""
    count = math.prod(weights.shape(embedding))
    step = max(1, count // _SAMPLE)
    values = [weights.values(embedding, place, place + 1) for place in range(0, count, step)]
    return torch.cat(values).to(weights.dtype)


class _Assembly:
    """Puts what stays in memory into an assembled model, and what reads the rest."""

    def __init__(self, family: Family, model: Any, expected: ExpectedTensors, weights: StreamedWeights) -> None:
        self.family, self.model, self.expected, self.weights = family, model, expected, weights

    def stored(self, name: str) -> str:
        """Return the name that a parameter is stored under."""
        group = next((group for group in self.expected.tied if name in group), (name,))
        return next(member for member in group if member in self.weights.checkpoint)

    def blocks(self, spec: ModelSpec) -> StreamedBlocks:
        """Return what runs in place of the module."""
        banks = {path: bank for stack in spec.stacks for path, bank in self._sparse(stack, spec)}
        layers = {stack: self._layers(stack, banks) for stack in ("encoder", "decoder")}
        self._fill_rest()
        head = StreamedHead(self.stored(f"{_HEAD}.weight"), self.weights)
        self.model.set_submodule(_HEAD, head)
        assert self.family.blocks is not None, "every family of encoder and decoder has blocks"
        return StreamedBlocks(
            self.family.blocks(self.model),
            self.model,
            layers=layers,
            embedding=self.stored(self.expected.tied[0][0]),
            head=head,
            weights=self.weights,
        )

    def _sparse(self, stack: Stack, spec: ModelSpec) -> Iterator[tuple[str, StreamedBank]]:
        """Read the routers of a stack, and let its banks read their experts."""
        for layer in stack.layers:
            path = self.family.sparse_path(stack.name, layer)
            sparse = self.model.get_submodule(path)
            for parameter, name in self.family.router_tensors(path).items():
                if getattr(sparse, parameter) is not None:
                    # rounded as the other weights are, then held in float32: what transformers' routers do
                    setattr(sparse, parameter, _constant(self.weights.tensor(name).float()))
            ids = sparse.bank.expert_ids
            sparse.bank = StreamedBank(
                tensors={expert: self.family.expert_tensors(path, expert) for expert in ids},
                experts=stack.experts,
                activation=spec.activation,
                weights=self.weights,
            )
            yield path, sparse.bank

    def _layers(self, stack: str, banks: Mapping[str, StreamedBank]) -> list[StreamedLayer]:
        """Return what reads the dense parameters of each layer of a stack."""
        found = []
        for number, module in enumerate(self.model.get_submodule(f"model.{stack}.layers")):
            path = f"model.{stack}.layers.{number}."
            names = {name.removeprefix(path): name for name in self.expected.dense if name.startswith(path)}
            bank = banks.get(self.family.sparse_path(stack, number))
            found.append(StreamedLayer(module, names, bank, self.weights))
        return found

    def _fill_rest(self) -> None:
        """Read what is outside of the layers, and compute the tables of positions, which no checkpoint holds."""
        embeddings = {name for group in self.expected.tied for name in group} | {f"{_HEAD}.weight"}
        for name in self.expected.dense:
            if ".layers." in name:
                continue
            owner, _, leaf = name.rpartition(".")
            value = self._shape_only(name) if name in embeddings else _constant(self.weights.tensor(name))
            self.model.get_submodule(owner)._parameters[leaf] = value
        for module in self.model.modules():
            for leaf, buffer in list(module._buffers.items()):
                if buffer is not None and buffer.is_meta:
                    table = module.get_embedding(*buffer.shape, module.padding_idx)
                    module._buffers[leaf] = table.to(device=self.weights.device, dtype=self.weights.dtype)

    def _shape_only(self, name: str) -> nn.Parameter:
        return shape_only(self.weights, self.stored(name))


def _constant(tensor: Tensor) -> nn.Parameter:
    return nn.Parameter(tensor, requires_grad=False)
