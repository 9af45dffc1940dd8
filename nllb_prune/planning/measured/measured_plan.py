"""Plans that a model's measure decides: the ratio, the layers and the guard, one after the other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.expert_mask import size
from nllb_prune.masks import MaskSet
from nllb_prune.planning import record
from nllb_prune.planning.budget import Counts
from nllb_prune.planning.measured import language_ratio, layers, ratio
from nllb_prune.planning.measured.estimate import Span, estimate
from nllb_prune.planning.measured.guard import guard, step
from nllb_prune.planning.measured.measure import Measure, Meter, Told, covered
from nllb_prune.planning.measured.reserve import DEFAULT_RESERVE, AskedReserve, Reserve
from nllb_prune.planning.measured.tolerances import Tolerances
from nllb_prune.planning.memory import dtype_bytes
from nllb_prune.planning.planner import Planner
from nllb_prune.planning.settings import Settings, settings_of
from nllb_prune.planning.sharing import Place

Search = Literal["auto", "auto-per-language"]
SEARCHES = ("auto", "auto-per-language")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decisions:
    """What is left to the measure."""

    ratio: Search | None = None
    layers: Search | None = None
    guard: bool = False
    tolerances: Tolerances = field(default_factory=Tolerances)
    reserve: AskedReserve = field(default_factory=lambda: AskedReserve(DEFAULT_RESERVE))

    def __bool__(self) -> bool:
        """Whether anything is."""
        return self.guard or self.ratio is not None or self.layers is not None


def plan_measured(
    statistics: ExpertStatistics,
    measure: Measure,
    *,
    decisions: Decisions,
    told: Told | None = None,
    model_name: str | None = None,
    **options: Any,
) -> MaskSet:
    """Choose the experts of each language and let a measure on held-out text decide what is left to it.

    The ratio first, then the layers within each stack, then the guard, which lets masks grow beyond the budget.

    Args:
        statistics: Of the model.
        measure: Of the same model.
        decisions: What is left to the measure.
        told: Is told of every measure before it is made.
        model_name: What to call the model, as in `plan`.
        options: The other arguments of `plan`.

    Raises:
        UsageError: on what `plan` refuses, and on decisions that do not go together with it.
    """
    course = _Course.started(statistics, decisions, options)
    if decisions.ratio is not None:
        course.find_ratio(Meter(measure, told, "ratio"), by_language=decisions.ratio != "auto")
    if decisions.layers is not None:
        course.find_layers(Meter(measure, told, "layers"), by_language=decisions.layers != "auto")
    if decisions.guard:
        course.guard(measure, decisions, told)
    masks = course.finished(measure.signature)
    return masks if model_name is None else replace(masks, model_name=model_name)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prospect:
    """What is known of a plan before anything is measured."""

    masks: MaskSet
    """As they would be without a measure."""
    measures: Span
    """How many are to come."""


def prospect(statistics: ExpertStatistics, *, decisions: Decisions, **options: Any) -> Prospect:
    """Plan without a measure: what cannot be planned is refused before a model is loaded.

    Raises:
        UsageError: as `plan_measured`.
    """
    course = _Course.started(statistics, decisions, options)
    reserve = course.reserve(decisions.reserve, _largest_kept(course.masks))
    smallest = min(step(mask) for each in course.masks.masks.values() for mask in each.values())
    experts = reserve.limit // min(reserve.cost.values())
    return Prospect(masks=course.masks, measures=estimate(decisions, course.masks, reserve=experts, step=smallest))


class _Course:
    """A plan on its way."""

    def __init__(self, statistics: ExpertStatistics, settings: Settings) -> None:
        self.statistics, self.settings = statistics, settings
        self.planner = Planner(statistics, settings)
        self.masks = self.planner.masks()
        self.found: dict[str, Any] = {}
        self.tried: list[tuple[MaskSet, Planner]] = []
        """Masks of other ratios, and what planned them."""
        self.ratio: Mapping[str, float] | str | None = None
        """That was found, as it is recorded."""

    @classmethod
    def started(cls, statistics: ExpertStatistics, decisions: Decisions, options: Mapping[str, Any]) -> _Course:
        """Check what was asked and plan without a measure."""
        settings = settings_of(options)
        _check(decisions, settings)
        return cls(statistics, settings)

    def find_ratio(self, measure: Measure, *, by_language: bool) -> None:
        """Share the budget between the stacks."""
        stacks, own = self.masks.stacks, False
        if by_language:
            self.masks, found = language_ratio.search_language_ratios(
                self._with_ratio, self._with_totals, measure, stacks, fixed=self.planner.fixed
            )
            own = found["chosen"] == "per_language"
        else:
            self.masks, found = ratio.search_ratio(self._with_ratio, measure, stacks)
        self.found["ratio_search"] = found
        if own:
            self.ratio = "auto-per-language"
            return
        self.planner = next(planner for masks, planner in self.tried if masks is self.masks)
        self.ratio = {stack: float(total) for stack, total in self.planner.totals.items()}

    def find_layers(self, measure: Measure, *, by_language: bool) -> None:
        """Share the experts of each stack among its layers."""
        limits = {
            place: layers.Limits(self.planner.minimum, tuple(map(len, order)))
            for place, order in self.planner.orders().items()
            if place not in self.planner.fixed
        }
        self.masks, self.found["layer_search"] = layers.share_layers(
            counts_in(self.masks), self._with_counts, measure, limits=limits, by_language=by_language
        )

    def guard(self, measure: Measure, decisions: Decisions, told: Told | None) -> None:
        """Measure the masks and let them grow."""
        guarded = guard(
            self.masks,
            measure,
            self.planner.orders(),
            reserve=self.reserve(decisions.reserve, _mean_kept(self.masks, measure)),
            tolerances=decisions.tolerances,
            told=told,
        ).masks
        kept = _mean_kept(guarded, measure)
        sizes = record.size(
            guarded.masks, self.statistics.spec.parameters, self.settings.dtype, by_side=self.settings.by_side
        )
        self.masks = replace(guarded, plan={**guarded.plan, **record.counts(guarded.masks, round(kept)), **sizes})

    def finished(self, signature: Mapping[str, Any]) -> MaskSet:
        """Return the masks with all that was found in their plan."""
        plan = {**self.masks.plan, **self.found, "measured": dict(signature)}
        if self.ratio is not None:
            plan["budget"] = {**plan["budget"], "ratio": self.ratio}
        return replace(self.masks, plan=plan)

    def _with_ratio(self, weights: Mapping[str, float]) -> MaskSet | None:
        planner = Planner(self.statistics, replace(self.settings, ratio=weights))
        if not planner.possible():
            return None
        masks = planner.masks(by_ratio=False)
        self.tried.append((masks, planner))
        return masks

    def _with_counts(self, counts: Mapping[Place, Counts]) -> MaskSet:
        return self.planner.masks(counts, by_ratio=self.ratio is None)

    def _with_totals(self, totals: Mapping[Place, int]) -> MaskSet:
        return self.planner.masks(self.planner.counts_of(totals), by_ratio=False)

    def reserve(self, asked: AskedReserve, kept: float) -> Reserve:
        """Return what may be spent; a share is of so many experts that a direction keeps."""
        parameters, amount = self.statistics.spec.parameters, asked.amount
        names = [stack.name for stack in self.masks.stacks]
        if not asked.in_bytes:
            limit = round(amount * kept) if isinstance(amount, float) else amount
            return Reserve(limit=limit, cost=dict.fromkeys(names, 1))
        if parameters is None:
            raise UsageError(
                "`statistics` must have the model's parameter counts for a reserve in bytes, but have none. "
                "Calibrate again."
            )
        each = dtype_bytes(self.settings.dtype)
        return Reserve(limit=int(amount), cost={name: parameters.expert[name] * each for name in names}, unit="bytes")


def counts_in(masks: MaskSet) -> dict[Place, Counts]:
    """Return how many experts each layer of each mask keeps."""
    return {(stack, key): tuple(map(len, mask)) for stack, each in masks.masks.items() for key, mask in each.items()}


def _mean_kept(masks: MaskSet, measure: Measure) -> float:
    """Return how many experts a direction keeps on average."""
    directions = covered(masks, measure)
    return sum(masks.kept(*direction) for direction in directions) / len(directions)


def _largest_kept(masks: MaskSet) -> float:
    return float(sum(max(map(size, each.values()), default=0) for each in masks.masks.values()))


def _check(decisions: Decisions, settings: Settings) -> None:
    """Refuse decisions that contradict the settings.

    Raises:
        UsageError: naming what to leave out.
    """
    for name, value in (("ratio", decisions.ratio), ("layers", decisions.layers)):
        if value not in (None, *SEARCHES):
            raise UsageError(f"`{name}` must be {' or '.join(SEARCHES)}, but is {value} instead.")
    by_mask = decisions.guard or decisions.layers is not None or decisions.ratio == "auto-per-language"
    if settings.granularity == "union" and by_mask:
        raise UsageError("`granularity` must be language, pair or global for masks that are measured, but is union.")
    if decisions.ratio is None:
        return
    if settings.ratio is not None or settings.counts is not None or settings.sharing.whole_model:
        what = "a ratio" if settings.ratio is not None else "counts" if settings.counts is not None else settings.scope
        raise UsageError(f"`ratio` must be left out or given, but is both {decisions.ratio} and set by {what}.")
    if settings.granularity == "union" and not settings.shared_budget:
        raise UsageError(
            "`budget_for` must be union for a ratio that is found, as unions of equal budgets differ in size, but is "
            "each instead."
        )
    if decisions.ratio == "auto-per-language" and settings.granularity != "language":
        raise UsageError(
            f"`granularity` must be language for a ratio per language, but is {settings.granularity} instead."
        )
    if decisions.ratio == "auto-per-language" and settings.memory is not None:
        raise UsageError(
            "`memory` must be left out for a ratio per language, as directions between two languages keep more or "
            "less than either, but is given. Give `kept`, and see what the largest direction takes."
        )
