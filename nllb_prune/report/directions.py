"""Every direction of every configuration, packed for the table of the page that sorts and filters."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from nllb_prune.evaluation.summary.summary import ConfigurationSummary, DirectionSummary, Summary
from nllb_prune.evaluation.summary.table import detectors
from nllb_prune.report.names import language_name, metric_name, second_metric

COLUMNS = ("chrf", "change", "low", "high", "q", "second", "length", "rate", "detector")
"""Of each direction: chrF++ and its change with the interval and q; the change of BLEU or spBLEU; length ratio; the
highest rate of a detector and which."""
SCALES = (10, 100, 10, 10, 1000, 100, 100, 1000, 1)
"""Numbers are whole: the value times these."""


def directions_data(summary: Summary) -> dict[str, Any]:
    """Return languages, configurations, the pairs of languages, and columns of whole numbers or null.

    A column in which nothing is known is null altogether.
    """
    pairs = [(d.source, d.target) for d in summary.configurations[0].directions]
    codes = sorted({code for pair in pairs for code in pair})
    index = {code: n for n, code in enumerate(codes)}
    names = detectors(summary)
    second = second_metric(summary)
    return {
        "languages": [[code, language_name(code)] for code in codes],
        "configurations": [c.name for c in summary.configurations],
        "baseline": summary.baseline,
        "second": None if second is None else metric_name(second),
        "detectors": list(names),
        "columns": list(COLUMNS),
        "scales": list(SCALES),
        "pairs": [index[code] for pair in pairs for code in pair],
        "values": [_values(c, pairs, names, second) for c in summary.configurations],
    }


def embedded(data: Any) -> str:
    """Return compact JSON that cannot end the script element it stands in."""
    return json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c")


def _values(
    configuration: ConfigurationSummary,
    pairs: Sequence[tuple[str, str]],
    names: Sequence[str],
    second: str | None,
) -> list[list[int | None] | None]:
    """Return the columns, each in the order of the pairs."""
    by_pair = {(d.source, d.target): d for d in configuration.directions}
    rows = [_row(by_pair[pair], names, second) if pair in by_pair else [None] * len(COLUMNS) for pair in pairs]
    columns = [list(column) for column in zip(*rows, strict=True)]
    return [None if all(each is None for each in column) else column for column in columns]


def _row(d: DirectionSummary, names: Sequence[str], second: str | None) -> list[int | None]:
    change = d.changes.get("chrf")
    rates = [d.figures.get(name) or 0.0 for name in names]
    most = max(range(len(names)), key=rates.__getitem__, default=None)
    numbers = (
        d.figures["chrf"],
        *((None,) * 4 if change is None else (change.value, change.low, change.high, change.q)),
        d.changes[second].value if second is not None and second in d.changes else None,
        d.figures["length_ratio"],
        None if most is None else rates[most],
        most,
    )
    return [None if n is None else round(n * scale) for n, scale in zip(numbers, SCALES, strict=True)]
