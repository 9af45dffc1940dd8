"""Our sparse layer as fairseq2's feed-forward network, and how it learns which positions are padding."""

from __future__ import annotations

from typing import Any

from fairseq2.models.transformer import FeedForwardNetwork, TransformerModel
from fairseq2.nn import BatchLayout
from torch import Tensor

from nllb_prune.model.dispatch import slot_table
from nllb_prune.model.routing import StackRouting
from nllb_prune.model.sparse_ffn import SparseFfn


class SparseFeedForwardNetwork(FeedForwardNetwork):
    """Represents a mixture-of-experts feed-forward network; what it computes is `SparseFfn`'s."""

    def __init__(self, sparse: SparseFfn) -> None:
        """Wrap a sparse layer."""
        super().__init__()
        self.sparse = sparse

    def forward(self, seqs: Tensor) -> Tensor:
        """Run the layer on ``(N, S, M)``, or on a packed batch ``(S, M)``."""
        if seqs.ndim == 2:
            packed: Tensor = self.sparse(seqs.unsqueeze(0)).squeeze(0)
            return packed
        output: Tensor = self.sparse(seqs)
        return output

    def reset_non_persistent_buffers(self) -> None:
        """Compute which expert sits in which slot: no checkpoint holds it."""
        bank = self.sparse.bank
        bank.slot_of = slot_table(bank.expert_ids, experts=bank.experts, device=bank.fc1_bias.device)


def follow_layouts(model: TransformerModel, stacks: dict[str, StackRouting]) -> None:
    """Let the stacks of a model tell their sparse layers, at each call, which positions are padding."""
    for name, stack in stacks.items():
        model.get_submodule(name).register_forward_pre_hook(_Follow(stack))


class _Follow:
    """Reads the layout that a stack is called with."""

    def __init__(self, stack: StackRouting) -> None:
        self.stack = stack

    def __call__(self, _module: object, arguments: tuple[Any, ...]) -> None:
        layout: BatchLayout = arguments[1]
        valid = layout.position_indices >= 0 if layout.padded else None
        self.stack.valid = valid.unsqueeze(0) if valid is not None and layout.packed else valid
