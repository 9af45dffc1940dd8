"""`nllb-prune report`: scores to one HTML page, to JSON, TSV and Markdown; two evaluations compared."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nllb_prune.cli._evaluate_job import load_masks
from nllb_prune.cli._options import table
from nllb_prune.errors import UsageError

if TYPE_CHECKING:
    from nllb_prune.evaluation.summary.summary import Summary

HELP = "write scores, and what is behind them, as one HTML page"
EXAMPLE = "nllb-prune report --scores scores --masks masks.json --output report.html"

_OF_ONE = ("scores", "statistics", "masks", "tsv", "markdown")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument("--scores", type=Path, metavar="PATH", help="`summary.json` of `evaluate`, or its folder")
    what.add_argument("--compare", type=Path, nargs=2, metavar=("A", "B"), help="two of these, to set side by side")
    parser.add_argument(
        "--statistics", type=Path, metavar="FILE", help="from `nllb-prune calibrate`, to show the importance of experts"
    )
    parser.add_argument(
        "--masks",
        action="append",
        default=[],
        metavar="[NAME=]FILE",
        help="masks of a configuration, named as for `nllb-prune evaluate`; may be repeated",
    )
    parser.add_argument("--output", type=Path, metavar="FILE", help="the page, `.html`")
    parser.add_argument("--tsv", type=Path, metavar="FILE", help="spBLEU or BLEU, chrF++ and length by direction")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="a section for a model card")
    parser.add_argument("--json", action="store_true", help="print the report as JSON")


def run(options: argparse.Namespace) -> None:
    """Write what was asked for; without files to write, print the table."""
    if options.compare:
        _compare(options)
    else:
        _report(options)


def _report(options: argparse.Namespace) -> None:
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.evaluation.summary.table import HEADER, table_rows
    from nllb_prune.report.json_report import report_json
    from nllb_prune.report.page import check_inputs, write_report
    from nllb_prune.report.text_tables import directions_tsv, markdown

    summary = _load(options.scores)
    statistics = None if options.statistics is None else ExpertStatistics.load(options.statistics)
    masks = load_masks(options.masks)
    check_inputs(summary, statistics, masks)
    if options.output:
        write_report(options.output, summary=summary, statistics=statistics, masks=masks)
    _write(options.tsv, directions_tsv, summary)
    _write(options.markdown, markdown, summary)
    if options.json:
        print(json.dumps(report_json(summary, masks), ensure_ascii=False, sort_keys=True))
        return
    written = [path for path in (options.output, options.tsv, options.markdown) if path]
    _say_written(written)
    if not written:
        print(table(HEADER, table_rows(summary)))


def _compare(options: argparse.Namespace) -> None:
    from nllb_prune.report.compare import compare
    from nllb_prune.report.compare_page import INDEPENDENT, notice_lines, terminal_table, write_comparison

    given = [f"--{name}" for name in _OF_ONE if getattr(options, name)]
    if given:
        raise UsageError(
            f"`--compare` must come with `--output` and `--json` alone, but comes with {', '.join(given)}."
        )
    first, second = map(_load, options.compare)
    comparison = compare(first, second, names=_names(*options.compare))
    if options.output:
        write_comparison(options.output, comparison)
    if options.json:
        print(json.dumps(comparison.to_json(), ensure_ascii=False, sort_keys=True))
        return
    for line in notice_lines(comparison.notices):
        print(line)
    print(table(*terminal_table(comparison)))
    print(f"\n{comparison.names[1]} minus {comparison.names[0]}. {INDEPENDENT}")
    for name, only in zip(comparison.names, comparison.only, strict=True):
        if only:
            print(f"only {name} has {', '.join(only)}")
    _say_written([options.output] if options.output else [])


def _names(first: Path, second: Path) -> tuple[str, str]:
    """Return what to call two evaluations: their folders or files, with as much of the path as tells them apart."""
    paths = [each.parent if each.name == "summary.json" else each for each in (first.resolve(), second.resolve())]
    for count in range(1, max(len(each.parts) for each in paths) + 1):
        names = ["/".join(each.parts[-count:]) for each in paths]
        if names[0] != names[1]:
            return names[0], names[1]
    return "first", "second"


def _load(path: Path) -> Summary:
    from nllb_prune.evaluation.summary.summary import Summary

    return Summary.load(path / "summary.json" if path.is_dir() else path)


def _write(path: Path | None, make: Callable[[Summary], str], summary: Summary) -> None:
    from nllb_prune._files import write_text

    if path:
        write_text(path, make(summary))


def _say_written(paths: Sequence[Path]) -> None:
    for path in paths:
        print(f"written to {path} ({path.stat().st_size / 1024:,.0f} KiB)")
