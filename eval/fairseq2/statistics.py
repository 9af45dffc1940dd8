"""`calibrate` with both libraries' modules: counts, ranks and sums, and the masks that are planned from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from eval.fairseq2.common import DEV, DIRECTIONS, timed
from nllb_prune.calibration.calibrate import calibrate
from nllb_prune.calibration.fields import GROUPS, fields_of
from nllb_prune.calibration.pairing import chosen_lines
from nllb_prune.calibration.statistics import ExpertStatistics
from nllb_prune.masks import MaskSet
from nllb_prune.model.loading import load_model
from nllb_prune.model.routing import RoutedTokens, routing
from nllb_prune.model.source import embedded_masks, load_tokenizer
from nllb_prune.model.teacher_forcing import BATCH_POSITIONS, forced_batch, forced_states
from nllb_prune.on_fairseq2 import loading
from nllb_prune.planning.plan import plan
from nllb_prune.tokenization import batches_by_length, encode

BUDGETS = (0.5, 0.25, 0.1875, 0.125)


def calibrated(model: Any, folder: Path, **how: Any) -> ExpertStatistics:
    """Spread dev lines of each target over its sources, and count."""
    return calibrate(model, load_tokenizer("mini"), DEV, DIRECTIONS, folder=folder, pairs_per_target="all", **how)


def study(work: Path, *, lines: int | None) -> dict[str, Any]:
    """Compare runs, and the order of experts token by token.

    Args:
        work: Keeps finished directions.
        lines: Of the dev text; all by default.
    """
    ours, theirs = load_model("mini"), loading.load_model("mini")
    few = 200 if lines is None else min(lines, 200)
    runs: dict[str, dict[str, Any]] = {
        "core": {"sentences": lines},
        "every group": {"sentences": few, "collect": tuple(GROUPS)},
        "own outputs": {"sentences": few, "mode": "outputs"},
        "within masks": {"sentences": few, "masks": MaskSet.load(embedded_masks()), "collect": ("core", "norms")},
    }
    compared = []
    for name, how in runs.items():
        told: dict[str, Any] = {"run": name}
        with timed(told, "seconds"):
            one = calibrated(ours, work / f"{name}-ours", **how)
        with timed(told, "their seconds"):
            two = calibrated(theirs, work / f"{name}-theirs", **how)
        compared.append(told | _compared(one, two))
    return {"runs": compared, "rankings": _rankings(ours, theirs, lines)}


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


class _Recorder:
    """An observer of routers that keeps what it is told."""

    wants_outputs = False

    def __init__(self) -> None:
        self.calls: list[RoutedTokens] = []

    def observe(self, stack: str, layer: int, routed: RoutedTokens) -> None:
        """Keep a call."""
        self.calls.append(routed)


def _rankings(ours: Any, theirs: Any, lines: int | None) -> dict[str, Any]:
    """Compare the order of the experts at every token of every sparse layer over the text of the core statistics."""
    tokenizer, text = load_tokenizer("mini"), DEV if lines is None else DEV.head(lines)
    told = {"tokens": 0, "ranked otherwise": 0, "chosen otherwise": 0}
    largest = {"probability": 0.0, "inversion": 0.0, "relative inversion": 0.0}
    for item in chosen_lines(DIRECTIONS, len(text.lines("eng_Latn")), "all"):
        sides = [encode(tokenizer, item.of(text.lines(code)), code) for code in item.direction]
        lengths = [max(map(len, pair)) for pair in zip(*sides, strict=True)]
        for group in batches_by_length(lengths, positions=BATCH_POSITIONS):
            some = [[side[n] for n in group] for side in sides]
            for one, two in zip(*(_observed(model, *some) for model in (ours, theirs)), strict=True):
                order = two.probabilities.sort(dim=-1, descending=True, stable=True).indices
                own = one.probabilities.sort(dim=-1, descending=True, stable=True).indices
                ranked = one.probabilities.gather(1, order).double()  # falls, but where the order is another
                fallen = ranked.flip(1).cummax(1).values.flip(1) - ranked
                told["tokens"] += len(order)
                told["ranked otherwise"] += int((order != own).any(1).sum())
                told["chosen otherwise"] += int((one.chosen != two.chosen).any(1).sum())
                found = {
                    "probability": (one.probabilities - two.probabilities).abs(),
                    "inversion": fallen,
                    "relative inversion": fallen / ranked,
                }
                largest = {name: max(value, float(found[name].max())) for name, value in largest.items()}
    return {**told, **largest}


def _observed(model: Any, sources: list[list[int]], targets: list[list[int]]) -> list[RoutedTokens]:
    recorder = _Recorder()
    with torch.inference_mode(), routing(model, observer=recorder):  # type: ignore[arg-type]
        forced_states(model, forced_batch(model, sources, targets))
    return recorder.calls
