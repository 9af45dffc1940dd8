"""Given targets go through the decoder in one pass: batches of sentence pairs, and the states that predict them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

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
    encoded = model.get_encoder()(input_ids=batch.source, attention_mask=_visible(model, batch))
    states: Tensor = encoded.last_hidden_state
    return states


def decoder_states(model: Any, batch: ForcedBatch, memory: Tensor) -> Tensor:
    """Return the last states of the decoder over those of the encoder."""
    decoded = model.get_decoder()(
        input_ids=batch.decoder_input,
        encoder_hidden_states=memory,
        encoder_attention_mask=_visible(model, batch),
        use_cache=False,
    )
    states: Tensor = decoded.last_hidden_state
    return states


def _visible(model: Any, batch: ForcedBatch) -> Tensor:
    return batch.source.ne(model.config.pad_token_id)
