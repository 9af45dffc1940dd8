"""State dictionaries between transformers' layout (of models and of our exports) and fairseq2's.

Experts are one tensor each there and rows of one tensor here, so a converted dictionary makes them when it is asked for
them: a model of any size is converted with one stacked tensor beside it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import cast

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.model.families import FAMILIES, Family
from nllb_prune.on_fairseq2.config import NllbMoeConfig
from nllb_prune.on_fairseq2.names import EMBEDDINGS, StackedExperts, check_names, family_of_names, names_of
from nllb_prune.on_fairseq2.vocabulary import rows_for_fairseq2, rows_for_transformers

StateDict = Mapping[str, object]

_HEAD = "lm_head."
"""Has no prefix in any layout."""


class Converted(Mapping[str, Tensor]):
    """A state dictionary whose tensors are made when they are asked for."""

    def __init__(self, make: Mapping[str, Callable[[], Tensor]]) -> None:
        self._make = make

    def __getitem__(self, name: str) -> Tensor:
        return self._make[name]()

    def __contains__(self, name: object) -> bool:
        return name in self._make

    def __iter__(self) -> Iterator[str]:
        return iter(self._make)

    def __len__(self) -> int:
        return len(self._make)


def convert_nllb_moe_state_dict(state_dict: StateDict, config: NllbMoeConfig) -> StateDict:
    """Return a state dictionary in fairseq2's layout, whatever layout it has.

    Args:
        state_dict: In the layout of transformers, of an export, of fairseq, or of fairseq2.
        config: Of the model.

    Raises:
        UsageError: if it lacks a tensor or has one too many.
    """
    state_dict = cast(StateDict, state_dict.get("model", state_dict))  # as fairseq writes it
    state_dict = _in_transformers_names(state_dict)
    family = family_of_names(state_dict)
    return state_dict if family is None else to_fairseq2(cast("Mapping[str, Tensor]", state_dict), config, family)


def to_fairseq2(tensors: Mapping[str, Tensor], config: NllbMoeConfig, family: Family) -> Converted:
    """Return tensors of transformers' names in fairseq2's layout.

    Raises:
        UsageError: if one is missing, or too many.
    """
    names = names_of(config, family)
    embedding = check_names(names, tensors.keys())
    make: dict[str, Callable[[], Tensor]] = {EMBEDDINGS[0]: lambda: rows_for_fairseq2(tensors[embedding])}
    make |= {ours: partial(tensors.__getitem__, theirs) for ours, theirs in names.single.items()}
    make |= {ours: partial(_stacked, tensors, each) for ours, each in names.stacked.items()}
    return Converted(make)


def to_transformers(state_dict: StateDict, config: NllbMoeConfig, family: Family | None = None) -> Converted:
    """Return a state dictionary of fairseq2's layout in transformers' layout, pruned as it is.

    Args:
        state_dict: Of a model.
        config: Of the model.
        family: Whose names it gets; by default NLLB-MoE's, of a dense model M2M-100's.

    Raises:
        KeyError: if it lacks a tensor.
    """
    tensors = cast("Mapping[str, Tensor]", state_dict)
    names = names_of(config, FAMILIES[config.spec.family] if family is None else family)
    embedding = next(name for name in EMBEDDINGS if name in tensors)
    make: dict[str, Callable[[], Tensor]] = {names.embedding[0]: lambda: rows_for_transformers(tensors[embedding])}
    make |= {theirs: partial(tensors.__getitem__, ours) for ours, theirs in names.single.items()}
    for ours, each in names.stacked.items():
        make |= {theirs: partial(_slot, tensors, ours, slot) for slot, theirs in enumerate(each.slots)}
    return Converted(make)


def _in_transformers_names(state_dict: StateDict) -> StateDict:
    """Rename the tensors of a checkpoint that fairseq wrote, and add the prefix that some checkpoints lack."""
    if "encoder.layers.0.self_attn.out_proj.weight" not in state_dict:
        return state_dict
    if any(f"encoder.layers.{n}.ff_layer_norm.weight" in state_dict for n in (0, 1)):
        return {name if name.startswith(_HEAD) else f"model.{name}": each for name, each in state_dict.items()}
    sparse = any(".moe_layer." in name for name in state_dict)
    original = FAMILIES["nllb-moe" if sparse else "m2m_100"].original
    assert original is not None
    renamed = ((name if name.startswith(_HEAD) else original.rename(name), each) for name, each in state_dict.items())
    return {name: each for name, each in renamed if name is not None}


def _stacked(tensors: Mapping[str, Tensor], experts: StackedExperts) -> Tensor:
    """Return one tensor of all slots ``(slots, ...)``."""
    first = tensors[experts.slots[0]]
    stacked = torch.empty(len(experts.slots), *first.shape, dtype=first.dtype)
    for slot, name in enumerate(experts.slots):
        tensor = tensors[name]
        if tensor.shape != first.shape:
            raise UsageError(
                f"`{experts.slots[0]}` and `{name}` must have one shape, but have {tuple(first.shape)} and "
                f"{tuple(tensor.shape)}; the checkpoint is damaged."
            )
        stacked[slot] = tensor
    return stacked


def _slot(tensors: Mapping[str, Tensor], name: str, slot: int) -> Tensor:
    return tensors[name][slot].clone()  # a view would bring the memory of all slots into a file of its own
