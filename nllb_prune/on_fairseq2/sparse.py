"""Our sparse layer as fairseq2's feed-forward network, how it learns which positions are padding, and what it tells."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from fairseq2.models.transformer import FeedForwardNetwork, TransformerModel
from fairseq2.nn import BatchLayout
from torch import Tensor, nn

from nllb_prune.model.describe import row_norms
from nllb_prune.model.dispatch import slot_table
from nllb_prune.model.routing import ModelRouting, StackRouting
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.model.spec import Fingerprint


class RouterNorms:
    """Collects the norms of router rows as layers are filled; with those of all, the model has its fingerprint."""

    def __init__(self, state: ModelRouting) -> None:
        self._state = state
        self._norms: dict[tuple[str, int], list[float]] = {}

    def note(self, sparse: SparseFfn) -> None:
        """Take note of a layer that is filled."""
        self._norms[sparse.routing.stack, sparse.layer] = row_norms(sparse.router_weight)
        spec = self._state.spec
        places = [(stack.name, number) for stack in spec.stacks for number in range(len(stack.layers))]
        if len(self._norms) == len(places):
            rows = [norm for place in places for norm in self._norms[place]]
            self._state.spec = replace(spec, fingerprint=Fingerprint.of(spec.stacks, rows))


class SparseFeedForwardNetwork(FeedForwardNetwork):
    """Represents a mixture-of-experts feed-forward network; what it computes is `SparseFfn`'s."""

    def __init__(self, sparse: SparseFfn, norms: RouterNorms) -> None:
        """Wrap a sparse layer."""
        super().__init__()
        self.sparse = sparse
        self._norms = norms
        self.reset_parameters()

    def forward(self, seqs: Tensor) -> Tensor:
        """Run the layer on ``(N, S, M)``, or on a packed batch ``(S, M)``."""
        if seqs.ndim == 2:
            packed: Tensor = self.sparse(seqs.unsqueeze(0)).squeeze(0)
            return packed
        output: Tensor = self.sparse(seqs)
        return output

    def reset_parameters(self) -> None:
        """Initialise a new layer as fairseq2 does linear ones: uniformly, by the width of the input; integers are 0."""
        bank, d_model = self.sparse.bank, self.sparse.router_weight.shape[1]
        widths = {"fc1": d_model, "fc2": bank.fc1_bias.shape[1]}
        for name, parameter in bank.named_parameters():
            _uniform(parameter, widths[name[:3]])
        for router in (self.sparse.router_weight, self.sparse.router_bias):
            if router is not None:
                _uniform(router, d_model)

    def reset_non_persistent_buffers(self) -> None:
        """Compute what no checkpoint holds: which expert sits in which slot, and of what model the router is.

        fairseq2 calls this once a model is filled. The router's weights are then rounded as the others are, and stay in
        float32: what transformers' routers do.
        """
        bank, router = self.sparse.bank, self.sparse.router_weight
        bank.slot_of = slot_table(bank.expert_ids, experts=bank.experts, device=bank.fc1_bias.device)
        self._norms.note(self.sparse)
        with torch.no_grad():
            router.copy_(router.to(bank.fc1_bias.dtype))


def _uniform(parameter: Tensor, width: int) -> None:
    if parameter.is_floating_point():
        nn.init.uniform_(parameter, -(width**-0.5), width**-0.5)
    else:
        nn.init.zeros_(parameter)


def follow_layouts(model: TransformerModel, stacks: dict[str, StackRouting]) -> None:
    """Let the stacks of a model tell their sparse layers, at each call, which positions are padding."""
    for name, stack in stacks.items():
        model.get_submodule(name).register_forward_pre_hook(_Follow(stack), with_kwargs=True)


class _Follow:
    """Reads the layout that a stack is called with."""

    def __init__(self, stack: StackRouting) -> None:
        self.stack = stack

    def __call__(self, _module: object, arguments: tuple[Any, ...], named: Mapping[str, Any]) -> None:
        layout: BatchLayout = arguments[1] if len(arguments) > 1 else named["seqs_layout"]
        valid = layout.position_indices >= 0 if layout.padded else None
        self.stack.valid = valid.unsqueeze(0) if valid is not None and layout.packed else valid
