"""The configuration of an NLLB mixture of experts in fairseq2: `NllbMoeConfig`, and how a model's folder makes one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask
from nllb_prune.generation.translate import length_limit
from nllb_prune.model.families import Family
from nllb_prune.model.pruned import ExpertPruning
from nllb_prune.model.scheme import Scheme
from nllb_prune.model.spec import KeyedBy, ModelSpec, Stack
from nllb_prune.tokenization import MAX_LENGTH

NLLB_MOE_FAMILY: Final = "nllb_moe"

LONGEST: Final = length_limit(MAX_LENGTH) + 2
"""Positions of the longest translation there can be, `</s>` and the language before it: positions have no weights, so
their number is free."""

_SCHEME = "stored"
_KEYED_BY: Final[Mapping[str, KeyedBy]] = {"encoder": "source", "decoder": "target"}


@dataclass(kw_only=True)
class NllbMoeConfig:
    """Holds the configuration of an NLLB mixture-of-experts model; the defaults are those of NLLB-200 54B."""

    model_dim: int = 2048
    """The dimensionality of the model."""

    max_seq_len: int = LONGEST
    """The maximum sequence length."""

    vocab_size: int = 256_206
    """The size of the vocabulary."""

    pad_idx: int = 0
    """The index of the PAD symbol in the vocabulary."""

    num_encoder_layers: int = 24
    """The number of encoder layers."""

    num_decoder_layers: int = 24
    """The number of decoder layers."""

    num_encoder_attn_heads: int = 16
    """The number of attention heads in encoder layers."""

    num_decoder_attn_heads: int = 16
    """The number of attention heads in decoder layers."""

    encoder_ffn_inner_dim: int = 8192
    """The inner dimensionality of feed-forward networks, and of experts, in encoder layers."""

    decoder_ffn_inner_dim: int = 8192
    """The inner dimensionality of feed-forward networks, and of experts, in decoder layers."""

    activation: str = "relu"
    """The activation of feed-forward networks and experts: `relu`, `gelu` or `silu`."""

    scale_embedding: bool = True
    """If `True`, embeddings are multiplied by the square root of `model_dim`."""

    num_experts: int = 128
    """The number of experts that a router chooses among, kept or not."""

    encoder_sparse_layers: list[int] = field(default_factory=lambda: [3, 7, 11, 15, 19, 23])
    """The encoder layers whose feed-forward network is a mixture of experts; none in a dense model."""

    decoder_sparse_layers: list[int] = field(default_factory=lambda: [3, 7, 11, 15, 19, 23])
    """The decoder layers whose feed-forward network is a mixture of experts; none in a dense model."""

    encoder_experts: list[list[int]] | None = None
    """The experts that are kept in each of `encoder_sparse_layers`, as many as it says; `None` for all."""

    decoder_experts: list[list[int]] | None = None
    """The experts that are kept in each of `decoder_sparse_layers`, as many as it says; `None` for all."""

    top_k: int = 2
    """The number of experts that run for a token."""

    expert_output_scale: float = 0.8
    """The factor on the sum of the outputs of experts: 1 - the probability of masking one in training."""

    router_bias: bool = False
    """Whether routers have a bias."""

    expert_bits: int | None = None
    """The bits that the weights of an expert are stored in, 8 or 4; `None` for floats."""

    expert_group: int | None = None
    """The columns that share a scale where `expert_bits` is given; `None` for those of a row."""

    dropout_p: float = 0.0
    """The dropout probability on outputs of Transformer layers."""

    @classmethod
    def dense(cls, **sizes: Any) -> NllbMoeConfig:
        """Return a configuration without sparse layers; sizes are fields of it."""
        none: dict[str, Any] = {"num_experts": 0, "encoder_sparse_layers": [], "decoder_sparse_layers": []}
        return cls(top_k=0, expert_output_scale=1.0, **none, **sizes)

    @property
    def scheme(self) -> Scheme | None:
        """How the weights of experts are stored; `None` for floats."""
        if self.expert_bits is None:
            return None
        return Scheme(name=_SCHEME, bits=self.expert_bits, group=self.expert_group)

    @property
    def stacks(self) -> tuple[Stack, ...]:
        """The stacks that have sparse layers."""
        layers = {"encoder": self.encoder_sparse_layers, "decoder": self.decoder_sparse_layers}
        return tuple(
            Stack(name, _KEYED_BY[name], tuple(here), self.num_experts) for name, here in layers.items() if here
        )

    @property
    def spec(self) -> ModelSpec:
        """The model as the pruner sees it, without fingerprint."""
        if not self.stacks:
            return ModelSpec(family="m2m_100", stacks=(), top_k=0, output_scale=1.0)
        return ModelSpec(
            family="nllb-moe",
            stacks=self.stacks,
            top_k=self.top_k,
            output_scale=self.expert_output_scale,
            router_bias=self.router_bias,
            activation=self.activation,
        )

    @property
    def kept(self) -> Mapping[str, ExpertMask] | None:
        """The experts that are there by stack; `None` when all are."""
        given = {"encoder": self.encoder_experts, "decoder": self.decoder_experts}
        if all(given[stack.name] is None for stack in self.stacks):
            return None
        return {stack.name: self._kept(stack, given[stack.name]) for stack in self.stacks}

    def _kept(self, stack: Stack, given: Sequence[Sequence[int]] | None) -> ExpertMask:
        if given is None:
            return tuple(tuple(range(stack.experts)) for _ in stack.layers)
        mask = tuple(tuple(ids) for ids in given)
        right = all(
            list(ids) == sorted({*ids} & {*range(stack.experts)}) and len(ids) >= min(self.top_k, stack.experts)
            for ids in mask
        )
        if len(mask) != len(stack.layers) or not right:
            raise UsageError(
                f"`{stack.name}_experts` must be {self.top_k} or more sorted expert numbers below {stack.experts} for "
                f"each of {len(stack.layers)} layers, but are not; write the asset card anew with `nllb-prune card`."
            )
        return mask


def config_of(
    family: Family,
    config: Any,
    spec: ModelSpec,
    *,
    pruning: ExpertPruning | None = None,
    kept: Mapping[str, ExpertMask] | None = None,
) -> NllbMoeConfig:
    """Return the configuration of a model that transformers describes.

    Args:
        family: Of the model.
        config: Its transformers configuration.
        spec: Its description.
        pruning: What a pruned checkpoint says of itself.
        kept: Experts to keep, by stack; of a pruned checkpoint all that it holds, by default.

    Raises:
        UsageError: if its architecture is none that fairseq2's parts make, or its embeddings are not tied.
    """
    if family.layer_names is None:
        raise UsageError(
            f"`model` must be an encoder and a decoder as M2M-100 has them for the backend fairseq2, but is of the "
            f"family {family.model_type} instead; use the default backend."
        )
    if not config.tie_word_embeddings:
        raise UsageError("`tie_word_embeddings` of the configuration must be true for fairseq2, but is false instead.")
    kept = pruning.kept if kept is None and pruning is not None else kept
    scheme = None if pruning is None else pruning.scheme
    layers = {stack.name: list(stack.layers) for stack in spec.stacks}
    experts = {} if kept is None else {stack: [list(ids) for ids in mask] for stack, mask in kept.items()}
    sizes = {f"{name}_ffn_inner_dim": family.expert_shape(config, name).ffn for name in ("encoder", "decoder")}
    return NllbMoeConfig(
        model_dim=config.d_model,
        max_seq_len=max(LONGEST, config.max_position_embeddings),
        vocab_size=config.vocab_size,
        num_encoder_layers=config.encoder_layers,
        num_decoder_layers=config.decoder_layers,
        num_encoder_attn_heads=config.encoder_attention_heads,
        num_decoder_attn_heads=config.decoder_attention_heads,
        **sizes,
        activation=config.activation_function,
        scale_embedding=config.scale_embedding,
        num_experts=max((stack.experts for stack in spec.stacks), default=0),
        encoder_sparse_layers=layers.get("encoder", []),
        decoder_sparse_layers=layers.get("decoder", []),
        encoder_experts=experts.get("encoder"),
        decoder_experts=experts.get("decoder"),
        top_k=spec.top_k,
        expert_output_scale=spec.output_scale,
        router_bias=spec.router_bias,
        expert_bits=None if scheme is None else scheme.bits,
        expert_group=None if scheme is None else scheme.group,
    )
