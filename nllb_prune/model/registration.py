"""Pruned checkpoints as classes of transformers, so that its Auto classes load them."""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

from nllb_prune.model.families import FAMILIES, PRUNED_PREFIX

_PREFIX = "Pruned"


@cache
def config_classes() -> dict[str, type]:
    """Return a configuration class of each family's pruned checkpoints, by the family's model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return {name: _subclass(CONFIG_MAPPING[name], model_type=PRUNED_PREFIX + name) for name in FAMILIES}


@cache
def model_classes() -> dict[str, type]:
    """Return a model class of each family's pruned checkpoints, by the family's model type."""
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING
    from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING

    from nllb_prune.model.pruned_model import PrunedModel

    found = {}
    for name, config_class in config_classes().items():
        base = MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING[CONFIG_MAPPING[name]]
        found[name] = _subclass(base, PrunedModel, config_class=config_class)
    return found


def _subclass(base: Any, *mixed: type, **attributes: Any) -> type:
    name = f"{_PREFIX}{base.__name__}"
    doc = f"`{base.__name__}` of a pruned checkpoint."
    made = type(name, (*mixed, base), {**attributes, "__module__": __name__, "__doc__": doc})
    setattr(sys.modules[__name__], name, made)  # where pickle looks
    return made


def register() -> None:
    """Tell `AutoConfig` and `AutoModelForSeq2SeqLM`."""
    from transformers import AutoConfig, AutoModelForSeq2SeqLM

    for name, config_class in config_classes().items():
        AutoConfig.register(PRUNED_PREFIX + name, config_class, exist_ok=True)
        AutoModelForSeq2SeqLM.register(config_class, model_classes()[name], exist_ok=True)
