"""The report as JSON: the summary of the evaluation, and what the page derives from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from math import isfinite
from typing import Any

from nllb_prune._version import __version__
from nllb_prune.evaluation.summary.groups import INTO_ENGLISH
from nllb_prune.evaluation.summary.summary import ConfigurationSummary, Summary
from nllb_prune.evaluation.summary.table import worst_detector
from nllb_prune.masks import MaskSet
from nllb_prune.report.main_configuration import main_configuration
from nllb_prune.report.series import BudgetSeries, budget_series, ratio_series
from nllb_prune.report.tables import worst

_FORMAT, _VERSION = "nllb-prune/report", 1


def report_json(summary: Summary, masks: Mapping[str, MaskSet] | None = None) -> dict[str, Any]:
    """Return the report as JSON values; `docs/report-format.md` describes them."""
    masks = {} if masks is None else masks
    content = {
        "format": _FORMAT,
        "version": _VERSION,
        "tool": f"nllb-prune {__version__}",
        "main": main_configuration(summary, masks),
        "overview": [_overview(c, summary) for c in summary.configurations],
        "budgets": [_budgets(series) for series in budget_series(summary, masks)],
        "ratios": [[asdict(point) for point in points] for points in ratio_series(summary, masks)],
        "evaluation": summary.to_json(),
    }
    found: dict[str, Any] = without_nan(content)
    return found


def without_nan(value: Any) -> Any:
    """Return JSON values with null for what could not be measured, as JSON has no NaN."""
    if isinstance(value, Mapping):
        return {key: without_nan(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [without_nan(each) for each in value]
    return None if isinstance(value, float) and not isfinite(value) else value


def _overview(configuration: ConfigurationSummary, summary: Summary) -> dict[str, Any]:
    full, detector = summary[summary.baseline].weight_bytes, worst_detector(configuration, summary)
    return {
        "name": configuration.name,
        "outcome": None if configuration.verdict is None else configuration.verdict.outcome,
        "kept": configuration.kept,
        "weight_bytes": configuration.weight_bytes,
        "weight_share": configuration.weight_bytes / full if full else None,
        "worst_directions": [d.direction for d in worst(configuration)],
        "worst_detector": None if detector is None else detector[0],
    }


def _budgets(series: BudgetSeries) -> dict[str, Any]:
    return {
        "title": series.title,
        "configurations": [c.name for c in series.configurations],
        "chrf": _points(series, "chrf"),
        "chrf_into_english": _points(series, "chrf", INTO_ENGLISH),
        "length_ratio": _points(series, "length_ratio"),
    }


def _points(series: BudgetSeries, *asked: str) -> list[dict[str, float]]:
    return [{"kept": kept, **asdict(change)} for kept, change in series.points(*asked)]
