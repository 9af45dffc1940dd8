"""Blocks whose weights come from the files when they run: a layer at a time, of its experts one at a time."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from nllb_prune.model.blocks import Blocks, DecoderBlock, DecoderCall, EncoderBlock, EncoderCall, KeysValues
from nllb_prune.model.streamed_bank import StreamedBank, StreamedCall
from nllb_prune.model.streamed_head import StreamedHead
from nllb_prune.model.streamed_weights import StreamedWeights


class StreamedLayer:
    """The weights of a layer, which its module has only while it is held.

    Args:
        module: The layer, on the meta device.
        tensors: Names of the tensors of its dense parameters, by path within it.
        bank: Its experts, if it is sparse.
        weights: Where they are read from.
    """

    def __init__(
        self, module: nn.Module, tensors: Mapping[str, str], bank: StreamedBank | None, weights: StreamedWeights
    ) -> None:
        self.tensors, self.bank, self.weights = tensors, bank, weights
        self._places = {path: _place(module, path) for path in tensors}
        self._empty = {path: owner._parameters[leaf] for path, (owner, leaf) in self._places.items()}
        self._holders = 0

    @contextmanager
    def held(self) -> Iterator[None]:
        """Have the dense weights in memory; they are read when the first holder comes and go with the last."""
        if not self._holders:
            self._put(self.weights.tensors(self.tensors))
        self._holders += 1
        try:
            yield
        finally:
            self._holders -= 1
            if not self._holders:
                self._put(self._empty)

    def _put(self, values: Mapping[str, Tensor | None]) -> None:
        for path, (owner, leaf) in self._places.items():
            value = values[path]
            owner._parameters[leaf] = value if value is None else nn.Parameter(value, requires_grad=False)

    def deferred(self) -> AbstractContextManager[list[StreamedCall]]:
        """As that of the bank; a dense layer has no calls."""
        return nullcontext([]) if self.bank is None else self.bank.deferred()


def add_update(states: Tensor, positions: Tensor | None, update: Tensor) -> None:
    """Add to the states ``(rows, positions, d_model)`` of a block what its deferred experts made of the tokens."""
    flat = states.view(-1, states.shape[-1])
    if positions is None:
        flat.add_(update)
    else:
        flat.index_add_(0, positions, update)
    if states.dtype == torch.float16:
        bound = torch.finfo(torch.float16).max - 1000  # as the blocks do, which had only zeros to add
        states.clamp_(-bound, bound)


def _place(module: nn.Module, path: str) -> tuple[nn.Module, str]:
    owner, _, leaf = path.rpartition(".")
    return module.get_submodule(owner), leaf


class _StreamedEncoderBlock:
    """An encoder block that reads what it needs."""

    def __init__(self, block: EncoderBlock, layer: StreamedLayer) -> None:
        self._block, self._layer = block, layer

    def __call__(self, states: Tensor, call: EncoderCall) -> Tensor:
        """Return the states after this layer."""
        with self._layer.held():
            return self._block(states, call)


class _StreamedDecoderBlock:
    """A decoder block that reads what it needs."""

    def __init__(self, block: DecoderBlock, layer: StreamedLayer) -> None:
        self._block, self._layer = block, layer

    def source(self, memory: Tensor) -> KeysValues:
        """Return the keys and values of the encoder's output."""
        with self._layer.held():
            return self._block.source(memory)

    def __call__(self, states: Tensor, source: KeysValues, call: DecoderCall) -> Tensor:
        """Return the states after this layer."""
        with self._layer.held():
            return self._block(states, source, call)


class StreamedBlocks:
    """`Blocks` over those of a family whose module has no weights but those that are in memory for the moment.

    Args:
        inner: Blocks of the module.
        model: The transformers class, on the meta device.
        layers: Weights of its layers, by stack.
        embedding: Name of the tensor of the embedding.
        head: Makes logits of finished states.
        weights: Where they are read from.
    """

    def __init__(
        self,
        inner: Blocks,
        model: Any,
        *,
        layers: Mapping[str, Sequence[StreamedLayer]],
        embedding: str,
        head: StreamedHead,
        weights: StreamedWeights,
    ) -> None:
        self.start, self.end, self.pad = inner.start, inner.end, inner.pad
        self._inner, self._model, self._head = inner, model, head
        self.layers, self.embedding, self.weights = layers, embedding, weights
        self.encoder: Sequence[EncoderBlock] = [
            _StreamedEncoderBlock(*each) for each in zip(inner.encoder, layers["encoder"], strict=True)
        ]
        self.decoder: Sequence[DecoderBlock] = [
            _StreamedDecoderBlock(*each) for each in zip(inner.decoder, layers["decoder"], strict=True)
        ]

    def embed_source(self, ids: Tensor) -> Tensor:
        """Embed source tokens, whose rows alone are read."""
        with self._rows(self._model.get_encoder(), ids) as places:
            return self._inner.embed_source(places)

    def embed_target(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embed target tokens, whose rows alone are read."""
        with self._rows(self._model.get_decoder(), ids) as places:
            return self._inner.embed_target(places, positions)

    @contextmanager
    def _rows(self, stack: Any, ids: Tensor) -> Iterator[Tensor]:
        """Give a stack the rows of some tokens for an embedding; yield the places of the tokens in it."""
        known, places = torch.unique(ids, return_inverse=True)
        table = stack.embed_tokens
        before = table._parameters["weight"]
        table._parameters["weight"] = nn.Parameter(self.weights.some_rows(self.embedding, known), requires_grad=False)
        try:
            yield places
        finally:
            table._parameters["weight"] = before

    def reserve(self, length: int) -> None:
        """Make ready for targets of this length."""
        self._inner.reserve(length)

    def finish_encoder(self, states: Tensor) -> Tensor:
        """Return what the decoder attends to."""
        return self._inner.finish_encoder(states)

    def finish_decoder(self, states: Tensor) -> Tensor:
        """Return what the head makes logits of."""
        finished: Tensor = self._model.get_decoder().layer_norm(states)
        return finished

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits of decoder states."""
        logits: Tensor = self._head(self.finish_decoder(states))
        return logits
