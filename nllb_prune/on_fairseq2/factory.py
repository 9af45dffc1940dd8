"""An NLLB mixture of experts out of fairseq2's standard parts, with our sparse layer where a layer is sparse."""

from __future__ import annotations

from fairseq2.models.transformer import (
    CausalAttentionBias,
    FeedForwardNetwork,
    IdentityBias,
    StandardFeedForwardNetwork,
    StandardMultiheadAttention,
    StandardTransformerDecoder,
    StandardTransformerDecoderLayer,
    StandardTransformerEncoder,
    StandardTransformerEncoderLayer,
    TransformerEmbeddingFrontend,
    TransformerModel,
    TransformerNormOrder,
    create_default_sdpa,
)
from fairseq2.models.transformer.attention_bias import AttentionBias
from fairseq2.nn import StandardEmbedding, StandardLayerNorm, TiedProjection, init_scaled_embedding
from torch import nn

from nllb_prune.errors import UsageError
from nllb_prune.model.expert_bank import ExpertBank
from nllb_prune.model.quantised_bank import Bank, QuantisedExpertBank
from nllb_prune.model.routing import ModelRouting, StackRouting, attach_routing
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.on_fairseq2.config import NllbMoeConfig
from nllb_prune.on_fairseq2.positions import FairseqPositionEncoder
from nllb_prune.on_fairseq2.sparse import RouterNorms, SparseFeedForwardNetwork, follow_layouts

_ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU}


def create_nllb_moe_model(config: NllbMoeConfig) -> TransformerModel:
    """Make a model, to be filled; its routing state is attached, so that `routing` and `set_masks` work on it."""
    return NllbMoeFactory(config).create_model()


def sparse_path(stack: str, layer: int) -> str:
    """Return the path of the sparse layer in a layer of a stack."""
    return f"{stack}.layers.{layer}.ffn.sparse"


class NllbMoeFactory:
    """Makes the parts of a model."""

    def __init__(self, config: NllbMoeConfig) -> None:
        if config.activation not in _ACTIVATIONS:
            raise UsageError(
                f"`activation` must be one of {', '.join(_ACTIVATIONS)}, but is {config.activation} instead."
            )
        self._config = config
        kept = config.kept
        self._routing = ModelRouting(config.spec, resident=None if kept is None else dict(kept))
        self._routing.stacks = {stack.name: StackRouting(stack.name) for stack in config.stacks}
        self._norms = RouterNorms(self._routing)

    def create_model(self) -> TransformerModel:
        """Make the model."""
        config = self._config
        embed = StandardEmbedding(config.vocab_size, config.model_dim, config.pad_idx, init_fn=init_scaled_embedding)
        positions = FairseqPositionEncoder(config.model_dim, config.max_seq_len)
        frontend = TransformerEmbeddingFrontend(
            config.model_dim, embed, positions, no_scale=not config.scale_embedding, dropout_p=config.dropout_p
        )
        model = TransformerModel(
            config.model_dim,
            frontend,
            self.create_encoder(),
            frontend,
            self.create_decoder(),
            TiedProjection(embed.weight, bias=None),
            config.pad_idx,
            config.max_seq_len,
            config.max_seq_len,
        )
        attach_routing(model, self._routing)
        follow_layouts(model, self._routing.stacks)
        return model

    def create_encoder(self) -> StandardTransformerEncoder:
        """Make the encoder."""
        layers = [
            StandardTransformerEncoderLayer(
                self.create_attention("encoder", IdentityBias()),
                self.create_layer_norm(),
                self.create_ffn("encoder", layer),
                self.create_layer_norm(),
                norm_order=TransformerNormOrder.PRE,
                dropout_p=self._config.dropout_p,
            )
            for layer in range(self._config.num_encoder_layers)
        ]
        return StandardTransformerEncoder(layers, self.create_layer_norm())

    def create_decoder(self) -> StandardTransformerDecoder:
        """Make the decoder."""
        layers = [
            StandardTransformerDecoderLayer(
                self.create_attention("decoder", CausalAttentionBias()),
                self.create_layer_norm(),
                self.create_attention("decoder", IdentityBias()),
                self.create_layer_norm(),
                self.create_ffn("decoder", layer),
                self.create_layer_norm(),
                norm_order=TransformerNormOrder.PRE,
                dropout_p=self._config.dropout_p,
            )
            for layer in range(self._config.num_decoder_layers)
        ]
        return StandardTransformerDecoder(layers, self.create_layer_norm())

    def create_attention(self, stack: str, bias: AttentionBias) -> StandardMultiheadAttention:
        """Make an attention of a stack."""
        heads: int = getattr(self._config, f"num_{stack}_attn_heads")
        return StandardMultiheadAttention(self._config.model_dim, heads, create_default_sdpa(bias))

    def create_layer_norm(self) -> StandardLayerNorm:
        """Make a norm."""
        return StandardLayerNorm(self._config.model_dim, bias=True)

    def create_ffn(self, stack: str, layer: int) -> FeedForwardNetwork:
        """Make the feed-forward network of a layer, dense or sparse."""
        config = self._config
        sparse_layers: list[int] = getattr(config, f"{stack}_sparse_layers")
        if layer in sparse_layers:
            return SparseFeedForwardNetwork(self.create_sparse(stack, sparse_layers.index(layer)), self._norms)
        return StandardFeedForwardNetwork(
            config.model_dim,
            getattr(config, f"{stack}_ffn_inner_dim"),
            bias=True,
            inner_activation=_ACTIVATIONS[config.activation](),
        )

    def create_sparse(self, stack: str, number: int) -> SparseFfn:
        """Make the sparse layer of that number in a stack."""
        config = self._config
        return SparseFfn(
            layer=number,
            bank=create_bank(config, stack, number),
            d_model=config.model_dim,
            top_k=config.top_k,
            output_scale=config.expert_output_scale,
            router_bias=config.router_bias,
            routing=self._routing.stacks[stack],
        )


def create_bank(config: NllbMoeConfig, stack: str, number: int) -> Bank:
    """Make the experts of the sparse layer of that number in a stack, of the default dtype on the default device."""
    kept, scheme = config.kept, config.scheme
    ids = range(config.num_experts) if kept is None else kept[stack][number]
    ffn: int = getattr(config, f"{stack}_ffn_inner_dim")
    if scheme is None:
        return ExpertBank(
            expert_ids=ids,
            experts=config.num_experts,
            d_model=config.model_dim,
            ffn=ffn,
            activation=config.activation,
        )
    return QuantisedExpertBank(
        expert_ids=ids,
        experts=config.num_experts,
        d_model=config.model_dim,
        ffn=ffn,
        scheme=scheme,
        activation=config.activation,
    )
