"""`nllb-prune plan`: statistics to masks."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from nllb_prune.cli._options import table

HELP = "choose the experts to keep for each language"
EXAMPLE = "nllb-prune plan mini-statistics.safetensors --keep 0.25 --ratio 3:1 --output masks.json"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of the verb."""
    parser.add_argument("statistics", type=Path, metavar="STATISTICS", help="from `nllb-prune calibrate`")
    parser.add_argument("--keep", required=True, help="share of all experts (0.25) or their number (288)")
    parser.add_argument("--ratio", default="3:1", help="encoder to decoder experts (default: 3:1)")
    parser.add_argument("--criterion", default="importance", help="score of an expert (default: importance)")
    parser.add_argument("--granularity", choices=("language", "pair", "global"), default="language")
    parser.add_argument("--aggregation", choices=("pooled", "mean-of-directions"), default="pooled")
    parser.add_argument("--seed", type=int, default=0, help="of the `random` criterion")
    parser.add_argument("--output", type=Path, required=True, metavar="FILE", help="masks, `.json`")
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def run(options: argparse.Namespace) -> None:
    """Plan and write the masks."""
    from nllb_prune.calibration.statistics import ExpertStatistics
    from nllb_prune.planning import parse_kept, plan

    masks = plan(
        ExpertStatistics.load(options.statistics),
        criterion=options.criterion,
        kept=parse_kept(options.keep),
        ratio=options.ratio,
        granularity=options.granularity,
        aggregation=options.aggregation,
        seed=options.seed,
    )
    masks.save(options.output)
    if options.json:
        print(json.dumps({"output": str(options.output), "signature": masks.signature, "plan": masks.plan}))
        return
    print(describe(masks))
    print(f"written to {options.output}")


def describe(masks: object) -> str:
    """Say in a few lines what masks keep."""
    from nllb_prune.masks import MaskSet

    assert isinstance(masks, MaskSet)
    rows = []
    for stack in masks.stacks:
        by_key = masks.masks[stack.name]
        counts = sorted({tuple(len(layer) for layer in mask) for mask in by_key.values()})
        per_layer = "; ".join(", ".join(map(str, c)) for c in counts[:3]) + (" ..." if len(counts) > 3 else "")
        rows.append((stack.name, str(len(by_key)), per_layer, str(stack.experts)))
    lines = [table(("stack", "masks", "kept in each layer", "of"), rows)]
    lines += [f"note: {note}" for note in masks.plan.get("notes", ())]
    lines.append(f"{1 - masks.mean_kept_fraction():.2%} of the experts pruned; signature {masks.signature}")
    return "\n".join(lines)
