"""Which experts a direction needs: from masks, or all that a model has."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import ExpertMask, mask_array, union
from nllb_prune.languages import Direction, language
from nllb_prune.masks import GLOBAL_KEY, MaskSet
from nllb_prune.model.pruned import ExpertPruning
from nllb_prune.model.spec import ModelSpec
from nllb_prune.serving.residency import Side

_JOINING = ("encoder",)
"""Stacks that a sentence runs through once, when it joins."""


class LanguageSides:
    """The language sides of a model.

    Args:
        spec: Of the model.
        masks: Of the model; `None` for all experts in every direction.
        pruning: What a pruned checkpoint says of itself.
        known: Languages of the tokenizer.
        languages: Serve these alone.

    Raises:
        UsageError: on masks of another model, and where no direction is left.
    """

    def __init__(
        self,
        spec: ModelSpec,
        masks: MaskSet | None,
        pruning: ExpertPruning | None,
        *,
        known: Sequence[str],
        languages: Sequence[str] | None = None,
    ) -> None:
        if masks is not None:
            masks.check_model(spec)
        self._spec, self._masks, self._pruning = spec, masks, pruning
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
        return dict(sorted(found.items()))

    def _mask(self, side: Side, direction: Direction) -> ExpertMask:
        if self._masks is not None:
            return self._masks.mask(side[0], *direction)
        if self._pruning is not None:
            return self._pruning.kept[side[0]]
        stack = self._spec.stack(side[0])
        return tuple(tuple(range(stack.experts)) for _ in stack.layers)

    @property
    def kept(self) -> dict[str, ExpertMask]:
        """Experts that any direction needs, by stack."""
        return {
            stack.name: union(mask for side, mask in self.masks.items() if side[0] == stack.name)
            for stack in self._spec.stacks
        }

    def check(self, source: str, target: str) -> None:
        """Refuse a direction that is not served.

        Raises:
            UsageError: with the languages that are.
        """
        if (source, target) in self._served:
            return
        for name, code, served in (("source", source, self.sources), ("target", target, self.targets)):
            if code not in served:
                raise UsageError(f"`{name}` must be one of {', '.join(served)}, but is {code} instead.")
        raise UsageError(f"`target` must be a language that {source} is translated into, but is {target} instead.")

    def of(self, source: str, target: str) -> tuple[Side, ...]:
        """Return the sides of a direction, by stack."""
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
        for side in sides:
            if side not in self._keep:
                table = mask_array(self.masks[side], self._spec.stack(side[0]).experts)
                self._keep[side] = torch.from_numpy(table).to(device)
        return {side[0]: self._keep[side] for side in sides}


def joining(sides: Sequence[Side]) -> tuple[Side, ...]:
    """Return those of some sides that a sentence needs only when it joins."""
    return tuple(side for side in sides if side[0] in _JOINING)


def staying(sides: Sequence[Side]) -> tuple[Side, ...]:
    """Return those that it needs until it is finished."""
    return tuple(side for side in sides if side[0] not in _JOINING)


def _chosen(languages: Sequence[str], known: Sequence[str]) -> list[str]:
    codes = [language(name).code for name in languages]
    unknown = [code for code in codes if code not in known]
    if unknown:
        raise UsageError(f"`languages` must be of the model's, {', '.join(known)}, but has {unknown[0]} instead.")
    return list(dict.fromkeys(codes))
