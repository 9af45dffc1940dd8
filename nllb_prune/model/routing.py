"""What a call of the model carries to its sparse layers: masks by sentence, valid positions, an observer.

Transformers hands its layers different attention masks on each release line, so the sparse layer reads none of them: it
asks the `StackRouting` of its stack, which `routing(model, ...)` fills for the time of a call.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import Tensor, nn

from nllb_prune.errors import UsageError
from nllb_prune.masks import MaskSet
from nllb_prune.model.pruned import ExpertPruning
from nllb_prune.model.spec import ModelSpec

_ATTRIBUTE = "expert_routing"


@dataclass(frozen=True, slots=True)
class RoutedTokens:
    """What a sparse layer did with the valid tokens of one call."""

    probabilities: Tensor
    """Softmax of the router over the experts it could choose ``(tokens, experts)``."""
    chosen: Tensor
    """Expert ids, best first ``(tokens, top_k)``."""
    gates: Tensor
    """Combining weights in the same order ``(tokens, top_k)``; they sum to 1 where the model renormalises."""
    inputs: Tensor
    """Input of the layer ``(tokens, d_model)``."""
    positions: Tensor | None
    """Index of each token among the rows x positions of the call ``(tokens,)``; `None` when none is padding."""
    rows: int
    """Rows of the call."""


class Observer(Protocol):
    """Is told by each sparse layer what it did."""

    wants_outputs: bool
    """Whether `observe_outputs` is to be called."""

    def observe(self, stack: str, layer: int, routed: RoutedTokens) -> None:
        """Take note of a call of sparse layer number `layer` of a stack."""

    def observe_outputs(self, stack: str, layer: int, routed: RoutedTokens, values: Tensor, order: Tensor) -> Tensor:
        """Take note of the experts' outputs and return them, to be weighted and added up.

        Args:
            stack: As in `observe`, which was called before.
            layer: As in `observe`.
            routed: As in `observe`.
            values: What the experts computed, neither scaled nor weighted, sorted by expert ``(choices, d_model)``; a
                bank may tell of a call in parts, one expert after the other.
            order: Place of each among the flattened `routed.chosen` ``(choices,)``, choices = tokens * top_k.
        """


@dataclass(slots=True)
class StackRouting:
    """The part of a call that the sparse layers of one stack see."""

    stack: str
    keep: Tensor | None = None
    """Kept experts by sentence ``(sentences or 1, layers, experts)``, boolean; `None` keeps all."""
    valid: Tensor | None = None
    """Positions that are not padding ``(rows, length)``; `None` when all are valid."""
    observer: Observer | None = None

    def positions(self, rows: int, length: int) -> Tensor | None:
        """Return the flat indices of the valid positions of a call, or `None` for all."""
        if self.valid is None:
            return None
        if self.valid.shape != (rows, length):
            raise UsageError(
                f"`valid` of the {self.stack} must have the shape of the call, ({rows}, {length}), "
                f"but has {tuple(self.valid.shape)} instead."
            )
        return self.valid.flatten().nonzero().squeeze(1)

    def kept(self, layer: int, *, rows: int, length: int, positions: Tensor | None) -> Tensor | None:
        """Return the kept experts for each token of a call, ``(tokens or 1, experts)``, or `None` for all.

        Row r belongs to sentence r // n when there are n rows a sentence, as beam search lays them out.

        Raises:
            UsageError: if the rows are no multiple of the sentences.
        """
        if self.keep is None:
            return None
        keep = self.keep[:, layer]  # (sentences, experts)
        sentences = keep.shape[0]
        if sentences == 1:
            return keep
        if rows % sentences:
            raise UsageError(
                f"The rows of a call must be a multiple of the {sentences} sentences that masks were given for, "
                f"but are {rows} instead."
            )
        token = torch.arange(rows * length, device=keep.device) if positions is None else positions
        return keep[token // (length * (rows // sentences))]


@dataclass(slots=True)
class ModelRouting:
    """The routing of a model: its spec and what its stacks see now."""

    spec: ModelSpec
    name: str = "model"
    """What to call the model in files that travel."""
    identity: str = ""
    """A hash that weights of other training do not share, dense ones included; results are kept under it."""
    backend: str | None = None
    """Library and version whose modules the model is made of, as in `fairseq2 0.8.1`; `None` for transformers."""
    stacks: dict[str, StackRouting] = field(default_factory=dict)
    resident: dict[str, tuple[tuple[int, ...], ...]] | None = None
    """Kept ids by stack and sparse layer when the model holds only some experts."""
    spread: bool = False
    """Whether the model is on several devices, so that only calls of its modules go from one to the next."""
    pruning: ExpertPruning | None = None
    """What a pruned checkpoint says of itself, or of the direction of it that is in memory."""
    masks: MaskSet | None = None
    """Those that a pruned checkpoint carries."""


def attach_routing(model: nn.Module, state: ModelRouting) -> None:
    """Give a model its routing state."""
    setattr(model, _ATTRIBUTE, state)


def routing_of(model: nn.Module) -> ModelRouting:
    """Return the routing state of a model that `load_model` made."""
    state = getattr(model, _ATTRIBUTE, None)
    if not isinstance(state, ModelRouting):
        raise UsageError(
            f"`model` must come from `nllb_prune.load_model`, but is a plain {type(model).__name__} instead; "
            "load it again with `load_model`."
        )
    return state


def is_routed(model: nn.Module) -> bool:
    """Return whether a model has a routing state."""
    return isinstance(getattr(model, _ATTRIBUTE, None), ModelRouting)


def warn_unplanned(state: ModelRouting, source: str, target: str) -> None:
    """Warn of a direction that a pruned checkpoint was not planned for: it lacks experts that the languages need."""
    pruning = state.pruning
    if pruning is None or pruning.plans(source, target):
        return
    warnings.warn(
        f"`{state.name}` holds the experts for {pruning.languages()}, not those for {source}-{target}: expect wrong "
        f"translations, and export one for them from {pruning.base_model}",
        stacklevel=3,
    )


def mask_rows(
    masks: MaskSet, directions: Sequence[tuple[str, str]], *, device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return kept experts by sentence, ``{stack: (sentences or 1, layers, experts)}``, one direction a sentence.

    Equal directions share one row, so a batch in one direction costs nothing more than a single mask.
    """
    distinct = sorted(set(directions))
    index = torch.tensor([distinct.index(direction) for direction in directions])
    rows: dict[str, Tensor] = {}
    for stack in masks.stacks:
        table = torch.stack([torch.from_numpy(masks.as_array(stack.name, *direction)) for direction in distinct])
        rows[stack.name] = (table if len(distinct) == 1 else table[index]).to(device)
    return rows


def check_rows(state: ModelRouting, name: str, keep: Tensor) -> None:
    """Refuse rows of masks that cannot be routed within."""
    if name not in state.stacks:
        raise UsageError(f"`masks` must be of the stacks {', '.join(state.stacks)}, but are of {name} instead.")
    stack, top_k = state.spec.stack(name), state.spec.top_k
    wanted = (len(stack.layers), stack.experts)
    if keep.dtype != torch.bool or keep.ndim != 3 or keep.shape[1:] != wanted:
        raise UsageError(
            f"`masks` of the {name} must be boolean (sentences, {wanted[0]}, {wanted[1]}), "
            f"but are {keep.dtype} {tuple(keep.shape)} instead."
        )
    if keep.numel() and int(keep.sum(-1).min()) < top_k:
        raise UsageError(f"`masks` must keep {top_k} experts or more in every layer of the {name}, but keep fewer.")
    for layer, held in enumerate(() if state.resident is None else state.resident[name]):
        missing = sorted(set(keep[:, layer].any(0).nonzero().flatten().tolist()) - set(held))
        if missing:
            raise UsageError(
                f"`masks` must use experts that the pruned model holds, but {name} layer {layer} wants expert "
                f"{missing[0]}, which was left out; load the model without `direction`."
            )


def set_masks(model: nn.Module, masks: MaskSet, direction: tuple[str, str]) -> None:
    """Route every later call within the masks of a direction, until they are changed or cleared."""
    state = routing_of(model)
    masks.check_model(state.spec)
    rows = mask_rows(masks, [direction], device=next(model.parameters()).device)
    for name, keep in rows.items():
        check_rows(state, name, keep)
    for name, keep in rows.items():
        state.stacks[name].keep = keep


def clear_masks(model: nn.Module) -> None:
    """Route over all experts again."""
    for stack in routing_of(model).stacks.values():
        stack.keep = None


@contextmanager
def routing(
    model: nn.Module,
    *,
    masks: Mapping[str, Tensor] | None = None,
    observer: Observer | None = None,
) -> Iterator[None]:
    """Route the calls made inside the block with masks by sentence and an observer; what was set before returns.

    Args:
        model: A model from `load_model`.
        masks: Kept experts by stack ``(sentences or 1, layers, experts)``, as `mask_rows` makes them; a stack
            that is not named keeps what was set. `None` changes nothing.
        observer: Is told what each sparse layer did. `None` changes nothing.

    Raises:
        UsageError: if a mask does not fit the model, keeps fewer than top-k experts, or asks for one that a pruned
            model does not hold.
    """
    state = routing_of(model)
    stacks = state.stacks
    for name, rows in (masks or {}).items():
        check_rows(state, name, rows)
    before = {name: (stack.keep, stack.observer) for name, stack in stacks.items()}
    try:
        for name, stack in stacks.items():
            stack.keep = stack.keep if masks is None else masks.get(name, stack.keep)
            stack.observer = stack.observer if observer is None else observer
        yield
    finally:
        for name, (keep, observer_before) in before.items():
            stacks[name].keep, stacks[name].observer = keep, observer_before


def follow_padding(module: nn.Module, stack: StackRouting, *, pad: int) -> None:
    """Let a stack's module tell its sparse layers, at each call, which positions are padding.

    The mask (2-D, as users give it) counts if it covers the inputs; otherwise the padding id does: while decoding
    with a cache the mask covers the past as well, and sentences that are finished are fed padding.
    """

    def before(_module: nn.Module, arguments: tuple[object, ...], named: dict[str, object]) -> None:
        ids = named.get("input_ids", arguments[0] if arguments else None)
        mask = named.get("attention_mask")
        if isinstance(mask, Tensor) and (not isinstance(ids, Tensor) or mask.shape == ids.shape):
            valid = mask.bool()
        elif isinstance(ids, Tensor):
            valid = ids.ne(pad)
        else:
            stack.valid = None
            return
        stack.valid = None if bool(valid.all()) else valid

    module.register_forward_pre_hook(before, with_kwargs=True)
