"""`nllb-prune report`: scores to one HTML page."""

from __future__ import annotations

import argparse
from pathlib import Path

HELP = "write scores, and what is behind them, as one HTML page"
EXAMPLE = "nllb-prune report --scores scores/summary.json --masks masks.json --output report.html"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument(
        "--scores", type=Path, required=True, metavar="FILE", help="`summary.json` of `nllb-prune evaluate`"
    )
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
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="the page, `.html`")


def run(options: argparse.Namespace) -> None:
    """Write the page."""
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.evaluation.summary import Summary
    from nllb_prune.masks import MaskSet
    from nllb_prune.report.page import write_report

    named = [(Path(text.rpartition("=")[2]), text.rpartition("=")[0]) for text in options.masks]
    scores = options.scores / "summary.json" if options.scores.is_dir() else options.scores
    write_report(
        options.output,
        summary=Summary.load(scores),
        statistics=None if options.statistics is None else ExpertStatistics.load(options.statistics),
        masks={name or path.stem: MaskSet.load(path) for path, name in named},
    )
    print(f"written to {options.output} ({options.output.stat().st_size / 1024:,.0f} KiB)")
