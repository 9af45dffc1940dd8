"""M2M-100 and dense NLLB: no sparse layer, so nothing to prune; here to be evaluated beside pruned models."""

from __future__ import annotations

from typing import Any

from nllb_prune.model.families.family import ExpertShape, Family
from nllb_prune.model.families.layer_names import LayerNames
from nllb_prune.model.families.seq2seq import IGNORED, NO_WEIGHTS, PreNormBlocks, decoding_sizes, tied_embeddings
from nllb_prune.model.spec import ModelSpec
from nllb_prune.weights.original_layout import OriginalLayout


def _spec(config: Any) -> ModelSpec:
    return ModelSpec(family=config.model_type, stacks=(), top_k=0, output_scale=1.0)


def _expert_shape(config: Any, stack: str) -> ExpertShape:
    return ExpertShape(d_model=config.d_model, ffn=getattr(config, f"{stack}_ffn_dim"))


_LAYER_NAMES = LayerNames(
    ffn="",
    ffn_norm="final_layer_norm",
    cross_attention="encoder_attn",
    cross_attention_norm="encoder_attn_layer_norm",
)


def _renamed(name: str) -> str | None:
    if name.endswith(NO_WEIGHTS):
        return None
    if name == "decoder.embed_tokens.weight":
        return "model.shared.weight"  # its rows are in the order of the Hub's tokenizer
    return f"model.{name}"


M2M_100 = Family(
    model_type="m2m_100",
    spec=_spec,
    expert_shape=_expert_shape,
    sparse_path=lambda stack, layer: f"model.{stack}.layers.{layer}",
    router_tensors=lambda path: {},
    expert_tensors=lambda path, expert: {},
    wrap_output=None,
    tied=tied_embeddings,
    blocks=lambda model: PreNormBlocks(model, _LAYER_NAMES),
    layer_names=_LAYER_NAMES,
    decoding_sizes=decoding_sizes,
    ignored=IGNORED,
    original=OriginalLayout(expert=None, rename=_renamed),
)
