"""What the parameters of a fairseq2 model are called in transformers."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import torch

from nllb_prune.errors import UsageError
from nllb_prune.model.expert_bank import PARAMETERS
from nllb_prune.model.families import FAMILIES, Family
from nllb_prune.model.families.layer_names import LayerNames
from nllb_prune.on_fairseq2.config import NllbMoeConfig
from nllb_prune.on_fairseq2.factory import create_bank, sparse_path

EMBEDDINGS = ("encoder_frontend.embed.weight", "decoder_frontend.embed.weight", "final_proj.weight")
"""The one embedding of a fairseq2 model."""

_ATTENTION = {"q_proj": "q_proj", "k_proj": "k_proj", "v_proj": "v_proj", "output_proj": "out_proj"}
_PARTS = ("weight", "bias")


@dataclass(frozen=True, slots=True, kw_only=True)
class StackedExperts:
    """A parameter of a bank: one tensor of each expert, slot by slot."""

    slots: tuple[str, ...]
    """Names in transformers, of the experts that are kept."""
    others: tuple[str, ...]
    """Names in transformers, of the experts that are not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Of each parameter of a fairseq2 model."""

    family: Family
    embedding: tuple[str, ...]
    """Names of the embedding in transformers: any of them will do."""
    single: dict[str, str]
    """Name in fairseq2 -> name in transformers, of what is one tensor in both."""
    stacked: dict[str, StackedExperts]
    """Name in fairseq2 -> those of the experts."""

    @property
    def known(self) -> set[str]:
        """All names in transformers, of experts kept or not."""
        experts = {name for each in self.stacked.values() for name in (*each.slots, *each.others)}
        return {*self.embedding, *self.single.values(), *experts}


def names_of(config: NllbMoeConfig, family: Family) -> Names:
    """Return the names of a model's parameters in a family's form.

    Raises:
        UsageError: if the model has sparse layers and the family none.
    """
    assert family.layer_names is not None
    if config.stacks and not family.router_tensors(""):
        raise UsageError(
            f"The checkpoint must hold sparse layers, as the asset card says, but has names of {family.model_type}, "
            "a dense one."
        )
    single: dict[str, str] = {}
    stacked: dict[str, StackedExperts] = {}
    for stack in ("encoder", "decoder"):
        single |= {f"{stack}.layer_norm.{part}": f"model.{stack}.layer_norm.{part}" for part in _PARTS}
        sparse: list[int] = getattr(config, f"{stack}_sparse_layers")
        for layer in range(getattr(config, f"num_{stack}_layers")):
            single |= dict(_dense(stack, layer, family.layer_names, ffn=layer not in sparse))
            if layer in sparse:
                path, ours = family.sparse_path(stack, layer), sparse_path(stack, layer)
                found = {f"{ours}.{parameter}": name for parameter, name in family.router_tensors(path).items()}
                if not config.router_bias:
                    del found[f"{ours}.router_bias"]
                single |= found
                stacked |= dict(_experts(config, family, stack, sparse.index(layer), path=path, ours=ours))
    return Names(
        family=family,
        embedding=family.tied(_Tied())[0],
        single=single,
        stacked=stacked,
    )


def family_of_names(names: Collection[str]) -> Family | None:
    """Return the family whose names tensors have; `None` if none."""
    for family in FAMILIES.values():
        if family.layer_names is not None and f"model.encoder.layers.0.{family.layer_names.ffn_norm}.weight" in names:
            return family
    return None


class _Tied:
    """A configuration of which the embeddings are tied."""

    tie_word_embeddings = True


def _dense(stack: str, layer: int, names: LayerNames, *, ffn: bool) -> Iterator[tuple[str, str]]:
    ours, theirs = f"{stack}.layers.{layer}", f"model.{stack}.layers.{layer}"
    attentions = {"self_attn": "self_attn"}
    norms = {"self_attn_layer_norm": "self_attn_layer_norm", "ffn_layer_norm": names.ffn_norm}
    if stack == "decoder":
        attentions["encoder_decoder_attn"] = names.cross_attention
        norms["encoder_decoder_attn_layer_norm"] = names.cross_attention_norm
    modules = dict(norms)
    for attention, their_attention in attentions.items():
        modules |= {f"{attention}.{proj}": f"{their_attention}.{their}" for proj, their in _ATTENTION.items()}
    if ffn:
        holder = f"{names.ffn}." if names.ffn else ""
        modules |= {"ffn.inner_proj": f"{holder}fc1", "ffn.output_proj": f"{holder}fc2"}
    for our_module, their_module in modules.items():
        for part in _PARTS:
            yield f"{ours}.{our_module}.{part}", f"{theirs}.{their_module}.{part}"


def _experts(
    config: NllbMoeConfig, family: Family, stack: str, number: int, *, path: str, ours: str
) -> Iterator[tuple[str, StackedExperts]]:
    with torch.device("meta"):
        bank = create_bank(config, stack, number)
    for parameter in PARAMETERS:
        of_expert = [family.expert_tensors(path, expert)[parameter] for expert in range(bank.experts)]
        for suffix, place in bank.places(parameter).items():
            yield (
                f"{ours}.bank.{place}",
                StackedExperts(
                    slots=tuple(of_expert[expert] + suffix for expert in bank.expert_ids),
                    others=tuple(
                        name + suffix for expert, name in enumerate(of_expert) if expert not in bank.expert_ids
                    ),
                ),
            )


def check_names(names: Names, there: Collection[str]) -> str:
    """Refuse a checkpoint that lacks a tensor or has one too many; return the name it has the embedding under.

    Raises:
        UsageError: naming the first.
    """
    wanted = [*names.single.values(), *(name for each in names.stacked.values() for name in each.slots)]
    embedding = next((name for name in names.embedding if name in there), None)
    missing = [name for name in wanted if name not in there]
    if embedding is None or missing:
        lacking = names.embedding[0] if embedding is None else missing[0]
        raise UsageError(f"The checkpoint must hold `{lacking}`, but does not; it is incomplete or of another model.")
    known = names.known
    if unexpected := sorted(n for n in there if n not in known and not n.endswith(names.family.ignored)):
        raise UsageError(
            f"The checkpoint must hold only tensors of the model that the asset card describes, but holds "
            f"{len(unexpected)} others, first `{unexpected[0]}`."
        )
    return embedding
