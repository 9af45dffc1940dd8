"""Checks of `Settings`: that what was asked exists, and goes together and with the statistics."""

from __future__ import annotations

from typing import get_args

from nllb_prune.calibration.fields import fields_of
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.errors import UsageError
from nllb_prune.planning.counts import check_overrides
from nllb_prune.planning.criteria import CRITERIA
from nllb_prune.planning.members import Aggregation, check_languages, languages_of
from nllb_prune.planning.memory import dtype_bytes
from nllb_prune.planning.scopes import SCOPES
from nllb_prune.planning.settings import BUDGETS, BudgetFor, PlanGranularity, Settings


def check_settings(settings: Settings, statistics: ExpertStatistics) -> None:
    """Refuse settings that make no plan.

    Raises:
        UsageError: naming the first that is wrong.
    """
    if not statistics.spec.stacks:
        raise UsageError("`model` must have sparse layers to prune, but is dense instead.")
    _check_choices(settings)
    _check_pairs(settings, statistics)
    _check_budget(settings, statistics)
    _check_memory(settings, statistics)
    _check_scope(settings)
    _check_protection(settings, statistics)
    if settings.languages is not None:
        check_languages(settings.languages, statistics)
    if settings.within is not None:
        settings.within.check_model(statistics.spec)
    if settings.overrides:
        _check_overrides(settings, statistics)


def least_of_layer(settings: Settings, statistics: ExpertStatistics) -> int:
    """Return the fewest experts of a layer.

    Raises:
        UsageError: if it is below the model's top-k.
    """
    top_k = statistics.spec.top_k
    if settings.minimum is None:
        return min(max(top_k, settings.sharing.minimum), *(stack.experts for stack in statistics.spec.stacks))
    if settings.minimum < top_k:
        raise UsageError(f"`minimum` must be {top_k} or more, the model's top-k, but is {settings.minimum} instead.")
    return settings.minimum


def _check_choices(settings: Settings) -> None:
    for name, value, choices in (
        ("criterion", settings.criterion, tuple(CRITERIA)),
        ("scope", settings.scope, tuple(SCOPES)),
        ("granularity", settings.granularity, get_args(PlanGranularity)),
        ("aggregation", settings.aggregation, get_args(Aggregation)),
        ("budget_for", settings.budget_for, get_args(BudgetFor)),
    ):
        if value not in choices:
            raise UsageError(f"`{name}` must be one of {', '.join(choices)}, but is {value} instead.")
    if settings.budget_for != "each" and settings.granularity != "union":
        raise UsageError(f"`budget_for` must be each for a mask per {settings.granularity}, but is union instead.")


def _check_pairs(settings: Settings, statistics: ExpertStatistics) -> None:
    needs_pairs = settings.granularity == "pair" or settings.aggregation == "mean-of-directions"
    if needs_pairs and statistics.granularity != "pair":
        what = "a mask per pair" if settings.granularity == "pair" else "mean-of-directions"
        raise UsageError(
            f"`statistics` must be of pairs for {what}, but are of languages instead. Calibrate with granularity pair."
        )


def _check_budget(settings: Settings, statistics: ExpertStatistics) -> None:
    given = [name for name in BUDGETS if getattr(settings, name) is not None]
    if len(given) != 1:
        found = " and ".join(given) or "none"
        raise UsageError(f"`budget` must be one of {', '.join(BUDGETS)}, but is {found} instead.")
    if settings.counts is not None and (settings.scope != "layer" or settings.ratio is not None):
        what = "a ratio" if settings.ratio is not None else f"the scope {settings.scope}"
        raise UsageError(f"`counts` must be given without {what}, as they say it all, but are given with it.")


def _check_memory(settings: Settings, statistics: ExpertStatistics) -> None:
    dtype_bytes(settings.dtype)
    if settings.memory is None:
        return
    if statistics.spec.parameters is None:
        raise UsageError(
            "`statistics` must have the model's parameter counts for a budget in bytes, but have none. Calibrate again."
        )
    if settings.granularity == "union" and settings.budget_for == "each":
        raise UsageError("`budget_for` must be union for a budget in bytes, but is each instead.")


def _check_scope(settings: Settings) -> None:
    if settings.sharing.mass and (settings.reverse or not CRITERIA[settings.criterion].mass):
        names = ", ".join(name for name, each in CRITERIA.items() if each.mass)
        what = f"{settings.criterion}{' reversed' if settings.reverse else ''}"
        raise UsageError(
            f"`criterion` must be one whose scores are parts of a whole ({names}) for the scope {settings.scope}, "
            f"but is {what} instead."
        )


def _check_protection(settings: Settings, statistics: ExpertStatistics) -> None:
    fewest = min(stack.experts for stack in statistics.spec.stacks)
    if not 0 <= settings.protect_end <= fewest:
        raise UsageError(f"`protect_end` must be 0 to {fewest} experts a layer, but is {settings.protect_end} instead.")
    fields = fields_of(("core", *CRITERIA[settings.criterion].groups)).values()
    if settings.protect_end and any(field.axes[0] != "class" for field in fields):
        raise UsageError(
            f"`protect_end` must be 0 for the criterion {settings.criterion}, which does not tell positions apart, "
            f"but is {settings.protect_end} instead."
        )


def _check_overrides(settings: Settings, statistics: ExpertStatistics) -> None:
    if settings.granularity == "global" or settings.shared_budget:
        raise UsageError("`overrides` must be left out where languages share a budget, but are given.")
    if settings.counts is not None:
        raise UsageError("`overrides` must be left out with `counts`, but are given.")
    least = statistics.spec.top_k if settings.minimum is None else settings.minimum
    check_overrides(settings.overrides, statistics.spec.stacks, languages_of(statistics), minimum=least)
