"""The expert index published with arXiv 2212.09811: lists of expert numbers that run over the whole model.

Number = experts of the sparse layers before (encoder first) + expert. A language uses the encoder's numbers when it is
the source and the decoder's when it is the target: below and from 768 in NLLB-200, with 6 + 6 layers of 128 experts.
Three forms: lists by language, lists by direction, and one plain list for all. Other models have other numbers of
stacks, layers and experts; what is written back has equal content, with keys and numbers sorted.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from nllb_prune.errors import UsageError
from nllb_prune.masks import GLOBAL_KEY, ExpertMask, MaskGranularity, MaskSet
from nllb_prune.model.spec import Fingerprint, Stack

Index = dict[str, list[int]] | list[int]
"""Expert numbers by language or by direction, or of one global mask."""


def masks_from_index(
    content: Any, stacks: Sequence[Stack], *, model_name: str, fingerprint: Fingerprint, top_k: int = 2
) -> MaskSet:
    """Turn an expert index into masks; a language without numbers in a stack gets no mask there.

    Args:
        content: the parsed JSON of the index.
        stacks: those of the model it was made for, encoder first.
        model_name: what to call that model.
        fingerprint: of that model; the index does not carry one.
        top_k: experts that run for a token.

    Raises:
        UsageError: if it is no index, or its numbers do not fit the model.
    """
    index = {GLOBAL_KEY: content} if isinstance(content, list) else content
    granularity = _granularity(index, stacks)
    for key, numbers in index.items():
        _check_numbers(key, numbers, total=sum(stack.total for stack in stacks))
    masks = {
        stack.name: {key: mask for key, numbers in index.items() if any(mask := _mask(numbers, stack, first=first))}
        for stack, first in _offsets(stacks)
    }
    return MaskSet(
        model_name=model_name,
        fingerprint=fingerprint,
        stacks=tuple(stacks),
        top_k=top_k,
        granularity=granularity,
        masks=masks,
        plan={"imported": "expert index"},
    )


def masks_to_index(masks: MaskSet) -> Index:
    """Return the expert index of masks."""
    index: dict[str, list[int]] = {}
    for stack, first in _offsets(masks.stacks):
        for key, mask in masks.masks[stack.name].items():
            index.setdefault(key, []).extend(_numbers(mask, stack, first=first))
    return index[GLOBAL_KEY] if masks.granularity == "global" else {key: index[key] for key in sorted(index)}


def _granularity(index: Any, stacks: Iterable[Stack]) -> MaskGranularity:
    if not isinstance(index, dict) or not index:
        raise UsageError(
            "`index` must be lists of expert numbers by language or by direction, or one plain list, "
            "but is something else instead."
        )
    if set(index) == {GLOBAL_KEY}:
        return "global"
    directions = {"-" in key for key in index}
    if len(directions) > 1:
        raise UsageError("`index` must have languages or directions as keys, but mixes both instead.")
    if directions == {True}:
        return "pair"
    if any(stack.keyed_by == "direction" for stack in stacks):
        raise UsageError("`index` must have directions as keys for this model, but has languages instead.")
    return "language"


def _check_numbers(key: str, numbers: Any, *, total: int) -> None:
    wanted = f"`{key}` must be a list of expert numbers 0 to {total - 1}"
    if not isinstance(numbers, list) or not numbers:
        raise UsageError(f"{wanted}, but is {'empty' if numbers == [] else 'something else'} instead.")
    wrong = [number for number in numbers if type(number) is not int or not 0 <= number < total]
    if wrong:
        raise UsageError(f"{wanted}, but has {wrong[0]!r} instead. Was the index made for another model?")
    if len(set(numbers)) != len(numbers):
        raise UsageError(f"`{key}` must list each expert once, but repeats some.")


def _offsets(stacks: Iterable[Stack]) -> Iterable[tuple[Stack, int]]:
    first = 0
    for stack in stacks:
        yield stack, first
        first += stack.total


def _mask(numbers: Iterable[int], stack: Stack, *, first: int) -> ExpertMask:
    layers: list[list[int]] = [[] for _ in stack.layers]
    for number in sorted(numbers):
        if first <= number < first + stack.total:
            layer, expert = divmod(number - first, stack.experts)
            layers[layer].append(expert)
    return tuple(map(tuple, layers))


def _numbers(mask: ExpertMask, stack: Stack, *, first: int) -> list[int]:
    return [first + layer * stack.experts + expert for layer, ids in enumerate(mask) for expert in ids]
