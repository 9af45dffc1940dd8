"""Back to transformers: the configuration and the state dictionary that fairseq2's exporter of checkpoints asks for."""

from __future__ import annotations

from typing import Any

from fairseq2.models.hg import HuggingFaceConfig, HuggingFaceConverter

from nllb_prune.errors import UsageError
from nllb_prune.on_fairseq2.config import NllbMoeConfig
from nllb_prune.on_fairseq2.conversion import to_transformers

_TOP_K = 2
"""What transformers' class has for a rule."""
_IDS = {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 2}


class NllbMoeHuggingFaceConverter(HuggingFaceConverter):
    """Converts a whole or a dense model; pruned ones have a form of their own, which `nllb-prune export` writes."""

    def to_hg_config(self, config: object) -> HuggingFaceConfig:
        """Return the transformers configuration.

        Raises:
            TypeError: if the configuration is of another family.
            UsageError: if no class of transformers fits: experts are left out, or sparse layers lie unevenly.
        """
        ours = _checked(config)
        data: dict[str, Any] = {
            "d_model": ours.model_dim,
            "max_position_embeddings": ours.max_seq_len,
            "vocab_size": ours.vocab_size,
            "encoder_layers": ours.num_encoder_layers,
            "num_hidden_layers": ours.num_encoder_layers,
            "decoder_layers": ours.num_decoder_layers,
            "encoder_attention_heads": ours.num_encoder_attn_heads,
            "decoder_attention_heads": ours.num_decoder_attn_heads,
            "encoder_ffn_dim": ours.encoder_ffn_inner_dim,
            "decoder_ffn_dim": ours.decoder_ffn_inner_dim,
            "activation_function": ours.activation,
            "scale_embedding": ours.scale_embedding,
            "encoder_layerdrop": 0.0,
            "decoder_layerdrop": 0.0,
            **_IDS,
        }
        if not ours.stacks:
            return HuggingFaceConfig(data, "M2M100Config", "M2M100ForConditionalGeneration")
        data |= {
            "num_experts": ours.num_experts,
            "encoder_sparse_step": _step(ours.encoder_sparse_layers, ours.num_encoder_layers),
            "decoder_sparse_step": _step(ours.decoder_sparse_layers, ours.num_decoder_layers),
            "moe_token_dropout": 1 - ours.expert_output_scale,
            "moe_eval_capacity_token_fraction": 1.0,
            "router_bias": ours.router_bias,
            "router_dtype": "float32",
            "second_expert_policy": "all",
        }
        return HuggingFaceConfig(data, "NllbMoeConfig", "NllbMoeForConditionalGeneration")

    def to_hg_state_dict(self, state_dict: dict[str, object], config: object) -> dict[str, object]:
        """Return the state dictionary in transformers' layout.

        Raises:
            TypeError: if the configuration is of another family.
        """
        return dict(to_transformers(state_dict, _checked(config)))


def _checked(config: object) -> NllbMoeConfig:
    if not isinstance(config, NllbMoeConfig):
        raise TypeError(f"`config` must be of type `{NllbMoeConfig}`, but is of type `{type(config)}` instead.")
    if config.kept is not None and any(len(ids) < config.num_experts for mask in config.kept.values() for ids in mask):
        raise UsageError(
            "The model must have all its experts to become one of transformers' classes, but some are left out; write "
            "a pruned checkpoint with `nllb-prune export`."
        )
    if config.expert_bits is not None:
        raise UsageError("The experts must be floats for transformers' classes, but are quantised.")
    if config.stacks and config.top_k != _TOP_K:
        raise UsageError(f"`top_k` must be {_TOP_K} for transformers' classes, but is {config.top_k} instead.")
    return config


def _step(sparse: list[int], layers: int) -> int:
    """Return the step of which the sparse layers are the multiples; 0 where there are none."""
    if not sparse:
        return 0
    step = sparse[0] + 1
    if sparse != list(range(step - 1, layers, step)):
        raise UsageError(f"Sparse layers must be every n-th for transformers' classes, but are {sparse} instead.")
    return step
