"""What the encoder-decoder families of this line (M2M-100 and its descendants) have in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from nllb_prune.model.blocks import DecoderBlock, DecoderCall, EncoderBlock, EncoderCall, KeysValues
from nllb_prune.model.decoding_sizes import DecodingSizes
from nllb_prune.model.expert_bank import ACTIVATIONS
from nllb_prune.model.families.layer_names import LayerNames
from nllb_prune.model.sparse_ffn import SparseFfn

EMBEDDINGS = ("model.shared.weight", "model.encoder.embed_tokens.weight", "model.decoder.embed_tokens.weight")


def tied_embeddings(config: Any) -> tuple[tuple[str, ...], ...]:
    """Return the groups of names that share the embedding."""
    return ((*EMBEDDINGS, "lm_head.weight"),) if config.tie_word_embeddings else (EMBEDDINGS,)


def decoding_sizes(config: Any) -> DecodingSizes:
    """Return the widths that the memory of decoding depends on."""
    return DecodingSizes(
        decoder_layers=config.decoder_layers,
        d_model=config.d_model,
        ffn=max(config.encoder_ffn_dim, config.decoder_ffn_dim),
        vocabulary=config.vocab_size,
    )


def table_rows(length: int, *, pad: int) -> int:
    """Return the rows of a table of positions that was too short for a length."""
    return 2 * length + pad + 1


NO_WEIGHTS = (".version", "_float_tensor", "output_projection.weight")
"""Ends of names in fairseq's checkpoints that are not read; the last is the embedding once more."""

IGNORED = ("embed_positions.weights", "_float_tensor", "final_logits_bias", ".version")


class PreNormBlocks:
    """`Blocks` of a transformer with sinusoidal positions, norms before each part, and SparseFfn where it is sparse."""

    def __init__(self, model: Any, names: LayerNames) -> None:
        config, base = model.config, model.model
        self.start, self.end, self.pad = config.decoder_start_token_id, config.eos_token_id, config.pad_token_id
        activation = config.activation_function
        self._encoder, self._decoder, self._head = base.encoder, base.decoder, model.lm_head
        self._scale = config.d_model**0.5 if config.scale_embedding else 1.0
        self.encoder: Sequence[EncoderBlock] = [
            _EncoderBlock(layer, names, activation) for layer in base.encoder.layers
        ]
        self.decoder: Sequence[DecoderBlock] = [
            _DecoderBlock(layer, names, activation, n) for n, layer in enumerate(base.decoder.layers)
        ]

    def embed_source(self, ids: Tensor) -> Tensor:
        """Embed source tokens."""
        self.reserve(ids.shape[1])
        return self._embed(self._encoder, ids, torch.arange(ids.shape[1], device=ids.device))

    def embed_target(self, ids: Tensor, positions: Tensor) -> Tensor:
        """Embed target tokens."""
        return self._embed(self._decoder, ids, positions)

    def _embed(self, stack: Any, ids: Tensor, positions: Tensor) -> Tensor:
        table = stack.embed_positions.weights  # position 0 comes after the row of padding
        words = functional.embedding(ids, stack.embed_tokens.weight)
        embedded: Tensor = words * self._scale + table[positions + (self.pad + 1)]
        return embedded

    def reserve(self, length: int) -> None:
        """Make the tables of positions at least this long."""
        for stack in (self._encoder, self._decoder):
            table = stack.embed_positions
            if length + self.pad + 1 > table.weights.shape[0]:
                with torch.inference_mode(False):
                    table.make_weights(table_rows(length, pad=self.pad), table.embedding_dim, table.padding_idx)

    def finish_encoder(self, states: Tensor) -> Tensor:
        """Apply the last norm."""
        return _norm(self._encoder.layer_norm, states)

    def logits(self, states: Tensor) -> Tensor:
        """Apply the last norm and the head."""
        return functional.linear(_norm(self._decoder.layer_norm, states), self._head.weight)


class _EncoderBlock:
    def __init__(self, layer: Any, names: LayerNames, activation: str) -> None:
        self.attention, self.norm = _Attention(layer.self_attn), layer.self_attn_layer_norm
        self.ffn = _Ffn(layer, names, activation)

    def __call__(self, states: Tensor, call: EncoderCall) -> Tensor:
        normed = _norm(self.norm, states)
        seen = self.attention.keys_values(normed)
        states = states + self.attention(normed, seen, call.visible)
        return self.ffn(states, call.positions, call.keep)


class _DecoderBlock:
    def __init__(self, layer: Any, names: LayerNames, activation: str, number: int) -> None:
        self.number = number
        self.attention, self.norm = _Attention(layer.self_attn), layer.self_attn_layer_norm
        self.cross = _Attention(getattr(layer, names.cross_attention))
        self.cross_norm = getattr(layer, names.cross_attention_norm)
        self.ffn = _Ffn(layer, names, activation)

    def source(self, memory: Tensor) -> KeysValues:
        return self.cross.keys_values(memory)

    def __call__(self, states: Tensor, source: KeysValues, call: DecoderCall) -> Tensor:
        normed = _norm(self.norm, states)
        seen = call.past.extend(self.number, self.attention.keys_values(normed))
        states = states + self.attention(normed, seen, call.visible)
        states = states + self.cross(_norm(self.cross_norm, states), source, call.source_visible)
        return self.ffn(states, call.positions, call.keep)


class _Attention:
    """Multi-head attention over a transformers module's projections."""

    def __init__(self, module: Any) -> None:
        self.module, self.heads = module, module.num_heads

    def _split(self, projection: nn.Linear, states: Tensor) -> Tensor:
        # (rows, positions, D) -> (rows, heads, positions, D / heads)
        projected = functional.linear(states, projection.weight, projection.bias)
        return projected.view(*states.shape[:2], self.heads, -1).transpose(1, 2)

    def keys_values(self, states: Tensor) -> KeysValues:
        return KeysValues(self._split(self.module.k_proj, states), self._split(self.module.v_proj, states))

    def __call__(self, states: Tensor, seen: KeysValues, visible: Tensor | None) -> Tensor:
        queries = self._split(self.module.q_proj, states)
        mixed = functional.scaled_dot_product_attention(queries, seen.keys, seen.values, attn_mask=visible)
        merged = mixed.transpose(1, 2).flatten(2)
        return functional.linear(merged, self.module.out_proj.weight, self.module.out_proj.bias)


class _Ffn:
    """The feed-forward part of a layer, dense or sparse, with its norm and residual."""

    def __init__(self, layer: Any, names: LayerNames, activation: str) -> None:
        self.norm = getattr(layer, names.ffn_norm)
        self.module = getattr(layer, names.ffn) if names.ffn else layer
        self.activation = ACTIVATIONS[activation]

    def __call__(self, states: Tensor, positions: Tensor | None, keep: Tensor | None) -> Tensor:
        output = states + self._update(_norm(self.norm, states), positions, keep)
        if output.dtype == torch.float16:
            bound = torch.finfo(torch.float16).max - 1000  # against overflow, as transformers does where it finds one
            output = output.clamp(-bound, bound)
        return output

    def _update(self, states: Tensor, positions: Tensor | None, keep: Tensor | None) -> Tensor:
        module = self.module
        if not isinstance(module, SparseFfn):
            hidden = self.activation(functional.linear(states, module.fc1.weight, module.fc1.bias))
            return functional.linear(hidden, module.fc2.weight, module.fc2.bias)
        own = None if keep is None else keep[module.layer]
        mixed = module.mix(states.flatten(0, 1), positions=positions, keep=own, rows=states.shape[0])
        return mixed.view_as(states)


def _norm(module: nn.LayerNorm, states: Tensor) -> Tensor:
    return functional.layer_norm(states, module.normalized_shape, module.weight, module.bias, module.eps)
