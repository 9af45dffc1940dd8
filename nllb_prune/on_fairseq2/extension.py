"""Registers the family with fairseq2, which finds this module by the entry point `fairseq2.extension`."""

from __future__ import annotations

from fairseq2.composition.assets import register_package_assets
from fairseq2.composition.tokenizers import register_tokenizer_family
from fairseq2.model_checkpoint import ModelCheckpointLoader
from fairseq2.models.family import ModelFamily, StandardModelFamily
from fairseq2.models.hg import HuggingFaceConverter
from fairseq2.models.nllb import NllbTokenizer
from fairseq2.models.transformer import TransformerModel
from fairseq2.runtime.config_registry import ConfigRegistrar
from fairseq2.runtime.dependency import DependencyContainer, DependencyLookup, DependencyResolver, wire_object

from nllb_prune.on_fairseq2.checkpoint_loader import NllbMoeCheckpointLoader
from nllb_prune.on_fairseq2.config import NLLB_MOE_FAMILY, NllbMoeConfig
from nllb_prune.on_fairseq2.conversion import convert_nllb_moe_state_dict
from nllb_prune.on_fairseq2.factory import create_nllb_moe_model
from nllb_prune.on_fairseq2.hugging_face import NllbMoeHuggingFaceConverter
from nllb_prune.on_fairseq2.tokenizer import NllbMoeTokenizerConfig, load_nllb_moe_tokenizer

CARDS = "nllb_prune.on_fairseq2.asset_cards"
"""Package of the asset cards of the embedded models."""


def register(container: DependencyContainer) -> None:
    """Register the model family, its architecture, its tokenizer, and the cards of the embedded models."""
    container.register(ModelFamily, _create_family, key=NLLB_MOE_FAMILY, singleton=True)
    ConfigRegistrar(container, NllbMoeConfig)("moe_54b")(NllbMoeConfig)
    container.register_type(HuggingFaceConverter, NllbMoeHuggingFaceConverter, key=NLLB_MOE_FAMILY)
    register_tokenizer_family(
        container,
        NLLB_MOE_FAMILY,
        kls=NllbTokenizer,
        config_kls=NllbMoeTokenizerConfig,
        loader=load_nllb_moe_tokenizer,
    )
    register_package_assets(container, package=CARDS)


def _create_family(resolver: DependencyResolver) -> ModelFamily:
    """Make what `register_model_family` makes, but for the loader."""
    family: ModelFamily = wire_object(
        resolver,
        StandardModelFamily,
        name=NLLB_MOE_FAMILY,
        kls=TransformerModel,
        configs=DependencyLookup(resolver, NllbMoeConfig),
        factory=create_nllb_moe_model,
        checkpoint_loader=NllbMoeCheckpointLoader(resolver.resolve(ModelCheckpointLoader)),
        supports_meta=True,
        restrict=True,
        state_dict_converter=convert_nllb_moe_state_dict,
        shard_specs=None,
        compiler=None,
        fsdp_applier=None,
        layerwise_ac_applier=None,
    )
    return family
