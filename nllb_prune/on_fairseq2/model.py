"""A fairseq2 model as the verbs take one: the surface that calibration and evaluation use, with transformers' ids."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

from fairseq2.models.transformer import TransformerModel
from fairseq2.nn import BatchLayout
from torch import Tensor, nn

from nllb_prune.generation.batched import carry_decoder
from nllb_prune.model.routing import ModelRouting, attach_routing
from nllb_prune.on_fairseq2.generator import ThroughFairseq2
from nllb_prune.on_fairseq2.vocabulary import columns_for_transformers, ids_for_fairseq2


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenIds:
    """Control symbols as transformers numbers them in models of this line."""

    bos_token_id: int = 0
    pad_token_id: int = 1
    eos_token_id: int = 2
    decoder_start_token_id: int = 2


class States(NamedTuple):
    """Output of a stack."""

    last_hidden_state: Tensor
    """``(rows, positions, d_model)``"""


class Logits(NamedTuple):
    """Output of a model."""

    logits: Tensor
    """``(rows, positions, vocabulary)``, tokens in the order of transformers."""


class Fairseq2Model(nn.Module):
    """Computes with a fairseq2 model, and is called as those of `load_model` are.

    Args:
        inner: The model, of the family `nllb_moe` or `nllb`.
        state: Its routing state.
    """

    def __init__(self, inner: TransformerModel, state: ModelRouting) -> None:
        super().__init__()
        self.inner = inner
        self.config = TokenIds()
        attach_routing(self, state)
        carry_decoder(self, ThroughFairseq2(inner))

    def forward(self, *, input_ids: Tensor, attention_mask: Tensor | None = None, decoder_input_ids: Tensor) -> Logits:
        """Return logits; sequences are padded on the right."""
        if attention_mask is None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        memory = self.get_encoder()(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        states = self.get_decoder()(
            input_ids=decoder_input_ids, encoder_hidden_states=memory, encoder_attention_mask=attention_mask
        ).last_hidden_state
        return Logits(self.get_output_embeddings()(states))

    def get_encoder(self) -> _Encoder:
        """Return the encoder."""
        return _Encoder(self.inner)

    def get_decoder(self) -> _Decoder:
        """Return the decoder."""
        return _Decoder(self.inner)

    def get_output_embeddings(self) -> _Head:
        """Return what makes logits of states."""
        return _Head(self.inner.final_proj)

    def get_input_embeddings(self) -> _Embedding:
        """Return the embedding."""
        return _Embedding(self.inner.decoder_frontend.embed.weight)


@dataclass(frozen=True, slots=True)
class _Encoder:
    inner: TransformerModel

    def __call__(self, *, input_ids: Tensor, attention_mask: Tensor | None = None) -> States:
        layout = _layout(input_ids, attention_mask)
        seqs, layout = self.inner.encoder_frontend(ids_for_fairseq2(input_ids), layout)
        return States(self.inner.encoder(seqs, layout))


@dataclass(frozen=True, slots=True)
class _Decoder:
    inner: TransformerModel

    def __call__(
        self,
        *,
        input_ids: Tensor,
        encoder_hidden_states: Tensor,
        encoder_attention_mask: Tensor | None = None,
        use_cache: bool = False,
    ) -> States:
        layout = _layout(input_ids, None)
        seqs, layout = self.inner.decoder_frontend(ids_for_fairseq2(input_ids), layout)
        memory_layout = _layout(encoder_hidden_states, encoder_attention_mask)
        return States(self.inner.decoder(seqs, layout, encoder_hidden_states, memory_layout))


@dataclass(frozen=True, slots=True)
class _Head:
    projection: Any

    @property
    def weight(self) -> Tensor:
        """As the model holds it, in fairseq2's order."""
        weight: Tensor = self.projection.weight
        return weight

    def __call__(self, states: Tensor) -> Tensor:
        return columns_for_transformers(self.projection(states))


@dataclass(frozen=True, slots=True)
class _Embedding:
    weight: Tensor
    """As the model holds it, in fairseq2's order."""


def _layout(sequences: Tensor, mask: Tensor | None) -> BatchLayout:
    """Return the layout of sequences that are padded on the right, ids or states ``(rows, positions, ...)``."""
    if mask is None:
        mask = sequences.ne(TokenIds().pad_token_id) if sequences.ndim == 2 else None
    lengths = None if mask is None else mask.sum(1).tolist()
    return BatchLayout(tuple(sequences.shape[:2]), lengths, device=sequences.device)
