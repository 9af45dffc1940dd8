"""Choices that need a measure of the model: the ratio, the layers, and the guard that masks must pass."""

from nllb_prune.planning.measured.guard import Guarded, guard
from nllb_prune.planning.measured.measure import Measure
from nllb_prune.planning.measured.measured_plan import Decisions, Prospect, plan_measured, prospect
from nllb_prune.planning.measured.reserve import AskedReserve, Reserve, parse_reserve
from nllb_prune.planning.measured.tolerances import Tolerances, parse_tolerances

__all__ = [
    "AskedReserve",
    "Decisions",
    "Guarded",
    "Measure",
    "Prospect",
    "Reserve",
    "Tolerances",
    "guard",
    "parse_reserve",
    "parse_tolerances",
    "plan_measured",
    "prospect",
]
