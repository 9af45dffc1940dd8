"""The family's own entrances, as fairseq2 has them for each of its families."""

from __future__ import annotations

from fairseq2.data.tokenizers import TokenizerHubAccessor
from fairseq2.models import ModelHubAccessor
from fairseq2.models.nllb import NllbTokenizer
from fairseq2.models.transformer import TransformerModel

from nllb_prune.on_fairseq2.config import NLLB_MOE_FAMILY, NllbMoeConfig
from nllb_prune.on_fairseq2.tokenizer import NllbMoeTokenizerConfig

get_nllb_moe_model_hub = ModelHubAccessor(NLLB_MOE_FAMILY, kls=TransformerModel, config_kls=NllbMoeConfig)

get_nllb_moe_tokenizer_hub = TokenizerHubAccessor(NLLB_MOE_FAMILY, kls=NllbTokenizer, config_kls=NllbMoeTokenizerConfig)
