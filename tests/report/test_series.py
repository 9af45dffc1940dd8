from dataclasses import replace

import pytest

from nllb_prune.report.main_configuration import main_configuration
from nllb_prune.report.plans import per_layer, planned, ratio_of
from nllb_prune.report.series import budget_series, ratio_series

RATIOS = {name: {"ratio": name} for name in ("1:2", "3:1", "1:1")}
BUDGETS = {"a75": {"ratio": "3:1"}, "a50": {"ratio": "3:1"}, "b50": {"ratio": "1:1"}, "random": {"ratio": "3:1"}}


def without_plans(summary):
    return replace(summary, configurations=tuple(replace(c, plan={}) for c in summary.configurations))


@pytest.mark.parametrize("source", ["summary", "masks"])
def test_ratios_that_were_planned_alike_are_one_series(inputs, source):
    given = (inputs.summary, {}) if source == "summary" else (without_plans(inputs.summary), inputs.masks)
    (series,) = ratio_series(*given)
    assert [point.name for point in series] == ["ratio-1-2", "ratio-1-1", "ratio-2-1", "per-language"]
    assert [point.ratio for point in series] == ["1:2", "1:1", "2:1", "3:1"]
    assert [(point.encoder, point.decoder) for point in series][-1] == ("24", "8")
    assert series[-1].share == 0.75
    assert series[0].change == inputs.summary["ratio-1-2"].figure("chrf").change


def test_budgets_that_were_planned_alike_are_one_series(inputs):
    plans = {**BUDGETS, "random": {"ratio": "3:1", "criterion": "random"}}
    effects = {"full": (0.0, 0.0), "a75": (-0.1, 0.0), "a50": (-1, 0.0), "b50": (-1, 0.0), "random": (-9, 0.0)}
    summary = inputs.make_summary(effects=effects, plans=plans, kept={"a75": 0.75, "a50": 0.5, "b50": 0.5})
    (series,) = budget_series(summary, {})
    assert [c.name for c in series.configurations] == ["a50", "a75"]
    assert series.title == "per language, importance, 3:1"
    assert series.points("chrf") == [
        (share, summary[name].figure("chrf").change) for share, name in ((0.5, "a50"), (0.75, "a75"))
    ]
    assert series.points("chrf", "no such group") == []


def test_one_budget_is_no_series(inputs):
    assert budget_series(inputs.summary, inputs.masks) == []


def test_masks_given_for_some_do_not_part_a_series(inputs):
    effects = {"full": (0.0, 0.0), "half": (-0.1, 0.0), "per-language": (-1, 0.0)}
    plans = {name: {"ratio": "3:1"} for name in effects}
    summary = inputs.make_summary(effects=effects, plans=plans, kept={"half": 0.5})
    (series,) = budget_series(summary, {"per-language": inputs.masks["per-language"]})
    assert len(series.configurations) == 2


def test_full_models_were_not_planned(inputs):
    assert planned(inputs.summary["full"], None) is None
    assert planned(inputs.summary["global"], None).title == "one for all, importance, 3:1"


@pytest.mark.parametrize(
    ("plan", "ratio"),
    [
        ({"ratio": {"encoder": 3.0, "decoder": 1.0}}, "3:1"),
        ({"ratio": None, "budget": {"ratio": {"encoder": 1, "decoder": 2.5}}}, "1:2.5"),
        ({"ratio": "3:1"}, "3:1"),
        ({}, ""),
    ],
)
def test_ratios_are_written_alike(plan, ratio):
    assert ratio_of(plan) == ratio


def test_layers_that_differ_are_a_range():
    assert [per_layer([8, 8]), per_layer([8, 4, 6])] == ["8", "4–8"]


def test_the_report_is_about_masks_per_language(inputs):
    first = replace(inputs.summary, configurations=inputs.summary.configurations[::-1])
    assert main_configuration(first, {}) == "ratio-2-1"
    assert main_configuration(inputs.summary, {}) == "per-language"
    assert main_configuration(without_plans(first), inputs.masks) == "ratio-2-1"
    assert main_configuration(inputs.make_summary(effects={"full": (0.0, 0.0), "global": (-1, 0.0)}), {}) == "global"
    assert main_configuration(inputs.make_summary(effects={"full": (0.0, 0.0)}), {}) is None
