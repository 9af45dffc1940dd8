"""Which experts a direction needs: from masks, or all that a model has."""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask, mask_array, size, union
from nllb_prune.languages import Direction, language
from nllb_prune.masks import GLOBAL_KEY, MaskSet
from nllb_prune.model.pruned import ExpertPruning
from nllb_prune.model.spec import ModelSpec, Stack
from nllb_prune.serving.residency import FULL, Side

_JOINING = ("encoder",)
"""Stacks that a sentence runs through once, when it joins."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LanguageSide:
    """What a stack keeps for a language, as it is shown."""

    stack: str
    key: str
    """A language, a direction, `*` for all of them, or `full` for all experts."""
    mask: ExpertMask
    experts_of_layer: int
    """That a sparse layer of the full model has."""
    layers: tuple[int, ...]
    """Index of each sparse layer among the layers of the stack."""
    bytes: int
    resident: bool
    """Whether all of its experts are in memory."""


class LanguageSides:
    """The language sides of a model.

    Args:
        spec: Of the model.
        masks: Of the model; `None` for all experts in every direction.
        pruning: What a pruned checkpoint says of itself.
        known: Languages of the tokenizer.
        languages: Serve these alone.
        full: Adds sides of all experts, which any direction may use instead.

    Raises:
        UsageError: on masks of another model, where no direction is left, and on `full` of a model that lacks experts.
    """

    def __init__(
        self,
        spec: ModelSpec,
        masks: MaskSet | None,
        pruning: ExpertPruning | None,
        *,
        known: Sequence[str],
        languages: Sequence[str] | None = None,
        full: bool = False,
    ) -> None:
        if masks is not None:
            masks.check_model(spec)
        if full:
            _check_whole(spec, pruning)
        self._spec, self._masks, self._pruning = spec, masks, pruning
        self._full = full and masks is not None
        self.offers_full = full or (masks is None and _whole(spec, pruning))
        """Whether all experts may be asked for; without masks, that is what every direction uses."""
        if languages is not None and len(set(languages)) < 2:
            raise UsageError(f"`languages` must be two or more, but are {', '.join(languages) or 'none'} instead.")
        self._known = tuple(known) if languages is None else tuple(_chosen(languages, known))
        self.directions = tuple(
            (source, target) for source in self._known for target in self._known if self._covers(source, target)
        )
        """All that are served."""
        if not self.directions:
            raise UsageError(
                "`masks` must cover a direction between two languages of the model, but cover none of "
                f"{', '.join(self._known)}."
            )
        self._served = frozenset(self.directions)
        sources, targets = (set(side) for side in zip(*self.directions, strict=True))
        self.sources = tuple(code for code in self._known if code in sources)
        """Languages that are translated from."""
        self.targets = tuple(code for code in self._known if code in targets)
        """Languages that are translated into."""
        self.masks = self._by_side()
        """Kept experts of each side that a direction needs."""
        self._keep: dict[Side, Tensor] = {}

    def _covers(self, source: str, target: str) -> bool:
        if source == target:
            return False
        planned = self._pruning is None or self._pruning.plans(source, target)
        return planned and (self._masks is None or self._masks.covers(source, target))

    def _by_side(self) -> dict[Side, ExpertMask]:
        found: dict[Side, ExpertMask] = {}
        for direction in self.directions:
            for side in self.of(*direction):
                if side not in found:
                    found[side] = self._mask(side, direction)
        if self._full:
            found |= {(stack.name, FULL): _every(stack) for stack in self._spec.stacks}
        return dict(sorted(found.items()))

    def _mask(self, side: Side, direction: Direction) -> ExpertMask:
        if self._masks is not None:
            return self._masks.mask(side[0], *direction)
        if self._pruning is not None:
            return self._pruning.kept[side[0]]
        return _every(self._spec.stack(side[0]))

    @property
    def kept(self) -> dict[str, ExpertMask]:
        """Experts that any direction needs, by stack."""
        return {
            stack.name: union(mask for side, mask in self.masks.items() if side[0] == stack.name)
            for stack in self._spec.stacks
        }

    def check(self, source: str, target: str, *, full: bool = False) -> None:
        """Refuse a direction that is not served, within the experts that are kept or all.

        Raises:
            UsageError: with the languages that are.
        """
        if full and not self.offers_full:
            raise UsageError("`full` must be False, but is True instead; open the translator with `full=True` for it.")
        if (source, target) in self._served:
            return
        for name, code, served in (("source", source, self.sources), ("target", target, self.targets)):
            if code not in served:
                raise UsageError(f"`{name}` must be one of {', '.join(served)}, but is {code} instead.")
        raise UsageError(f"`target` must be a language that {source} is translated into, but is {target} instead.")

    def of(self, source: str, target: str, *, full: bool = False) -> tuple[Side, ...]:
        """Return the sides of a direction, by stack; with `full`, those of all experts."""
        if full and self._full:
            return tuple((stack.name, FULL) for stack in self._spec.stacks)
        return tuple((stack.name, self._key(stack.name, source, target)) for stack in self._spec.stacks)

    def _key(self, stack: str, source: str, target: str) -> str:
        return GLOBAL_KEY if self._masks is None else self._masks.key(stack, source, target)

    def pinned(self, names: Sequence[str]) -> tuple[Side, ...]:
        """Return the sides of languages, or of directions as `eng_Latn-deu_Latn` where masks are by direction.

        Raises:
            UsageError: if there is none of a name.
        """
        found: list[Side] = []
        for name in names:
            key = name if "-" in name and name in {key for _, key in self.masks} else language(name).code
            sides = [side for side in self.masks if side[1] == key]
            if not sides:
                keys = ", ".join(dict.fromkeys(key for _, key in self.masks))
                hint = "; masks for all languages need no pin" if keys == GLOBAL_KEY else ""
                raise UsageError(f"`pinned` must be of {keys}, but has {name} instead{hint}.")
            found += sides
        return tuple(found)

    def keep(self, sides: Sequence[Side], device: torch.device) -> Mapping[str, Tensor]:
        """Return the experts of sides by stack ``(layers, experts)``, boolean; nothing where they are all there are."""
        if self._masks is None:
            return {}
        masked = [side for side in sides if side[1] != FULL]
        for side in masked:
            if side not in self._keep:
                table = mask_array(self.masks[side], self._spec.stack(side[0]).experts)
                self._keep[side] = torch.from_numpy(table).to(device)
        return {side[0]: self._keep[side] for side in masked}

    def shown(self, side: Side, *, expert: Mapping[str, int], resident: Container[Side]) -> LanguageSide:
        """Return a side to show, given the bytes of an expert by stack and the sides that are in memory."""
        stack, mask = self._spec.stack(side[0]), self.masks[side]
        return LanguageSide(
            stack=stack.name,
            key=side[1],
            mask=mask,
            experts_of_layer=stack.experts,
            layers=stack.layers,
            bytes=size(mask) * expert[stack.name],
            resident=side in resident,
        )


def joining(sides: Sequence[Side]) -> tuple[Side, ...]:
    """Return those of some sides that a sentence needs only when it joins."""
    return tuple(side for side in sides if side[0] in _JOINING)


def staying(sides: Sequence[Side]) -> tuple[Side, ...]:
    """Return those that it needs until it is finished."""
    return tuple(side for side in sides if side[0] not in _JOINING)


def _every(stack: Stack) -> ExpertMask:
    return tuple(tuple(range(stack.experts)) for _ in stack.layers)


def _whole(spec: ModelSpec, pruning: ExpertPruning | None) -> bool:
    """Return whether no expert is missing."""
    return pruning is None or all(pruning.kept[stack.name] == _every(stack) for stack in spec.stacks)


def _check_whole(spec: ModelSpec, pruning: ExpertPruning | None) -> None:
    if pruning is not None and not _whole(spec, pruning):
        raise UsageError(
            "`full` must be False for a pruned checkpoint, which lacks experts, but is True instead; serve "
            f"{pruning.base_model} with masks."
        )


def _chosen(languages: Sequence[str], known: Sequence[str]) -> list[str]:
    codes = [language(name).code for name in languages]
    unknown = [code for code in codes if code not in known]
    if unknown:
        raise UsageError(f"`languages` must be of the model's, {', '.join(known)}, but has {unknown[0]} instead.")
    return list(dict.fromkeys(codes))
