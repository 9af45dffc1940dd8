"""Given targets go through the decoder in one pass: batches of sentence pairs, and the states that predict them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.model.blocks import (
    Blocks,
    CarriedBlocks,
    DecoderCall,
    NoPast,
    carried_blocks,
    encode,
    hide,
    keep_by_token,
)
from nllb_prune.model.routing import routing_of
from nllb_prune.tokenization import pad

BATCH_POSITIONS = 4096
IGNORED = -100


class ForcedBatch(NamedTuple):
    """Sentence pairs as tokens, padded on the right."""

    source: Tensor
    """``(rows, source positions)``: `[language] words </s>`."""
    decoder_input: Tensor
    """``(rows, positions)``: `</s> [language] words`."""
    labels: Tensor
    """``(rows, positions)``: `[language] words </s>`, what each position is to predict; `IGNORED` at padding."""


def forced_batch(model: Any, sources: Sequence[Sequence[int]], targets: Sequence[Sequence[int]]) -> ForcedBatch:
    """Make a batch, on the model's device, of tokens of sources and targets as `tokenization.encode` gives them."""
    padding, start = model.config.pad_token_id, model.config.eos_token_id
    device = next(model.parameters()).device
    return ForcedBatch(
        pad(sources, padding).to(device),
        pad([[start, *target[:-1]] for target in targets], padding).to(device),
        pad(targets, IGNORED).to(device),
    )


def forced_states(model: Any, batch: ForcedBatch) -> Tensor:
    """Return the last states of the decoder ``(rows, positions, d_model)``, which the head makes logits of."""
    return decoder_states(model, batch, encoder_states(model, batch))


def encoder_states(model: Any, batch: ForcedBatch) -> Tensor:
    """Return the last states of the encoder ``(rows, source positions, d_model)``."""
    if (blocks := carried_blocks(model)) is not None:
        return encode(blocks, batch.source, _keep(model, "encoder", len(batch.source))).memory
    encoded = model.get_encoder()(input_ids=batch.source, attention_mask=_visible(model, batch))
    states: Tensor = encoded.last_hidden_state
    return states


def decoder_states(model: Any, batch: ForcedBatch, memory: Tensor) -> Tensor:
    """Return the last states of the decoder over those of the encoder."""
    if (blocks := carried_blocks(model)) is not None:
        return _through_blocks(blocks, batch, memory, _keep(model, "decoder", len(batch.source)))
    decoded = model.get_decoder()(
        input_ids=batch.decoder_input,
        encoder_hidden_states=memory,
        encoder_attention_mask=_visible(model, batch),
        use_cache=False,
    )
    states: Tensor = decoded.last_hidden_state
    return states


def embed_forced(blocks: Blocks, batch: ForcedBatch) -> Tensor:
    """Return the states ``(rows, positions, d_model)`` that the first decoder block takes."""
    length = batch.decoder_input.shape[1]
    blocks.reserve(length)
    return blocks.embed_target(batch.decoder_input, torch.arange(length, device=batch.decoder_input.device))


def forced_call(blocks: Blocks, batch: ForcedBatch, *, like: Tensor, keep: Tensor | None = None) -> DecoderCall:
    """Return what the decoder blocks share.

    Args:
        blocks: The model.
        batch: What goes through it.
        like: Has the dtype and the device of states.
        keep: Experts each row may use ``(rows or 1, sparse layers, experts)``, boolean; `None` for all.
    """
    length, padding = batch.decoder_input.shape[1], batch.source.eq(blocks.pad)
    valid = batch.decoder_input.ne(blocks.pad)
    positions = None if bool(valid.all()) else valid.flatten().nonzero().squeeze(1)
    future = torch.ones(1, 1, length, length, dtype=torch.bool, device=like.device).triu(1)
    return DecoderCall(
        past=NoPast(),
        visible=hide(future, like),
        source_visible=hide(padding[:, None, None, :], like) if bool(padding.any()) else None,
        positions=positions,
        keep=None if keep is None else keep_by_token(keep, length=length, positions=positions),
    )


def _through_blocks(blocks: CarriedBlocks, batch: ForcedBatch, memory: Tensor, keep: Tensor | None) -> Tensor:
    states = embed_forced(blocks, batch)
    call = forced_call(blocks, batch, like=states, keep=keep)
    for block in blocks.decoder:
        states = block(states, block.source(memory), call)
    return blocks.finish_decoder(states)


def _keep(model: Any, stack: str, rows: int) -> Tensor | None:
    """Return the experts each row may use, as set on the model: row r belongs to sentence r // n."""
    stacks = routing_of(model).stacks
    keep = stacks[stack].keep if stack in stacks else None
    if keep is None or len(keep) in (1, rows):
        return keep
    if rows % len(keep):
        raise UsageError(
            f"The rows of a call must be a multiple of the {len(keep)} sentences that masks were given for, "
            f"but are {rows} instead."
        )
    return keep.repeat_interleave(rows // len(keep), dim=0)


def _visible(model: Any, batch: ForcedBatch) -> Tensor:
    return batch.source.ne(model.config.pad_token_id)
