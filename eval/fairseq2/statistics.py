"""`calibrate` with both libraries' modules: counts, ranks and sums, and the masks that are planned from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from eval.fairseq2.common import ASSET, DEV, DIRECTIONS, fused
from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.calibration.fields import GROUPS, fields_of
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model
from nllb_prune.model.source import embedded_masks, load_tokenizer
from nllb_prune.on_fairseq2 import loading
from nllb_prune.on_fairseq2.card_reading import asset_card
from nllb_prune.planning.plan import plan

BUDGETS = (0.5, 0.25, 0.1875, 0.125)


def calibrated(model: Any, folder: Path, **how: Any) -> ExpertStatistics:
    """Spread dev lines of each target over its sources, and count."""
    return calibrate(model, load_tokenizer("mini"), DEV, DIRECTIONS, folder=folder, pairs_per_target="all", **how)


def study(work: Path, *, lines: int | None) -> dict[str, Any]:
    """Compare runs.

    Args:
        work: Keeps finished directions.
        lines: Of the dev text; all by default.
    """
    ours, theirs = load_model("mini"), loading.load_model("mini")
    by_fairseq2 = fused(asset_card(ASSET))
    few = 200 if lines is None else min(lines, 200)
    runs: dict[str, dict[str, Any]] = {
        "core": {"sentences": lines},
        "every group": {"sentences": few, "collect": tuple(GROUPS)},
        "own outputs": {"sentences": few, "mode": "outputs"},
        "within masks": {"sentences": few, "masks": MaskSet.load(embedded_masks()), "collect": ("core", "norms")},
    }
    compared = []
    for name, how in runs.items():
        one = calibrated(ours, work / f"{name}-ours", **how)
        compared.append({"run": name} | _compared(one, calibrated(theirs, work / f"{name}-theirs", **how)))
        if name == "core":
            other = calibrated(by_fairseq2, work / f"{name}-fused", **how)
            compared.append({"run": "core, fused attention"} | _compared(one, other))
    return {"runs": compared}


def _compared(ours: ExpertStatistics, theirs: ExpertStatistics) -> dict[str, Any]:
    fields: dict[str, dict[str, Any]] = {}
    for name, field in fields_of(ours.collect).items():
        pairs = [(table[name], theirs.tables[place][name]) for place, table in ours.tables.items() if name in table]
        pairs += [(table[name], theirs.weights[stack][name]) for stack, table in ours.weights.items() if name in table]
        gaps = [np.abs(one.astype(np.float64) - two.astype(np.float64)) for one, two in pairs]
        fields[name] = {
            "dtype": field.dtype,
            "cells": sum(gap.size for gap in gaps),
            "different": int(sum((gap > 0).sum() for gap in gaps)),
            "largest": float(max(gap.max() for gap in gaps)),
            "relative": float(
                max(gap.max() / max(np.abs(one).max(), 1e-30) for gap, (one, _) in zip(gaps, pairs, strict=True))
            ),
        }
    tokens = sum(int(table["tokens"][0]) for table in ours.tables.values())
    equal = [plan(ours, kept=kept).masks == plan(theirs, kept=kept).masks for kept in BUDGETS]
    return {"tokens": tokens, "fields": fields, "plans": len(BUDGETS), "equal plans": sum(equal)}
