"""Configurations that keep equally many experts and share them otherwise between encoder and decoder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nllb_prune.evaluation.summary import Summary
from nllb_prune.masks import MaskSet


@dataclass(frozen=True, slots=True)
class RatioPoint:
    """A configuration with the encoder's share of what it keeps."""

    name: str
    kept: int
    """Experts of the whole model that a direction keeps."""
    share: float
    """Of these in the encoder."""
    ratio: str
    """Encoder : decoder as it was asked for."""
    encoder: str
    """Experts kept in each sparse layer of the encoder."""
    decoder: str
    """Experts kept in each sparse layer of the decoder."""
    difference: float
    """Mean chrF++ minus the baseline's."""
    interval: tuple[float, float]


def ratio_series(summary: Summary, masks: Mapping[str, MaskSet]) -> list[list[RatioPoint]]:
    """Return the groups of two or more ratios that were planned alike, each in the order of the encoder's share."""
    planned: dict[tuple[Any, ...], list[RatioPoint]] = {}
    for name, each in masks.items():
        counts = each.plan.get("counts", {})  # lists by stack, or, where languages differ, by stack and language
        if set(counts) == {"encoder", "decoder"} and all(isinstance(layers, list) for layers in counts.values()):
            point = _point(summary, name, each.plan)
            alike = (each.granularity, each.plan.get("criterion"), each.plan.get("aggregation"), point.kept)
            planned.setdefault(alike, []).append(point)
    ordered = [sorted(group, key=lambda point: (point.share, point.name)) for group in planned.values()]
    return [group for group in ordered if len({point.share for point in group}) > 1]


def _point(summary: Summary, name: str, plan: Mapping[str, Any]) -> RatioPoint:
    encoder, decoder = plan["counts"]["encoder"], plan["counts"]["decoder"]
    kept, comparison = sum(encoder) + sum(decoder), summary[name].comparison
    return RatioPoint(
        name,
        kept,
        sum(encoder) / kept,
        ratio_of(plan),
        per_layer(encoder),
        per_layer(decoder),
        0.0 if comparison is None else comparison.difference,
        (0.0, 0.0) if comparison is None else (comparison.low, comparison.high),
    )


def ratio_of(plan: Mapping[str, Any]) -> str:
    """Return the ratio of a plan such as `3:1`; nothing if it was not planned with one."""
    weights = plan.get("budget", {}).get("ratio") or {}
    return ":".join(f"{weights[stack]:g}" for stack in ("encoder", "decoder") if stack in weights)


def per_layer(counts: Sequence[int]) -> str:
    """Return the experts of a layer, as a range if layers differ."""
    return str(min(counts)) if len(set(counts)) == 1 else f"{min(counts)}–{max(counts)}"
