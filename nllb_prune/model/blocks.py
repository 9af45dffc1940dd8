"""A model as blocks that are called one by one: what the decoding loop runs.

The transformers module stays the public surface; blocks are the same weights without its bookkeeping. A family that has
blocks is decoded here, another through transformers' `generate`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol, cast

from torch import Tensor, nn


class KeysValues(NamedTuple):
    """Keys and values of attention, each ``(rows, heads, positions, head_dim)``."""

    keys: Tensor
    values: Tensor


class Past(Protocol):
    """Remembers the target positions that went before."""

    def extend(self, layer: int, new: KeysValues) -> KeysValues:
        """Take note of new keys and values of a decoder layer; return all that its queries may look at."""


class NoPast:
    """Nothing went before: the whole target is in the call."""

    def extend(self, layer: int, new: KeysValues) -> KeysValues:
        """Return what came."""
        return new


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderCall:
    """What the encoder blocks of one call share."""

    visible: Tensor | None
    """Added to attention scores ``(rows, 1, 1, positions)``: 0 at tokens, -inf at padding; `None`: no padding."""
    positions: Tensor | None
    """Indices of the tokens among rows x positions ``(tokens,)``; `None` when none is padding."""
    keep: Tensor | None
    """Experts by sparse layer and token ``(layers, tokens or 1, experts)``, boolean; `None` for all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DecoderCall:
    """What the decoder blocks of one call share. A query is a target position of a row, or one of its beams."""

    past: Past
    visible: Tensor | None
    """Added to the scores of what `past` returns ``(rows or 1, 1, queries, slots)``; `None` when all may be seen."""
    source_visible: Tensor | None
    """As the encoder's `visible`."""
    positions: Tensor | None
    """Indices of the queries that are tokens among rows x queries; `None` when all are."""
    keep: Tensor | None
    """As the encoder's `keep`, by query."""


class EncoderBlock(Protocol):
    """One layer of the encoder."""

    def __call__(self, states: Tensor, call: EncoderCall) -> Tensor:
        """Return the states ``(rows, positions, d_model)`` after this layer."""


class DecoderBlock(Protocol):
    """One layer of the decoder."""

    def source(self, memory: Tensor) -> KeysValues:
        """Return the keys and values of the encoder's output, to be made once a sentence."""

    def __call__(self, states: Tensor, source: KeysValues, call: DecoderCall) -> Tensor:
        """Return the states ``(rows, queries, d_model)`` after this layer."""


class Blocks(Protocol):
    """An encoder-decoder model."""

    start: int
    """Token that the decoder reads first."""
    end: int
    pad: int
    encoder: Sequence[EncoderBlock]
    decoder: Sequence[DecoderBlock]

    def embed_source(self, ids: Tensor) -> Tensor:
        """Embed tokens ``(rows, positions)``, padded on the right."""

    def reserve(self, length: int) -> None:
        """Make ready for targets of this length, whatever the table of positions holds."""

    def embed_target(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embed tokens ``(rows, queries)`` at target positions, from 0, of a shape that broadcasts to theirs."""

    def finish_encoder(self, states: Tensor) -> Tensor:
        """Return what the decoder attends to."""

    def logits(self, states: Tensor) -> Tensor:
        """Return the logits ``(..., vocabulary)`` of decoder states."""


class CarriedBlocks(Blocks, Protocol):
    """Blocks that a model carries with it, because its module cannot run: the weights are not in it."""

    def finish_decoder(self, states: Tensor) -> Tensor:
        """Return what the head makes logits of."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """Output of the encoder ``(rows, positions, d_model)`` and where it may be looked at, as `EncoderCall.visible`."""

    memory: Tensor
    visible: Tensor | None


def hide(hidden: Tensor, like: Tensor) -> Tensor:
    """Return -inf where `hidden` is true and 0 elsewhere, in the dtype of `like`."""
    return like.new_zeros(hidden.shape).masked_fill_(hidden, float("-inf"))


def encode(blocks: Blocks, ids: Tensor, keep: Tensor | None = None) -> Encoded:
    """Run the encoder.

    Args:
        blocks: The model.
        ids: Source tokens ``(rows, positions)``, padded on the right.
        keep: Experts each row may use ``(rows or 1, sparse layers, experts)``, boolean; `None` for all.
    """
    states = blocks.embed_source(ids)
    call = encoder_call(blocks, ids, like=states, keep=keep)
    for block in blocks.encoder:
        states = block(states, call)
    return Encoded(blocks.finish_encoder(states), call.visible)


def encoder_call(blocks: Blocks, ids: Tensor, *, like: Tensor, keep: Tensor | None = None) -> EncoderCall:
    """Return what the encoder blocks share; arguments as those of `encode`, `like` has the dtype of states."""
    padding = ids.eq(blocks.pad)
    padded = bool(padding.any())
    positions = (~padding).flatten().nonzero().squeeze(1) if padded else None
    return EncoderCall(
        visible=hide(padding[:, None, None, :], like) if padded else None,
        positions=positions,
        keep=None if keep is None else keep_by_token(keep, length=ids.shape[1], positions=positions),
    )


def keep_by_token(keep: Tensor, *, length: int, positions: Tensor | None = None) -> Tensor:
    """Spread masks by row over their tokens.

    Args:
        keep: ``(rows or 1, layers, experts)``; one row stands for all.
        length: Positions of a row.
        positions: Indices of the tokens among rows x positions; `None` for all.

    Returns:
        ``(layers, tokens or 1, experts)``
    """
    by_layer = keep.transpose(0, 1)
    if keep.shape[0] == 1:
        return by_layer
    return by_layer.repeat_interleave(length, dim=1) if positions is None else by_layer[:, positions // length]


def blocks_of(model: nn.Module) -> Blocks | None:
    """Return the blocks of a model from `load_model` or `load_streamed`.

    `None` if its family has none, or its modules are not those of transformers, which the family's blocks are made of.
    """
    from nllb_prune.model.families import FAMILIES
    from nllb_prune.model.routing import routing_of

    if (carried := carried_blocks(model)) is not None:
        return carried
    state = routing_of(model)
    family = FAMILIES[state.spec.family]
    return None if family.blocks is None or state.backend is not None else family.blocks(model)


def carry_blocks(model: nn.Module, blocks: CarriedBlocks) -> None:
    """Give a model the blocks that run in its place."""
    setattr(model, _CARRIED, blocks)


def carried_blocks(model: nn.Module) -> CarriedBlocks | None:
    """Return the blocks that run in a model's place; `None` if it runs itself."""
    return cast("CarriedBlocks | None", getattr(model, _CARRIED, None))


_CARRIED = "carried_blocks"
