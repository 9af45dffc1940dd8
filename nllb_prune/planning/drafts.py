"""Drafts: statistics and settings give the candidates of every mask."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from nllb_prune.calibration.statistics import ExpertStatistics, position_classes
from nllb_prune.errors import UsageError
from nllb_prune.masks import GLOBAL_KEY, MaskSet, mask_array
from nllb_prune.model.spec import Stack
from nllb_prune.planning.candidates import Candidates
from nllb_prune.planning.criteria import score
from nllb_prune.planning.divergence import layer_weights
from nllb_prune.planning.evidence import Evidence, FloatArray
from nllb_prune.planning.members import by_language, language_of, mask_within, members, tables_of
from nllb_prune.planning.protection import best_protected, largest_activations, super_experts
from nllb_prune.planning.selection import BoolArray
from nllb_prune.planning.settings import Settings
from nllb_prune.planning.sharing import Place

SHARED_KEY = "+"
"""Key of a draft that several languages share."""


class Drafts:
    """Makes the candidates of every mask."""

    def __init__(self, statistics: ExpertStatistics, settings: Settings) -> None:
        self._statistics, self._settings = statistics, settings
        self.super_experts: Mapping[str, BoolArray] = (
            super_experts(largest_activations(statistics)) if settings.protect_super else {}
        )

    def all(self) -> dict[Place, Candidates]:
        """Return the candidates of every mask; a single one a stack where a union has one budget."""
        drafts: dict[Place, Candidates] = {}
        for stack in self._statistics.spec.stacks:
            by_key = self._of_stack(stack)
            if self._settings.shared_budget and by_key:
                by_key = {SHARED_KEY: Candidates.shared(list(by_key.values()), level=self._settings.scope == "layer")}
            drafts |= {(stack.name, key): each for key, each in by_key.items()}
        return drafts

    def keys(self, stack: Stack) -> tuple[str, ...]:
        """Return the keys of the masks of a stack, also where they share a draft."""
        return tuple(self._members(stack))

    def _of_stack(self, stack: Stack) -> dict[str, Candidates]:
        settings = self._settings
        weights = self._weights(stack)
        drafts = {}
        for key, keys in self._members(stack).items():
            drafts[key] = Candidates.of(
                self._scores(stack, key, keys),
                settings.sharing,
                weights=weights.get(language_of(stack, key), weights[GLOBAL_KEY]),
                allowed=_allowed(settings.within, stack, key),
                protected=self._protected(stack, key, keys),
            )
        return drafts

    def _members(self, stack: Stack) -> dict[str, tuple[str, ...]]:
        return members(self._statistics, stack, self._settings.mask_granularity, self._settings.languages)

    def _scores(
        self, stack: Stack, key: str, keys: tuple[str, ...], *, position: str = "all", criterion: str | None = None
    ) -> FloatArray:
        evidence = self._evidence(stack, key, keys, position=position)
        settings = self._settings
        return score(criterion or settings.criterion, evidence, reverse=settings.reverse and criterion is None)

    def _evidence(self, stack: Stack, key: str, keys: tuple[str, ...], *, position: str) -> Evidence:
        how = self._settings.aggregation
        return Evidence(
            tables_of(self._statistics, stack, keys, aggregation=how, name=key, position=position),
            top_k=self._statistics.spec.top_k,
            weights=self._statistics.weights.get(stack.name),
            position=position_classes(stack).index(position),
            draw=f"{self._settings.seed}/{stack.name}/{key}",
        )

    def _weights(self, stack: Stack) -> dict[str, FloatArray]:
        """Return the weights of the layers by language, those of a mask for all under `*`."""
        even = np.ones(len(stack.layers))
        if self._settings.scope != "divergence":
            return {GLOBAL_KEY: even}
        groups, reference = by_language(self._statistics, stack), self._settings.reference
        if reference not in groups:
            raise UsageError(
                f"`reference` must have {stack.name} statistics ({', '.join(groups)}), but is {reference} instead."
            )
        masses = {name: self._scores(stack, name, keys, criterion="routing_mass") for name, keys in groups.items()}
        weights = layer_weights(masses, reference)
        return {**weights, GLOBAL_KEY: weights[reference]}

    def _protected(self, stack: Stack, key: str, keys: tuple[str, ...]) -> BoolArray | None:
        chosen = [self.super_experts[stack.name]] if self._settings.protect_super else []
        if self._settings.protect_end and stack.keyed_by != "source":
            at_end = self._scores(stack, key, keys, position="end")
            used = self._evidence(stack, key, keys, position="end").routed > 0
            chosen.append(best_protected(at_end, used, self._settings.protect_end))
        return np.logical_or.reduce(chosen) if chosen else None


def _allowed(within: MaskSet | None, stack: Stack, key: str) -> BoolArray | None:
    """Return which experts can be kept, by id."""
    return None if within is None else mask_array(mask_within(within, stack, key), stack.experts)
