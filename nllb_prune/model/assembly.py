"""The transformers module of a model with our sparse layers in place of its own, not filled yet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
from torch import nn

from nllb_prune.expert_mask import ExpertMask
from nllb_prune.model.expert_bank import ExpertBank
from nllb_prune.model.families import Family
from nllb_prune.model.placement import Placement
from nllb_prune.model.quantised_bank import QuantisedExpertBank
from nllb_prune.model.routing import ModelRouting, StackRouting
from nllb_prune.model.scheme import Scheme
from nllb_prune.model.sparse_ffn import SparseFfn
from nllb_prune.model.spec import ModelSpec


def assemble(
    family: Family,
    spec: ModelSpec,
    config: Any,
    *,
    kept: Mapping[str, ExpertMask] | None,
    dtype: torch.dtype,
    device: torch.device | Placement,
    scheme: Scheme | None = None,
    slots: Mapping[str, Sequence[int]] | None = None,
) -> tuple[nn.Module, ModelRouting]:
    """Make the model on the meta device and put our sparse layers, with memory but no values, into it.

    Args:
        family: Of the model.
        spec: Its description.
        config: Its transformers configuration.
        kept: Experts to make room for, by stack; `None` for all.
        dtype: Of the experts; routers are float32.
        device: Of routers and experts; all other parameters stay on the meta device.
        scheme: In which the matrices of experts are stored; `None` for floats.
        slots: Of each sparse layer by stack, for experts that come and go; `kept` are then those that may come.
    """
    from transformers import AutoModelForSeq2SeqLM

    place = device if isinstance(device, Placement) else Placement.on(device)
    config._attn_implementation = "eager"
    with torch.device("meta"):
        model = AutoModelForSeq2SeqLM.from_config(config)
    state = ModelRouting(spec, resident=None if kept is None else dict(kept))
    make_bank = ExpertBank if scheme is None else partial(QuantisedExpertBank, scheme=scheme)
    for stack in spec.stacks:
        routing = state.stacks[stack.name] = StackRouting(stack.name)
        shape = family.expert_shape(config, stack.name)
        for number, layer in enumerate(stack.layers):
            path = family.sparse_path(stack.name, layer)
            here = range(stack.experts) if kept is None else kept[stack.name][number]
            bank = make_bank(
                expert_ids=here if slots is None else (),
                slots=None if slots is None else slots[stack.name][number],
                experts=stack.experts,
                d_model=shape.d_model,
                ffn=shape.ffn,
                activation=spec.activation,
                dtype=dtype,
                device=place.of(path),
            )
            sparse = SparseFfn(
                layer=number,
                bank=bank,
                d_model=shape.d_model,
                top_k=spec.top_k,
                output_scale=spec.output_scale,
                renormalise=spec.renormalise,
                router_bias=spec.router_bias,
                routing=routing,
                wrap_output=family.wrap_output,
                device=place.of(path),
            )
            model.set_submodule(path, sparse)
    return model, state
