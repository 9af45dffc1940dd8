"""`nllb-prune evaluate --detect-only`: detectors on a table of outputs from anywhere, judged by its labels."""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._detectors import detectors_of
from nllb_prune.cli._options import table
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

    from nllb_prune.evaluation.detectors.annotated import Annotated
    from nllb_prune.evaluation.detectors.judgement import Judgement

_COLUMNS = {
    "references": "reference",
    "full_outputs": "full_output",
    "mean_log_probabilities": "log_probability",
    "ended": "ended",
}
"""Columns of the table, by the field of `Outputs` they fill."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options that only `--detect-only` has; it uses `--lid-model`, `--threshold`, `--output`, `--json` too."""
    group = parser.add_argument_group("detectors alone, without a model")
    group.add_argument(
        "--detect-only",
        type=Path,
        metavar="TSV",
        help="a table with a header: source, output; if you have them reference, full_output, log_probability (mean "
        "over tokens), ended, source_language, target_language, label..., score...; `--output` is then a table",
    )
    group.add_argument("--source", metavar="LANGUAGE", help="of all sources of the table")
    group.add_argument("--target", metavar="LANGUAGE", help="of all outputs of the table")
    group.add_argument(
        "--languages",
        metavar="SET",
        help="languages that an output may be in: a set such as mini, or codes with commas (default: all of NLLB-200)",
    )


_OWN = ("source", "target", "languages")
_OTHERS = ("model", "masks", "dense", "suite", "statistics", "needs", "text", "directions", "beams", "ray", "baseline")


def check(options: argparse.Namespace) -> None:
    """Refuse options that would be ignored.

    Raises:
        UsageError: if options of this mode and of another are mixed.
    """
    alone = options.detect_only is not None
    for name in _OTHERS if alone else _OWN:
        if getattr(options, name):
            flag = "MODEL" if name == "model" else f"--{name}"
            how = "be left out with" if alone else "go with"
            raise UsageError(f"`{flag}` must {how} `--detect-only`, but {'is given' if alone else 'that is missing'}.")


def run(options: argparse.Namespace) -> None:
    """Detect, print the rates and the agreement with labels, and write the table with values and flags."""
    from nllb_prune.evaluation.detectors import flags, missing
    from nllb_prune.evaluation.detectors.annotated import Annotated
    from nllb_prune.evaluation.detectors.judgement import judge

    annotated = Annotated.read(options.detect_only, source=options.source, target=options.target)
    detectors = detectors_of(options, _languages(options.languages))
    values = annotated.values(detectors)
    flagged = {each.name: flags(each, values[each.name]) for each in detectors if each.name in values}
    kinds = {column: annotated.kinds(column) for column in annotated.labels}
    judgement = judge(detectors, values, kinds, scores=annotated.scores())
    first = annotated.outputs([0])
    left_out = {
        each.name: [_COLUMNS[field] for field in missing(each, first)] for each in detectors if each.name not in values
    }
    if options.output is not None:
        annotated.write(options.output, values, flagged)
    if options.json:
        print(json.dumps(_json(annotated, judgement, left_out), sort_keys=True, allow_nan=False))
    else:
        _show(judgement, left_out)


def _languages(text: str | None) -> tuple[str, ...]:
    from nllb_prune.languages import all_languages, language, language_set, language_set_names

    if text is None:
        return tuple(each.code for each in all_languages())
    if text in language_set_names():
        return language_set(text).codes
    return tuple(language(name).code for name in text.split(","))


def _json(annotated: Annotated, judgement: Judgement, left_out: Mapping[str, list[str]]) -> dict[str, Any]:
    return {"sentences": len(annotated.rows), **judgement.to_json(), "left_out": dict(left_out)}


def _show(judgement: Judgement, left_out: Mapping[str, list[str]]) -> None:
    rows = [[each.name, str(each.flagged), str(each.counted), _percent(each.rate)] for each in judgement.rates]
    print(table(("detector", "flagged", "of", "%"), rows))
    for column, results in judgement.labels.items():
        print(f"\n`{column}`: {judgement.faulty[column]} faulty")
        found = [
            [
                name,
                _number(each.auc),
                *map(_percent, (each.agreement.precision, each.agreement.recall, each.agreement.f1)),
            ]
            for name, each in results.items()
        ]
        print(table(("detector", "ROC AUC", "precision %", "recall %", "F1 %"), found))
        _show_kinds(results)
    for name, fields in left_out.items():
        print(f"{name} left out: no {', '.join(fields)}")
    print()
    for each in judgement.rates[:-1]:
        print(each.signature)


def _show_kinds(results: Mapping[str, Any]) -> None:
    kinds = list(next(iter(results.values())).kinds)
    if len(kinds) > 1:
        print("\nrecall % by kind")
        rows = [[name, *(_percent(each.kinds[kind]) for kind in kinds)] for name, each in results.items()]
        print(table(("detector", *kinds), rows))


def _percent(share: float | np.floating[Any]) -> str:
    return "" if math.isnan(share) else f"{100 * share:.1f}"


def _number(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
