"""`nllb-prune stats`: look at statistics and add them up."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nllb_prune.cli._options import add_debug_to_actions, progress_bar, table

if TYPE_CHECKING:
    from nllb_prune.calibration.statistics import ExpertStatistics

HELP = "show statistics, or merge those of several machines"
EXAMPLE = "nllb-prune stats merge shard-*.safetensors --output statistics.safetensors"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the sub-verbs."""
    actions = parser.add_subparsers(dest="action", required=True, metavar="ACTION")
    show = actions.add_parser("show", help="tokens and busiest experts by language")
    show.add_argument("statistics", type=Path)
    show.add_argument("--json", action="store_true", help="print as JSON")
    merge = actions.add_parser("merge", help="add up statistics of different directions")
    merge.add_argument("statistics", type=Path, nargs="+")
    merge.add_argument("--output", type=Path, required=True)
    add_debug_to_actions((show, merge))


def run(options: argparse.Namespace) -> None:
    """Do the action."""
    from nllb_prune.calibration.statistics import ExpertStatistics

    if options.action == "merge":
        paths = progress_bar("merging")(options.statistics)
        merged = ExpertStatistics.merge_all(ExpertStatistics.load(path) for path in paths)
        merged.save(options.output)
        print(f"{options.output}: {len(merged.items)} directions")
        return
    statistics = ExpertStatistics.load(options.statistics)
    if options.json:
        print(json.dumps(_content(statistics)))
        return
    rows = [
        (f"{each['stack']} {each['key']}", f"{each['tokens']:,}", ", ".join(map(str, each["busiest"])))
        for each in _tables(statistics)
    ]
    groups = ", ".join(statistics.collect)
    print(f"{options.statistics}: {len(statistics.items)} directions, by {statistics.granularity}; groups {groups}")
    print(table(("table", "tokens", "busiest expert of each layer"), rows))
    print(", ".join(f"{name} {value}" for name, value in statistics.signature.items()))


def _content(statistics: ExpertStatistics) -> dict[str, Any]:
    return {
        "fingerprint": statistics.fingerprint.short,
        "granularity": statistics.granularity,
        "collect": list(statistics.collect),
        "digest": statistics.digest(),
        "directions": list(statistics.items),
        "signature": dict(statistics.signature),
        "tables": _tables(statistics),
    }


def _tables(statistics: ExpertStatistics) -> list[dict[str, Any]]:
    """Return, for each stack and key, its tokens and the expert of each layer that most tokens rank first."""
    tables = []
    for stack in statistics.spec.stacks:
        for key in statistics.keys(stack.name):
            found = statistics.table(stack.name, key)
            busiest = found["first"][0].argmax(axis=1).tolist()
            tables.append({"stack": stack.name, "key": key, "tokens": int(found["tokens"][0]), "busiest": busiest})
    return tables
