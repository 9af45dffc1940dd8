"""The configuration that a report is about."""

from __future__ import annotations

from collections.abc import Mapping

from nllb_prune.evaluation.summary.summary import Summary
from nllb_prune.masks import MaskSet
from nllb_prune.report.plans import planned

_NOT_MAIN = ("random", "frequency")  # criteria that others are compared with


def main_configuration(summary: Summary, masks: Mapping[str, MaskSet]) -> str | None:
    """Return the first configuration with masks per language by a real criterion, or else the first that is pruned."""
    compared = [c for c in summary.configurations if c.figure("chrf").change is not None]
    plans = [(c.name, planned(c, masks.get(c.name))) for c in compared]
    real = [n for n, p in plans if p is not None and p.granularity == "language" and p.criterion not in _NOT_MAIN]
    pruned = [c.name for c in compared if c.kept < 1]
    return next(iter([*real, *pruned]), None)
