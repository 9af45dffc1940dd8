"""NLLB-MoE: every n-th layer of the encoder and of the decoder is sparse, top-2, softmax in float32."""

from __future__ import annotations

import re
from importlib.metadata import version
from typing import Any

from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.model.expert_bank import ACTIVATIONS
from nllb_prune.model.families.family import ExpertShape, Family
from nllb_prune.model.families.layer_names import LayerNames
from nllb_prune.model.families.seq2seq import IGNORED, NO_WEIGHTS, PreNormBlocks, decoding_sizes, tied_embeddings
from nllb_prune.model.spec import KeyedBy, ModelSpec, Stack
from nllb_prune.weights.original_layout import OriginalLayout

_TOP_K = 2
_LAYER_EXPECTS_PAIR = int(version("transformers").split(".")[0]) < 5


def _stack(config: Any, name: str, keyed_by: KeyedBy) -> Stack | None:
    step, count = getattr(config, f"{name}_sparse_step"), getattr(config, f"{name}_layers")
    layers = tuple(n for n in range(count) if step > 0 and (n + 1) % step == 0)
    return Stack(name, keyed_by, layers, config.num_experts) if layers else None


def _spec(config: Any) -> ModelSpec:
    for option, wanted in (
        ("second_expert_policy", "all"),
        ("moe_eval_capacity_token_fraction", 1.0),
        ("router_dtype", "float32"),
    ):
        value = getattr(config, option)
        if value != wanted:
            raise UsageError(f"`{option}` of the configuration must be {wanted}, but is {value} instead.")
    if config.activation_function not in ACTIVATIONS:
        raise UsageError(
            f"`activation_function` of the configuration must be one of {', '.join(ACTIVATIONS)}, "
            f"but is {config.activation_function} instead."
        )
    stacks = (_stack(config, "encoder", "source"), _stack(config, "decoder", "target"))
    return ModelSpec(
        family="nllb-moe",
        stacks=tuple(stack for stack in stacks if stack is not None),
        top_k=_TOP_K,
        output_scale=1 - config.moe_token_dropout,
        router_bias=config.router_bias,
        activation=config.activation_function,
    )


def _expert_shape(config: Any, stack: str) -> ExpertShape:
    return ExpertShape(d_model=config.d_model, ffn=getattr(config, f"{stack}_ffn_dim"))


def _sparse_path(stack: str, layer: int) -> str:
    return f"model.{stack}.layers.{layer}.ffn"


def _router_tensors(path: str) -> dict[str, str]:
    return {"router_weight": f"{path}.router.classifier.weight", "router_bias": f"{path}.router.classifier.bias"}


def _expert_tensors(path: str, expert: int) -> dict[str, str]:
    return {
        f"{matrix}_{part}": f"{path}.experts.expert_{expert}.{matrix}.{part}"
        for matrix in ("fc1", "fc2")
        for part in ("weight", "bias")
    }


def _pair(output: Tensor) -> tuple[Tensor, None]:
    return output, None


_LAYER_NAMES = LayerNames(
    ffn="ffn",
    ffn_norm="ff_layer_norm",
    cross_attention="cross_attention",
    cross_attention_norm="cross_attention_layer_norm",
)

_ORIGINAL_NAMES = tuple(
    (re.compile(pattern), name)
    for pattern, name in (
        (r"\.moe_layer\.experts\.(\d+)\.", r".ffn.experts.expert_\1."),
        (r"\.moe_layer\.gate\.wg\.", ".ffn.router.classifier."),
        (r"(\.layers\.\d+)\.(fc[12])\.", r"\1.ffn.\2."),
        (r"(\.layers\.\d+)\.final_layer_norm\.", r"\1.ff_layer_norm."),
        (r"\.encoder_attn(\.|_layer_norm\.)", r".cross_attention\1"),
        (r"^decoder\.embed_tokens\.", "shared."),  # its rows are in the order of the Hub's tokenizer
    )
)


def _renamed(name: str) -> str | None:
    if name.endswith(NO_WEIGHTS):
        return None
    for pattern, ours in _ORIGINAL_NAMES:
        name = pattern.sub(ours, name)
    return f"model.{name}"


NLLB_MOE = Family(
    model_type="nllb-moe",
    spec=_spec,
    expert_shape=_expert_shape,
    sparse_path=_sparse_path,
    router_tensors=_router_tensors,
    expert_tensors=_expert_tensors,
    # 4.57 unpacks the output and the router's states, 5.x takes the output alone
    wrap_output=_pair if _LAYER_EXPECTS_PAIR else None,
    tied=tied_embeddings,
    blocks=lambda model: PreNormBlocks(model, _LAYER_NAMES),
    layer_names=_LAYER_NAMES,
    decoding_sizes=decoding_sizes,
    ignored=IGNORED,
    original=OriginalLayout(expert=re.compile(r"\.moe_layer\.experts\.(\d+)\."), rename=_renamed),
)
