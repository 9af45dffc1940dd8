"""`Planner`: the steps from settings to masks."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.masks import ExpertMask, MaskSet, union
from nllb_prune.model.spec import Stack
from nllb_prune.planning import record
from nllb_prune.planning.budget import Counts, kept_of_pruned, possible_totals, ratio_notes, resolve_ratio, total_kept
from nllb_prune.planning.checks import check_settings, least_of_layer
from nllb_prune.planning.counts import explicit_counts
from nllb_prune.planning.drafts import Drafts
from nllb_prune.planning.members import language_of
from nllb_prune.planning.memory import largest_fit
from nllb_prune.planning.settings import Settings
from nllb_prune.planning.sharing import Place, Sharing


class Planner:
    """Plans one set of masks: resolves the budget, drafts, shares, selects, records."""

    def __init__(self, statistics: ExpertStatistics, settings: Settings) -> None:
        check_settings(settings, statistics)
        self._statistics, self._settings, self._spec = statistics, settings, statistics.spec
        self._minimum = least_of_layer(settings, statistics)
        self._weights = resolve_ratio(settings.stack_weights, self._spec.stacks)
        self._explicit = self._explicit_counts()
        self._asked = self._asked_total()
        self._drafts = Drafts(statistics, settings)
        self._sharing = self._share()
        self._total = self._fitting_total() if self._asked is None else self._asked
        self.counts: Mapping[Place, Counts] = self._sharing.counts(self._total)
        """How many experts the settings give each layer of each mask."""

    def masks(self, counts: Mapping[Place, Counts] | None = None, *, by_ratio: bool = True) -> MaskSet:
        """Select the experts of every mask: as many as the settings give, or other counts.

        Args:
            counts: of every mask.
            by_ratio: whether stacks share the budget by the ratio that was asked for, which notes are then about.
        """
        counts = self.counts if counts is None else counts
        self._check_available(counts)
        masks = {stack.name: self._masks_of(stack, counts) for stack in self._spec.stacks}
        return MaskSet(
            model_name=str(self._statistics.signature.get("model", self._spec.family)),
            fingerprint=self._statistics.fingerprint,
            stacks=self._spec.stacks,
            top_k=self._spec.top_k,
            granularity=self._settings.mask_granularity,
            masks=masks,
            plan=self._record(masks, counts, by_ratio=by_ratio),
        )

    def counts_of(self, totals: Mapping[Place, int]) -> dict[Place, Counts]:
        """Return how many experts each layer gets when masks have so many in all."""
        return {place: self._sharing.counts_of(place, total) for place, total in totals.items()}

    def orders(self) -> dict[Place, list[list[int]]]:
        """Return the experts that each layer of each mask can keep, in the order it takes them."""
        return {place: draft.possible() for place, draft in self._sharing.drafts.items()}

    @property
    def totals(self) -> dict[str, int]:
        """How many experts a direction is to keep in each stack."""
        return self._sharing.totals(self._total)

    @property
    def fixed(self) -> frozenset[Place]:
        """Masks whose counts were set by hand."""
        return frozenset(self._sharing.fixed)

    @property
    def minimum(self) -> int:
        """Fewest experts of a layer."""
        return self._minimum

    def _explicit_counts(self) -> dict[str, Counts]:
        """Return the counts of every layer by stack, if they were given."""
        if self._settings.counts is None:
            return {}
        return explicit_counts(self._settings.counts, self._spec.stacks, minimum=self._minimum)

    def _asked_total(self) -> int | None:
        """Return how many experts to keep, unless that depends on bytes."""
        settings, stacks = self._settings, self._spec.stacks
        if self._explicit:
            return sum(map(sum, self._explicit.values()))
        kept = settings.kept if settings.pruned is None else kept_of_pruned(settings.pruned, stacks)
        return None if kept is None else total_kept(kept, stacks, minimum=self._minimum)

    def _share(self) -> Sharing:
        drafts = self._drafts.all()
        if self._settings.languages is not None and not drafts:
            raise UsageError("`languages` must have statistics of directions between them, but have none.")
        return Sharing(
            stacks=self._spec.stacks,
            drafts=drafts,
            weights=self._weights,
            minimum=self._minimum,
            whole_model=self._settings.sharing.whole_model,
            by_side=self._settings.by_side,
            fixed={place: counts for place in drafts if (counts := self._fixed(place)) is not None},
        )

    def _fixed(self, place: Place) -> Counts | None:
        """Return the counts of a mask that were set by hand."""
        name, key = place
        if self._explicit:
            return self._explicit[name]
        stack = self._spec.stack(name)
        count = self._settings.overrides.get(language_of(stack, key), {}).get(name)
        return None if count is None else (count,) * len(stack.layers)

    def _fitting_total(self) -> int:
        """Return the largest number of experts with which every direction fits the memory."""
        budgets = possible_totals(self._spec.stacks, minimum=self._minimum)
        assert self._settings.memory is not None
        return largest_fit(self._settings.memory, budgets, self._bytes_of_total)

    def _bytes_of_total(self, total: int) -> int:
        assert self._spec.parameters is not None
        return self._sharing.bytes_of(total, parameters=self._spec.parameters, dtype=self._settings.dtype)

    def possible(self) -> bool:
        """Return whether there are enough experts to choose from."""
        drafts = self._sharing.drafts
        return all(
            count <= most
            for place, draft in drafts.items()
            for count, most in zip(self.counts[place], draft.available(), strict=True)
        )

    def _check_available(self, counts: Mapping[Place, Counts]) -> None:
        """Refuse counts for which `within` leaves too few experts."""
        for (stack, key), draft in self._sharing.drafts.items():
            for layer, (count, most) in enumerate(zip(counts[stack, key], draft.available(), strict=True)):
                if count > most:
                    raise UsageError(
                        f"`within` must keep {count} or more experts in layer {layer} of {stack}/{key} for this "
                        f"budget, but keeps {most} instead."
                    )

    def _masks_of(self, stack: Stack, counts: Mapping[Place, Counts]) -> dict[str, ExpertMask]:
        places = {key: (name, key) for name, key in self._sharing.drafts if name == stack.name}
        chosen = {key: self._sharing.drafts[place].select(counts[place]) for key, place in places.items()}
        if self._settings.granularity == "union" and chosen:
            return dict.fromkeys(self._drafts.keys(stack), union(chosen.values()))
        return chosen

    def _record(self, masks: record.Masks, counts: Mapping[Place, Counts], *, by_ratio: bool) -> dict[str, Any]:
        """Return how the masks were made, as JSON values."""
        settings, statistics = self._settings, self._statistics
        return {
            **settings.record(weights=self._weights, minimum=self._minimum),
            **record.protection(settings.protect_end, self._drafts.super_experts),
            **record.counts(masks, self._total),
            **record.size(masks, self._spec.parameters, settings.dtype, by_side=settings.by_side),
            "notes": self._notes(masks, counts, by_ratio=by_ratio),
            "statistics": record.statistics(statistics),
        }

    def _notes(self, masks: record.Masks, counts: Mapping[Place, Counts], *, by_ratio: bool) -> list[str]:
        scope, stacks = self._settings.sharing, self._spec.stacks
        notes: list[str] = []
        if by_ratio and not scope.whole_model and not self._explicit:
            notes += ratio_notes(stacks, self._total, weights=self._weights, minimum=self._minimum)
        if self._settings.minimum is None and self._minimum < scope.minimum:
            notes.append(f"The minimum is {self._minimum} experts a layer, not {scope.minimum}, as there are no more.")
        if scope.note:
            notes.append(scope.note)
        if scope.whole_model and self._settings.by_side:
            notes += record.spread(masks, self._total)
        if crowded := sum(draft.too_protected(counts[place]) for place, draft in self._sharing.drafts.items()):
            notes.append(
                f"A layer protects more experts than it keeps in {crowded} of the masks: the best of them stay."
            )
        return notes
